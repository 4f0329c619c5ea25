"""Kill changes of a device's reviews at each SQL statement and each change of the disk, and look at what is left.

A program that tests run: its children are forked from a process that has no threads.

    python tests/crashing_reviews.py ROOT     an empty directory

It prints one line for each instant at which something was killed, and one where nothing was: what was going on, and how many predictions waited
and how many decisions were there afterwards.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from crashing_data import kill_at
from umbel._review.store import ReviewStore

Change = Callable[[ReviewStore], object]


def store(root: Path) -> ReviewStore:
    return ReviewStore(root / "reviews.db", root / "reviews.key")


def add(reviews: ReviewStore) -> None:
    reviews.add("digits", [("new1", 1.0, b"x"), ("new2", 1.0, b"y")], now_s=1.0)


def decide(reviews: ReviewStore) -> None:
    reviews.decide("digits", "old1", b"seven", at_s=1.0)


def killed(root: Path, change: Change, number: int) -> bool:
    """Make a change in a child that is killed at an instant; False if it was done before that."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), f"{change.__name__} {number}: {code}"
        return code != 0
    code = 70  # Whatever was raised.
    try:
        kill_at(number)
        change(store(root))
        code = 0
    finally:
        os._exit(code)


def main(root: Path) -> None:
    for change, held in ((add, 0), (add, 2), (decide, 2)):
        before = root / f"{change.__name__}{held}"
        before.mkdir()
        if held:
            reviews = store(before)
            reviews.add("digits", [(f"old{number}", 1.0, b"z") for number in range(held)], now_s=1.0)
            reviews.close()
        for number in itertools.count(1):
            after = root / "after"
            shutil.copytree(before, after)
            going_on = killed(after, change, number)
            reviews = store(after)
            waiting, decided = reviews.cases("digits"), reviews.records("digits")
            reviews.add("digits", [("last", 1.0, b"")], now_s=1.0)  # Nothing stands in the way of going on.
            assert len(reviews.cases("digits")) == len(waiting) + 1
            reviews.close()
            print(f"{change.__name__} {held} {len(waiting)}+{len(decided)}", flush=True)
            shutil.rmtree(after)
            if not going_on:
                break


if __name__ == "__main__":
    main(Path(sys.argv[1]))

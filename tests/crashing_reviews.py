"""Kill changes of a device's reviews at each SQL statement and each change of the disk, and look at what is left.

    python tests/crashing_reviews.py ROOT     an empty directory

It prints one line for each instant at which something was killed, and one where nothing was: what was going on, and how many predictions waited
and how many decisions were there afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from crashing import instants
from umbel._review.store import ReviewStore

Change = Callable[[ReviewStore], object]


def store(root: Path) -> ReviewStore:
    return ReviewStore(root / "reviews.db", root / "reviews.key")


def add(reviews: ReviewStore) -> None:
    reviews.add("digits", [("new1", 1.0, b"x"), ("new2", 1.0, b"y")])


def decide(reviews: ReviewStore) -> None:
    reviews.decide("digits", "old1", b"seven", at_s=1.0)


def main(root: Path) -> None:
    for change, held in ((add, 0), (add, 2), (decide, 2)):
        before = root / f"{change.__name__}{held}"
        before.mkdir()
        if held:
            reviews = store(before)
            reviews.add("digits", [(f"old{number}", 1.0, b"z") for number in range(held)])
            reviews.close()
        for after, _, _ in instants(before, lambda copy, change=change: change(store(copy))):  # type: ignore[misc]
            reviews = store(after)
            waiting, decided = reviews.cases("digits"), reviews.records("digits")
            reviews.add("digits", [("last", 1.0, b"")])  # Nothing stands in the way of going on.
            assert len(reviews.cases("digits")) == len(waiting) + 1
            reviews.close()
            print(f"{change.__name__} {held} {len(waiting)}+{len(decided)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

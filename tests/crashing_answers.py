"""Kill a device that takes an answer from afar at each SQL statement and each change of the disk, and let it go on.

A program that tests run: its children are forked from a process that has no threads.

    python tests/crashing_answers.py HOME ANSWER ROOT     a device, the signed answer, an empty directory

It prints one line for each instant at which something was killed, and one where nothing was: what was decided after the
device was started again and given the answer again, and what it tells the fleet became of the review.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from pathlib import Path

from crashing_data import kill_at
from umbel import Device

NOW_S = 1.8e9


def take(home: Path, answer: bytes) -> list[str]:
    """Take an answer and let the fleet know; return who decided what."""
    with Device.open(home, online=False, clock=lambda: NOW_S) as device:
        device._desk.take([answer])
        rulings = device.model("digits").review.rulings()
    return [f"{each.label}/{each.by}" for each in rulings]


def killed(home: Path, answer: bytes, number: int) -> bool:
    """Take an answer in a child that is killed at an instant; False if it was done before that."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), f"{number}: {code}"
        return code != 0
    code = 70  # Whatever was raised.
    try:
        kill_at(number)
        take(home, answer)
        code = 0
    finally:
        os._exit(code)


def main(home: Path, answer: bytes, root: Path) -> None:
    for number in itertools.count(1):
        after = root / "after"
        shutil.copytree(home, after)
        going_on = killed(after, answer, number)
        decided = take(after, answer)
        with Device.open(after, online=False, clock=lambda: NOW_S) as device:
            waiting = len(device.model("digits").review.pending())
            with device._desk.store.changing() as db:
                [(state, how)] = db.execute("SELECT state, how FROM announced")
        print(f"{','.join(decided)} {waiting} {state} {how}", flush=True)
        shutil.rmtree(after)
        if not going_on:
            break


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).read_bytes(), Path(sys.argv[3]))

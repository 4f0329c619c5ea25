"""Kill a device that takes an answer from afar at each SQL statement and each change of the disk, and let it go on.

    python tests/crashing_answers.py HOME ANSWER     a device, the signed answer

It prints one line for each instant at which something was killed, and one where nothing was: what was decided after the
device was started again and given the answer again, and what it tells the fleet became of the review.
"""

from __future__ import annotations

import sys
from pathlib import Path

from crashing import instants
from umbel import Device

NOW_S = 1.8e9


def take(home: Path, answer: bytes) -> list[str]:
    """Take an answer and let the fleet know; return who decided what."""
    with Device.open(home, online=False, clock=lambda: NOW_S) as device:
        device._desk.take([answer])
        rulings = device.model("digits").review.rulings()
    return [f"{each.label}/{each.by}" for each in rulings]


def main(home: Path, answer: bytes) -> None:
    for place, _, _ in instants(home, lambda copy: take(copy, answer)):
        decided = take(place, answer)
        with Device.open(place, online=False, clock=lambda: NOW_S) as device:
            waiting = len(device.model("digits").review.pending())
            with device._desk.store.changing() as db:
                [(state, how)] = db.execute("SELECT state, how FROM announced")
        print(f"{','.join(decided)} {waiting} {state} {how}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).read_bytes())

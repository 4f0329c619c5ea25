"""Kill ``umbel train --out`` at each change of the disk, and look at what is left.

    python tests/crashing_train.py DIR     a directory with digits.umbel, release.pub and examples.npz

It prints ``old`` or ``new`` for each instant: which parameters the file held that was there before.
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

from crashing import in_child, instants
from umbel.cli import app


def train(place: Path) -> None:
    """Train in this process, as the command line does."""
    data, key = str(place / "examples.npz"), str(place / "release.pub")
    words = ["train", str(place / "digits.umbel"), "--release-key", key, "--data", data, "--heldout", data]
    with contextlib.redirect_stdout(io.StringIO()):
        app([*words, "--rounds", "1", "--out", str(place / "out.params")], standalone_mode=False)


def main() -> None:
    template = Path(sys.argv[1])
    assert in_child(lambda: train(template)) == 0
    new, old = (template / "out.params").read_bytes(), b"the parameters of an earlier evening"
    (template / "out.params").write_bytes(old)
    names = {path.name for path in template.iterdir()}
    for place, number, killed in instants(template, train):
        found = (place / "out.params").read_bytes()
        assert found in (old, new), (number, found[:40])
        print("new" if found == new else "old", flush=True)
        if killed:  # What the killed one left stands in nobody's way, and goes.
            assert in_child(lambda place=place: train(place)) == 0  # type: ignore[misc]
        assert (place / "out.params").read_bytes() == new, number
        assert {path.name for path in place.iterdir()} == names, number


if __name__ == "__main__":
    main()

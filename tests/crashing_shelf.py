"""Kill an installation at each of its changes of the disk, one after another, and look at what the shelf holds.

    python tests/crashing_shelf.py DEVICE KEY     a directory with a shelf and a file ``new.umbel`` to install, and its release key

It prints one line for each instant at which an installation was killed: which version was active afterwards, and
whether the new one was then taken at once or only after it was asked to retry.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import onnxruntime  # noqa: F401  # Once here, instead of in every child.

from crashing import in_child, instants
from umbel._releases.shelf import Shelf
from umbel_proto.errors import RefusedError
from umbel_proto.keys import VerifyKey

REFUSED = 3


def opened(device: Path, key: VerifyKey) -> Shelf:
    return Shelf(device / "shelf", key)


def install(device: Path, key: VerifyKey) -> None:
    """Install the package; exit as REFUSED if that is so."""
    part = device / "new.umbel"
    try:
        opened(device, key).install(part.read_bytes(), file=part, clock=itertools.count().__next__)
    except RefusedError:
        sys.exit(REFUSED)


def main(template: Path, key: VerifyKey) -> None:
    """Do what the module says."""
    for device, _, killed in instants(template, lambda copy: install(copy, key)):
        if not killed:
            return
        shelf = opened(device, key)
        active = shelf.active("digits")
        assert active is not None
        assert shelf.package(active).manifest.version == active.version
        again = in_child(lambda device=device: install(device, key))  # type: ignore[misc]
        if again == REFUSED:
            assert [failure.version for failure in shelf.versions.retry("digits")] == [2]
        assert again in (0, REFUSED)
        assert in_child(lambda device=device: install(device, key)) == 0  # type: ignore[misc]
        taken, before = shelf.active("digits"), shelf.previous("digits")
        assert taken is not None
        assert before is not None
        assert (shelf.package(taken).manifest.version, shelf.package(before).manifest.version) == (2, 1)
        left = {path.name for path in (device / "shelf" / "packages").iterdir()}
        assert left == {taken.sha256, before.sha256}, left
        assert not list((device / "shelf" / "marks").iterdir())
        print(active.version, "at once" if again == 0 else "retried", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), VerifyKey(bytes.fromhex(sys.argv[2])))

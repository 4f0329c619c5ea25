"""Kill changes of a data set at each SQL statement and each change of the disk, and look at what is left.

    python tests/crashing_data.py ROOT PACKAGE KEY     an empty directory, a package, and its release key

It prints one line for each instant at which something was killed: what was going on, and how many examples were there
afterwards.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

from crashing import instants
from umbel._data.consent import Consent
from umbel._data.dataset import DataSet
from umbel._data.rows import Retention
from umbel._home.directory import DeviceHome
from umbel._releases.package import load_package
from umbel_proto.keys import VerifyKey
from umbel_proto.manifest import Manifest

HELD = 4


def images(manifest: Manifest, count: int) -> np.ndarray:
    return np.zeros((count, *manifest.contract.fields[0].shape), np.float32)


def add(home: DeviceHome, manifest: Manifest) -> None:
    with DataSet(home, manifest) as data:
        data.add(images(manifest, 3), [1, 2, 3], source="user")


def retain(home: DeviceHome, manifest: Manifest) -> None:
    with DataSet(home, manifest) as data:
        data.retain(Retention(max_rows=1))


def revoke(home: DeviceHome, manifest: Manifest) -> None:
    Consent(home).revoke()


def left(home: DeviceHome, manifest: Manifest) -> int:
    """Return how many examples there are, each whole and with its label."""
    with DataSet(home, manifest) as data:
        examples = data.examples()
        assert all(example.y is not None for example in examples)
        return len(examples)


def try_all(root: Path, manifest: Manifest) -> None:
    for change, before, outcomes in (
        (add, 0, {0, 3}),
        (add, HELD, {HELD, HELD + 3}),
        (retain, HELD, {HELD, 1}),
        (revoke, HELD, {HELD, 0}),
    ):
        template = root / "template"
        shutil.rmtree(template, ignore_errors=True)
        home = DeviceHome(template)
        home.make()
        if before:
            with DataSet(home, manifest) as data:
                data.add(images(manifest, before), np.arange(before), source="user")
        work = lambda copy, change=change: change(DeviceHome(copy), manifest)  # noqa: E731
        for place, number, _ in instants(template, work):
            home = DeviceHome(place)
            found = left(home, manifest)
            print(change.__name__, before, found, flush=True)
            assert found in outcomes, (change.__name__, number, found)
            if change is revoke:
                revoked = Consent(home).decision().state == "revoked"
                assert (found == 0, home.examples_key.exists()) == (revoked, not revoked), number
                Consent(home).grant()
            with DataSet(home, manifest) as data:  # Nothing stands in the way of going on.
                data.add(images(manifest, 1), [9], source="user")
            assert left(home, manifest) in (found + 1, 1 if change is retain else found + 1)


if __name__ == "__main__":
    package = load_package(Path(sys.argv[2]), release_key=VerifyKey(bytes.fromhex(sys.argv[3])))
    try_all(Path(sys.argv[1]), package.manifest)

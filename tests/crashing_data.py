"""Kill changes of a data set at each SQL statement and each change of the disk, and look at what is left.

A program that tests run: its children are forked from a process that has no threads.

    python tests/crashing_data.py ROOT PACKAGE KEY     an empty directory, a package, and its release key

It prints one line for each instant at which something was killed: what was going on, and how many examples were there
afterwards.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from umbel._data.consent import Consent
from umbel._data.dataset import DataSet
from umbel._data.rows import Retention
from umbel._home.directory import DeviceHome
from umbel._releases.package import load_package
from umbel_proto.keys import VerifyKey
from umbel_proto.manifest import Manifest

CHANGES = ("write", "fsync", "fchmod", "replace", "unlink")
HELD = 4


def kill_at(number: int) -> None:
    """Let this process be killed just before its n-th SQL statement or change of the disk, counted from now."""
    left = itertools.count(number, -1)

    def step(*_: object) -> None:
        if next(left) == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            step()
            return change(*args, **options)

        return call

    for name in CHANGES:
        setattr(os, name, watched(getattr(os, name)))
    connect = sqlite3.connect

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        connection.set_trace_callback(step)
        return connection

    sqlite3.connect = traced  # type: ignore[assignment]


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


def killed(
    home: DeviceHome, manifest: Manifest, change: Callable[[DeviceHome, Manifest], None], number: int
) -> bool:
    """Make a change in a child that is killed at an instant; False if it was done before that."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), f"{change.__name__} {number}: {code}"
        return code != 0
    code = 1
    try:
        kill_at(number)
        change(home, manifest)
        code = 0
    finally:
        os._exit(code)


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
        for number in itertools.count(1):
            place = root / "killed"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(template, place)
            home = DeviceHome(place)
            going_on = killed(home, manifest, change, number)
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
            if not going_on:
                break


if __name__ == "__main__":
    package = load_package(Path(sys.argv[2]), release_key=VerifyKey(bytes.fromhex(sys.argv[3])))
    try_all(Path(sys.argv[1]), package.manifest)

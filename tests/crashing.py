"""Kill an installation at each of its changes of the disk, one after another, and look at what the shelf holds.

A program that tests run: its children are forked from a process that has no threads.

    python tests/crashing.py SHELF PACKAGE KEY     a shelf, a package to install on copies of it, and its release key

It prints one line for each instant at which an installation was killed: which version was active afterwards, and
whether the new one was then taken at once or only after it was asked to retry.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime  # noqa: F401  # Once here, instead of in every child.

from umbel._releases.shelf import Shelf
from umbel_proto.errors import RefusedError
from umbel_proto.keys import VerifyKey

CHANGES = ("fsync", "fchmod", "chmod", "rename", "replace", "link", "unlink", "mkdir", "rmdir")
REFUSED = 3


def kill_at(number: int) -> None:
    """Let this process be killed just before its n-th change of the disk, counted from now.

    What has not reached the disk by then is lost: a file that was written and not flushed keeps its first half.
    """
    left = itertools.count(number, -1)
    written: dict[int, int] = {}  # What is not on the disk yet: a descriptor by inode.

    def die() -> None:
        for descriptor in written.values():
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def watched(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if next(left) == 1:
                if name == "fsync" and stat.S_ISREG(os.fstat(args[0]).st_mode):
                    with contextlib.suppress(OSError):  # Opened for reading: it was written before.
                        os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
                die()
            result = change(*args, **options)
            if name == "fsync":
                written.pop(os.fstat(args[0]).st_ino, None)
            return result

        return call

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        result = real_open(file, mode, *args, **options)
        if set(mode) & set("wax+"):
            written[os.fstat(result.fileno()).st_ino] = os.dup(result.fileno())
            if next(left) == 1:
                die()
        return result

    real_open = io.open
    io.open = opened
    for name in CHANGES:
        setattr(os, name, watched(name, getattr(os, name)))


def install(shelf: Shelf, part: Path, kill: int | None) -> int:
    """Install a package in a child, and return how that ended: 0, REFUSED, or minus a signal's number."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        if kill is not None:
            kill_at(kill)
        shelf.install(part.read_bytes(), file=part, clock=itertools.count().__next__)
        code = 0
    except RefusedError:
        code = REFUSED
    finally:
        os._exit(code)


def main(template: Path, package: Path, key: bytes) -> None:
    """Do what the module says."""
    for number in itertools.count(1):
        root = template.with_name(f"killed-{number}")
        shutil.copytree(template, root)
        part = root.with_suffix(".part")
        shutil.copyfile(package, part)
        code = install(Shelf(root, VerifyKey(key)), part, number)
        if code == 0:
            return
        assert code == -signal.SIGKILL, f"{number}: {code}"
        shelf = Shelf(root, VerifyKey(key))
        active = shelf.active("digits")
        assert active is not None
        assert shelf.package(active).manifest.version == active.version
        again = install(shelf, part, None)
        if again == REFUSED:
            assert [failure.version for failure in shelf.versions.retry("digits")] == [2]
        assert again in (0, REFUSED)
        assert install(shelf, part, None) == 0
        taken, before = shelf.active("digits"), shelf.previous("digits")
        assert taken is not None
        assert before is not None
        assert (shelf.package(taken).manifest.version, shelf.package(before).manifest.version) == (2, 1)
        left = {path.name for path in (root / "packages").iterdir()}
        assert left == {taken.sha256, before.sha256}, left
        assert not list((root / "marks").iterdir())
        print(active.version, "at once" if again == 0 else "retried", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), bytes.fromhex(sys.argv[3]))

"""Kills what changes a disk at one instant after another, and lets one look at what is left.

For the programs ``crashing_*.py``, which tests run (`crashed`) because children are forked: from a process without threads.
Each says what is changed, and what holds wherever it was killed; what kills and begins anew is here.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

CHANGES = ("write", "fsync", "fchmod", "chmod", "rename", "replace", "link", "unlink", "mkdir", "rmdir")
RAISED = 70


class Instant(NamedTuple):
    """What one kill left.

    Args:
        place: The directory that was changed.
        number: The how manieth step it was killed before.
        killed: False where it was done before that: the last of all.
    """

    place: Path
    number: int
    killed: bool


def crashed(program: str, *arguments: object) -> list[str]:
    """Run one of the programs and return the lines that it printed; it fails with what the program said."""
    words = [sys.executable, str(Path(__file__).with_name(program)), *map(str, arguments)]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return ran.stdout.splitlines()


def instants(
    template: Path,
    work: Callable[[Path], object],
    kill: Callable[[int], object] | None = None,
    *,
    before: Callable[[Path], object] = lambda _: None,
) -> Iterator[Instant]:
    """Change copies of a directory, each in a child that is killed one step later, until one is done before that.

    Args:
        template: The directory; it stays as it is. Its name with ``-killed`` is the copies'.
        work: What changes a copy.
        kill: Lets the child be killed at its n-th step, counted from 1; by default `kill_at`.
        before: What goes on in this process before each.
    """
    kill = kill or kill_at
    place = template.with_name(f"{template.name}-killed")
    for number in itertools.count(1):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(template, place)
        before(place)
        code = in_child(lambda: work(place), lambda number=number: kill(number))  # type: ignore[misc]
        assert code in (0, -signal.SIGKILL), f"{number}: {code}"
        yield Instant(place, number, code != 0)
        if code == 0:
            break
    shutil.rmtree(place)


def in_child(work: Callable[[], object], kill: Callable[[], object] = lambda: None) -> int:
    """Do something in a child, and return how that ended: an exit code, or minus a signal's number."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = RAISED
    try:
        kill()
        work()
        code = 0
    except SystemExit as exc:
        code = int(exc.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def countdown(number: int, dying: Callable[[], object] = lambda: None) -> Callable[..., None]:
    """Return a step: this process is killed when it comes to the n-th.

    Args:
        number: The how manieth, counted from 1.
        dying: What happens just before.
    """
    left = itertools.count(number, -1)

    def step(*_: object) -> None:
        if next(left) == 1:
            dying()
            os.kill(os.getpid(), signal.SIGKILL)

    return step


def kill_at(number: int) -> None:
    """Let this process be killed just before its n-th change of the disk or SQL statement, counted from now.

    What has not reached the disk by then is lost: a file that was written and not flushed keeps its first half.
    """
    written: dict[int, int] = {}  # What is not on the disk yet: a descriptor by inode.

    def lose() -> None:
        for descriptor in written.values():
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)

    step = countdown(number, lose)

    def watched(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            step()
            result = change(*args, **options)
            if name == "fsync":
                written.pop(os.fstat(args[0]).st_ino, None)
            return result

        return call

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        result = real_open(file, mode, *args, **options)
        if set(mode) & set("wax+"):
            written[os.fstat(result.fileno()).st_ino] = os.dup(result.fileno())
            step()
        return result

    def connected(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = real_connect(*args, **options)
        connection.set_trace_callback(step)
        return connection

    real_open, real_connect = io.open, sqlite3.connect
    io.open, sqlite3.connect = opened, connected  # type: ignore[assignment]
    for name in CHANGES:
        setattr(os, name, watched(name, getattr(os, name)))

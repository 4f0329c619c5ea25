"""A process of the console's own that makes what takes seconds of processor time, so that no page waits for Python's lock.

A thread that computes lets the others run every five milliseconds, and a page asks for that lock at each of its
hundred reads and writes. What is made here only yields to pages: it is nice. It is one process, started when somebody
looks and ended when nobody did for a while; between both go pickles, over pipes that nobody else has.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from sqlalchemy import URL

from umbel_proto.errors import UnavailableError
from umbel_server.store.database import Database
from umbel_server.store.store import Store

IDLE_S = 300.0
"""After so long without work it ends, and its memory with it."""
NICE = 15
_LENGTH = struct.Struct(">Q")
_STORE = "store"

T = TypeVar("T")


class Worker:
    """The process that makes figures, one after the other, for all who look."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._over = False

    def run(self, store: Store, make: Callable[[], T]) -> T:
        """Return what a call returns that runs in the process, at the time by the store's clock.

        Args:
            store: The store; the process has one of the same database.
            make: Of functions of modules and of values that can be pickled, as ``functools.partial`` makes it; the
                store may be one of them.

        Raises:
            Exception: The call raised it.
            UnavailableError: The process ended before it answered, twice.
        """
        work = io.BytesIO()
        pickler = _Pickler(work)
        pickler.dump((store.database.where, store.clock()))
        pickler.dump(make)
        with self._lock:
            if self._over:
                raise UnavailableError("The console stops.")
            try:
                told = self._ask(work.getvalue())
            except (OSError, EOFError):
                self._end()  # It had nothing to do for long, or was killed: another one does it.
                if self._over:
                    raise UnavailableError("The console stops.") from None
                try:
                    told = self._ask(work.getvalue())
                except (OSError, EOFError) as exc:
                    self._end()
                    raise UnavailableError(
                        "The process that makes these figures ended before it had: look again."
                    ) from exc
        value, failure = pickle.loads(told)  # noqa: S301  # What a process of our own says.
        if failure is not None:
            raise failure
        return cast(T, value)

    def stop(self) -> None:
        """End the process, whatever it does; nothing is made any more."""
        self._over = True
        process = self._process
        if process is not None:
            process.kill()  # Whoever waits for it has the lock.
        with self._lock:
            self._end()

    def _ask(self, work: bytes) -> bytes:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        _write(self._process.stdin, work)
        return _read(self._process.stdout)

    def _end(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            with process:  # Closes the pipes, and waits for it.
                pass


class _Pickler(pickle.Pickler):
    """Pickles all but the store, which the other process has."""

    def persistent_id(self, obj: Any) -> str | None:
        return _STORE if isinstance(obj, Store) else None


class _Work(pickle.Unpickler):
    """Reads what is to be made, in the process that makes it."""

    def __init__(self, work: bytes, held: _Held) -> None:
        super().__init__(io.BytesIO(work))
        self._held = held

    def make(self) -> Any:
        """Return what was to be made."""
        self._held.hold(*self.load())
        return self.load()()

    def persistent_load(self, pid: Any) -> Store:
        assert pid == _STORE
        return self._held.store


class _Held:
    """The store that the process has open, and the time that it is for whoever asked."""

    def __init__(self) -> None:
        self._store: Store | None = None
        self._now_s = 0.0

    @property
    def store(self) -> Store:
        assert self._store is not None
        return self._store

    def hold(self, where: Path | URL, now_s: float) -> None:
        """Have this store open, which is brought up to date already, and no other."""
        self._now_s = now_s
        if self._store is None or self._store.database.where != where:
            if self._store is not None:
                self._store.close()
            self._store = Store(Database(where), lambda: self._now_s)


WORKER = Worker()
"""The console's."""
atexit.register(WORKER.stop)


def _write(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(_LENGTH.pack(len(message)) + message)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes:
    """Return the next message.

    Raises:
        EOFError: There is none: the other side ended.
    """
    header = pipe.read(_LENGTH.size)
    if len(header) == _LENGTH.size:
        (length,) = _LENGTH.unpack(header)
        message = pipe.read(length)
        if len(message) == length:
            return message
    raise EOFError


def _made(work: bytes, held: _Held) -> bytes:
    """Return what came of it, and why it failed, as a pickle: one of both is None."""
    try:
        found = pickle.dumps((_Work(work, held).make(), None))
    except Exception as exc:  # Whoever asked is told.
        try:
            found = pickle.dumps((None, exc))
            pickle.loads(found)  # noqa: S301  # Ours.
        except Exception:  # Some keep more than their words.
            found = pickle.dumps((None, RuntimeError(f"{type(exc).__name__}: {exc}")))
    return found


def _serve() -> None:
    """Make what is asked for until nobody asks."""
    with contextlib.suppress(PermissionError):  # A sandbox may refuse it: then it makes them as all else.
        os.nice(NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Whoever interrupts the console closes the pipe too.
    asked, told = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # What prints does not do it between two pickles.
    held = _Held()
    while select.select([asked], [], [], IDLE_S)[0]:
        try:
            work = _read(asked)
        except EOFError:
            return
        _write(told, _made(work, held))


if __name__ == "__main__":
    _serve()

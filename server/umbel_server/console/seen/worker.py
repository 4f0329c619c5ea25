"""A process of the console's own that makes what takes seconds of processor time, so that no page waits for Python's lock.

A thread that computes lets the others run every five milliseconds, and a page asks for that lock at each of its
hundred reads and writes. What is made here only yields to pages: it is nice. It is one process, started when somebody
looks and ended when nobody did for a while; between both go lines of JSON, over pipes that nobody else has.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast, get_type_hints

from pydantic import TypeAdapter
from sqlalchemy import URL, make_url

from umbel_proto import errors
from umbel_proto.errors import UmbelError, UnavailableError
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.database import Database
from umbel_server.store.store import Store

IDLE_S = 300.0
"""After so long without work it ends, and its memory with it."""
NICE = 15

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """The process that makes figures, one after the other, for all who look."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._over = False

    def run(
        self,
        make: Callable[Concatenate[FleetDir, Store, P], T],
        fleet: FleetDir,
        store: Store,
        *asked: P.args,
        **_: P.kwargs,
    ) -> T:
        """Return what a function returns that runs in the process, at the time by the store's clock.

        Args:
            make: A module's own function, with the types of what it takes and returns: those that pydantic reads and
                writes as JSON.
            fleet: The fleet.
            store: The store; the process has one of the same database.
            asked: What else the function takes, by place.

        Raises:
            UmbelError: The function raised it, or the like of it.
            RuntimeError: The function raised something else.
            UnavailableError: The process ended before it answered, twice.
        """
        where = store.database.where
        work = {
            "make": [make.__module__, make.__qualname__],
            "fleet": _plain(FleetDir, fleet),
            "url": where.render_as_string(hide_password=False) if isinstance(where, URL) else "",
            "file": "" if isinstance(where, URL) else str(where),
            "now_s": store.clock(),
            "asked": [_plain(type(each), each) for each in asked],
        }
        with self._lock:
            if self._over:
                raise UnavailableError("The console stops.")
            try:
                told = self._ask(work)
            except (OSError, EOFError):
                self._end()  # It had nothing to do for long, or was killed: another one does it.
                if self._over:
                    raise UnavailableError("The console stops.") from None
                try:
                    told = self._ask(work)
                except (OSError, EOFError) as exc:
                    self._end()
                    raise UnavailableError(
                        "The process that makes these figures ended before it had: look again."
                    ) from exc
        if "failed" in told:
            raise RuntimeError(told["failed"])
        if "error" in told:
            raise _error(told["error"], told["sentence"])
        return cast(T, _adapter(get_type_hints(make)["return"]).validate_python(told["made"]))

    def stop(self) -> None:
        """End the process, whatever it does; nothing is made any more."""
        self._over = True
        process = self._process
        if process is not None:
            process.kill()  # Whoever waits for it has the lock.
        with self._lock:
            self._end()

    def _ask(self, work: Mapping[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(work).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        told: dict[str, Any] = json.loads(line)
        return told

    def _end(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            # Closes the pipes, and waits for it; what was not read of the last request cannot be written any more.
            with contextlib.suppress(BrokenPipeError), process:
                pass


class _Held:
    """The store that the process has open, and the time that it is for whoever asked."""

    def __init__(self) -> None:
        self._store: Store | None = None
        self._now_s = 0.0

    def store(self, where: Path | URL, now_s: float) -> Store:
        """Return this store, which is brought up to date already; no other stays open."""
        self._now_s = now_s
        if self._store is None or self._store.database.where != where:
            if self._store is not None:
                self._store.close()
            self._store = Store(Database(where), lambda: self._now_s)
        return self._store


WORKER = Worker()
"""The console's."""
atexit.register(WORKER.stop)


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _plain(kind: Any, value: object) -> Any:
    """Return a value as JSON has it."""
    return _adapter(kind).dump_python(value, mode="json")


def _error(kind: str, sentence: str) -> UmbelError:
    """Return an error of this kind, or an ordinary one where the kind takes more than a sentence."""
    try:
        made = getattr(errors, kind)(sentence)
    except TypeError:
        return UmbelError(sentence)
    return cast(UmbelError, made) if str(made) == sentence else UmbelError(sentence)


def _made(work: Mapping[str, Any], held: _Held) -> dict[str, Any]:
    """Return what came of it, or why it failed."""
    try:
        module, name = work["make"]
        make = getattr(import_module(module), name)
        kinds = get_type_hints(make)
        returned = kinds.pop("return")
        asked = [
            _adapter(kind).validate_python(each)
            for kind, each in zip([*kinds.values()][2:], work["asked"], strict=True)
        ]
        fleet = _adapter(FleetDir).validate_python(work["fleet"])
        where = make_url(work["url"]) if work["url"] else Path(work["file"])
        return {"made": _plain(returned, make(fleet, held.store(where, work["now_s"]), *asked))}
    except UmbelError as exc:
        known = next(kind.__name__ for kind in type(exc).__mro__ if kind.__module__ == errors.__name__)
        return {"error": known, "sentence": str(exc)}
    except Exception as exc:  # Whoever asked is told.
        return {"failed": f"{type(exc).__name__}: {exc}"}


def _serve() -> None:
    """Make what is asked for until nobody asks."""
    with contextlib.suppress(PermissionError):  # A sandbox may refuse it: then it makes them as all else.
        os.nice(NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Whoever interrupts the console closes the pipe too.
    asked, told = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # What prints does not do it between two lines.
    held = _Held()
    while select.select([asked], [], [], IDLE_S)[0]:
        line = asked.readline()
        if not line.endswith(b"\n"):
            return
        told.write(json.dumps(_made(json.loads(line), held)).encode() + b"\n")
        told.flush()


if __name__ == "__main__":
    _serve()

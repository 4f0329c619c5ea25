"""Several services as processes of one: started, watched, started again, and drained together."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from umbel_proto.errors import UnavailableError
from umbel_server.keep import FIRST_PAUSE_S, LAST_PAUSE_S, STEADY_S
from umbel_server.signals import StopSignals, end_with_parent

DRAIN_S = 15.0
"""How long a service may take to end after SIGTERM: the gateway gives its calls 5 s. Then it is killed."""
TICK_S = 0.05

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """What is to run.

    Args:
        name: What it is, for people.
        command: The program and its arguments; it prints ``ready ...`` when it is.
        first: Whether the others need it: it starts before them, and stops after them.
    """

    name: str
    command: tuple[str, ...]
    first: bool = False


@dataclass(eq=False, slots=True)
class _Running:
    """One service's process, or the pause before its next."""

    service: Service
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    due_s: float | None = None
    ready: bool = False
    was_ready: bool = False
    unread: bytearray = field(default_factory=bytearray)


class FailedError(UnavailableError):
    """A service ended before it was ever ready; it said why itself.

    Args:
        name: The service.
        code: What it exited with.
    """

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} did not start (it exited with {code}, and says why above).")
        # A signal's number is negative here; a shell adds it to 128.
        self.exit_code = code if code > 0 else 128 - code  # type: ignore[misc]


class Supervisor:
    """Runs services until told to stop.

    One that ends before it was ever ready ends them all: its settings are wrong, and trying again would hide that.
    One that ends later is started again, less and less often.

    Args:
        services: What to run.
        environment: The environment of each.
        on_line: Takes every line that a service prints.
        on_ready: Called once, when all are ready for the first time.
    """

    def __init__(
        self,
        services: Sequence[Service],
        environment: Mapping[str, str],
        *,
        on_line: Callable[[str], None],
        on_ready: Callable[[], None],
    ) -> None:
        self._all = [_Running(service) for service in services]
        # Readiness is this process's own to tell, and each service would tell it of itself.
        self._environment = {key: value for key, value in environment.items() if key != "NOTIFY_SOCKET"}
        self._on_line = on_line
        self._on_ready = on_ready
        self._told = False
        self._selector = selectors.DefaultSelector()

    def run(self, stop: StopSignals) -> None:
        """Run the services until SIGTERM or SIGINT.

        Raises:
            FailedError: A service did not start; the others were stopped.
            UnavailableError: A program does not exist.
        """
        try:
            while not stop.came(TICK_S):
                self._turn()
        finally:
            self._drain()
            self._selector.close()

    def _turn(self) -> None:
        now_s = time.monotonic()
        begun = all(each.was_ready for each in self._all if each.service.first)
        for each in self._all:
            if each.process is None and (each.service.first or begun) and now_s >= (each.due_s or 0.0):
                self._start(each, now_s)
        self._listen()
        for each in self._all:
            if each.process is not None and each.process.poll() is not None:
                self._ended(each, time.monotonic())
        if not self._told and all(each.ready for each in self._all):
            self._told = True
            self._on_ready()

    def _start(self, each: _Running, now_s: float) -> None:
        try:
            each.process = subprocess.Popen(
                each.service.command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C reaches this process, which stops them in their order.
                preexec_fn=_begin,
            )
        except OSError as exc:
            raise UnavailableError(f"{each.service.name} cannot be started: {exc.strerror}.") from exc
        each.started_s, each.ready = now_s, False
        each.unread.clear()
        assert each.process.stdout is not None
        os.set_blocking(each.process.stdout.fileno(), False)
        self._selector.register(each.process.stdout, selectors.EVENT_READ, each)

    def _listen(self) -> None:
        for key, _ in self._selector.select(0):
            each: _Running = key.data
            data = os.read(key.fd, 65536)
            if not data:
                self._selector.unregister(key.fileobj)
                continue
            each.unread += data
            *lines, rest = each.unread.split(b"\n")
            each.unread = bytearray(rest)
            for line in lines:
                self._heard(each, line.decode(errors="replace"))

    def _heard(self, each: _Running, line: str) -> None:
        if line.startswith("ready ") and not each.ready:
            each.ready = each.was_ready = True
        self._on_line(line)

    def _ended(self, each: _Running, now_s: float) -> None:
        assert each.process is not None
        code = each.process.returncode
        self._forget(each)
        if not each.was_ready:
            raise FailedError(each.service.name, code)
        if now_s - each.started_s >= STEADY_S:
            each.pause_s = FIRST_PAUSE_S
        log.warning(
            "%s ended with code %d: it is started again in %g s", each.service.name, code, each.pause_s
        )
        each.due_s = now_s + each.pause_s
        each.pause_s = min(2 * each.pause_s, LAST_PAUSE_S)

    def _forget(self, each: _Running) -> None:
        assert each.process is not None
        assert each.process.stdout is not None
        with contextlib.suppress(KeyError):
            self._selector.unregister(each.process.stdout)
        each.process.stdout.close()
        each.process, each.ready = None, False

    def _drain(self) -> None:
        for first in (False, True):
            leaving = [each for each in self._all if each.process and each.service.first is first]
            for each in leaving:
                if each.process is not None:
                    each.process.terminate()
            until_s = time.monotonic() + DRAIN_S
            for each in leaving:
                self._end(each, until_s)

    def _end(self, each: _Running, until_s: float) -> None:
        assert each.process is not None
        try:
            each.process.wait(max(until_s - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            log.warning("%s does not stop: it is killed", each.service.name)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(each.process.pid, signal.SIGKILL)
            each.process.wait()
        self._forget(each)


def _begin() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # What this process holds back, that one shall hear.
    end_with_parent(signal.SIGTERM)

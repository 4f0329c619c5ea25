"""Processes that a program starts, watches and always ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from umbel_proto.errors import UmbelError, UnavailableError
from umbel_server.signals import end_with_parent

COMMAND_TIMEOUT_S = 120.0
GRACE_S = 5.0
"""How long a process may take to end after SIGTERM; then it is killed."""
_STOP = (signal.SIGINT, signal.SIGTERM)


@dataclass(eq=False)
class Process:
    """One running process and its log.

    Args:
        name: What it is, for messages.
        log: Where its standard error goes; its standard output too.
    """

    name: str
    log: Path
    popen: subprocess.Popen[bytes] = field(repr=False)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.popen.poll() is None

    def says(self, text: str) -> bool:
        """Whether its log holds ``text``."""
        return text.encode() in self.log.read_bytes()

    def last_words(self) -> str:
        """Return the last line of its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def kill(self) -> None:
        """End it at once, as a power cut would, with all it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


class Command:
    """A command that runs to its end, as a user would run it.

    Args:
        name: What it is, for messages.
        popen: The running process.
    """

    def __init__(self, name: str, popen: subprocess.Popen[str]) -> None:
        self._name = name
        self._popen = popen

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def finish(self) -> str:
        """Wait for its end and return what it printed.

        Raises:
            UmbelError: It failed; the message is its own.
        """
        out, error = self._popen.communicate(timeout=COMMAND_TIMEOUT_S)
        if self._popen.returncode != 0:
            lines = error.strip().splitlines() or ["it said nothing"]
            raise UmbelError(f"{self._name} failed: {lines[-1].removeprefix('Error: ')}")
        return out

    def stop(self) -> None:
        """End it, if it still runs."""
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.communicate()


class Supervisor:
    """Starts processes and ends all of them when left, however it is left.

    Each process has a session of its own, so that Ctrl-C at the terminal reaches this program
    first; on Linux, the kernel also ends them if this program is killed.

    Args:
        logs: The directory of their logs.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._processes: list[Process] = []
        self._commands: list[Command] = []
        self._interrupted = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Supervisor:
        """From here on SIGTERM is heard like Ctrl-C, and neither can get lost."""
        self._before = {number: signal.signal(number, self._interrupt) for number in _STOP}
        return self

    def _interrupt(self, *_: object) -> None:
        # Python drops an exception that a signal raises inside some callbacks, such as those around a fork.
        # The flag remembers.
        self._interrupted = True
        raise KeyboardInterrupt

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._interrupted and isinstance(error, Exception):
            raise KeyboardInterrupt from error  # What broke, broke because of it.

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> Process:
        """Start a process; its output is appended to its log."""
        path = self._logs / f"{name}.log"
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
        try:
            process = Process(name, path, self._popen(path, command, env))
            self._processes.append(process)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP)
        return process

    def command(self, name: str, words: Sequence[str], *, idle: bool = False) -> Command:
        """Start a command whose end and output somebody waits for.

        Args:
            name: What messages call it.
            words: The command.
            idle: Let it compute at the priority at which devices train, and not before them.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
        try:
            command = Command(
                name,
                subprocess.Popen(
                    list(words),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                    preexec_fn=_begin_idle if idle else _begin,
                ),
            )
            self._commands = [*(each for each in self._commands if each.running), command]
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP)
        return command

    def _popen(
        self, path: Path, command: Sequence[str], env: Mapping[str, str] | None
    ) -> subprocess.Popen[bytes]:
        with path.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(env) if env is not None else None,
                start_new_session=True,
                preexec_fn=_begin,
            )

    def check(self, *, but: Collection[Process] = ()) -> None:
        """Raise if a process that should be running has ended.

        Args:
            but: Those that may end.

        Raises:
            UnavailableError: One has; the message holds its last words.
            KeyboardInterrupt: The user wants an end.
        """
        if self._interrupted:
            raise KeyboardInterrupt
        for process in self._processes:
            code = None if process in but else process.popen.poll()
            if code is not None and code != -signal.SIGKILL:
                raise UnavailableError(
                    f"{process.name} ended with code {code}: {process.last_words()}  (log: {process.log})"
                )

    def wait(self, what: str, done: Callable[[], bool], *, timeout_s: float) -> None:
        """Wait until ``done()``, watching the processes meanwhile.

        Raises:
            UnavailableError: A process ended, or it took too long.
        """
        until = time.monotonic() + timeout_s
        while not done():
            self.check()
            if time.monotonic() > until:
                raise UnavailableError(f"Waited {timeout_s:.0f} s for {what}: see the logs in {self._logs}.")
            time.sleep(0.05)

    def forget(self, process: Process) -> None:
        """No longer expect a process to run; it is still ended in the end."""
        self._processes.remove(process)

    def stop(self) -> None:
        """End every process, the newest first, and wait for it. A second Ctrl-C does not cut this short."""
        for number in _STOP:
            signal.signal(number, signal.SIG_IGN)
        for command in self._commands:
            command.stop()
        self._commands.clear()
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.popen.pid, signal.SIGTERM)
        until = time.monotonic() + GRACE_S
        for process in reversed(self._processes):
            try:
                process.popen.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
            # What it started itself and left behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.popen.pid, signal.SIGKILL)
        self._processes.clear()


def _begin() -> None:
    """In the new process: hear signals again, and end with the parent."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP)
    end_with_parent(signal.SIGTERM)


def _begin_idle() -> None:
    _begin()
    # A session has its share of the processor whatever its processes' priorities, unless it gives that up too.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

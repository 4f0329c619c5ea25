"""Starts the process that trains, and makes it give way to all others."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from umbel.train.pipe import Pipe
from umbel_proto.errors import UnavailableError

_ENVIRONMENT = ("DYLD_", "LANG", "LC_", "LD_LIBRARY_PATH", "PYTHONHOME", "TMPDIR")
_COMPUTING = ("BLIS_", "GOTO_", "MALLOC_", "MKL_", "NPY_", "OMP_", "OPENBLAS_", "VECLIB_")
"""What is handed on of the environment begins so: where libraries are and how to compute, and no secret.

How to compute decides the last bit of a sum.
"""

_OOM_SCORE = 900
"""Of 1000: what the system ends first when memory runs out. Source: proc_pid_oom_score_adj(5)."""

_END_S = 5.0
"""What closed its stream has ended by then."""


class NoPythonError(Exception):
    """There is no Python to start a process with, as in a program that has it built in."""


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """A process that trains, and the stream to it."""

    process: subprocess.Popen[bytes]
    stream: socket.socket

    def pipe(self, watch: Callable[[], object] | None) -> Pipe:
        """Return this end of the stream; ``watch`` is called while it waits."""
        return Pipe(self.stream.fileno(), watch)

    def how_it_ended(self) -> str:
        """Say with what the process ended, which has closed its stream."""
        try:
            code = self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def end(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()
        self.stream.close()


def start_worker() -> Running:
    """Start a process that trains.

    Raises:
        NoPythonError: There is nothing to start it with.
        UnavailableError: The system starts none.
    """
    if not sys.executable or getattr(sys, "frozen", False) or not hasattr(select, "poll"):
        raise NoPythonError("this program has no Python beside it to start another one with")
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-P", "-m", "umbel.train.worker", str(theirs.fileno())]
    kept = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT + _COMPUTING)}
    path = os.pathsep.join(each for each in sys.path if each)
    try:
        process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**kept, "PYTHONPATH": path},
            process_group=0,  # Ctrl-C is for whoever started it.
        )
    except (FileNotFoundError, PermissionError) as exc:
        ours.close()
        raise NoPythonError(f"{sys.executable} cannot be started") from exc
    except OSError as exc:
        ours.close()
        raise UnavailableError(f"The system starts no process to train in: {exc.strerror}.") from exc
    finally:
        theirs.close()
    _give_way(process.pid)
    return Running(process, ours)


def _give_way(pid: int) -> None:
    """Let a process compute only when no other wants to, and end before others when memory runs out."""
    with contextlib.suppress(OSError):
        if hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
        else:
            os.setpriority(os.PRIO_PROCESS, pid, 19)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(_OOM_SCORE))

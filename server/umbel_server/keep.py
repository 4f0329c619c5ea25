"""Keep a process of somebody else's program running: started again when it ends by itself, less and less often."""

from __future__ import annotations

import logging
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

from umbel_proto.errors import UnavailableError
from umbel_server.signals import StopSignals, end_with_parent

FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 60.0
STEADY_S = 300.0
"""What ran for so long ended for another reason than the time before."""

_END_S = 10.0
_log = logging.getLogger(__name__)


def keep_running(name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a command until SIGTERM or SIGINT, which end it too.

    Args:
        name: What it is, for the log.
        command: The program and its arguments.
        environment: Its environment.

    Raises:
        UnavailableError: It cannot be started at all.
    """
    pause_s = FIRST_PAUSE_S
    with StopSignals() as stop:
        while True:
            begin = time.monotonic()
            try:
                process = subprocess.Popen(command, env=dict(environment), preexec_fn=_begin)
            except OSError as exc:
                raise UnavailableError(f"{name} cannot be started: {exc.strerror}.") from exc
            try:
                if _ended_by_us(process, stop):
                    return
            finally:
                _end(process)
            if time.monotonic() - begin >= STEADY_S:
                pause_s = FIRST_PAUSE_S
            _log.warning(
                "%s ended with code %d: it is started again in %g s", name, process.returncode, pause_s
            )
            if stop.came(pause_s):
                return
            pause_s = min(2 * pause_s, LAST_PAUSE_S)


def _ended_by_us(process: subprocess.Popen[bytes], stop: StopSignals) -> bool:
    while process.poll() is None:
        if stop.came(0.2):
            return True
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _begin() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # What this process holds back, that one shall hear.
    end_with_parent(signal.SIGTERM)

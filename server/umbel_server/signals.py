"""How a service is asked to stop: SIGTERM or SIGINT, taken when it is ready to hear of them."""

from __future__ import annotations

import ctypes
import signal
import sys
from types import TracebackType

_STOP = frozenset({signal.SIGTERM, signal.SIGINT})
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(number: signal.Signals) -> None:
    """Let the kernel send this process a signal when the one that started it ends, however it ends.

    On Linux; elsewhere nothing happens.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(number))


class StopSignals:
    """Holds SIGTERM and SIGINT back while the ``with`` block runs, and tells when one came.

    No handler interrupts a transaction half-way, and none can deadlock on a lock. Enter it before
    any thread starts: threads inherit what is held back.
    """

    def __enter__(self) -> StopSignals:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while signal.sigtimedwait(_STOP, 0) is not None:
            pass  # Asked again while stopping: it is done.
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def wait(self) -> None:
        """Wait until one comes."""
        signal.sigwait(_STOP)

    def came(self, within_s: float) -> bool:
        """Wait up to ``within_s`` seconds; return whether one came."""
        return signal.sigtimedwait(_STOP, within_s) is not None

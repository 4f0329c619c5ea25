"""The background thread of a process that does not talk to the gateway: it puts on disk what another one sends."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable

from umbel._telemetry.rhythm import elapsed_s, window_s
from umbel._telemetry.spool import Spool
from umbel._telemetry.telemetry import Telemetry
from umbel_proto.errors import UmbelError

log = logging.getLogger(__name__)


class Flusher:
    """Closes windows in time, without the gateway: offline, or forked, as gRPC does not outlive a fork beside its threads.

    It never raises, and ends with what it attends to: an application need not close what it only asks.

    Args:
        telemetry: The windows.
        spool: Where they go: the more waits there, the longer they stay open.
        attend: A method that does what else is due; it never raises.
        period_s: How often it does, and how long a window stays open at least, seconds.
        elapsed: Returns seconds since some moment; no change of the clock moves it.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        spool: Spool,
        attend: Callable[[], None],
        *,
        period_s: float,
        elapsed: Callable[[], float] = elapsed_s,
    ) -> None:
        self._telemetry = telemetry
        self._spool = spool
        self._attend = weakref.WeakMethod(attend)
        self._period_s = period_s
        self._elapsed = elapsed
        self._flushed_s = elapsed()
        self._stop = threading.Event()
        self._trouble = ""
        self._thread = threading.Thread(target=self._run, name="umbel-flusher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, *, timeout_s: float) -> None:
        """End the thread; what it has not put away is for who closes it.

        Args:
            timeout_s: How long to wait for it, seconds.
        """
        self._stop.set()
        self._thread.join(timeout_s)

    def turn(self) -> bool:
        """Do what is due; return whether there is anything left to attend to."""
        attend = self._attend()
        if attend is None:
            return False
        attend()
        try:
            due_s = self._flushed_s + window_s(self._spool.depth(), shortest_s=self._period_s)
            if self._elapsed() >= due_s:
                self._flushed_s = self._elapsed()
                self._telemetry.flush()
            self._trouble = ""
        except UmbelError as exc:
            if str(exc) != self._trouble:
                log.warning("%s", exc)
                self._trouble = str(exc)
        return True

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            if not self.turn():
                return

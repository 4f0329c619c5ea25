"""The background thread of a forked process: it puts reports where its parent finds and sends them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from umbel._telemetry.telemetry import Telemetry
from umbel_proto.errors import UmbelError

log = logging.getLogger(__name__)


class Flusher:
    """Closes windows in time, without the gateway: gRPC does not outlive a fork beside its threads. It never raises.

    Args:
        telemetry: The windows.
        attend: Does what else is due; it never raises.
        period_s: How long a window is open, seconds.
    """

    def __init__(self, telemetry: Telemetry, attend: Callable[[], None], *, period_s: float) -> None:
        self._telemetry = telemetry
        self._attend = attend
        self._period_s = period_s
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

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            self._attend()
            try:
                self._telemetry.flush()
                self._trouble = ""
            except UmbelError as exc:
                if str(exc) != self._trouble:
                    log.warning("%s", exc)
                    self._trouble = str(exc)

"""The deliverer: sends what waits in the outbox, and tries again what did not arrive, ever less often."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from umbel_proto.errors import StorageError, UmbelError, UnavailableError
from umbel_server.monitor.alerts.meters import meters
from umbel_server.monitor.alerts.rules import Rules
from umbel_server.monitor.alerts.send import PATIENCE_S, Sender, sentence
from umbel_server.store.database import DiskFullError
from umbel_server.store.notices import Notices, Queued

POLL_S = 2.0
HOLD_S = 12 * PATIENCE_S
"""For so long a notice is this process's: longer than all waits of one try together."""
FIRST_AGAIN_S = 15.0
LAST_AGAIN_S = 3600.0
GIVE_UP_S = 2 * 86400.0
"""What could not be told in so long is no news."""
MAX_AT_ONCE = 100

log = logging.getLogger(__name__)


class Deliverer:
    """Sends notices, each at least once: killed after a receiver took one, it is sent again, with the same number.

    Args:
        notices: The outbox.
        rules: Returns the rules that count now: their channels.
        sender: Sends.
        clock: Tells the time.
    """

    def __init__(
        self, notices: Notices, rules: Callable[[], Rules], sender: Sender, clock: Callable[[], float]
    ) -> None:
        self._notices, self._rules, self._sender, self._clock = notices, rules, sender, clock

    def run_once(self) -> int:
        """Send what is due; return how many notices arrived.

        Raises:
            StorageError: The store fails.
        """
        arrived = 0
        for _ in range(MAX_AT_ONCE):
            notice = self._notices.take(hold_s=HOLD_S)
            if notice is None:
                break
            arrived += self._send(notice)
        return arrived

    def run(self, stopped: Callable[[float], bool], *, poll_s: float = POLL_S) -> None:
        """Send until told to stop; arguments as of ``Evaluator.run``."""
        while not stopped(poll_s):
            try:
                self.run_once()
            except (DiskFullError, UnavailableError, StorageError) as exc:
                log.warning("notices wait: %s", exc)

    def _send(self, notice: Queued) -> bool:
        channel = self._rules().channels.get(notice.channel)
        now_s = self._clock()
        if channel is None:
            self._notices.failed(notice, f"there is no channel {notice.channel} any more", again_s=None)
            meters().sent(notice.channel, "given up")
            return False
        try:
            self._sender.send(channel, notice.id, notice.body, now_s=now_s)
        except UmbelError as exc:
            self._failed(notice, exc, now_s)
            return False
        self._notices.sent(notice)
        meters().sent(notice.channel, "sent")
        log.info("notice %d (%s of %s) is sent to %s", notice.id, notice.kind, notice.rule, notice.channel)
        return True

    def _failed(self, notice: Queued, exc: UmbelError, now_s: float) -> None:
        late = now_s - notice.made_s >= GIVE_UP_S
        self._notices.failed(
            notice, sentence(exc), again_s=None if late else now_s + again_in_s(notice.tries)
        )
        meters().sent(notice.channel, "given up" if late else "failed")
        log.warning(
            "notice %d to %s did not arrive%s: %s",
            notice.id,
            notice.channel,
            ", and is given up" if late else "",
            exc,
        )


def again_in_s(tries: int) -> float:
    """Return how long to wait after so many tries: twice as long each time, to an hour."""
    return min(FIRST_AGAIN_S * math.pow(2.0, min(tries - 1, 16)), LAST_AGAIN_S)

"""``umbel serve alerts``: one thread looks at rules, one sends what is to be told."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.alerts.deliver import Deliverer
from umbel_server.monitor.alerts.evaluate import Evaluator
from umbel_server.monitor.alerts.send import PATIENCE_S, Sender
from umbel_server.store.store import Store


def run_alerts(
    fleet: FleetDir,
    store: Store,
    stopped: Callable[[float], bool],
    *,
    poll_s: float,
    on_ready: Callable[[], None],
) -> None:
    """Look at rules, and tell people, until told to stop.

    Args:
        fleet: The fleet.
        store: Its store.
        stopped: Waits up to so many seconds and tells whether to stop.
        poll_s: How long to wait between looks, seconds.
        on_ready: Called once the rules are read.

    Raises:
        UsageError: A rule or channel cannot be used.
        StorageError: The store is damaged.
    """
    evaluator = Evaluator(fleet, store)
    sender = Sender(fleet.path, os.environ)
    deliverer = Deliverer(store.notices, lambda: evaluator.rules, sender, store.clock)
    ended = threading.Event()
    # A receiver that hangs must not keep rules from being looked at.
    sending = threading.Thread(target=deliverer.run, args=(ended.wait,), name="notices", daemon=True)
    sending.start()
    on_ready()
    try:
        evaluator.run(stopped, poll_s=poll_s)
    finally:
        ended.set()
        sending.join(PATIENCE_S)

"""How a service says that it is ready: a line on standard output, and a word to systemd.

Source: sd_notify(3).
"""

from __future__ import annotations

import logging
import os
import socket

from umbel_proto.errors import StorageError

PATIENCE_S = 1.0

log = logging.getLogger(__name__)


def ready(what: str) -> None:
    """Say that a service is ready.

    Args:
        what: Its name, and where it listens.

    Raises:
        StorageError: Standard output cannot be written.
    """
    try:
        print(f"ready {what}", flush=True)
    except OSError as exc:
        raise StorageError(f"Standard output cannot be written: {exc.strerror}.") from exc
    notify("READY=1")


def notify(state: str) -> None:
    """Tell systemd of a change, where it asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(PATIENCE_S)
            # A leading @ stands for the zero byte of the abstract namespace.
            sender.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            sender.send(state.encode())
    except OSError as exc:
        log.warning("the service manager was not told %s: %s", state, exc.strerror)

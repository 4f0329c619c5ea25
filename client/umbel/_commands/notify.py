"""What the service manager wants to know: that the agent is ready, that it lives, and that it stops.

Source: sd_notify(3) and sd_watchdog_enabled(3) of systemd.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping

PATIENCE_S = 1.0

log = logging.getLogger(__name__)


@contextlib.contextmanager
def service(environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Be a service that is ready for the length of a block; without a service manager do nothing.

    Where it watches, it is told in half the time that it allows. Only a process that stands still says nothing: that
    the network is gone, or that training takes long, is no reason to be killed.

    Args:
        environ: What the service manager passed.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        yield
        return
    _tell(address, "READY=1")
    stop = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(address, _period_s(environ), stop), name="umbel-watchdog", daemon=True
    )
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        _tell(address, "STOPPING=1")


def _watch(address: str, period_s: float | None, stop: threading.Event) -> None:
    while period_s is not None and not stop.wait(period_s):
        _tell(address, "WATCHDOG=1")


def _period_s(environ: Mapping[str, str]) -> float | None:
    """Return how often to say that the process lives, seconds; None where nobody asks this process."""
    try:
        allowed_us, asked = int(environ.get("WATCHDOG_USEC", "0")), environ.get("WATCHDOG_PID")
        mine = asked is None or int(asked) == os.getpid()
    except ValueError:
        return None
    return allowed_us / 2e6 if mine and allowed_us > 0 else None


def _tell(address: str, state: str) -> None:
    # A name that begins with @ is in no directory: the kernel has it begin with a zero byte.
    where = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(PATIENCE_S)  # A manager that does not read must not stop the device.
            sender.sendto(state.encode(), where)
    except OSError as exc:
        log.warning("the service manager could not be told %s: %s", state, exc.strerror or exc)

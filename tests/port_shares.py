"""The ports of each of the processes in which tests run at once: a fleet of one never chooses a port of another's."""

from __future__ import annotations

import os

from umbel_server.fleet import ports

LOWEST, HIGHEST = ports.LOWEST, ports.HIGHEST


def share(worker: str, workers: int) -> tuple[int, int]:
    """Return the lowest and the highest port of a worker, as pytest-xdist names it (``gw0``), of so many."""
    width = (HIGHEST - LOWEST + 1) // workers
    first = LOWEST + int(worker.removeprefix("gw")) * width
    return first, first + width - 1


def take_share() -> None:
    """Let fleets that are made in this process choose among its own ports."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:
        ports.LOWEST, ports.HIGHEST = share(worker, int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))

"""Law: tests that run at once choose among ports of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from port_shares import HIGHEST, LOWEST, share

FREE = """
import conftest
from umbel_server.fleet.ports import free_ports
print(*free_ports(200))
"""


@pytest.mark.parametrize("workers", [1, 2, 3, 64])
def test_no_two_workers_share_a_port_and_all_are_below_those_of_outgoing_connections(workers: int) -> None:
    shares = [share(f"gw{number}", workers) for number in range(workers)]
    assert shares[0][0] == LOWEST
    assert shares[-1][1] <= HIGHEST
    assert all(first <= last for first, last in shares)
    assert all(before[1] < after[0] for before, after in pairwise(shares))


def test_the_fleets_of_a_worker_choose_among_its_ports() -> None:
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTEST_XDIST_WORKER": "gw2", "PYTEST_XDIST_WORKER_COUNT": "4"}
    ran = subprocess.run(
        [sys.executable, "-c", FREE], cwd=tests, env=environment, capture_output=True, text=True, check=True
    )
    lowest, highest = share("gw2", 4)
    assert all(lowest <= int(port) <= highest for port in ran.stdout.split())

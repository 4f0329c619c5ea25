"""Law: 200 rounds in bad weather lose nothing that was acknowledged, sum right, and leak nothing.

``soak`` checks every round; here is what it may use. Longer: ``python tests/bench/soak.py --rounds 2000``.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from simulation.soak import FAULTS, soak

ROUNDS = 200


def test_two_hundred_rounds_with_random_faults_lose_nothing_and_leak_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)  # pytest keeps what is logged, which would look like a leak.
    end = soak(tmp_path, rounds=ROUNDS, seed=1)
    # The weather was bad: every fault struck, rounds were given up, servers ended.
    assert set(end.faults) == set(FAULTS)
    assert end.aborted >= 10
    assert end.deaths >= 10
    # From round 50 to round 200.
    assert end.late.descriptors == end.early.descriptors
    assert end.late.blocks - end.early.blocks < 10_000
    assert end.late.resident_kb - end.early.resident_kb < 8_192
    # What is kept on disk is what happened: less than 3 KB an attempt, and 600 bytes a charge.
    attempts = end.rounds + end.aborted
    assert end.store_bytes < 200_000 + 3_000 * attempts
    assert end.ledger_bytes < 30_000 + 600 * attempts

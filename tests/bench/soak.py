"""Many rounds in bad weather, over devices in memory: what a process that runs for long uses and keeps.

The same as tests/simulation/test_soak.py, as long as you like. Every round is checked; one that is lost, counted
twice or wrong ends it. The growth is from a quarter of the rounds to the last.

Usage: python tests/bench/soak.py [--rounds 200] [--seed 1]
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from harness import Report

sys.path.append(str(Path(__file__).resolve().parents[1]))

from simulation.soak import soak


def main() -> None:
    parser = argparse.ArgumentParser(description="Rounds with random faults.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # Thousands of devices are lost, as they should be.
    with tempfile.TemporaryDirectory() as root:
        end = soak(Path(root), rounds=options.rounds, seed=options.seed)
    report = Report("soak")
    report.value("rounds opened and checked", end.rounds, unit="")
    report.value("attempts aborted", end.aborted, unit="")
    report.value("ends of the server", end.deaths, unit="")
    for fault, count in end.faults.items():
        report.value(f"devices: {fault}", count, unit="")
    report.value("time", end.seconds, unit="s")
    grown = end.late.resident_kb - end.early.resident_kb
    report.value("memory grown", grown / 1024, unit="MiB", at_most=8, baseline=end.early.resident_kb / 1024)
    blocks = end.late.blocks - end.early.blocks
    report.value("Python's blocks grown", blocks, unit="", at_most=10_000, baseline=end.early.blocks)
    opened = end.late.descriptors - end.early.descriptors
    report.value("open files grown", opened, unit="", at_most=0, baseline=end.early.descriptors)
    report.value("the service's store, a round", end.store_bytes / end.rounds / 1024, unit="KiB")
    report.value("a device's ledger, a round", end.ledger_bytes / end.rounds, unit="B")
    report.finish()


if __name__ == "__main__":
    main()

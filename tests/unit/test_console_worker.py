"""What takes seconds is made in a process beside the console: at the store's time, again if it is killed, and never longer than it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import worker_work
from service_fleet import ManualClock, make_fleet
from umbel_proto.errors import PackageError, UmbelError, UnavailableError
from umbel_server.console.range import Window
from umbel_server.console.seen.watched import Watched
from umbel_server.console.seen.worker import NICE, Worker
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.prices import Prices
from umbel_server.store.store import Store, open_store

ALONE = """
import sys
from pathlib import Path
import worker_work
from umbel_server.console.seen.worker import WORKER
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.store import open_store
with open_store(Path(sys.argv[1])) as store:
    print(WORKER.run(worker_work.pid, FleetDir.open(Path(sys.argv[2])), store), flush=True)
    sys.stdin.read()
"""
WATCHED = Watched((("digits", 1), ("activity", 2)), "digits", 1, Window("7d", 1.0, 2.5), 7)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> FleetDir:
    return make_fleet(tmp_path_factory.mktemp("worker") / "fleet")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store.db", clock=ManualClock(1_800_000_000.0)) as opened:
        yield opened


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setenv("PYTHONPATH", str(Path(worker_work.__file__).parent))
    made = Worker()
    yield made
    made.stop()


def test_it_makes_in_another_process_that_yields_at_the_time_and_with_the_store_of_whoever_asks(
    fleet: FleetDir, store: Store, worker: Worker, tmp_path: Path
) -> None:
    pid = worker.run(worker_work.pid, fleet, store)
    assert pid != os.getpid()
    least = min(os.getpriority(os.PRIO_PROCESS, 0) + NICE, 19)
    assert worker.run(worker_work.niceness, fleet, store) == least
    with open_store(tmp_path / "other.db", clock=ManualClock(7.0)) as other:
        for each in (store, other, store):
            made = worker.run(worker_work.figures, fleet, each, WATCHED)
            assert made == worker_work.figures(fleet, each, WATCHED)
    assert worker.run(worker_work.pid, fleet, store) == pid


def test_the_fleet_has_there_the_settings_that_it_has_here(
    fleet: FleetDir, store: Store, worker: Worker
) -> None:
    dear = FleetDir(fleet.path, replace(fleet.settings, prices=Prices(currency="EUR", kwh=0.37)))
    assert worker.run(worker_work.settings, dear, store) == dear.settings
    assert worker.run(worker_work.settings, fleet, store) == fleet.settings


def test_what_fails_there_fails_here_and_the_next_is_made(
    fleet: FleetDir, store: Store, worker: Worker
) -> None:
    with pytest.raises(PackageError, match=r"^digits 3 is not released\.$"):
        worker.run(worker_work.refused, fleet, store, "digits 3 is not released.")
    with pytest.raises(UmbelError, match=r"^Two fields are out of range\.$"):
        worker.run(worker_work.counted, fleet, store)
    with pytest.raises(RuntimeError, match="ValueError: invalid literal"):
        worker.run(worker_work.broken, fleet, store)
    assert worker.run(worker_work.pid, fleet, store)


def test_a_process_that_is_killed_is_replaced_and_one_that_dies_of_the_work_is_told(
    fleet: FleetDir, store: Store, worker: Worker
) -> None:
    pid = worker.run(worker_work.pid, fleet, store)
    os.kill(pid, signal.SIGKILL)
    os.waitid(
        os.P_PID, pid, os.WEXITED | os.WNOWAIT
    )  # Its pipes are closed, as those of one that idled too long.
    assert worker.run(worker_work.pid, fleet, store) != pid
    with pytest.raises(UnavailableError, match="ended before"):
        worker.run(worker_work.dead, fleet, store)
    assert worker.run(worker_work.pid, fleet, store)
    worker.stop()
    with pytest.raises(UnavailableError, match="stops"):
        worker.run(worker_work.pid, fleet, store)


def test_it_ends_with_the_console_however_that_ends(tmp_path: Path, fleet: FleetDir) -> None:
    console = subprocess.Popen(
        [sys.executable, "-c", ALONE, str(tmp_path / "store.db"), str(fleet.path)],
        env={**os.environ, "PYTHONPATH": str(Path(worker_work.__file__).parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with console:
        assert console.stdout is not None
        pid = int(console.stdout.readline())
        console.kill()
    give_up_s = time.monotonic() + 30
    while _is_alive(pid):
        assert time.monotonic() < give_up_s
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

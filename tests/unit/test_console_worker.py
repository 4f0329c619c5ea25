"""What takes seconds is made in a process beside the console: at the store's time, again if it is killed, and never longer than it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from operator import attrgetter, methodcaller
from pathlib import Path

import pytest

from service_fleet import ManualClock
from umbel_proto.errors import UnavailableError
from umbel_server.console.seen.worker import NICE, Worker
from umbel_server.store.store import Store, open_store

ALONE = """
import os, sys
from functools import partial
from umbel_server.console.seen.worker import WORKER
from umbel_server.store.store import open_store
from pathlib import Path
with open_store(Path(sys.argv[1])) as store:
    print(WORKER.run(store, os.getpid), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store.db", clock=ManualClock(1_800_000_000.0)) as opened:
        yield opened


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.stop()


def test_it_makes_in_another_process_that_yields_at_the_time_and_with_the_store_of_whoever_asks(
    store: Store, worker: Worker, tmp_path: Path
) -> None:
    pid = worker.run(store, os.getpid)
    assert pid != os.getpid()
    assert worker.run(store, partial(os.getpriority, os.PRIO_PROCESS, 0)) == min(
        os.getpriority(os.PRIO_PROCESS, 0) + NICE, 19
    )
    assert worker.run(store, partial(methodcaller("clock"), store)) == 1_800_000_000.0
    with open_store(tmp_path / "other.db", clock=ManualClock(7.0)) as other:
        assert worker.run(other, partial(methodcaller("clock"), other)) == 7.0
        where = attrgetter("database.where")
        assert [worker.run(each, partial(where, each)) for each in (store, other)] == [
            tmp_path / "store.db",
            tmp_path / "other.db",
        ]
    assert worker.run(store, os.getpid) == pid


def test_what_fails_there_fails_here_and_the_next_is_made(store: Store, worker: Worker) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        worker.run(store, partial(int, "none"))
    assert worker.run(store, partial(int, "7")) == 7


def test_a_process_that_is_killed_is_replaced_and_one_that_dies_of_the_work_is_told(
    store: Store, worker: Worker
) -> None:
    pid = worker.run(store, os.getpid)
    os.kill(pid, signal.SIGKILL)
    assert worker.run(store, os.getpid) != pid
    with pytest.raises(UnavailableError, match="ended before"):
        worker.run(store, partial(os._exit, 3))
    assert worker.run(store, partial(int, "7")) == 7
    worker.stop()
    with pytest.raises(UnavailableError, match="stops"):
        worker.run(store, os.getpid)


def test_it_ends_with_the_console_however_that_ends(tmp_path: Path) -> None:
    console = subprocess.Popen(
        [sys.executable, "-c", ALONE, str(tmp_path / "store.db")],
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

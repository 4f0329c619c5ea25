"""The agent and its service manager, which listens on a socket as systemd does.

Laws: ready is said once the device serves, and that it lives as often as is asked; nobody who does not listen stops it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service_fleet import make_fleet, running
from umbel._commands.notify import service
from umbel_server.fleet.invite import invite

UMBEL = Path(sys.executable).with_name("umbel")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        yield listening


def said(manager: socket.socket) -> str:
    return manager.recv(4096).decode()


def test_it_says_ready_then_again_and_again_that_it_lives_and_at_last_that_it_stops(
    manager: socket.socket,
) -> None:
    name = manager.getsockname()
    with service({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())}):
        assert [said(manager) for _ in range(4)] == ["READY=1", *["WATCHDOG=1"] * 3]
    rest = ["WATCHDOG=1"]
    while rest[-1] == "WATCHDOG=1":
        rest.append(said(manager))
    assert rest[-1] == "STOPPING=1"
    assert "umbel-watchdog" not in {each.name for each in threading.enumerate()}


def test_a_name_without_a_file_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"umbel-test-{os.getpid()}"
        manager.bind("\0" + name)
        manager.settimeout(20)
        with service({"NOTIFY_SOCKET": "@" + name}):
            assert said(manager) == "READY=1"
        assert said(manager) == "STOPPING=1"


@pytest.mark.parametrize(
    "asked",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}],
)
def test_where_nobody_watches_this_process_it_says_no_more_than_it_must(
    manager: socket.socket, asked: dict[str, str]
) -> None:
    with service({"NOTIFY_SOCKET": manager.getsockname(), **asked}):
        assert said(manager) == "READY=1"
    assert said(manager) == "STOPPING=1"


def test_a_manager_that_is_not_there_or_does_not_read_stops_nobody(
    manager: socket.socket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with service({}), service({"NOTIFY_SOCKET": str(tmp_path / "nobody")}):
        pass
    with service({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "2"}):
        for _ in range(3):
            said(manager)
        caplog.clear()
        deadline = time.monotonic() + 20
        while not caplog.records:  # Its queue is full: what does not fit in a second is dropped.
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)


def test_the_agent_is_ready_when_it_serves(manager: socket.socket, tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "garden")
    with running(fleet) as (_, store):
        token = invite(fleet, store).to_text()
        environment = os.environ | {
            "NOTIFY_SOCKET": manager.getsockname(),
            "WATCHDOG_USEC": "2000000",
            "UMBEL_TOKEN": token,
        }
        agent = subprocess.Popen(
            [UMBEL, "run", "--home", tmp_path / "rose"], env=environment, stderr=subprocess.DEVNULL,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert said(manager) == "READY=1"
            assert agent.stdout is not None
            assert agent.stdout.readline().startswith("ready ")
            assert said(manager) == "WATCHDOG=1"
        finally:
            agent.terminate()
            agent.communicate(timeout=60)
        while (last := said(manager)) == "WATCHDOG=1":
            pass
        assert (last, agent.returncode) == ("STOPPING=1", 0)

"""The services as real processes: how they start, stop, refuse to start, and what a kill costs."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from service_fleet import PlainDevice, batch, make_fleet, upload, window
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.batches import Arrival
from umbel_server.store.store import Store

STOP_S = 30


@contextlib.contextmanager
def service(name: str, fleet: FleetDir, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A service's process, ready; killed at the end if the test has not ended it."""
    process = start(name, fleet, *options)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"ready {name}")
        yield process
    finally:
        process.kill()
        process.communicate()


def start(name: str, fleet: FleetDir, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "umbel", "serve", name, "--fleet", str(fleet.path), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDir:
    return make_fleet(tmp_path / "garden")


@pytest.fixture
def device(fleet: FleetDir) -> PlainDevice:
    joined = PlainDevice()
    with fleet.open_store() as store:
        joined.admit(fleet, store, name="rose")
    return joined


def stored_ids(store: Store) -> set[bytes]:
    with store.database.read() as connection:
        return set(connection.exec_driver_sql("SELECT batch_id FROM batches").scalars())


@pytest.mark.parametrize("name", ["gateway", "opener", "ca"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_that_is_asked_to_stop_exits_with_0_and_says_nothing(
    fleet: FleetDir, name: str, number: signal.Signals
) -> None:
    with service(name, fleet) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=STOP_S)
    assert (process.returncode, out, err) == (0, "", "")


def test_the_ready_line_names_the_address(fleet: FleetDir) -> None:
    process = start("gateway", fleet)
    assert process.stdout is not None
    assert process.stdout.readline() == f"ready gateway {fleet.settings.gateway}\n"
    process.terminate()
    assert process.wait(STOP_S) == 0
    process.communicate()


def test_the_gateway_answers_as_soon_as_it_is_ready(fleet: FleetDir, device: PlainDevice) -> None:
    with service("gateway", fleet):
        assert list(device.check(fleet).releases) == []


@pytest.mark.parametrize("port", ["gateway", "enrollment"])
def test_a_taken_port_is_one_sentence_and_exit_code_5(fleet: FleetDir, port: str) -> None:
    with socket.create_server(("127.0.0.1", getattr(fleet.settings.ports, port))):
        process = start("gateway", fleet)
        out, err = process.communicate(timeout=STOP_S)
    assert (process.returncode, out) == (5, "")
    assert re.fullmatch(r"Error: The port of 127\.0\.0\.1:\d+ is taken: [^\n]+\n", err)


@pytest.mark.parametrize("name", ["gateway", "opener"])
def test_a_corrupted_store_is_one_sentence_and_exit_code_6(fleet: FleetDir, name: str) -> None:
    for path in fleet.path.glob("store.db-*"):
        path.unlink()
    with fleet.store_db.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(3 * 4096))
    process = start(name, fleet)
    out, err = process.communicate(timeout=STOP_S)
    assert (process.returncode, out) == (6, "")
    assert re.fullmatch(r"Error: The store .* is corrupted: [^\n]+ restore it from a backup\.\n", err)


@pytest.mark.parametrize("lost", ["ca_key", "authority_key", "telemetry_pub"])
def test_a_missing_key_is_one_sentence_and_exit_code_6(fleet: FleetDir, lost: str) -> None:
    getattr(fleet, lost).unlink()
    process = start("gateway", fleet)
    _, err = process.communicate(timeout=STOP_S)
    assert process.returncode == 6
    assert re.fullmatch(r"Error: The .* cannot be read: No such file or directory\.\n", err)


def test_an_authority_without_a_key_says_which(fleet: FleetDir) -> None:
    fleet.authority_key.unlink()
    process = start("ca", fleet)
    _, err = process.communicate(timeout=STOP_S)
    assert process.returncode == 6
    assert re.fullmatch(r"Error: The authority key .* cannot be read: No such file or directory\.\n", err)
    assert not (fleet.path / "ca" / "ca.sock").exists()


def test_an_authority_that_was_killed_starts_again(fleet: FleetDir) -> None:
    with service("ca", fleet) as process:
        process.kill()
        process.wait()
    assert (fleet.path / "ca" / "ca.sock").is_socket()
    with service("ca", fleet) as process:
        process.terminate()
        assert process.wait(STOP_S) == 0
    assert not (fleet.path / "ca" / "ca.sock").exists()


class Uploader:
    """A device that sends batch after batch and notes what was acknowledged."""

    def __init__(self, device: PlainDevice, fleet: FleetDir) -> None:
        self._device = device
        self._fleet = fleet
        self._more = threading.Condition()
        self._stop = threading.Event()
        self.acknowledged: set[bytes] = set()

    def __enter__(self) -> Uploader:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for(self, count: int) -> None:
        """Wait until so many more batches were acknowledged."""
        with self._more:
            goal = len(self.acknowledged) + count
            assert self._more.wait_for(lambda: len(self.acknowledged) >= goal, timeout=60)

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._device.channel(self._fleet) as channel, contextlib.suppress(grpc.RpcError):
                while not self._stop.is_set():
                    ids = [secrets.token_bytes(16) for _ in range(4)]
                    batches = [self._device.sealed(self._fleet, batch_id=batch_id) for batch_id in ids]
                    reply = upload(channel, batches)
                    with self._more:
                        self.acknowledged.update(reply.acknowledged)
                        self._more.notify()


def test_a_gateway_that_is_killed_loses_nothing_it_acknowledged(fleet: FleetDir, device: PlainDevice) -> None:
    with Uploader(device, fleet) as uploader:
        for _ in range(3):
            with service("gateway", fleet) as process:
                uploader.wait_for(40)
                process.kill()
                process.wait()
    with fleet.open_store() as store:
        assert len(uploader.acknowledged) >= 120
        assert uploader.acknowledged - stored_ids(store) == set()


def test_an_opener_that_is_killed_counts_everything_once(fleet: FleetDir, device: PlainDevice) -> None:
    total = 200
    with fleet.open_store() as store:
        key_id = fleet.telemetry_public().key_id
        for _ in range(total):
            sealed = device.sealed(fleet, plaintext=batch(window()))
            arrival = Arrival(secrets.token_bytes(16), key_id, sealed.header, sealed.ciphertext)
            store.batches.append(device.id, [arrival])
        while (waiting := len(store.batches.sealed(limit=total))) > 0:
            with service("opener", fleet) as process:
                while len(store.batches.sealed(limit=total)) == waiting:
                    assert process.poll() is None
                process.kill()
                process.wait()
        (line,) = store.rollups.all()
        assert (line.windows, line.counters["predictions"]) == (total, 2 * total)

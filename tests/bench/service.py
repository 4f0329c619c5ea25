"""The gateway under load: what one core of it takes in, by real TLS into a real store.

The load comes from this process, so a machine's wall clock says little about the gateway. Rates are per second of
processor time of the gateway's own processes, kernel and TLS and all: what one core does when it has nothing else
to do. Latency is by the wall clock, and needs a quiet machine. PostgreSQL runs without fsync; SQLite with it.

Usage: python tests/bench/service.py [--seconds 8]
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import os
import random
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
from harness import QUICK, Report

sys.path.append(str(Path(__file__).resolve().parents[1]))

from postgresql_server import PostgresqlServer
from service_fleet import PlainDevice, batch, make_fleet, window
from umbel_proto.seal import seal
from umbel_proto.wire import telemetry_pb2 as pb
from umbel_server.files import write_atomically
from umbel_server.fleet.ca import private_pem
from umbel_server.fleet.layout import FleetDir
from umbel_server.gateway.settings import GatewaySettings
from umbel_server.store.settings import StoreSettings

DEVICES, IN_FLIGHT = 16, 8
START_S, CALL_S = 60.0, 30.0
TICK = os.sysconf("SC_CLK_TCK")
SINGLE, HUNDRED = 1, 100


def fleet_in(root: Path, *, processes: int = 1, server: PostgresqlServer | None = None) -> FleetDir:
    made = make_fleet(root / f"garden{secrets.token_hex(2)}")
    settings = dataclasses.replace(made.settings, intake=GatewaySettings(processes=processes, threads=64))
    if server is not None:
        url = server.database().render_as_string(hide_password=False)
        write_atomically(made.path / "store.url", url.encode())
        settings = dataclasses.replace(settings, store=StoreSettings(url_file="store.url"))
    (made.path / "fleet.toml").write_text(settings.to_toml())
    return FleetDir.open(made.path)


class Running:
    """A service's process, and its children's, that can be killed and started again."""

    def __init__(self, name: str, fleet: FleetDir, *, environment: Mapping[str, str] | None = None) -> None:
        self._name = name
        self._fleet = fleet
        self._environment = dict(os.environ) | dict(environment or {})
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "umbel", "serve", self._name, "--fleet", str(self._fleet.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self._environment,
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline().startswith("ready"):
            raise RuntimeError(f"{self._name} did not start")
        # What it says later is read by nobody, and must not fill the pipe.
        threading.Thread(target=collections.deque, args=(self._process.stdout, 0), daemon=True).start()

    def end(self, number: signal.Signals) -> None:
        self._process.send_signal(number)
        self._process.wait(START_S)

    def cpu_s(self) -> float:
        """Processor time until now, its children's too."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        total = 0
        for each in (pid, *children):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICK

    def cores(self) -> set[int]:
        """The cores it keeps to."""
        return os.sched_getaffinity(self._process.pid)


@contextlib.contextmanager
def beside(service: Running) -> Iterator[None]:
    """Let what is started here run on the cores that a service leaves, where it leaves any."""
    all_ = os.sched_getaffinity(0)
    os.sched_setaffinity(0, all_ - service.cores() or all_)
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_)


@contextlib.contextmanager
def running(name: str, fleet: FleetDir) -> Iterator[Running]:
    service = Running(name, fleet)
    try:
        yield service
    finally:
        service.end(signal.SIGTERM)


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """What came of a load: calls acknowledged, processor seconds of the gateway, wall seconds, latencies."""

    calls: int
    cpu_s: float
    wall_s: float
    latencies_s: list[float]

    @property
    def per_core(self) -> float:
        return self.calls / self.cpu_s

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


class Sender:
    """One device with several calls under way, each a new batch; what is sealed in them is the same."""

    def __init__(self, fleet: FleetDir, device: PlainDevice, windows: int) -> None:
        self._device = device
        plain = batch(*(window(start_s=7200 + 60 * number) for number in range(windows)))
        self._ciphertext = seal(fleet.telemetry_public(), b"", plain)
        self._header = {
            "schema": 1,
            "suite": 1,
            "key_id": fleet.telemetry_public().key_id,
            "fleet_id": fleet.name,
        }

    def run(self, channel: grpc.Channel, stop: threading.Event, every_s: float, out: list[float]) -> None:
        upload = channel.unary_unary("/umbel.wire.v1.Telemetry/Upload")
        room = threading.Semaphore(IN_FLIGHT)
        due_s = time.perf_counter() + random.uniform(0, every_s)
        while not stop.is_set():
            room.acquire()
            if every_s:
                time.sleep(max(due_s - time.perf_counter(), 0))
                due_s += every_s
            # When it should have been sent is what counts, or a slow answer would hide those that waited behind it.
            begin_s = due_s - every_s if every_s else time.perf_counter()
            future = upload.future(self._message(), timeout=CALL_S)
            future.add_done_callback(lambda done, begin_s=begin_s: self._answered(done, begin_s, room, out))

    def _message(self) -> bytes:
        header = pb.BatchHeader(**self._header, device_id=self._device.id, batch_id=secrets.token_bytes(16))
        sealed = pb.SealedBatch(header=header.SerializeToString(), ciphertext=self._ciphertext)
        return pb.UploadRequest(batches=[sealed]).SerializeToString()

    @staticmethod
    def _answered(done: grpc.Future, begin_s: float, room: threading.Semaphore, out: list[float]) -> None:
        room.release()
        if done.code() is grpc.StatusCode.OK:  # type: ignore[attr-defined]
            out.append(time.perf_counter() - begin_s)


def load(fleet: FleetDir, gateway: Running, *, windows: int, seconds: float, rate: float = 0.0) -> Load:
    """Send from all devices for a while: as fast as it goes, or ``rate`` calls each second."""
    devices = [PlainDevice() for _ in range(DEVICES)]
    with fleet.open_store() as store:
        for device in devices:
            device.admit(fleet, store)
    stop, latencies = threading.Event(), []
    with beside(gateway), contextlib.ExitStack() as stack:
        channels = [stack.enter_context(device.channel(fleet)) for device in devices]
        for channel in channels:
            grpc.channel_ready_future(channel).result(START_S)
        threads = [
            threading.Thread(
                target=Sender(fleet, device, windows).run,
                args=(channel, stop, DEVICES / rate if rate else 0.0, latencies),
                daemon=True,
            )
            for device, channel in zip(devices, channels, strict=True)
        ]
        for thread in threads:
            thread.start()
        time.sleep(seconds / 4)  # Caches fill.
        del latencies[:]
        begin, before = time.perf_counter(), gateway.cpu_s()
        time.sleep(seconds)
        calls, cpu_s, wall_s = len(latencies), gateway.cpu_s() - before, time.perf_counter() - begin
        stop.set()
        for thread in threads:
            thread.join()
    return Load(calls, cpu_s, wall_s, latencies[:calls])


def handshakes(fleet: FleetDir, gateway: Running, *, seconds: float) -> Load:
    """Connect anew again and again, each with a client certificate and a whole handshake."""
    device = PlainDevice()
    with fleet.open_store() as store:
        device.admit(fleet, store)
    files = (fleet.path / "bench.pem", fleet.path / "bench.key")
    for path, data in zip(files, (device.certificate, private_pem(device.tls)), strict=True):
        write_atomically(path, data)
    context = ssl.create_default_context(cafile=str(fleet.ca_pem))
    context.load_cert_chain(*files)
    context.set_alpn_protocols(["h2"])
    latencies: list[float] = []
    begin, before = time.perf_counter(), gateway.cpu_s()
    while time.perf_counter() - begin < seconds:
        start_s = time.perf_counter()
        with (
            beside(gateway),
            socket.create_connection(("127.0.0.1", fleet.settings.ports.gateway)) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
        ):
            secured.recv(9)  # The server's first HTTP/2 frame: it has verified the certificate.
        latencies.append(time.perf_counter() - start_s)
    return Load(len(latencies), gateway.cpu_s() - before, time.perf_counter() - begin, latencies)


def main() -> None:
    parser = argparse.ArgumentParser(description="The gateway under load.")
    parser.add_argument("--seconds", type=float, default=1.0 if QUICK else 8.0, help="each measurement")
    options = parser.parse_args()
    report, seconds = Report("service"), options.seconds
    server = PostgresqlServer()
    with tempfile.TemporaryDirectory() as name, contextlib.closing(server):
        root = Path(name)
        for kind, database in (("SQLite", None), ("PostgreSQL", server)):
            with report.part(kind):
                fleet = fleet_in(root, server=database)
                with running("gateway", fleet) as gateway:
                    full = load(fleet, gateway, windows=HUNDRED, seconds=seconds)
                    report.value(
                        f"{kind}: records/s a core, in batches of 100",
                        HUNDRED * full.per_core,
                        unit="/s",
                        at_least=100_000,
                    )
                    single = load(fleet, gateway, windows=SINGLE, seconds=seconds)
                    report.value(
                        f"{kind}: single batches/s a core", single.per_core, unit="/s", at_least=4000
                    )
                    report.value(
                        f"{kind}: single batches/s beside their sender",
                        single.calls / single.wall_s,
                        unit="/s",
                    )
                    half = load(
                        fleet, gateway, windows=SINGLE, seconds=seconds, rate=single.calls / single.wall_s / 2
                    )
                    report.value(
                        f"{kind}: p99 of an acknowledgment at half of that",
                        1e3 * half.percentile(0.99),
                        unit="ms",
                        at_most=50,
                    )
                    if database is None:
                        made = handshakes(fleet, gateway, seconds=seconds)
                        report.value(
                            "new mutual-TLS connections/s a core", made.per_core, unit="/s", at_least=1000
                        )
        with report.part("two processes"):
            alone, both = (fleet_in(root, processes=count, server=server) for count in (1, 2))
            rates = []
            for fleet in (alone, both):
                with running("gateway", fleet) as gateway:
                    rates.append(load(fleet, gateway, windows=SINGLE, seconds=seconds).per_core)
            # Each with a core of its own: what they cost each other is in their processor time.
            report.value("two processes, as many times one", 2 * rates[1] / rates[0], unit="x", at_least=1.7)
    report.finish()


if __name__ == "__main__":
    main()

"""The gateway under load: what one core of it takes in, by real TLS into a real store.

The load comes from this process, so a machine's wall clock says little about the gateway. Rates are per second of
processor time of the gateway's own processes, kernel and TLS and all: what one core does when it has nothing else
to do. Each process keeps to one core (``one_core = true``), and what loads it has the other cores. Latency is by the
wall clock, and needs a quiet machine. PostgreSQL runs without fsync; SQLite with it.

The baseline is a grpcio server with the same TLS, threads and core that reads nothing and keeps nothing, in turn with
ours: what the machine and gRPC leave to be had.

Usage: python tests/bench/service.py [--seconds 3]
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import os
import secrets
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from harness import QUICK, Report, in_turn, medians
from http2_load import Connection, Crowd

sys.path.append(str(Path(__file__).resolve().parents[1]))

from postgresql_server import PostgresqlServer
from service_fleet import PlainDevice, batch, make_fleet, window
from umbel_proto.seal import seal
from umbel_proto.wire import telemetry_pb2 as pb
from umbel_server.clock import system_clock
from umbel_server.files import write_atomically
from umbel_server.fleet.ca import private_pem
from umbel_server.fleet.layout import FleetDir
from umbel_server.gateway.certificate import ServerCertificate
from umbel_server.gateway.core import keep_to_one_core
from umbel_server.gateway.settings import GatewaySettings
from umbel_server.store.settings import StoreSettings

DEVICES, AT_ONCE, THREADS = 128, 16, 128
TURNS = 5
START_S, CALL_S = 60.0, 30.0
UPLOAD = "/umbel.wire.v1.Telemetry/Upload"
TICK = os.sysconf("SC_CLK_TCK")
SINGLE, HUNDRED = 1, 100


def fleet_in(root: Path, *, processes: int = 1, server: PostgresqlServer | None = None) -> FleetDir:
    made = make_fleet(root / f"garden{secrets.token_hex(2)}")
    settings = dataclasses.replace(
        made.settings, intake=GatewaySettings(processes=processes, threads=THREADS, one_core=True)
    )
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
        self._command = self._started_by(name, fleet)
        self._environment = dict(os.environ) | dict(environment or {})
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
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

    @staticmethod
    def _started_by(name: str, fleet: FleetDir) -> list[str]:
        return [sys.executable, "-m", "umbel", "serve", name, "--fleet", str(fleet.path)]

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


class Bare(Running):
    """A grpcio server on a gateway's port; its name is its number among several."""

    @staticmethod
    def _started_by(name: str, fleet: FleetDir) -> list[str]:
        return [sys.executable, __file__, "--bare", str(fleet.path), "--number", name]


def serve_bare(fleet: FleetDir, number: int) -> None:
    """Answer each call with nothing, until SIGTERM."""
    keep_to_one_core(fleet.settings.ports.gateway + number)
    server = grpc.server(ThreadPoolExecutor(THREADS), options=[("grpc.so_reuseport", 1)])
    upload = grpc.unary_unary_rpc_method_handler(lambda request, call: b"")
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("umbel.wire.v1.Telemetry", {"Upload": upload})]
    )
    certificate = ServerCertificate(fleet, system_clock, mutual=True)
    server.add_secure_port(fleet.settings.gateway, certificate.credentials())
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: server.stop(0))
    print("ready", flush=True)
    server.wait_for_termination()


@contextlib.contextmanager
def beside(services: Sequence[Running]) -> Iterator[None]:
    """Let what is started here run on the cores that services leave, where they leave any."""
    all_ = os.sched_getaffinity(0)
    os.sched_setaffinity(0, all_.difference(*(service.cores() for service in services)) or all_)
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_)


@contextlib.contextmanager
def running(name: str, fleet: FleetDir, kind: type[Running] = Running) -> Iterator[Running]:
    service = kind(name, fleet)
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


def messages(fleet: FleetDir, device: PlainDevice, windows: int) -> Callable[[], bytes]:
    """Return what makes a device's uploads: each a new batch; what is sealed in them is the same."""
    plain = batch(*(window(start_s=7200 + 60 * number) for number in range(windows)))
    key, place = fleet.telemetry_public(), secrets.token_bytes(16)
    header = pb.BatchHeader(
        schema=1, suite=1, key_id=key.key_id, fleet_id=fleet.name, device_id=device.id, batch_id=place
    )
    sealed = pb.SealedBatch(header=header.SerializeToString(), ciphertext=seal(key, b"", plain))
    before, after = pb.UploadRequest(batches=[sealed]).SerializeToString().split(place)
    return lambda: before + secrets.token_bytes(16) + after


def admitted(fleet: FleetDir, count: int) -> list[tuple[PlainDevice, ssl.SSLContext]]:
    """Return new devices of the fleet, and how each connects."""
    devices = []
    with fleet.open_store() as store, tempfile.TemporaryDirectory() as name:
        for _ in range(count):
            device = PlainDevice()
            device.admit(fleet, store)
            files = (Path(name) / "bench.pem", Path(name) / "bench.key")
            for path, data in zip(files, (device.certificate, private_pem(device.tls)), strict=True):
                write_atomically(path, data)
            context = ssl.create_default_context(cafile=str(fleet.ca_pem))
            context.load_cert_chain(*files)
            context.set_alpn_protocols(["h2"])
            devices.append((device, context))
    return devices


def load(
    fleet: FleetDir,
    *gateways: Running,
    windows: int,
    seconds: float,
    rate: float = 0.0,
    devices: int = DEVICES,
) -> Load:
    """Send from devices for a while, one call of each at a time: as fast as it goes, or ``rate`` calls each second."""
    pairs = admitted(fleet, devices)
    with beside(gateways):
        crowd = Crowd(
            [
                Connection(fleet.settings.ports.gateway, context, UPLOAD, messages(fleet, device, windows))
                for device, context in pairs
            ],
            rate,
        )
        with contextlib.closing(crowd):
            crowd.call(seconds / 4)  # Caches fill.
            begin, before = time.perf_counter(), used_s(gateways)
            done = crowd.call(seconds)
            cpu_s, wall_s = used_s(gateways) - before, time.perf_counter() - begin
    if done.refused:
        raise RuntimeError(f"{done.refused} of {done.refused + len(done.latencies_s)} calls were refused")
    return Load(len(done.latencies_s), cpu_s, wall_s, done.latencies_s)


def slowest_ms(fleet: FleetDir, gateway: Running, seconds: float, rate: float) -> float:
    """Return what 99 of 100 calls take at most, ms."""
    return 1e3 * load(fleet, gateway, windows=SINGLE, seconds=seconds, rate=rate).percentile(0.99)


def used_s(gateways: Sequence[Running]) -> float:
    return sum(gateway.cpu_s() for gateway in gateways)


def handshakes(fleet: FleetDir, gateway: Running, *, seconds: float, clients: int) -> Load:
    """Connect anew again and again, each with a client certificate and a whole handshake; so many at a time."""
    context = admitted(fleet, 1)[0][1]
    stop, latencies = threading.Event(), []

    def connect() -> None:
        while not stop.is_set():
            start_s = time.perf_counter()
            with (
                socket.create_connection(("127.0.0.1", fleet.settings.ports.gateway), CALL_S) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
            ):
                secured.recv(9)  # The server's first HTTP/2 frame: it has verified the certificate.
            latencies.append(time.perf_counter() - start_s)

    with beside([gateway]):
        threads = [threading.Thread(target=connect, daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        time.sleep(seconds / 4)
        del latencies[:]
        begin, before = time.perf_counter(), gateway.cpu_s()
        time.sleep(seconds)
        calls, cpu_s, wall_s = len(latencies), gateway.cpu_s() - before, time.perf_counter() - begin
        stop.set()
        for thread in threads:
            thread.join()
    return Load(calls, cpu_s, wall_s, latencies[:calls])


def measured(
    report: Report, root: Path, kind: str, database: PostgresqlServer | None, seconds: float
) -> None:
    """Load one process, and in turn with it a server that keeps nothing."""
    fleet, other = fleet_in(root, server=database), fleet_in(root)
    with running("gateway", fleet) as gateway, running("0", other, Bare) as bare:
        full = load(fleet, gateway, windows=HUNDRED, seconds=seconds)
        report.value(
            f"{kind}: records/s a core, in batches of 100",
            HUNDRED * full.per_core,
            unit="/s",
            at_least=100_000,
        )
        ours: list[Load] = []

        def single() -> float:
            ours.append(load(fleet, gateway, windows=SINGLE, seconds=seconds))
            return ours[-1].per_core

        pairs = in_turn(
            single, lambda: load(other, bare, windows=SINGLE, seconds=seconds).per_core, runs=TURNS
        )
        value, baseline = medians(pairs)
        report.value(
            f"{kind}: single batches/s a core, a server that keeps nothing beside it",
            value,
            unit="/s",
            at_least=4000,
            baseline=baseline,
        )
        wall = statistics.median(each.calls / each.wall_s for each in ours)
        report.value(f"{kind}: single batches/s by the clock, on one core", wall, unit="/s")
        slow_ms, plain_ms = medians(
            in_turn(
                lambda: slowest_ms(fleet, gateway, seconds, wall / 2),
                lambda: slowest_ms(other, bare, seconds, wall / 2),
                runs=TURNS,
            )
        )
        report.value(
            f"{kind}: p99 of an acknowledgment at half of that, a server that keeps nothing beside it",
            slow_ms,
            unit="ms",
            at_most=50,
            baseline=plain_ms,
        )
        if database is None:
            # One at a time the gateway sleeps and is woken three times for each: more of that than of TLS is measured.
            for clients, words, target in (
                (AT_ONCE, f"{AT_ONCE} at a time", 1000),
                (1, "one at a time", None),
            ):
                value, baseline = medians(
                    in_turn(
                        lambda many=clients: (
                            handshakes(fleet, gateway, seconds=seconds, clients=many).per_core
                        ),
                        lambda many=clients: handshakes(other, bare, seconds=seconds, clients=many).per_core,
                        runs=TURNS,
                    )
                )
                report.value(
                    f"new mutual-TLS connections/s a core, {words}, a server that keeps nothing beside it",
                    value,
                    unit="/s",
                    at_least=target,
                    baseline=baseline,
                )


def two_processes(report: Report, root: Path, server: PostgresqlServer, seconds: float) -> None:
    """Compare what a call costs each of two processes, with as many devices each, to what it costs one alone."""
    with contextlib.ExitStack() as stack:

        def costs(kind: type[Running], count: int) -> Callable[[], float]:
            ours = kind is Running
            fleet = fleet_in(root, processes=count if ours else 1, server=server if ours else None)
            names = ["gateway"] if ours else [str(number) for number in range(count)]
            services = [stack.enter_context(running(name, fleet, kind)) for name in names]
            return lambda: (
                load(fleet, *services, windows=SINGLE, seconds=seconds, devices=DEVICES * count).per_core
            )

        scaled, plain = (
            statistics.median(
                2 * two / one for two, one in in_turn(costs(kind, 2), costs(kind, 1), runs=TURNS)
            )
            for kind in (Running, Bare)
        )
    report.value(
        "two processes on PostgreSQL, as many times one, servers that keep nothing beside them",
        scaled,
        unit="x",
        at_least=1.7,
        baseline=plain,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="The gateway under load.")
    parser.add_argument("--seconds", type=float, default=1.0 if QUICK else 3.0, help="each measurement")
    parser.add_argument("--bare", type=Path, help="be the baseline on the ports of this fleet")
    parser.add_argument("--number", type=int, default=0, help="of several that share the port")
    options = parser.parse_args()
    if options.bare is not None:
        serve_bare(FleetDir.open(options.bare), options.number)
        return
    report, seconds = Report("service"), options.seconds
    server = PostgresqlServer()
    with tempfile.TemporaryDirectory() as name, contextlib.closing(server):
        root = Path(name)
        for kind, database in (("SQLite", None), ("PostgreSQL", server)):
            with report.part(kind):
                measured(report, root, kind, database, seconds)
        with report.part("two processes"):
            two_processes(report, root, server, seconds)
    report.finish()


if __name__ == "__main__":
    main()

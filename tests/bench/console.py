"""The console of 100,000 devices with 30 days of sums, in SQLite and in PostgreSQL: what its screens take and leave.

A real ``umbel serve console`` over TLS on loopback, people who sign in, and Debian's PostgreSQL. The fleet has what the
tests' browser sees - models, rollouts, runs, alerts, queries - and beside it what ``fleet_month`` fills in. Server time
is from the request to the page's last byte, over a connection that is open, and so with the client's own share. The
screens are opened one after the other, again and again, as people who go about do: what is kept for some seconds is
made anew every few loads, and lists are filtered otherwise each time.

Usage: python tests/bench/console.py [--devices N] [--days N] [--store sqlite|postgresql]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import re
import signal
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from harness import QUICK, Report, often, seconds

sys.path.append(str(Path(__file__).resolve().parents[1]))

from console_operators import arrive, watch
from console_paint import painted_ms
from fleet_month import DAYS, DEVICES, HOUR_S, SITES, fill, name
from service import TICK, Running, fleet_in

from console_seed import seed
from console_world import PASSWORD, ConsoleWorld, Visitor, password_hash
from postgresql_server import PostgresqlServer
from service_fleet import ManualClock
from umbel._telemetry.gauges import resident_bytes
from umbel_proto.ids import DeviceId
from umbel_server.access.actor import Role, local_actor
from umbel_server.api import cookies
from umbel_server.console.app import make_app
from umbel_server.console.nav import SCREENS
from umbel_server.console.pulse import MAX_OF_ONE
from umbel_server.console.static_files import FILES, static
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.ports import free_ports
from umbel_server.registry.settings import Registry

SLOWEST_MS, PAINT_MS, FIRST_LOAD, GROWTH = 100.0, 500.0, 450e3, 8 * 2**20
LOADS, WARM, PAINTS = 1000, 250, 3
SETTLED_S, MAKING = 600.0, "being computed"
OPERATORS, WATCHED_S = 50, 2.0 if QUICK else 40.0
MONTH = "?model=digits&version=1&range=30d"

Pick = Callable[[random.Random], str]


class Console(Running):
    """The console's process, and the one that makes its figures."""

    def resident_bytes(self) -> int:
        """Return the memory that both hold; pages that they share count in each."""
        return sum(resident_bytes(Path(f"/proc/{pid}/statm")) or 0 for pid in self._pids())

    def cpu_s(self) -> float:
        """Return the processor time of both until now."""
        total = 0
        for pid in self._pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICK

    def _pids(self) -> list[int]:
        # A child is listed with the thread that began it, or with another where that has ended.
        listed = Path(f"/proc/{self._process.pid}/task").glob("*/children")
        return [self._process.pid, *(int(pid) for each in listed for pid in each.read_text().split())]


def lived_in(fleet: FleetDir, count: int, days: int) -> FleetDir:
    """Give a fleet a life: what the tests' browser sees, the devices and their month, and somebody who signs in."""
    (port,) = free_ports(1, listen="127.0.0.1", taken=frozenset())
    settings = dataclasses.replace(
        fleet.settings,
        console=dataclasses.replace(fleet.settings.console, port=port),
        registry=Registry(approvals=2),
    )
    (fleet.path / "fleet.toml").write_text(settings.to_toml())
    fleet = FleetDir.open(fleet.path)
    clock = ManualClock(time.time() - DAYS / 5 * HOUR_S)  # What is seeded takes some hours.
    with fleet.open_store(clock=clock) as store, contextlib.ExitStack() as visitors:
        trust = ssl.create_default_context(cafile=fleet.ca_pem)
        seed(ConsoleWorld(fleet, store, clock, "", trust, visitors))
        for name in ("ann", *(f"ann-{number}" for number in range(-(-OPERATORS // MAX_OF_ONE)))):
            store.accounts.add(local_actor(), name, roles=frozenset({Role.ADMIN}), password=password_hash())
    fill(fleet.store_place(), count, int(time.time()), days=days)
    return fleet


@contextmanager
def console(fleet: FleetDir) -> Iterator[tuple[Console, Visitor]]:
    """Serve a fleet's console, and let an administrator sign in."""
    running = Console("console", fleet)
    try:
        url = f"https://127.0.0.1:{fleet.settings.console.port}"
        with httpx.Client(base_url=url, verify=trusted(fleet), timeout=60) as client:
            visitor = Visitor(client)
            if visitor.sign_in("ann", PASSWORD).status_code != httpx.codes.SEE_OTHER:
                raise RuntimeError("ann could not sign in")
            yield running, visitor
    finally:
        running.end(signal.SIGTERM)


def trusted(fleet: FleetDir) -> ssl.SSLContext:
    """Return what knows the console by the fleet's own authority."""
    return httpx.create_ssl_context(verify=str(fleet.ca_pem))


def screens(count: int) -> dict[str, Pick]:
    """Return what is looked at: every screen of the menu, the list of devices as people filter it, and pages below."""
    there = make_app().state.paths

    def site(chance: random.Random) -> str:
        return f"/devices?tag=site-{chance.randrange(SITES):02}"

    def always(path: str) -> Pick:
        return lambda _: path

    return {each.path: always(each.path) for each in SCREENS if each.path in there} | {
        "/devices of a tag": site,
        "/devices of a tag, silent longest first": lambda chance: site(chance) + "&sort=seen",
        "/devices stale, silent longest first": always("/devices?status=stale&sort=seen"),
        "/devices online, by certificate": always("/devices?status=online&sort=certificate"),
        "/devices of a version": lambda chance: f"/devices?model=digits&version={chance.randrange(1, 3)}",
        "/devices whose names begin so": lambda chance: f"/devices?q={name(chance.randrange(count))[:10]}",
        "/devices/NAME": lambda chance: f"/devices/{name(chance.randrange(count))}",
        "/models/NAME": always("/models/digits"),
        "/models/NAME/VERSION": always("/models/digits/2"),
        "/rollouts/NAME": always("/rollouts/digits-2"),
        "/experiments/NAME": always("/experiments/taste-3-ab"),
        "/runs/NAME": always("/runs/autumn"),
        "/queries/NAME": always("/queries/digits-seen"),
        **{f"{path} of 30 days": always(path + MONTH) for path in ("/drift", "/performance", "/fairness", "/energy")},
    }  # fmt: skip


def look(visitor: Visitor, path: str) -> str:
    """Load a screen.

    Raises:
        RuntimeError: It is not shown.
    """
    answer = visitor.get(path)
    if answer.status_code != httpx.codes.OK:
        raise RuntimeError(f"{path} is not shown: {answer.status_code}")
    return answer.text


def loads(report: Report, where: str, running: Console, visitor: Visitor, count: int) -> None:
    """Measure 1,000 loads of all screens in turn: their times, and what they leave in memory."""
    chance = random.Random(4)
    paths = screens(count)

    def load(times: int) -> dict[str, list[float]]:
        took: dict[str, list[float]] = {what: [] for what in paths}
        for number in range(times):
            what = list(paths)[number % len(paths)]
            path = paths[what](chance)
            took[what].append(seconds(lambda path=path: look(visitor, path)) * 1e3)  # type: ignore[misc]
        return took

    load(len(paths) if QUICK else WARM)
    settle(visitor, [path(chance) for path in paths.values()])
    before, begun_s = running.resident_bytes(), running.cpu_s()
    times = len(paths) if QUICK else LOADS
    took = load(times)
    page_s, grown = (running.cpu_s() - begun_s) / times, running.resident_bytes() - before
    for what, each in took.items():
        report.value(f"{what}: server p95, {where}", p95(each), unit="ms", at_most=SLOWEST_MS)
    every = [ms for each in took.values() for ms in each]
    report.value(f"any screen, server p95: {where}", p95(every), unit="ms", at_most=SLOWEST_MS)
    report.value(f"any screen, median: {where}", statistics.median(every), unit="ms")
    report.value(f"processor time of the console, a page: {where}", page_s * 1e3, unit="ms")
    report.value(
        f"memory grown in {LOADS} page loads: {where}", grown / 2**20, unit="MiB", at_most=GROWTH / 2**20
    )
    report.value(f"memory before them: {where}", before / 2**20, unit="MiB")


def settle(visitor: Visitor, paths: list[str]) -> None:
    """Look until every figure is there: the first ones of a month take the second process a while, and memory.

    Raises:
        RuntimeError: They are not made.
    """
    give_up_s = time.monotonic() + SETTLED_S
    while any(MAKING in look(visitor, path) for path in paths):
        if time.monotonic() > give_up_s:
            raise RuntimeError("The figures are not made.")
        time.sleep(1)


def p95(took: list[float]) -> float:
    return sorted(took)[int(len(took) * 0.95)]


def first_load(report: Report, where: str, visitor: Visitor) -> None:
    """Measure what a browser that was never here fetches: the overview, and every script and style there is."""
    total = 0
    for path in ("/", *map(static, FILES)):
        with visitor.client.stream("GET", path, headers={"accept-encoding": "gzip"}) as answer:
            total += sum(map(len, answer.iter_raw()))
    report.value(f"first load, as sent: {where}", total / 1e3, unit="kB", at_most=FIRST_LOAD / 1e3)


def paints(report: Report, where: str, visitor: Visitor, count: int) -> None:
    """Measure when a browser shows each screen."""
    chance = random.Random(5)
    paths = {what: path(chance) for what, path in screens(count).items()}
    secret = visitor.client.cookies[cookies.SESSION]
    first, found = painted_ms(str(visitor.client.base_url), secret, paths, loads=often(PAINTS))
    for what, ms in found.items():
        report.value(f"{what}: first paint, {where}", ms, unit="ms", at_most=PAINT_MS)
    report.value(f"first paint of a browser that was never here: {where}", first, unit="ms", at_most=PAINT_MS)


def operators(report: Report, where: str, fleet: FleetDir) -> None:
    """Measure a console on one core that operators keep open."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        watched = console(fleet)
        running, visitor = watched.__enter__()
    finally:
        os.sched_setaffinity(0, cores - {min(cores)} or cores)
    stop, begun = threading.Event(), threading.Event()
    arriving = threading.Thread(target=arrive, args=(fleet, DeviceId(name(2)), stop))
    try:
        chance = random.Random(6)
        paths = [path(chance) for path in screens(1000).values()]
        live = [path for path in paths if re.search('data-live="[a-z]', look(visitor, path))]
        arriving.start()
        used: list[tuple[float, float]] = []

        def note() -> None:
            begun.wait()
            used.append((time.perf_counter(), running.cpu_s()))

        noting = threading.Thread(target=note)
        noting.start()
        seen = watch(
            str(visitor.client.base_url), trusted(fleet), live, paths,
            operators=2 if QUICK else OPERATORS, lasts_s=WATCHED_S, begun=begun,
        )  # fmt: skip
        noting.join()
        (begin_s, before_s), (end_s, after_s) = used[0], (time.perf_counter(), running.cpu_s())
    finally:
        stop.set()
        arriving.join()
        watched.__exit__(None, None, None)
        os.sched_setaffinity(0, cores)
    what = f"{OPERATORS} operators, one core"
    report.value(
        f"{what}, of which is used: {where}", (after_s - before_s) / (end_s - begin_s), unit="", at_most=1.0
    )
    refreshed_ms, opened_ms = ([1e3 * each for each in some] for some in (seen.refreshed_s, seen.opened_s))
    report.value(f"{what}, screens shown anew in a second: {where}", len(refreshed_ms) / WATCHED_S, unit="/s")
    report.value(f"{what}, p95 of these: {where}", p95(refreshed_ms), unit="ms")
    report.value(
        f"{what}, p95 of a page that is opened: {where}", p95(opened_ms), unit="ms", at_most=PAINT_MS
    )


def measured(report: Report, where: str, server: PostgresqlServer | None, count: int, days: int) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as parts:
        parts.enter_context(report.part(f"the fleet in {where}"))
        fleet = fleet_in(Path(folder), server=server)
        begin = time.perf_counter()
        fleet = lived_in(fleet, count, days)
        report.value(
            f"made and filled with {count:,} devices: {where}", time.perf_counter() - begin, unit="s"
        )
        with console(fleet) as (running, visitor):
            with report.part(f"loads in {where}"):
                loads(report, where, running, visitor, count)
            with report.part(f"first load in {where}"):
                first_load(report, where, visitor)
            with report.part(f"paints in {where}"):
                paints(report, where, visitor, count)
        with report.part(f"operators in {where}"):
            operators(report, where, fleet)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=500 if QUICK else DEVICES)
    parser.add_argument("--days", type=int, default=2 if QUICK else DAYS, help="that devices reported on")
    parser.add_argument("--store", choices=("sqlite", "postgresql"), action="append")
    options = parser.parse_args()
    report, stores = Report("console"), options.store or ("sqlite", "postgresql")
    for store in stores:
        if store == "sqlite":
            measured(report, "SQLite", None, options.devices, options.days)
            continue
        with contextlib.closing(PostgresqlServer(durable=True)) as server:
            measured(report, "PostgreSQL", server, options.devices, options.days)
    report.finish()


if __name__ == "__main__":
    main()

"""The console of 100,000 devices with 30 days of sums: what its screens take, weigh, and leave in memory.

A real ``umbel serve console`` over TLS on loopback, and a browser without scripts that keeps its connection: a time
is from the request to the page's last byte. The store is the one of store.py, in PostgreSQL as Debian has it. Screens
that are read from what is kept for some seconds are asked while it ages, as operators ask: p95 has those that counted
anew.

Usage: python tests/bench/console.py [--devices N] [--days N]     --days: what each device reported, for a brief look
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from harness import QUICK, Report, often, seconds

sys.path.append(str(Path(__file__).resolve().parents[1]))

from service import Running, fleet_in
from store import DAYS, DEVICES, filled, name

from console_world import PASSWORD, Visitor, password_hash
from postgresql_server import PostgresqlServer
from umbel._telemetry.gauges import resident_bytes
from umbel_server.access.actor import Role, local_actor
from umbel_server.console.app import make_app
from umbel_server.console.nav import SCREENS
from umbel_server.console.static_files import FILES, static
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.ports import free_ports

SLOWEST_MS, FIRST_LOAD, GROWTH = 100.0, 450e3, 8 * 2**20
LOADS, WARM = 1000, 250
OPERATORS, REFRESH_S = 50, 15.0
"""So often an open screen looks again where nothing happens but time."""


class Console(Running):
    """The console's process."""

    def resident_bytes(self) -> int:
        """Return the memory that it holds."""
        found = resident_bytes(Path(f"/proc/{self._process.pid}/statm"))
        assert found is not None
        return found


@contextmanager
def console(fleet: FleetDir) -> Iterator[tuple[Console, Visitor]]:
    """Serve a fleet's console, with an administrator who has signed in."""
    (port,) = free_ports(1, listen="127.0.0.1", taken=frozenset())
    settings = dataclasses.replace(
        fleet.settings, console=dataclasses.replace(fleet.settings.console, port=port)
    )
    (fleet.path / "fleet.toml").write_text(settings.to_toml())
    with fleet.open_store() as store:
        store.accounts.add(local_actor(), "ann", roles=frozenset({Role.ADMIN}), password=password_hash())
    running = Console("console", FleetDir.open(fleet.path))
    try:
        trust = httpx.create_ssl_context(verify=str(fleet.ca_pem))
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trust, timeout=60) as client:
            visitor = Visitor(client)
            if visitor.sign_in("ann", PASSWORD).status_code != 303:
                raise RuntimeError("ann could not sign in")
            yield running, visitor
    finally:
        running.end(signal.SIGTERM)


def screens(count: int) -> dict[str, Callable[[random.Random], str]]:
    """Return what is looked at: every screen of the menu, and the list of devices as people filter it."""
    there = make_app().state.paths

    def site(chance: random.Random) -> str:
        return f"/devices?tag=site-{chance.randrange(20):02}"

    found: dict[str, Callable[[random.Random], str]] = {
        each.path: lambda _, path=each.path: path  # type: ignore[misc]
        for each in SCREENS
        if each.path in there
    }
    return found | {
        "/devices of a tag": site,
        "/devices of a tag, silent longest first": lambda chance: site(chance) + "&sort=seen",
        "/devices stale, silent longest first": lambda _: "/devices?status=stale&sort=seen",
        "/devices online, by certificate": lambda _: "/devices?status=online&sort=certificate",
        "/devices of a version": lambda chance: f"/devices?model=digits&version={chance.randrange(1, 3)}",
        "/devices whose names begin so": lambda chance: f"/devices?q={name(chance.randrange(count))[:10]}",
        "/devices/NAME": lambda chance: f"/devices/{name(chance.randrange(count))}",
    }


def look(visitor: Visitor, path: str) -> None:
    """Load a screen.

    Raises:
        RuntimeError: It is not shown.
    """
    answer = visitor.get(path)
    if answer.status_code != 200:
        raise RuntimeError(f"{path} is not shown: {answer.status_code}")


def times(report: Report, visitor: Visitor, count: int) -> None:
    """Measure each screen."""
    chance = random.Random(3)
    every: list[float] = []
    for what, path in screens(count).items():
        look(visitor, path(chance))
        took = []
        for _ in range(often(40)):
            there = path(chance)
            took.append(seconds(lambda there=there: look(visitor, there)) * 1e3)  # type: ignore[misc]
            time.sleep(0 if QUICK else 0.1)
        every += took
        report.value(
            f"{what}: p95", p95(took), unit="ms", at_most=SLOWEST_MS, baseline=statistics.median(took)
        )
    report.value("any of them: p95", p95(every), unit="ms", at_most=SLOWEST_MS)


def p95(took: list[float]) -> float:
    return sorted(took)[int(len(took) * 0.95)]


def first_load(report: Report, visitor: Visitor) -> None:
    """Measure what a browser that was never here fetches: the overview, and every script and style there is."""
    total = 0
    for path in ("/", *map(static, FILES)):
        with visitor.client.stream("GET", path, headers={"accept-encoding": "gzip"}) as answer:
            total += sum(map(len, answer.iter_raw()))
    report.value("first load, as sent", total / 1e3, unit="kB", at_most=FIRST_LOAD / 1e3)


def memory(report: Report, running: Console, visitor: Visitor, count: int) -> None:
    """Measure what 1,000 loads of all screens leave in memory, and what one costs in processor time."""
    chance = random.Random(4)
    paths = list(screens(count).values())

    def load(loads: int) -> None:
        for number in range(loads):
            look(visitor, paths[number % len(paths)](chance))

    load(often(WARM))
    before, begun_s = running.resident_bytes(), running.cpu_s()
    loads = often(LOADS)
    load(loads)
    page_s = (running.cpu_s() - begun_s) / loads
    grown = (running.resident_bytes() - before) / 2**20
    report.value(
        f"RSS grown in {loads} page loads", grown, unit="MiB", at_most=GROWTH / 2**20, baseline=before / 2**20
    )
    report.value("processor time of the console, a page", page_s * 1e3, unit="ms")
    report.value(
        f"open screens that a core refreshes every {REFRESH_S:.0f} s",
        REFRESH_S / max(page_s, 1e-6),
        unit="",
        at_least=OPERATORS,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=500 if QUICK else DEVICES)
    parser.add_argument("--days", type=int, default=2 if QUICK else DAYS)
    options = parser.parse_args()
    report = Report("console")
    server = PostgresqlServer(durable=True)
    try:
        with report.part("the console"), tempfile.TemporaryDirectory() as folder:
            fleet = fleet_in(Path(folder), server=server)
            url = fleet.store_place()
            assert not isinstance(url, Path)
            took_s = seconds(lambda: filled(url, options.devices, int(time.time()), days=options.days))
            report.value(f"filled with {options.devices} devices x {options.days} days", took_s, unit="s")
            with console(fleet) as (running, visitor):
                times(report, visitor, options.devices)
                first_load(report, visitor)
                memory(report, running, visitor, options.devices)
    finally:
        server.close()
    report.finish()


if __name__ == "__main__":
    main()

"""A PostgreSQL store with what 100,000 devices report in 30 days: what the console asks of it, and what arrives.

Every device reports a model on each day, and has two tags; cohorts have every hour. The server is Debian's, in a
directory of its own, with its settings for durability as they come.

Usage: python tests/bench/store.py [--devices N]
"""

from __future__ import annotations

import argparse
import random
import secrets
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fleet_month import DAY_S, DAYS, DEVICES, MODELS, SITES, fill, name
from harness import QUICK, Report, often, seconds

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sqlalchemy import URL

from postgresql_server import PostgresqlServer
from umbel_proto.ids import DeviceId
from umbel_server.monitor.report import devices, telemetry
from umbel_server.store.audit import Sought
from umbel_server.store.batches import Arrival
from umbel_server.store.devices import Device
from umbel_server.store.settings import RetentionPolicy
from umbel_server.store.store import Store, open_store
from umbel_server.store.wanted import Wanted

SLOWEST_MS = 200.0
LATENCY = ("latency_us",)
"""What a chart over time shows beside the counters: one histogram."""
BATCH_BYTES = 600
"""What 100 counted predictions are, sealed."""


def questions(store: Store, count: int, now_s: int) -> dict[str, Callable[[random.Random], object]]:
    """Return what the console asks, each with other arguments every time."""
    month_s, cohorts = now_s - DAYS * DAY_S, store.cohorts
    sites = [f"site-{each:02}" for each in range(SITES)]

    def model(chance: random.Random) -> str:
        return chance.choice(MODELS)[0]

    def page(chance: random.Random) -> tuple[Device, ...]:
        return store.device_list.page(after=name(chance.randrange(count)), limit=100)

    def site(chance: random.Random) -> str:
        return f"site-{chance.randrange(SITES):02}"

    return {
        "devices online, stale, offline": lambda _: store.inventory.reached(online_s=120, stale_s=DAY_S),
        "devices by model and version": lambda _: store.inventory.versions(),
        "devices by tag": lambda _: store.inventory.tags(),
        "batches that wait": lambda _: store.inventory.waiting(),
        "a page of 100 devices": lambda chance: store.device_list.page(
            after=name(chance.randrange(count)), limit=100
        ),
        "100 devices of a site and version, silent longest first": lambda chance: store.device_list.page(
            Wanted(tag=site(chance), model=model(chance), version=1), sort="seen", limit=100
        ),
        "100 stale devices, silent longest first": lambda _: store.device_list.page(
            Wanted(status="stale"), sort="seen", limit=100
        ),
        "facets of all devices": lambda _: store.device_list.facets(),
        "facets of the devices of a site": lambda chance: store.device_list.facets(Wanted(tag=site(chance))),
        "facets of the stale devices": lambda _: store.device_list.facets(Wanted(status="stale")),
        "100 devices with what they run": lambda chance: devices(store, page(chance), now_s=now_s),
        "100 devices with what they reported in 7 days": lambda chance: telemetry(
            store, page(chance), since_s=now_s - 7 * DAY_S
        ),
        "20 devices with what they reported in 30 days": lambda chance: telemetry(
            store, page(chance)[:20], since_s=month_s
        ),
        "a device by day, 30 days": lambda chance: store.device_days.days(
            DeviceId(name(chance.randrange(count))), since_s=month_s
        ),
        "who waits for approval": lambda _: store.applications.pending(),
        "the newest 100 entries of the audit log": lambda _: store.audit.latest(Sought(), limit=100),
        "a device and its 30 days": lambda chance: store.rollups.of(DeviceId(name(chance.randrange(count)))),
        "models and cohorts of 30 days": lambda _: (
            cohorts.models(since_s=month_s),
            cohorts.names(since_s=month_s),
        ),
        "a model, 24 hours by hour": lambda chance: cohorts.series(
            model(chance), span="hour", since_s=now_s - DAY_S, until_s=now_s
        ),
        "a version, 7 days by hour": lambda chance: cohorts.series(
            model(chance), span="hour", since_s=now_s - 7 * DAY_S, until_s=now_s, version=2, wanted=LATENCY
        ),
        "a version of a site, 30 days by hour": lambda chance: cohorts.series(
            model(chance),
            span="hour",
            cohort=site(chance),
            version=1,
            since_s=month_s,
            until_s=now_s,
            wanted=LATENCY,
        ),
        "a model, 30 days by day": lambda chance: cohorts.series(
            model(chance), span="day", since_s=month_s, until_s=now_s
        ),
        "a model in total, 30 days": lambda chance: cohorts.totals(
            model(chance), span="day", since_s=month_s, until_s=now_s
        ),
        "a model by site, 7 days in total": lambda chance: cohorts.totals(
            model(chance), span="day", since_s=now_s - 7 * DAY_S, until_s=now_s, cohorts=sites
        ),
    }


def console(report: Report, store: Store, count: int, now_s: int) -> None:
    chance = random.Random(2)
    every = []
    for what, ask in questions(store, count, now_s).items():
        ask(chance)
        took = sorted(seconds(lambda ask=ask: ask(chance)) * 1e3 for _ in range(often(40)))  # type: ignore[misc]
        every += took
        slow = took[int(len(took) * 0.95)]
        report.value(f"{what}: p95", slow, unit="ms", at_most=SLOWEST_MS, baseline=statistics.median(took))
    every.sort()
    report.value("any of them: p95", every[int(len(every) * 0.95)], unit="ms", at_most=SLOWEST_MS)


def arriving(report: Report, where: str, place: Path | URL) -> None:
    """Store single batches of 32 callers, and uploads of 64 of 4."""
    with open_store(place) as store:
        store.retention.expire(RetentionPolicy())
        senders = [enrolled(store, f"bench-{number}") for number in range(32)]
        for callers, each, least in ((32, 1, 4000.0), (4, 64, None)):
            rate, slow_ms = uploaded(store, senders, callers=callers, each=each)
            title = f"{where}: batches/s, {callers} callers, {each} at a time"
            report.value(title, rate, unit="/s", at_least=least)
            report.value(f"{title}: p99", slow_ms, unit="ms")


def enrolled(store: Store, wish: str) -> DeviceId:
    from service_fleet import PlainDevice

    application = PlainDevice().application(store.tokens.issue(valid_s=3600), name=wish)
    return store.devices.enroll(application, certificate_life_s=DAY_S).id


def uploaded(store: Store, devices: list[DeviceId], *, callers: int, each: int) -> tuple[float, float]:
    """Return how many batches a second are stored, and the 99th percentile of a call, milliseconds."""
    calls = often(20) * 1000 // each // callers
    now_s, sealed = int(time.time()), secrets.token_bytes(BATCH_BYTES)
    took: list[float] = []

    def call(caller: int) -> None:
        for _ in range(calls):
            arrivals = [
                Arrival(secrets.token_bytes(16), "key", bytes(90), sealed, now_s) for _ in range(each)
            ]
            took.append(seconds(lambda: store.batches.append(devices[caller], arrivals)))  # noqa: B023

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = callers * calls * each / (time.perf_counter() - begin)
    return rate, sorted(took)[int(len(took) * 0.99)] * 1e3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=500 if QUICK else DEVICES)
    count = parser.parse_args().devices
    report = Report("store")
    server = PostgresqlServer(durable=True)
    now_s = int(time.time())
    try:
        with report.part("what arrives"), tempfile.TemporaryDirectory() as folder:
            arriving(report, "SQLite", Path(folder) / "store.db")
            arriving(report, "PostgreSQL", server.database())
        with report.part("the console"):
            url = server.database()
            took_s = seconds(lambda: fill(url, count, now_s))
            size = server.execute(f"SELECT pg_database_size('{url.database}')")[0][0]
            report.value(f"filled with {count} devices x {DAYS} days", took_s, unit="s")
            report.value("its size", size / 1e9, unit="GB")
            with open_store(url) as store:
                console(report, store, count, now_s)
    finally:
        server.close()
    report.finish()


if __name__ == "__main__":
    main()

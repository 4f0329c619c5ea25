"""Rollouts of a large fleet: how long a look at a rollout takes, and a device's question which version it is to have.

100,000 devices have asked, 10,000 of them have the candidate, and every one that is compared reported in every hour of a
week, which the step has lasted. On SQLite, on this machine's disk, and on Debian's PostgreSQL beside it.

Usage: python tests/bench/rollouts.py
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from harness import QUICK, Report, often, seconds
from sqlalchemy import insert

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from postgresql_server import PostgresqlServer
from rollout_world import ANN, DIGITS, admit, sha256
from umbel_proto.histogram import CONFIDENCE, LATENCY_US, Histogram
from umbel_proto.ids import DeviceId
from umbel_server.rollouts.assignment import place
from umbel_server.rollouts.begin import begin, preview, propose
from umbel_server.rollouts.decider import look
from umbel_server.rollouts.evidence import SAMPLE
from umbel_server.rollouts.offers import Offers
from umbel_server.rollouts.plan import RolloutPlan, Step
from umbel_server.rollouts.state import Running
from umbel_server.store.histograms import body_of
from umbel_server.store.placements import DAY_S, HOUR_S
from umbel_server.store.rollouts import Rollout
from umbel_server.store.store import Store, open_store
from umbel_server.store.tables import rollups
from umbel_server.store.tables_devices import device_days
from umbel_server.store.tables_rollouts import device_models, rollout_devices

DEVICES = 2_000 if QUICK else 100_000
HOURS = 24
DAYS = 2 if QUICK else 7
BEGIN_S = int(time.time()) // DAY_S * DAY_S - DAYS * DAY_S
PLAN = RolloutPlan(steps=(Step("tenth", 10), Step("all", 100)))
ROWS = 20_000


def main() -> None:
    report = Report("rollouts")
    with (
        report.part("SQLite"),
        tempfile.TemporaryDirectory() as folder,
        open_store(Path(folder) / "store.db") as store,
    ):
        measured(report, "SQLite", store)
    with (
        report.part("PostgreSQL"),
        contextlib.closing(PostgresqlServer(durable=True)) as server,
        open_store(server.database()) as store,
    ):
        measured(report, "PostgreSQL", store)
    report.finish()


def measured(report: Report, where: str, store: Store) -> None:
    """Measure looks at a rollout, a dry run, and what devices are told."""
    rollout, names = fleet(store)
    assert isinstance(rollout.state, Running)
    # A step that began an hour into a day has the most to read: that day's hours, and the days after.
    for what, late_s in (
        (f"a look at a rollout of {DEVICES:,} devices", HOUR_S),
        ("as it began with a day", 0),
    ):
        step = replace(rollout, state=replace(rollout.state, since_s=BEGIN_S + late_s))
        begin_s = time.process_time()
        times = [seconds(lambda at=step: look(store, at, now_s=time.time())) for _ in range(often(5))]  # type: ignore[misc]
        cpu_s = (time.process_time() - begin_s) / len(times)
        verdicts = look(store, step, now_s=time.time()).verdicts
        assert all(verdict.devices and verdict.outcome for verdict in verdicts)
        report.value(f"{where}: {what}", statistics.median(times), unit="s", at_most=2.0)
        report.value(f"{where}: of it on this process's processor", cpu_s, unit="s")
    proposal = propose(store, DIGITS, 2, PLAN, name="another", since=1)
    took = statistics.median(seconds(lambda: preview(store, proposal)) for _ in range(often(5)))
    report.value(f"{where}: a dry run over {DEVICES:,} devices", took, unit="s", at_most=2.0)
    offers = Offers(store.releases, store.placements)
    asked = names[:: max(1, len(names) // 500)]
    has = store.placements.versions(DIGITS)
    took = seconds(lambda: [offers.for_device(each, {"digits": has[each]}, ()) for each in asked])
    report.value(f"{where}: what a device is to have", 1000 * took / len(asked), unit="ms", at_most=10.0)


def fleet(store: Store) -> tuple[Rollout, list[DeviceId]]:
    """Return a rollout whose devices have reported, and all devices."""
    names = [DeviceId(f"device-{number:06d}") for number in range(DEVICES)]
    admit(store, names)
    for version in (1, 2):
        store.releases.publish(DIGITS, version, sha256=sha256(version), size=1000)
    rollout = begin(store, propose(store, DIGITS, 2, PLAN), actor=ANN)
    places = {name: place(rollout.salt, name) for name in names}
    with_it = [name for name in names if places[name] < 0.1]
    has = {name: 2 if places[name] < 0.1 else 1 for name in names}
    with store.database.write() as connection:
        connection.execute(
            insert(device_models),
            [{"device_id": name, "model": DIGITS, "version": has[name], "since_s": 0.0} for name in names],
        )
        connection.execute(
            insert(rollout_devices),
            [
                {"rollout_id": rollout.id, "device_id": name, "admitted_s": time.time(), "failed": 0}
                for name in with_it
            ],
        )
    ordered = sorted(names, key=places.__getitem__)
    compared = {*ordered[:SAMPLE], *ordered[-SAMPLE:]}
    for table, found in ((rollups, rows(names, has, compared)), (device_days, days(names, has, compared))):
        for some in chunks(found, ROWS):
            with store.database.write() as connection:
                connection.execute(insert(table), some)
    with store.database.write() as connection:
        connection.exec_driver_sql("ANALYZE")  # As PostgreSQL does by itself, a minute after so many rows.
    return rollout, names


def rows(
    names: list[DeviceId], has: dict[DeviceId, int], compared: set[DeviceId]
) -> Iterator[dict[str, object]]:
    chance = np.random.default_rng(1)
    shapes = [shape(chance) for _ in range(50)]
    counters = json.dumps({"predictions": 300, "errors": 1})
    for name in names:
        which = int.from_bytes(hashlib.sha256(name.encode()).digest()[:2], "big") % len(shapes)
        for hour in range(HOURS * DAYS if name in compared else 1):
            yield {
                "device_id": name,
                "model": DIGITS,
                "version": has[name],
                "variant": "fp32",
                "engine": "onnx",
                "hour_s": BEGIN_S + HOUR_S * hour,
                "windows": 60,
                "until_s": BEGIN_S + HOUR_S * hour + HOUR_S - 1,
                "counters": counters,
                "histograms": shapes[which],
            }


def days(
    names: list[DeviceId], has: dict[DeviceId, int], compared: set[DeviceId]
) -> Iterator[dict[str, object]]:
    chance = np.random.default_rng(2)
    shapes = [shape(chance, predictions=300 * HOURS, days=True) for _ in range(50)]
    counters = json.dumps({"predictions": 300 * HOURS, "errors": HOURS})
    for number, name in enumerate(names):
        for day in range(DAYS if name in compared else 1):
            day_s = BEGIN_S + DAY_S * day
            yield {
                "device_id": name,
                "model": DIGITS,
                "version": has[name],
                "variant": "fp32",
                "engine": "onnx",
                "day_s": day_s,
                "windows": 60 * HOURS,
                "until_s": day_s + DAY_S - 1,
                "counters": counters,
                "histograms": shapes[number % len(shapes)],
                "left_out": 0,
            }


def shape(chance: np.random.Generator, *, predictions: int = 300, days: bool = False) -> str:
    """Return the histograms of an hour, or of a day, as the store has them."""
    both = (
        Histogram.empty("latency_us", LATENCY_US).observe(chance.lognormal(5.7, 0.3, predictions)),
        Histogram.empty("confidence", CONFIDENCE).observe(chance.beta(8, 2, predictions)),
    )
    bodies = {each.name: body_of(each.edges, each.counts, each.sum, None) for each in both}
    return json.dumps([{"name": name, **body} for name, body in bodies.items()] if days else bodies)


def chunks(found: Iterator[dict[str, object]], size: int) -> Iterator[list[dict[str, object]]]:
    some: list[dict[str, object]] = []
    for each in found:
        some.append(each)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


if __name__ == "__main__":
    main()

"""What the screen of energy and cost shows: each figure with how it was measured, and none that nobody measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from umbel_server.console.seen.marks import Mark, marks_of
from umbel_server.console.seen.watched import DAY_S, Watched
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.looks import Look, look_at_operations
from umbel_server.monitor.operations import BYTES, ENERGY, SAVED, Operations
from umbel_server.monitor.prices import Prices
from umbel_server.monitor.report import PREDICTIONS
from umbel_server.store.store import Store

REPORT_BYTES, WAITING = "report.bytes", "spool.waiting"
SEALED = "devices' own count: sealed batches, header and ciphertext, without TLS"
ARRIVED = "devices' own count: bytes of packages and deltas that arrived, without TLS, of all models"
SERIALIZED = (
    "the coordinator's count: serialized messages of a round, without TLS, for each device that took part"
)
TRAINED = "the median device's energy of a training (RAPL, all of its processes meanwhile) times the devices that took part"
MOST_ROUNDS = 50


@dataclass(frozen=True, slots=True)
class EnergyDay:
    """What the fleet spent on a day; sums over all devices that tell.

    Args:
        day_s: The day's begin, Unix seconds.
        predictions: How many were made, of every model.
        joules: What the processors of the devices that can tell spent.
        up_bytes: Of reports.
        down_bytes: Of packages.
        saved_bytes: That deltas saved.
        waiting: Batches that waited in a spool on average; None: no window says.
    """

    day_s: int
    predictions: int
    joules: float
    up_bytes: int
    down_bytes: int
    saved_bytes: int
    waiting: float | None


@dataclass(frozen=True, slots=True)
class RoundCost:
    """What a round cost each device that took part.

    Args:
        run: The run.
        round: The round.
        model: Of which model.
        devices: How many took part.
        up_bytes: Bytes up, for each.
        down_bytes: Bytes down, for each.
        finished_s: When it ended, Unix seconds.
        joules: Energy of all of them while they trained: the median device's times as many; None: no device tells.
        price: What that and the traffic of all of them cost.
    """

    run: str
    round: int
    model: str
    devices: int
    up_bytes: float
    down_bytes: float
    finished_s: float
    joules: float | None
    price: float


@dataclass(frozen=True, slots=True)
class Spent:
    """All of it.

    Args:
        look: How devices run the version.
        days: What the fleet spent, day by day.
        rounds: What rounds cost, the newest first.
        prices: By what prices.
        made_s: When it was made, Unix seconds.
        marks: What happened to the version's rollouts and its model's rounds on these days.
    """

    look: Look
    days: tuple[EnergyDay, ...]
    rounds: tuple[RoundCost, ...]
    prices: Prices
    made_s: float
    marks: tuple[Mark, ...]

    @property
    def marked(self) -> list[dict[str, Any]]:
        """The marks as a chart has them."""
        return [{"at": each.day_s, "name": each.name} for each in self.marks]

    @property
    def operations(self) -> Operations:
        """How devices run the version."""
        assert isinstance(self.look.now, Operations)
        return self.look.now

    @property
    def joules(self) -> float | None:
        """Energy of one prediction, joules; None: no device tells."""
        cost = self.operations.energy
        return None if cost is None else cost.joules / 1000

    @property
    def predictions(self) -> int:
        """How many predictions the fleet made, of every model."""
        return sum(each.predictions for each in self.days)

    @property
    def up_per_thousand(self) -> float | None:
        """Bytes of reports for a thousand predictions; None: none was told."""
        up = sum(each.up_bytes for each in self.days)
        return 1000 * up / self.predictions if up and self.predictions else None

    @property
    def down_per_thousand(self) -> float | None:
        """Bytes of packages for a thousand predictions; None: none was told."""
        down = sum(each.down_bytes for each in self.days)
        return 1000 * down / self.predictions if down and self.predictions else None

    @property
    def cost_per_thousand(self) -> float:
        """What a thousand predictions cost, of what is known and has a price."""
        sent = (self.up_per_thousand or 0.0) + (self.down_per_thousand or 0.0)
        return self.prices.of(joules=1000 * (self.joules or 0.0), sent_bytes=sent)


def spent(fleet: FleetDir, store: Store, watched: Watched) -> Spent:
    """Return what a version and the fleet cost.

    Raises:
        UsageError: Nothing was reported of it.
    """
    look = look_at_operations(
        fleet, store, watched.model, watched.version, days=watched.days, until_s=watched.until_s
    )
    prices, days = fleet.settings.prices, _days(store, watched, look)
    return Spent(
        look,
        days,
        _rounds(store, look, prices),
        prices,
        store.clock(),
        marks_of(store, watched.model, watched.version, [each.day_s for each in days]),
    )


def traffic(found: Spent) -> dict[str, Any]:
    """Return the chart of bytes up and down, day by day."""
    series = [
        {"name": name, "tone": tone, "values": values, "stack": "bytes"}
        for name, tone, values in (
            ("up: reports", "accent", [each.up_bytes for each in found.days]),
            ("down: packages", "info", [each.down_bytes for each in found.days]),
        )
        if any(values)
    ]
    return {
        "kind": "bar",
        "x": {"type": "time", "name": "day", "values": [each.day_s for each in found.days]},
        "unit": "B",
        "y": {"name": "bytes", "min": 0},
        "series": series,
        "marks": found.marked,
        **({} if series else {"empty": "No device told of bytes in this time."}),
    }


def energy_chart(found: Spent) -> dict[str, Any]:
    """Return the chart of the energy that devices tell of, day by day."""
    values = [each.joules / 3600 for each in found.days]
    return {
        "kind": "bar",
        "x": {"type": "time", "name": "day", "values": [each.day_s for each in found.days]},
        "unit": "Wh",
        "y": {"name": "energy", "min": 0},
        "series": [{"name": "whole processors (RAPL)", "tone": "accent", "values": values}],
        "marks": found.marked,
        **({} if any(values) else {"empty": "No device can read what its processor spends (RAPL)."}),
    }


def _days(store: Store, watched: Watched, look: Look) -> tuple[EnergyDay, ...]:
    since_s, until_s = look.since_s // DAY_S * DAY_S, look.until_s
    made: dict[int, int] = {}
    for model in sorted({name for name, _ in watched.models}):
        for each in store.cohorts.series(model, span="day", since_s=since_s, until_s=until_s, wanted=()):
            made[each.start_s] = made.get(each.start_s, 0) + each.counters.get(PREDICTIONS, 0)
    own = {
        each.start_s: each
        for each in store.cohorts.series("", span="day", since_s=since_s, until_s=until_s, wanted=())
    }
    found = []
    for day_s in sorted({*made, *own}):
        of = own.get(day_s)
        told = {} if of is None else of.counters
        found.append(
            EnergyDay(
                day_s,
                made.get(day_s, 0),
                told.get(ENERGY, 0) / 1e6,
                told.get(REPORT_BYTES, 0),
                told.get(BYTES, 0),
                told.get(SAVED, 0),
                None if of is None or not of.windows else told.get(WAITING, 0) / of.windows,
            )
        )
    return tuple(found)


def _rounds(store: Store, look: Look, prices: Prices) -> tuple[RoundCost, ...]:
    assert isinstance(look.now, Operations)
    training = look.now.training
    found: list[RoundCost] = []
    for run in store.runs.all():
        for each in store.runs.rounds(run.id):
            up = each.figures.get("bytes_up_per_device")
            down = each.figures.get("bytes_down_per_device")
            if each.finished_s < look.since_s or up is None or down is None:
                continue
            devices = len(each.participations)
            joules = None if training is None else devices * training.joules
            price = prices.of(joules=joules or 0.0, sent_bytes=devices * (up + down))
            found.append(
                RoundCost(run.id, each.round, run.model, devices, up, down, each.finished_s, joules, price)
            )
    return tuple(sorted(found, key=lambda each: -each.finished_s)[:MOST_ROUNDS])

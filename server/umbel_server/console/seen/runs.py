"""Federated runs as their screens show them: rounds, who took part, what was learned, and what it cost in privacy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from umbel_proto.errors import UsageError
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning.lock import require_free
from umbel_server.learning.plan import RunPlan
from umbel_server.learning.shown import run_json
from umbel_server.store.participants import Lost, Turnout
from umbel_server.store.runs import RoundRecord, RunningAttempt, RunRecord
from umbel_server.store.store import Store

STATES = ("running", "finished", "stopped", "failed")
WORDS: Mapping[str, tuple[str, str]] = {
    "running": ("running", "ok"),
    "finished": ("finished", "muted"),
    "stopped": ("stopped", "warn"),
    "failed": ("failed", "bad"),
}
PHASES: tuple[tuple[str, str], ...] = (
    ("train", "devices train, and send keys for this round"),
    ("share", "they share their secrets among neighbors"),
    ("mask", "they send noised, masked updates; their ledgers are charged before"),
    ("confirm", "they sign who is in the sum"),
    ("unmask", "they send the shares that open the sum, and no device's own"),
)
"""The phases of a round, in order: docs/spec/secure-aggregation.md."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run in the list.

    Args:
        record: The run.
        plan: What it shall do.
        done: How many of its rounds are done.
        attempt: The attempt at a round that is under way; None: none is.
    """

    record: RunRecord
    plan: RunPlan
    done: int
    attempt: RunningAttempt | None


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """An attempt at a round that is over.

    Args:
        record: The attempt.
        turnout: How many devices were in it.
    """

    record: RoundRecord
    turnout: Turnout

    @property
    def score(self) -> float | None:
        """Accuracy or, of a model that answers with numbers, R² on held-out data; None: none."""
        found = self.record.figures.get("accuracy", self.record.figures.get("r2"))
        return None if found is None else float(found)

    def metric(self, name: str) -> Mapping[str, float] | None:
        """Return what devices reported through the secure sum: mean and error; None: nothing."""
        found = (self.record.figures.get("metrics") or {}).get(name)
        return None if not found or found.get("mean") is None else found

    def figure(self, name: str) -> float | None:
        """Return a figure of the attempt; None: there is none, or it is infinite."""
        found = self.record.figures.get(name)
        return float(found) if isinstance(found, int | float) else None

    def guard(self, name: str) -> float | None:
        """Return what the guard read of the sum; None: nothing."""
        found = (self.record.figures.get("guard") or {}).get(name)
        return float(found) if isinstance(found, int | float) else None


@dataclass(frozen=True, slots=True)
class PhaseSeen:
    """A phase of the round under way.

    Args:
        name: Its name.
        what: What happens in it.
        state: ``done``, ``now`` or ``ahead``.
    """

    name: str
    what: str
    state: str


@dataclass(frozen=True, slots=True)
class RunSeen:
    """A run.

    Args:
        record: The run.
        plan: What it shall do.
        summary: How far it is and what it gave and cost, as over the API.
        attempts: Its attempts at rounds, in their order.
        attempt: The one under way; None: none is.
        phases: Its phases; none: none is under way.
        lost: Why devices were not in sums.
        driven: Whether a server process drives it.
        budget: What a device may spend over its life: epsilon.
        budget_delta: At which delta.
    """

    record: RunRecord
    plan: RunPlan
    summary: Mapping[str, Any]
    attempts: tuple[AttemptRow, ...]
    attempt: RunningAttempt | None
    phases: tuple[PhaseSeen, ...]
    lost: tuple[Lost, ...]
    driven: bool
    budget: float
    budget_delta: float

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what devices report through the secure sum and that was reported."""
        return tuple(
            name
            for name in ("accuracy", "loss", "training_loss")
            if any(row.metric(name) for row in self.attempts)
        )

    @property
    def scored(self) -> str:
        """What the figure on held-out data is called; empty: there is none."""
        return next(
            (name for row in self.attempts for name in ("accuracy", "r2") if name in row.record.figures), ""
        )


def run_rows(store: Store, *, state: str = "", model: str = "") -> tuple[RunRow, ...]:
    """Return runs, the newest first.

    Args:
        store: The store.
        state: Only in this state; empty: in any.
        model: Only of this model; empty: of any.
    """
    done = store.participants.rounds_done()
    return tuple(
        RunRow(
            each,
            RunPlan.from_json(each.plan),
            done.get(each.id, 0),
            store.runs.running_attempt(each.id) if each.state == "running" else None,
        )
        for each in reversed(store.runs.all())
        if (not state or each.state == state) and (not model or each.model == model)
    )


def run_seen(fleet: FleetDir, store: Store, record: RunRecord) -> RunSeen:
    """Return a run with its rounds."""
    rounds = store.runs.rounds(record.id, with_devices=False)
    turnout = store.participants.turnout(record.id)
    attempt = store.runs.running_attempt(record.id) if record.state == "running" else None
    policy = fleet.policy()
    return RunSeen(
        record=record,
        plan=RunPlan.from_json(record.plan),
        summary=run_json(record, rounds),
        attempts=tuple(
            AttemptRow(each, turnout.get((each.round, each.attempt), Turnout())) for each in rounds
        ),
        attempt=attempt,
        phases=phases_of(attempt),
        lost=store.participants.lost(record.id),
        driven=is_driven(fleet, record),
        budget=policy.budget_epsilon,
        budget_delta=policy.budget_delta,
    )


def is_driven(fleet: FleetDir, record: RunRecord) -> bool:
    """Return whether a server process drives a run, here."""
    try:
        require_free(fleet.runs / record.id)
    except UsageError:
        return True
    return False


def phases_of(attempt: RunningAttempt | None) -> tuple[PhaseSeen, ...]:
    """Return the phases of an attempt under way; of one of another masking engine, the only one that is known."""
    if attempt is None:
        return ()
    names = [name for name, _ in PHASES]
    if attempt.phase not in names:
        return (PhaseSeen(attempt.phase, "", "now"),)
    at = names.index(attempt.phase)
    return tuple(
        PhaseSeen(name, what, "done" if place < at else "now" if place == at else "ahead")
        for place, (name, what) in enumerate(PHASES)
    )


Chart = Callable[[RunSeen], dict[str, Any]]


def learning_chart(run: RunSeen) -> dict[str, Any]:
    """Return how good the model is after each round: on held-out data, and by the devices' own."""
    opened = _opened(run)
    series: list[dict[str, Any]] = []
    if run.scored:
        name = "held-out accuracy" if run.scored == "accuracy" else "held-out R²"
        series.append({"name": name, "values": [each.score for each in opened], "tone": "accent"})
    if any(each.metric("accuracy") for each in opened):
        series.append(_measured(opened, "accuracy", "devices' accuracy, before the round"))
    share = run.scored in ("", "accuracy")
    return _over_rounds(
        opened, series, unit="%" if share else "", empty="No round was opened yet: nothing was learned."
    )


def loss_chart(run: RunSeen) -> dict[str, Any]:
    """Return the devices' loss by round: of the model as received, and in training."""
    opened = _opened(run)
    words = {"loss": "loss, before the round", "training_loss": "loss in training"}
    series = [_measured(opened, name, words[name]) for name in run.metrics if name in words]
    return _over_rounds(
        opened, series, unit="", empty="Devices report no loss: metrics.names of the plan says what they do."
    )


def privacy_chart(run: RunSeen) -> dict[str, Any]:
    """Return what each device has spent after each attempt, against what it may."""
    counted = [each for each in run.attempts if "epsilon_server" in each.record.figures]
    chart = _over_rounds(
        counted,
        [
            {
                "name": "against the server",
                "values": [each.figure("epsilon_server") for each in counted],
                "tone": "accent",
                "step": True,
            },
            {
                "name": "against who sees only the models",
                "values": [each.figure("epsilon_release") for each in counted],
                "tone": "info",
                "step": True,
            },
        ],
        unit="",
        empty="Nobody was charged yet, or the plan adds no noise and epsilon is infinite.",
    )
    spent = [each.figure("epsilon_server") or 0.0 for each in counted]
    # The budget is in sight, however little of it is spent.
    chart["y"] = {"name": "epsilon", "min": 0}
    if not math.isfinite(run.budget):
        return chart
    chart["y"]["max"] = max([run.budget * 1.1, *spent])
    chart["bounds"] = [{"value": run.budget, "name": "budget of a device", "tone": "bad"}]
    return chart


def clip_chart(run: RunSeen) -> dict[str, Any]:
    """Return the clip, the norm of the mean update, and the largest that the guard lets pass."""
    opened = _opened(run)
    series: list[dict[str, Any]] = [
        {"name": "clip", "values": [each.figure("clip") for each in opened], "tone": "accent", "step": True}
    ]
    if any(each.guard("norm") is not None for each in opened):
        series.append(
            {"name": "norm of the mean", "values": [each.guard("norm") for each in opened], "tone": "info"}
        )
    if any(each.guard("limit") is not None for each in opened):
        series.append(
            {
                "name": "the guard's limit",
                "values": [each.guard("limit") for each in opened],
                "tone": "bad",
                "dashed": True,
            }
        )
    return _over_rounds(opened, series, unit="", empty="No round was opened yet.")


def turnout_chart(run: RunSeen) -> dict[str, Any]:
    """Return how many devices were in each attempt, and what became of them."""
    turnouts = [each.turnout for each in run.attempts]
    return _over_rounds(
        run.attempts,
        [
            {"name": "in the sum", "values": [each.summed for each in turnouts], "tone": "ok", "stack": "d"},
            {
                "name": "stragglers",
                "values": [each.silent for each in turnouts],
                "tone": "warn",
                "stack": "d",
            },
            {
                "name": "lost otherwise",
                "values": [each.charged + each.dropped - each.silent for each in turnouts],
                "tone": "bad",
                "stack": "d",
            },
        ],
        unit="",
        empty="No round is over yet.",
    ) | {"kind": "bar"}


CHARTS: Mapping[str, Chart] = {
    "learning": learning_chart,
    "loss": loss_chart,
    "privacy": privacy_chart,
    "clip": clip_chart,
    "turnout": turnout_chart,
}


def _opened(run: RunSeen) -> tuple[AttemptRow, ...]:
    return tuple(each for each in run.attempts if each.record.state == "opened")


def _measured(rows: Sequence[AttemptRow], name: str, words: str) -> dict[str, Any]:
    found = [each.metric(name) for each in rows]
    return {
        "name": words,
        "values": [None if each is None else each["mean"] for each in found],
        "low": [None if each is None else each["mean"] - 2 * (each.get("error") or 0.0) for each in found],
        "high": [None if each is None else each["mean"] + 2 * (each.get("error") or 0.0) for each in found],
        "n": [each.turnout.summed for each in rows],
        "tone": "info",
    }


def _over_rounds(
    rows: Sequence[AttemptRow], series: list[dict[str, Any]], *, unit: str, empty: str
) -> dict[str, Any]:
    labels = [
        f"{each.record.round}" + (f".{each.record.attempt}" if each.record.attempt > 1 else "")
        for each in rows
    ]
    return {
        "kind": "line",
        "unit": unit,
        "x": {"type": "category", "values": labels, "name": "round"},
        "y": {"name": ""},
        "series": series,
        "empty": empty,
    }

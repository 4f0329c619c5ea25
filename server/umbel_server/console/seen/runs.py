"""Federated runs as their screens show them: rounds, who took part, what was learned, and what it cost in privacy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from umbel_proto.errors import UsageError
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning.lock import require_free
from umbel_server.learning.plan import RunPlan
from umbel_server.store.attempts import Reached
from umbel_server.store.participants import Lost, Turnout
from umbel_server.store.runs import RoundRecord, RunningAttempt, RunRecord
from umbel_server.store.store import Store

STATES = ("running", "paused", "finished", "stopped", "failed")
SCORES = ("accuracy", "r2")
"""What figures on held-out data are called."""
WORDS: Mapping[str, tuple[str, str]] = {
    "running": ("running", "ok"),
    "paused": ("paused", "warn"),
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
POINTS = 300
"""Rounds that a chart shows at most, beside the last one: of more, every so many-th."""


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
    """A run, with a page of its rounds.

    Args:
        record: The run.
        plan: What it shall do.
        reached: How far it is, and what it gave and cost.
        attempts: A page of its attempts at rounds, the last first.
        next: Round and attempt of the last one of the page, if there are more.
        last: The last attempt that is over; None: none is.
        step: Which rounds charts show: every so many-th; 1: all.
        attempt: The one under way; None: none is.
        phases: Its phases; none: none is under way.
        lost: Why devices were not in sums.
        driven: Whether a server process drives it.
        budget: What a device may spend over its life: epsilon.
        budget_delta: At which delta.
    """

    record: RunRecord
    plan: RunPlan
    reached: Reached
    attempts: tuple[AttemptRow, ...]
    next: tuple[int, int] | None
    last: AttemptRow | None
    step: int
    attempt: RunningAttempt | None
    phases: tuple[PhaseSeen, ...]
    lost: tuple[Lost, ...]
    driven: bool
    budget: float
    budget_delta: float

    @property
    def metrics(self) -> tuple[str, ...]:
        """What devices report through the secure sum and that was reported on this page."""
        return metrics_of(self.attempts)

    @property
    def scored(self) -> str:
        """What the figure on held-out data is called; empty: there is none."""
        return next((name for name in SCORES if name in self.reached.learned), "")

    @property
    def score(self) -> float | None:
        """The figure on held-out data of the last round that was opened; None: none."""
        found = self.reached.learned.get(self.scored)
        return None if found is None else float(found)

    def spent(self, name: str) -> float | None:
        """Return ``epsilon_server`` or ``epsilon_release`` so far; None: it is infinite."""
        found = self.reached.spent.get(name, 0.0)
        return None if found is None else float(found)


@dataclass(frozen=True, slots=True)
class Course:
    """How a run went: its rounds or, of many, every so many-th and the last.

    Args:
        attempts: The attempts at these rounds, in their order.
        step: Which rounds: every so many-th; 1: all.
        budget: What a device may spend over its life: epsilon.
    """

    attempts: tuple[AttemptRow, ...]
    step: int
    budget: float

    @property
    def scored(self) -> str:
        """What the figure on held-out data is called; empty: there is none."""
        return next((name for row in self.attempts for name in SCORES if name in row.record.figures), "")


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
            store.runs.running_attempt(each.id) if each.finished_s is None else None,
        )
        for each in reversed(store.runs.all())
        if (not state or each.state == state) and (not model or each.model == model)
    )


def run_seen(
    fleet: FleetDir, store: Store, record: RunRecord, *, before: tuple[int, int] | None = None, rows: int
) -> RunSeen:
    """Return a run with a page of its rounds, the last first.

    Args:
        fleet: The fleet.
        store: Its store.
        record: The run.
        before: Round and attempt of the last one of the page before; None: the first page.
        rows: How many attempts a page has.
    """
    found = store.attempts.newest(record.id, before=before, limit=rows + 1)
    shown = _with_turnout(store, record, found[:rows])
    newest = (
        shown[:1]
        if before is None
        else _with_turnout(store, record, store.attempts.newest(record.id, limit=1))
    )
    attempt = store.runs.running_attempt(record.id) if record.finished_s is None else None
    policy = fleet.policy()
    return RunSeen(
        record=record,
        plan=RunPlan.from_json(record.plan),
        reached=store.attempts.reached(record.id),
        attempts=shown,
        next=(shown[-1].record.round, shown[-1].record.attempt) if len(found) > rows else None,
        last=newest[0] if newest else None,
        step=step_of(newest[0].record.round if newest else 0),
        attempt=attempt,
        phases=phases_of(attempt),
        lost=store.participants.lost(record.id),
        driven=is_driven(fleet, record),
        budget=policy.budget_epsilon,
        budget_delta=policy.budget_delta,
    )


def course_of(fleet: FleetDir, store: Store, record: RunRecord) -> Course:
    """Return how a run went, for charts: at most ``POINTS`` of its rounds, and the last."""
    newest = store.attempts.newest(record.id, limit=1)
    step = step_of(newest[0].round if newest else 0)
    found = store.attempts.every(record.id, step)
    return Course(_with_turnout(store, record, found), step, fleet.policy().budget_epsilon)


def step_of(rounds: int) -> int:
    """Return which rounds of so many a chart shows: every so many-th, so that it has ``POINTS`` at most."""
    return max(math.ceil(rounds / POINTS), 1)


def every_round(store: Store, record: RunRecord) -> Iterator[AttemptRow]:
    """Return all attempts of a run in their order, read a thousand at a time."""
    after = (0, 0)
    while found := store.runs.attempts(record.id, after=after, limit=1000, with_devices=False):
        yield from _with_turnout(store, record, found)
        after = (found[-1].round, found[-1].attempt)


def metrics_of(rows: Sequence[AttemptRow]) -> tuple[str, ...]:
    """Return the names of what devices reported through the secure sum in some attempts."""
    return tuple(
        name for name in ("accuracy", "loss", "training_loss") if any(row.metric(name) for row in rows)
    )


def _with_turnout(store: Store, record: RunRecord, found: Sequence[RoundRecord]) -> tuple[AttemptRow, ...]:
    if not found:
        return ()
    turnout = store.participants.turnout(record.id, of={each.round for each in found})
    return tuple(AttemptRow(each, turnout.get((each.round, each.attempt), Turnout())) for each in found)


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


Chart = Callable[[Course], dict[str, Any]]


def learning_chart(run: Course) -> dict[str, Any]:
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
        opened,
        series,
        step=run.step,
        unit="%" if share else "",
        empty="No round was opened yet: nothing was learned.",
    )


def loss_chart(run: Course) -> dict[str, Any]:
    """Return the devices' loss by round: of the model as received, and in training."""
    opened = _opened(run)
    words = {"loss": "loss, before the round", "training_loss": "loss in training"}
    series = [_measured(opened, name, words[name]) for name in metrics_of(run.attempts) if name in words]
    return _over_rounds(
        opened,
        series,
        step=run.step,
        unit="",
        empty="Devices report no loss: metrics.names of the plan says what they do.",
    )


def privacy_chart(run: Course) -> dict[str, Any]:
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
        step=run.step,
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


def clip_chart(run: Course) -> dict[str, Any]:
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
    return _over_rounds(opened, series, step=run.step, unit="", empty="No round was opened yet.")


def turnout_chart(run: Course) -> dict[str, Any]:
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
        step=run.step,
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


def rounds_words(step: int) -> str:
    """Return which rounds are shown: ``round``, ``every 4th round, and the last``."""
    if step == 1:
        return "round"
    ending = "th" if step % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(step % 10, "th")
    return f"every {step}{ending} round, and the last"


def _opened(run: Course) -> tuple[AttemptRow, ...]:
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
    rows: Sequence[AttemptRow], series: list[dict[str, Any]], *, step: int, unit: str, empty: str
) -> dict[str, Any]:
    labels = [
        f"{each.record.round}" + (f".{each.record.attempt}" if each.record.attempt > 1 else "")
        for each in rows
    ]
    return {
        "kind": "line",
        "unit": unit,
        "x": {"type": "category", "values": labels, "name": rounds_words(step)},
        "y": {"name": ""},
        "series": series,
        "empty": empty,
    }

"""Federated runs as their screens show them: rounds, who took part, what was learned, and what it cost in privacy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from umbel_proto.errors import UsageError
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning.lock import require_free
from umbel_server.learning.norms import Share, histogram
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

    @property
    def norms(self) -> tuple[Share, ...]:
        """How long updates were, in the bins of ``norms.BINS``; none: the plan did not ask, or no sum was opened."""
        return histogram(self.record.figures.get("metrics") or {})

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


def rounds_words(step: int) -> str:
    """Return which rounds are shown: ``round``, ``every 4th round, and the last``."""
    if step == 1:
        return "round"
    ending = "th" if step % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(step % 10, "th")
    return f"every {step}{ending} round, and the last"

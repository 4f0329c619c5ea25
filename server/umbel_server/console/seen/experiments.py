"""Experiments as their screens show them: what each asks, what it says so far, and what was decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from umbel_proto.errors import UsageError
from umbel_server.console.seen.asked import whole
from umbel_server.console.seen.rollouts import GateSeen, gate_seen
from umbel_server.experiments.decision import see, status_of
from umbel_server.experiments.plan import ExperimentPlan
from umbel_server.experiments.ratio import LEVEL
from umbel_server.store.experiments import EXTEND, SHIP, STOP, Experiment
from umbel_server.store.rollouts import Rollout
from umbel_server.store.store import Store

STATES = ("running", "paused", "ended", "rolled-back", "shipped", "stopped", "draft")
WORDS: Mapping[str, tuple[str, str]] = {
    "draft": ("draft", "muted"),
    "running": ("running", "ok"),
    "paused": ("paused", "hold"),
    "finished": ("finished", "muted"),
    "ended": ("ended, not decided", "warn"),
    "rolled-back": ("rolled back, not decided", "bad"),
    "shipped": ("shipped", "ok"),
    "stopped": ("stopped", "muted"),
}
OUTCOME_TONES: Mapping[str, str] = {
    "too little yet": "info",
    "the arms do not match": "bad",
    "only told with noise": "warn",
    "better": "ok",
    "worse": "bad",
    "no difference that matters": "muted",
    "not sure yet": "info",
}
TELLING = ("better", "worse", "no difference that matters", "not sure yet")
"""Outcomes by which somebody may ship."""


@dataclass(frozen=True, slots=True)
class ExperimentRow:
    """An experiment in the list.

    Args:
        experiment: The experiment.
        rollout: Its rollout.
        state: Where it stands.
        overdue: Whether somebody was to decide by now.
    """

    experiment: Experiment
    rollout: Rollout
    state: str
    overdue: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """What an experiment says, now or when it was decided.

    Args:
        at_s: When, Unix seconds.
        outcome: In a word.
        why: In a sentence.
        treatment: Devices with the candidate: drawn, compared, pinned, gone, mean.
        control: Those kept as they were.
        ratio: The devices of both arms against the draw.
        difference: How much higher the metric is in the treatment: estimate, low, high; None: not told.
        course: The same as it was known before.
        gates: What its guardrails say.
    """

    at_s: float
    outcome: str
    why: str
    treatment: Mapping[str, Any]
    control: Mapping[str, Any]
    ratio: Mapping[str, Any]
    difference: Mapping[str, float] | None
    course: tuple[Mapping[str, Any], ...]
    gates: tuple[GateSeen, ...]

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> Reading:
        """Return it of the figures that a decision freezes."""
        return cls(
            at_s=figures["at_s"],
            outcome=figures["outcome"],
            why=figures["why"],
            treatment=figures["treatment"],
            control=figures["control"],
            ratio=figures["ratio"],
            difference=figures["difference"],
            course=tuple(figures["course"]),
            gates=tuple(map(gate_seen, figures["gates"])),
        )

    @property
    def tone(self) -> str:
        """The tone of its badge."""
        return OUTCOME_TONES.get(self.outcome, "muted")

    @property
    def level(self) -> float:
        """The chance below which the arms are called a mismatch."""
        return LEVEL


def experiment_rows(store: Store, *, state: str = "", model: str = "") -> tuple[ExperimentRow, ...]:
    """Return experiments, the newest first.

    Args:
        store: The store.
        state: Only in this state; empty: in any.
        model: Only of this model; empty: of any.
    """
    rollouts = {each.id: each for each in store.rollouts.all()}
    rows = []
    for each in store.experiments.all():
        rollout = rollouts.get(each.id)
        if rollout is None or (model and rollout.model != model):
            continue
        stands = status_of(each, rollout)
        if not state or stands == state:
            overdue = each.final is None and each.ends_s <= store.clock()
            rows.append(ExperimentRow(each, rollout, stands, overdue))
    return tuple(rows)


def read_now(store: Store, name: str) -> Reading:
    """Return what an experiment says now; of a decided one, what was seen then."""
    final = store.experiments.get(name).final
    return Reading.of(final.figures if final is not None else see(store, name).figures())


def course_chart(plan: ExperimentPlan, reading: Reading | None) -> dict[str, Any]:
    """Return the difference between the arms as it was known over time, as a chart."""
    course = () if reading is None else reading.course
    least = plan.least_effect
    return {
        "kind": "line",
        "unit": "",
        "x": {"type": "time", "values": [each["at_s"] for each in course]},
        "y": {"name": ""},
        "series": [
            {
                "name": "difference",
                "values": [each["estimate"] for each in course],
                "low": [each["low"] for each in course],
                "high": [each["high"] for each in course],
                "n": [each["treatment"] + each["control"] for each in course],
                "tone": "accent",
            }
        ],
        "bounds": [
            {"value": 0.0, "name": "no difference", "tone": "muted"},
            {"value": least if plan.higher_is_better else -least, "name": "matters", "tone": "ok"},
            {"value": -least if plan.higher_is_better else least, "name": "matters, worse", "tone": "bad"},
        ],
        "empty": "Nothing is told yet: too few devices of either arm reported enough."
        if reading is None
        else reading.why,
    }


def touched_by(
    decision: str, experiment: Experiment, rollout: Rollout, *, offered: int, eligible: int
) -> int:
    """Return how many devices a decision touches, by their number."""
    if decision == STOP:
        return offered
    if decision == SHIP:
        following = experiment.plan.following
        return max(0, round(eligible * following[0].percent / 100) - offered) if following else 0
    assert decision == EXTEND, rollout.id
    return 0


@dataclass(frozen=True, slots=True)
class AskedExperiment:
    """An experiment that somebody puts together in a form.

    Args:
        model: The model.
        version: The candidate, as text.
        name: Its name; empty: of model and version.
        metric: What decides.
        least_effect: The smallest difference that matters.
        direction: ``higher`` or ``lower`` is better.
        question: What it is about.
        treatment: Percent of the devices that are offered the candidate.
        control: Percent that are kept as they are.
        tags: The audience; empty: all.
        days: After how long somebody is to decide.
        least_devices: How many devices of either arm must be comparable.
        toml: A plan as TOML, which goes before all of this; empty: none.
    """

    model: str = ""
    version: str = ""
    name: str = ""
    metric: str = ""
    least_effect: str = ""
    direction: str = "higher"
    question: str = ""
    treatment: str = "10"
    control: str = "10"
    tags: str = ""
    days: str = "14"
    least_devices: str = "50"
    toml: str = ""

    @property
    def complete(self) -> bool:
        """Whether there is something to look at."""
        return bool(self.model and self.version and (self.metric or self.toml.strip()))

    def plan(self) -> ExperimentPlan:
        """Return the plan that it means.

        Raises:
            UsageError: A field is no number, or the plan cannot be.
        """
        if self.toml.strip():
            return ExperimentPlan.from_toml(self.toml)
        return ExperimentPlan.from_dict(
            {
                "metric": self.metric,
                "least_effect": _number(self.least_effect, "The smallest difference that matters"),
                "higher_is_better": self.direction != "lower",
                "question": self.question,
                "treatment": _number(self.treatment, "Treatment"),
                "control": _number(self.control, "Control"),
                "tags": [tag.strip() for tag in self.tags.split(",") if tag.strip()],
                "days": _number(self.days, "Days"),
                "least_devices": whole(self.least_devices, "Devices of either arm"),
            }
        )


def _number(text: str, what: str) -> float:
    try:
        return float(text.strip()[:20])
    except ValueError:
        raise UsageError(f"{what}: {text.strip()[:20]!r} is no number.") from None

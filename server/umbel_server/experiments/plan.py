"""What an experiment shall find out, and how: a value, and TOML to it. It is fixed before any device is drawn."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from umbel_proto.errors import UsageError
from umbel_proto.ids import check_name
from umbel_server.experiments.metric import Metric, parse_metric
from umbel_server.rollouts.plan import DEFAULT_GATES, DEFAULT_STEPS, Gate, RolloutPlan, Step

STEP = "experiment"
SMALLEST_ARM = 20
"""No figure is made of fewer devices: it would be about their owners."""
LONGEST_DAYS = 60.0
MAX_QUESTION = 500
_ROLLOUT = ("gate", "step")


@dataclass(frozen=True, slots=True)
class ExperimentPlan:
    """What an experiment shall find out, and how.

    Args:
        metric: What decides, as `parse_metric` reads it.
        least_effect: The smallest difference that matters, in the metric's unit, > 0: about there the interval is
            narrowest.
        higher_is_better: Which direction is better.
        question: What it is about, in words.
        treatment: Share of the audience that is offered the candidate, percent.
        control: Share that is kept as it is, percent.
        tags: The audience: devices with one of these; empty: all.
        days: After how long somebody is to decide.
        error: Chance that the interval ever leaves the true difference out.
        least_devices: How many devices of either arm must be comparable before anything is told.
        least_samples: How many cases a device must have reported to be compared; of a daily metric, none.
        cap: The largest value of the metric that a device counts with, so that none outweighs all others; None: any.
        gates: Guardrails: one that fails takes the candidate back.
        steps: Those of the rollout that follows if it ships; the last one reaches every device.
    """

    metric: str
    least_effect: float
    higher_is_better: bool = True
    question: str = ""
    treatment: float = 10.0
    control: float = 10.0
    tags: frozenset[str] = frozenset()
    days: float = 14.0
    error: float = 0.05
    least_devices: int = 50
    least_samples: int = 20
    cap: float | None = None
    gates: tuple[Gate, ...] = DEFAULT_GATES
    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        parse_metric(self.metric)
        if not 0 < self.least_effect < math.inf:
            raise UsageError(
                f"The least effect is {self.least_effect:g}: choose above 0, what difference of the metric matters."
            )
        if not 0 < self.treatment < 100:
            raise UsageError(
                f"The treatment has {self.treatment:g} percent of the devices: choose above 0, below 100."
            )
        if not 0 < self.days <= LONGEST_DAYS:
            raise UsageError(
                f"The experiment lasts {self.days:g} days: choose above 0, up to {LONGEST_DAYS:g}."
            )
        if not 0 < self.error < 0.5:
            raise UsageError(f"The error level is {self.error:g}: choose above 0, below 0.5.")
        if self.least_devices < SMALLEST_ARM:
            raise UsageError(
                f"Figures of fewer than {SMALLEST_ARM} devices are not told, and say little: choose  least_devices  "
                f"{SMALLEST_ARM} or more."
            )
        if self.least_samples < 1:
            raise UsageError("A device is compared from 1 case on: choose  least_samples  1 or more.")
        if self.cap is not None and not 0 < self.cap < math.inf:
            raise UsageError(f"The cap is {self.cap:g}: choose above 0, or leave it out.")
        if len(self.question) > MAX_QUESTION or not self.question.isprintable():
            raise UsageError(f"The question is one line of up to {MAX_QUESTION} characters.")
        for tag in self.tags:
            check_name(tag, "tag")
        if any(step.control is not None for step in self.steps):
            raise UsageError("The steps are those of the rollout that follows: none of them has a control.")
        self.to_rollout()

    @property
    def measured(self) -> Metric:
        """The metric, read."""
        return parse_metric(self.metric)

    @property
    def treatment_share(self) -> float:
        """Share of the devices in either arm that are in the treatment, in (0, 1)."""
        return self.treatment / (self.treatment + self.control)

    @property
    def following(self) -> tuple[Step, ...]:
        """The steps of the rollout that follows if it ships: by default the usual ones that reach more devices."""
        return self.steps or tuple(step for step in DEFAULT_STEPS if step.percent > self.treatment)

    def to_rollout(self) -> RolloutPlan:
        """Return the rollout that it is: its first step goes on only when somebody decides so.

        Raises:
            UsageError: Shares, steps or gates do not go together.
        """
        first = Step(STEP, self.treatment, self.tags, least_s=0.0, control=self.control)
        return RolloutPlan(steps=(first, *self.following), gates=self.gates)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON keeps, and TOML says."""
        rollout = self.to_rollout().to_dict()
        return {
            "metric": self.metric,
            "least_effect": self.least_effect,
            "higher_is_better": self.higher_is_better,
            "question": self.question,
            "treatment": self.treatment,
            "control": self.control,
            "tags": sorted(self.tags),
            "days": self.days,
            "error": self.error,
            "least_devices": self.least_devices,
            "least_samples": self.least_samples,
            **({} if self.cap is None else {"cap": self.cap}),
            "gate": rollout["gate"],
            "step": rollout["step"][1:],
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ExperimentPlan:
        """Read what ``to_dict`` wrote, or a person.

        Raises:
            UsageError: A field is missing, unknown, of the wrong type or out of range.
        """
        fields = dict(_checked(raw))
        # Gates and steps are a rollout's: it knows how they are written.
        given = {name: fields.pop(name) for name in _ROLLOUT if name in fields}
        rollout = RolloutPlan.from_dict(given)
        if "gate" in given:
            fields["gates"] = rollout.gates
        if given.get("step"):
            fields["steps"] = rollout.steps
        tags = fields.pop("tags", [])
        if not all(isinstance(tag, str) for tag in tags):
            raise UsageError("Tags of an experiment's audience are words.")
        return cls(**fields, tags=frozenset(tags))

    @classmethod
    def from_toml(cls, text: str) -> ExperimentPlan:
        """Read a plan that a person wrote.

        Raises:
            UsageError: Not TOML, or a field is missing, unknown, of the wrong type or out of range.
        """
        try:
            return cls.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as exc:
            raise UsageError(f"The experiment's plan is not TOML: {exc}.") from exc


_NUMBER = (int, float)
_FIELDS: Mapping[str, Any] = {
    "metric": str,
    "least_effect": _NUMBER,
    "higher_is_better": bool,
    "question": str,
    "treatment": _NUMBER,
    "control": _NUMBER,
    "tags": list,
    "days": _NUMBER,
    "error": _NUMBER,
    "least_devices": int,
    "least_samples": int,
    "cap": _NUMBER,
    "gate": list,
    "step": list,
}


def _checked(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in raw.items():
        if name not in _FIELDS:
            raise UsageError(f"{name!r} is no setting of an experiment; there are {', '.join(_FIELDS)}.")
        right = _FIELDS[name]
        # A bool is an int to Python, and nobody means it.
        if not isinstance(value, right) or (isinstance(value, bool) and right is not bool):
            raise UsageError(f"{name!r} of an experiment is {value!r}, of the wrong type.")
    for name in ("metric", "least_effect"):
        if name not in raw:
            raise UsageError(
                f"An experiment has no {name}: say what decides, and from what difference on it matters, as in  "
                'metric = "app.sales/app.visits"  and  least_effect = 0.01.'
            )
    return raw

"""What a rollout shall do: its steps, and the gates that each of them has to pass. Values, and TOML to them."""

from __future__ import annotations

import enum
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from umbel_proto.errors import UsageError
from umbel_proto.ids import check_name
from umbel_server.rollouts.classes import check_pattern

MAX_STEPS = 20
MAX_ONE_IN = 1_000_000
HOUR_S = 3600.0


class Kind(enum.StrEnum):
    """What a gate looks at."""

    ERRORS = "errors"
    LATENCY = "latency"
    ESTIMATED = "estimated_accuracy"
    CONFIDENCE = "confidence"
    VIOLATIONS = "violations"
    METRIC = "metric"
    FAILED = "failed"
    AGREEMENT = "agreement"


class OnFailure(enum.StrEnum):
    """What becomes of a rollout when a gate fails."""

    ROLL_BACK = "roll-back"
    PAUSE = "pause"


TOLERANCES: Mapping[Kind, float] = {
    Kind.ERRORS: 0.01,
    Kind.LATENCY: 0.10,
    Kind.ESTIMATED: 0.02,
    Kind.CONFIDENCE: 0.05,
    Kind.VIOLATIONS: 0.02,
    Kind.METRIC: 0.0,
    Kind.FAILED: 0.05,
    Kind.AGREEMENT: 0.03,
}


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the fleet that a rollout reaches at one time.

    Args:
        name: What people call it.
        percent: Share of the devices, in (0, 100].
        tags: Only devices with one of these; empty: any.
        least_s: How long it lasts at least, seconds.
        longest_s: After so long a step without a failed gate goes on, if what was measured lies within the
            tolerances, and is paused if it does not; None: it waits until the gates are sure.
        control: Share of the devices, in percent, that are kept as they are on purpose, to be compared with: an
            experiment, which goes on only when somebody decides so. None: no experiment.
        classes: Only devices whose class one of these patterns fits, as ``aarch64-*``; empty: any.
        shadow: Whether the candidate answers nobody: devices go on with what they have, and ask it beside that.
        one_in: Of a shadow, of so many predictions one is put to the candidate, on average.
    """

    name: str
    percent: float
    tags: frozenset[str] = frozenset()
    least_s: float = HOUR_S
    longest_s: float | None = None
    control: float | None = None
    classes: frozenset[str] = frozenset()
    shadow: bool = False
    one_in: int = 10

    def __post_init__(self) -> None:
        check_name(self.name, "step")
        for tag in self.tags:
            check_name(tag, "tag")
        for pattern in self.classes:
            check_pattern(pattern)
        if not 1 <= self.one_in <= MAX_ONE_IN:
            raise UsageError(f"Step {self.name} asks one in {self.one_in}: choose 1 to {MAX_ONE_IN}.")
        if self.shadow and self.control is not None:
            raise UsageError(f"Step {self.name} is a shadow: nobody has the candidate to be compared with.")
        if not 0 < self.percent <= 100:
            raise UsageError(f"Step {self.name} has percent {self.percent:g}: choose above 0, up to 100.")
        if not 0 <= self.least_s < math.inf:
            raise UsageError(
                f"Step {self.name} lasts {self.least_s / HOUR_S:g} hours at least: choose 0 or more."
            )
        if self.longest_s is not None and not self.least_s <= self.longest_s < math.inf:
            raise UsageError(f"Step {self.name} ends before it may: let 'longest_hours' be 'hours' or more.")
        if self.control is not None and not 0 < self.control <= 100 - self.percent:
            raise UsageError(
                f"Step {self.name} keeps {self.control:g} percent as they are beside {self.percent:g}: choose above "
                "0, and 100 together at most."
            )

    @property
    def reaches_all(self) -> bool:
        """Whether it leaves no device out."""
        return self.percent == 100 and not self.tags and not self.classes

    @property
    def chosen(self) -> bool:
        """Whether somebody chose whom it reaches, by tags or classes, and not chance alone."""
        return bool(self.tags or self.classes)


@dataclass(frozen=True, slots=True)
class Gate:
    """Something that may not be worse on the candidate's devices than on the others, by more than a tolerance.

    Args:
        kind: What it looks at.
        tolerance: By how much: a share for errors, contract violations and failures, a share of the
            control's for latency, a difference for estimated accuracy, one in either direction for confidence, the
            metric's unit for a metric; of agreement, the share of answers that may be others than the active version's.
        percentile: Of latency, which one of each device, in (0, 100).
        metric: Of a metric, ``NAME`` of an amount for its mean, or ``COUNTER/COUNTER`` for a quotient.
        higher_is_better: Of a metric, which direction is worse.
        within: Of agreement, where the model answers with numbers: how far its may be from the active version's, in
            standard deviations of its golden answers.
    """

    kind: Kind
    tolerance: float
    percentile: float = 95.0
    metric: str = ""
    higher_is_better: bool = True
    within: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < math.inf:
            raise UsageError(f"The gate {self.kind} has tolerance {self.tolerance:g}: choose 0 or more.")
        if self.kind is Kind.AGREEMENT and not self.tolerance < 1:
            raise UsageError(
                f"The gate agreement has minimum {1 - self.tolerance:g}: choose above 0, up to 1."
            )
        if not 0 <= self.within < math.inf:
            raise UsageError(f"The gate {self.kind} has within {self.within:g}: choose 0 or more.")
        if not 0 < self.percentile < 100:
            raise UsageError(
                f"The gate {self.kind} has percentile {self.percentile:g}: choose between 0 and 100."
            )
        if (self.kind is Kind.METRIC) != bool(self.metric):
            raise UsageError(
                'A gate has a metric, as in  metric = "app.sales/app.visits",  if it is of that kind.'
            )
        if self.metric.count("/") > 1:
            raise UsageError(f"The metric {self.metric!r} is neither a name nor a quotient of two.")
        for name in filter(None, self.metric.split("/")) if self.metric else ():
            check_name(name, "metric")

    @property
    def name(self) -> str:
        """What people call it."""
        if self.kind is Kind.LATENCY:
            return f"latency p{self.percentile:g}"
        return self.metric or self.kind.value

    def says(self, step: Step) -> bool:
        """Whether it can say anything in a step.

        Where the candidate answers, the same question is not answered by the active version: nothing agrees. Where it
        only is asked beside, at low priority and on a part of the questions, its own figures compare with nothing.
        """
        return self.kind is Kind.FAILED or step.shadow == (self.kind is Kind.AGREEMENT)


DEFAULT_STEPS = (
    Step("canary", 1),
    Step("tenth", 10),
    Step("half", 50),
    Step("all", 100),
)
DEFAULT_GATES = (
    *(
        Gate(kind, TOLERANCES[kind])
        for kind in (Kind.FAILED, Kind.ERRORS, Kind.VIOLATIONS, Kind.LATENCY, Kind.ESTIMATED)
    ),
    # One that is surer by a tenth is a better one, or one whose confidences mean something else: somebody shall look.
    Gate(Kind.CONFIDENCE, 0.10),
)
"""Of a plan that names none. That five points of accuracy are lost they see by how sure the model is."""
SHADOW_GATES = (*DEFAULT_GATES, Gate(Kind.AGREEMENT, TOLERANCES[Kind.AGREEMENT]))
"""Of a plan that begins with a shadow and names no gates."""


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """What a rollout shall do.

    Args:
        steps: Its steps, in order; the last one reaches every device.
        gates: What each step but the last has to pass. The last one has no devices left to compare with.
        rate: How many devices may be offered the candidate in a minute; None: no limit.
        error: Chance that a candidate that is as good as what it follows is stopped by the gates of all steps.
        least_devices: How many devices on either side must have reported before a gate says anything.
        least_predictions: How many predictions a device must have reported to count.
        on_failure: What becomes of it when a gate fails.
    """

    steps: tuple[Step, ...] = DEFAULT_STEPS
    gates: tuple[Gate, ...] = DEFAULT_GATES
    rate: int | None = None
    error: float = 0.05
    least_devices: int = 5
    least_predictions: int = 20
    on_failure: OnFailure = OnFailure.ROLL_BACK

    def __post_init__(self) -> None:
        if not 1 <= len(self.steps) <= MAX_STEPS:
            raise UsageError(f"A rollout has {len(self.steps)} steps: choose 1 to {MAX_STEPS}.")
        if not self.steps[-1].reaches_all or self.steps[-1].shadow:
            raise UsageError(
                "The last step must reach every device: give it  percent = 100  and no tags, no classes, no shadow."
            )
        shadows = [step.shadow for step in self.steps]
        if shadows != sorted(shadows, reverse=True):
            raise UsageError("Shadow steps come first: after the candidate has answered they prove nothing.")
        if any(shadows) != any(gate.kind is Kind.AGREEMENT for gate in self.gates):
            raise UsageError(
                "A shadow step is judged by agreement, and by nothing else: give a plan both a step with "
                "shadow = true  and a gate of kind  agreement,  or neither."
            )
        names = [step.name for step in self.steps]
        if len(set(names)) != len(names):
            raise UsageError(f"The steps {', '.join(names)} are not all called differently.")
        gates = [gate.name for gate in self.gates]
        if len(set(gates)) != len(gates):
            raise UsageError(f"The gates {', '.join(gates)} are not all different.")
        if self.rate is not None and self.rate < 1:
            raise UsageError(f"The rate is {self.rate} devices a minute: choose 1 or more.")
        if not 0 < self.error < 0.5:
            raise UsageError(f"The error level is {self.error:g}: choose above 0, below 0.5.")
        if self.least_devices < 2:
            raise UsageError("Gates compare 2 devices at least: choose  least_devices  2 or more.")
        if self.least_predictions < 1:
            raise UsageError("A device counts from 1 prediction on: choose  least_predictions  1 or more.")

    @property
    def gate_error(self) -> float:
        """The error level of one gate in one step: all of them together have ``error``, by the union bound."""
        said = sum(gate.says(step) for gate in self.gates for step in self.steps[:-1])
        return self.error / max(1, said)

    def answering(self, at: int) -> tuple[Step, ...]:
        """Return the steps up to one, from 0, in which the candidate answers."""
        return tuple(step for step in self.steps[: at + 1] if not step.shadow)

    @property
    def within(self) -> float:
        """Of the gate ``agreement``, how far numbers may be apart; 0 where there is none."""
        return next((gate.within for gate in self.gates if gate.kind is Kind.AGREEMENT), 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON keeps, and TOML says."""
        return {
            "rate": self.rate,
            "error": self.error,
            "least_devices": self.least_devices,
            "least_predictions": self.least_predictions,
            "on_failure": self.on_failure.value,
            "step": [_step_dict(step) for step in self.steps],
            "gate": [_gate_dict(gate) for gate in self.gates],
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> RolloutPlan:
        """Read what ``to_dict`` wrote, or a person.

        Raises:
            UsageError: A field is unknown, of the wrong type or out of range.
        """
        fields = _known(raw, "a rollout", _PLAN)
        steps, gates = fields.pop("step", None), fields.pop("gate", None)
        if steps is not None:
            fields["steps"] = tuple(map(_step, steps))
        if gates is not None:
            fields["gates"] = tuple(map(_gate, gates))
        elif any(step.shadow for step in fields.get("steps", ())):
            fields["gates"] = SHADOW_GATES
        if "on_failure" in fields:
            fields["on_failure"] = _one_of(OnFailure, fields["on_failure"], "on_failure")
        return cls(**fields)

    @classmethod
    def from_toml(cls, text: str) -> RolloutPlan:
        """Read a plan that a person wrote.

        Raises:
            UsageError: Not TOML, or a field is unknown, of the wrong type or out of range.
        """
        try:
            return cls.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as exc:
            raise UsageError(f"The rollout's plan is not TOML: {exc}.") from exc


_NUMBER = (int, float)
_PLAN: Mapping[str, Any] = {
    "rate": int,
    "error": _NUMBER,
    "least_devices": int,
    "least_predictions": int,
    "on_failure": str,
    "step": list,
    "gate": list,
}
_STEP: Mapping[str, Any] = {
    "name": str,
    "percent": _NUMBER,
    "tags": list,
    "hours": _NUMBER,
    "longest_hours": _NUMBER,
    "control": _NUMBER,
    "classes": list,
    "shadow": bool,
    "one_in": int,
}
_GATE: Mapping[str, Any] = {
    "kind": str,
    "tolerance": _NUMBER,
    "percentile": _NUMBER,
    "metric": str,
    "higher_is_better": bool,
    "minimum": _NUMBER,
    "within": _NUMBER,
}


def _known(raw: object, what: str, types: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise UsageError(f"{what} must be a table of {', '.join(types)}.")
    for name, value in raw.items():
        if name not in types:
            raise UsageError(f"{name!r} is no setting of {what}; there are {', '.join(types)}.")
        right = types[name]
        # A bool is an int to Python, and nobody means it.
        if value is not None and (
            not isinstance(value, right) or (isinstance(value, bool) and right is not bool)
        ):
            raise UsageError(f"{name!r} of {what} is {value!r}, of the wrong type.")
    return {name: value for name, value in raw.items() if value is not None}


def _step(raw: object) -> Step:
    fields = _known(raw, "a step", _STEP)
    if not {"name", "percent"} <= fields.keys():
        raise UsageError("A step has a name and a percent.")
    if "hours" in fields:
        fields["least_s"] = fields.pop("hours") * HOUR_S
    if "longest_hours" in fields:
        fields["longest_s"] = fields.pop("longest_hours") * HOUR_S
    tags = fields.pop("tags", [])
    if not all(isinstance(tag, str) for tag in tags):
        raise UsageError("Tags of a step are words.")
    classes = fields.pop("classes", [])
    if not all(isinstance(each, str) for each in classes):
        raise UsageError('Classes of a step are words, as in  classes = ["aarch64-*"].')
    return Step(**fields, tags=frozenset(tags), classes=frozenset(classes))


def _gate(raw: object) -> Gate:
    fields = _known(raw, "a gate", _GATE)
    kind = _one_of(Kind, fields.pop("kind", ""), "kind")
    if kind is Kind.AGREEMENT:
        if "tolerance" in fields:
            raise UsageError("The gate agreement has a  minimum,  not a tolerance.")
        return Gate(kind, _rest(fields.pop("minimum", 1 - TOLERANCES[kind])), **fields)
    if not {"minimum", "within"}.isdisjoint(fields):
        raise UsageError("Only the gate agreement has  minimum  and  within.")
    return Gate(kind, fields.pop("tolerance", TOLERANCES[kind]), **fields)


def _rest(share: float) -> float:
    """Return what a share leaves of all, as people write it."""
    return round(1 - share, 12)


def _one_of(kind: Any, value: str, what: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"{what!r} is {value!r}: choose one of {', '.join(kind)}.") from None


def _step_dict(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "percent": step.percent,
        "tags": sorted(step.tags),
        "hours": step.least_s / HOUR_S,
        "longest_hours": None if step.longest_s is None else step.longest_s / HOUR_S,
        **({} if step.control is None else {"control": step.control}),
        **({"classes": sorted(step.classes)} if step.classes else {}),
        **({"shadow": True, "one_in": step.one_in} if step.shadow else {}),
    }


def _gate_dict(gate: Gate) -> dict[str, Any]:
    if gate.kind is Kind.AGREEMENT:
        return {"kind": gate.kind.value, "minimum": _rest(gate.tolerance), "within": gate.within}
    fields: dict[str, Any] = {"kind": gate.kind.value, "tolerance": gate.tolerance}
    if gate.kind is Kind.LATENCY:
        fields["percentile"] = gate.percentile
    if gate.kind is Kind.METRIC:
        fields |= {"metric": gate.metric, "higher_is_better": gate.higher_is_better}
    return fields

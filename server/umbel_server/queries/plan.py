"""How a question is put: to how many devices, with how much noise, and what of it is known beforehand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from umbel_proto.analytics.query import (
    CONFIDENCE,
    FAIRNESS,
    HISTOGRAM,
    KINDS,
    LABEL,
    MEAN,
    PREDICTION,
    QUANTILE,
    Query,
)
from umbel_proto.analytics.rules import check_fields, columns_of, place_of
from umbel_proto.contract import Column
from umbel_proto.credentials import FleetPolicy
from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import FleetId, RunId
from umbel_proto.manifest import CLASSIFICATION, Manifest
from umbel_proto.privacy.counts import CountPlan, plan_counts
from umbel_server.learning.fleet_ledger import Cost

CELLS = {HISTOGRAM: 10, QUANTILE: 32}
"""As many as a range is cut into where nobody says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What somebody asks, before the model's own facts complete it.

    Args:
        kind: ``histogram``, ``mean``, ``quantile`` or ``fairness``.
        model: The model whose local data sets are asked about.
        why: What for; the devices' users read it.
        field: What about; of fairness, predictions.
        version: The released version; None: the newest.
        edges: Of numbers, the inner edges of the cells; none: as the data contract's range is cut evenly.
        low: Of a mean; None: the least the data contract allows.
        high: Of a mean; None: the most.
        quantiles: Of a quantile: which.
        cohort: Of fairness: the column.
        cohort_edges: Of fairness: between the cohorts; none: where the column's values are known, between those.
        positive: Of fairness: the label, by name or number.
        per_device: As how many examples a device counts at most.
        epsilon: What an answer may cost a device; None: no noise, where the policy allows that.
        devices: How many are asked at most; 0: all.
        min_cohort: Fewest in the sum; 0: as the policy says.
        wait_s: How long to wait for devices to come online, seconds, and for each to count.
        name: Its name; empty: the kind and a number.
    """

    kind: str
    model: str
    why: str
    field: str = ""
    version: int | None = None
    edges: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    quantiles: tuple[float, ...] = ()
    cohort: str = ""
    cohort_edges: tuple[float, ...] = ()
    positive: str = ""
    per_device: int = 1
    epsilon: float | None = 1.0
    devices: int = 0
    min_cohort: int = 0
    wait_s: float = 60.0
    name: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"There is no kind of query {self.kind[:40]!r}: choose from {', '.join(KINDS)}.")
        if self.epsilon is not None and not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise UsageError(f"epsilon is {self.epsilon}: choose a number > 0.")
        if not (math.isfinite(self.wait_s) and 0 < self.wait_s <= 3600):
            raise UsageError(f"wait_s is {self.wait_s}: choose a number > 0, up to 3600 seconds.")
        if not 0 <= self.devices <= 1 << 14:
            raise UsageError(f"devices is {self.devices}: choose up to {1 << 14}, or 0 for all.")


@dataclass(frozen=True, slots=True)
class Asking:
    """How a query is put, on record beside what is signed.

    Args:
        devices: How many devices are asked at most; noise and slots are planned for them.
        epsilon: What an answer may cost a device; None: no noise.
        wait_s: How long to wait for devices, seconds.
        labels: Names of the labels that are counted.
        ends: Between which values the field's numbers are.
    """

    devices: int
    epsilon: float | None
    wait_s: float
    labels: tuple[str, ...] = ()
    ends: tuple[float, float] | None = None

    def to_json(self, query: Query) -> str:
        """Return it as JSON, with the question as people read it."""
        told = {name: value for name, value in asdict(query).items() if name not in ("fleet", "id")}
        return json.dumps({"asking": asdict(self), "query": told}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Asking:
        """Read what ``to_json`` gave."""
        raw = json.loads(text)["asking"]
        ends = raw["ends"]
        return cls(
            raw["devices"],
            raw["epsilon"],
            raw["wait_s"],
            tuple(raw["labels"]),
            None if ends is None else (ends[0], ends[1]),
        )


def complete(
    question: Question,
    manifest: Manifest,
    *,
    fleet: FleetId,
    name: RunId,
    package_sha256: str,
    policy: FleetPolicy,
    devices: int,
    not_after_s: int,
    asked_by: str,
) -> tuple[Query, Asking, CountPlan]:
    """Return a question with what the model and the policy add to it, and how it is summed.

    Args:
        question: What somebody asks.
        manifest: The model's.
        fleet: The fleet.
        name: The query's name.
        package_sha256: The package's hash.
        policy: What the fleet's devices insist on.
        devices: How many there are to ask.
        not_after_s: From when on no device answers, Unix seconds.
        asked_by: Who asks.

    Raises:
        UsageError: The model has no such field, or the question makes no sense.
        RefusedError: Devices would refuse it.
    """
    field = PREDICTION if question.kind == FAIRNESS else question.field
    classifies = manifest.kind == CLASSIFICATION
    labels = manifest.labels if classifies and field in (LABEL, PREDICTION) else ()
    column = _column(field, manifest)
    counted = question.kind in CELLS and not labels
    ends = None if labels or column is None else (column.minimum, column.maximum)
    low, high = _range(question, ends)
    min_cohort = question.min_cohort or policy.min_cohort
    if min_cohort < policy.min_cohort:
        raise RefusedError(
            f"min_cohort is {min_cohort}, below the {policy.min_cohort} of the fleet's policy: raise it, or leave it out."
        )
    most = min(question.devices or devices, devices, 1 << 14)
    if most < min_cohort:
        raise RefusedError(
            f"{most} devices are to be asked, and a sum has at least {min_cohort}: enroll more, or ask more of them."
        )
    asking = Asking(most, question.epsilon, question.wait_s, labels, ends)

    def make(noise_multiplier: float) -> Query:
        return Query(
            fleet=fleet,
            id=name,
            kind=question.kind,
            model=manifest.model,
            version=manifest.version,
            package_sha256=package_sha256,
            field=field,
            categories=len(labels),
            edges=(question.edges or _edges(question.kind, field, column)) if counted else question.edges,
            low=low,
            high=high,
            quantiles=tuple(question.quantiles),
            cohort=question.cohort,
            cohort_edges=question.cohort_edges or _cohort_edges(question, manifest),
            positive=_label(question, manifest) if question.kind == FAIRNESS else 0,
            per_device=question.per_device,
            min_cohort=min_cohort,
            noise_multiplier=noise_multiplier,
            not_after_s=not_after_s,
            asked_by=asked_by,
            why=question.why,
        )

    draft = make(0.0)
    check_fields(draft, manifest)
    planned = plan_query(draft, asking, policy)
    # What is promised is what devices check in exact fractions: a hair below what is planned.
    return make(planned.noise_multiplier * (1 - 1e-9)), asking, planned


def plan_query(query: Query, asking: Asking, policy: FleetPolicy) -> CountPlan:
    """Return how a query's answers are summed.

    Raises:
        RefusedError: Devices would refuse it: without noise where they insist on some, or where examples have a budget.
        UsageError: The numbers do not go together.
    """
    if asking.epsilon is None and (policy.noise_floor or math.isfinite(policy.budget_epsilon)):
        raise RefusedError(
            "The query adds no noise, and the fleet's policy bounds what devices spend: choose an epsilon, such as 1."
        )
    if math.isfinite(policy.example_budget_epsilon):
        raise RefusedError(
            "The fleet bounds what is spent on one example, and a query's noise protects whole devices: devices refuse it."
        )
    return plan_counts(
        dim=query.dim,
        bound=query.bound,
        devices=max(asking.devices, query.min_cohort),
        honest=policy.honest(query.min_cohort),
        delta=policy.budget_delta,
        epsilon=math.inf if asking.epsilon is None else asking.epsilon,
        noise_floor=max(policy.noise_floor, query.noise_multiplier),
    )


def cost_of(planned: CountPlan) -> Cost:
    """Return what an answer costs a device."""
    encoding = planned.encoding
    return Cost(encoding.bound_sq, encoding.coordinates, planned.honest * encoding.noise)


def _column(field: str, manifest: Manifest) -> Column | None:
    """Return the range of a field's numbers, if it is known beforehand."""
    if field == CONFIDENCE:
        return Column(CONFIDENCE, 0.0, 1.0)
    if field in (LABEL, PREDICTION):
        return None
    return columns_of(manifest)[place_of(field, manifest)]


def _edges(kind: str, field: str, column: Column | None) -> tuple[float, ...]:
    if column is None:
        raise UsageError(
            f"Nobody knows the range of {field} beforehand: say with --edges between which numbers to count."
        )
    if column.values:
        return _between(column.values)
    inner = np.linspace(column.minimum, column.maximum, CELLS[kind] + 1)[1:-1]
    return tuple(float(f"{edge:.6g}") for edge in inner)


def _between(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple((low + high) / 2 for low, high in pairwise(values))


def _cohort_edges(question: Question, manifest: Manifest) -> tuple[float, ...]:
    if question.kind != FAIRNESS:
        return ()
    column = columns_of(manifest)[place_of(question.cohort, manifest)]
    if not column.values:
        raise UsageError(
            f"{question.cohort} is a number from {column.minimum:g} to {column.maximum:g}: say with --cohort-edges where "
            "one cohort ends and the next begins."
        )
    return _between(column.values)


def _range(question: Question, ends: tuple[float, float] | None) -> tuple[float, float]:
    if question.kind != MEAN:
        if question.low is not None or question.high is not None:
            raise UsageError("Only a mean is of values between low and high: leave them out.")
        return 0.0, 0.0
    low = question.low if question.low is not None else None if ends is None else ends[0]
    high = question.high if question.high is not None else None if ends is None else ends[1]
    if low is None or high is None:
        raise UsageError(f"Nobody knows the range of {question.field} beforehand: say --low and --high.")
    return low, high


def _label(question: Question, manifest: Manifest) -> int:
    labels = manifest.labels
    if question.positive in labels:
        return labels.index(question.positive)
    if question.positive.isdecimal() and int(question.positive) < len(labels):
        return int(question.positive)
    raise UsageError(
        f"Model {manifest.model} has no label {question.positive[:40]!r}: say which one rates are of, with --positive: "
        f"{', '.join(labels[:20])}."
    )


def question_of(fields: Mapping[str, Any]) -> Question:
    """Return the question of some fields, as a request or a program gives them."""
    made = dict(fields)
    for name in ("edges", "quantiles", "cohort_edges"):
        made[name] = tuple(made.get(name) or ())
    return Question(**made)

"""A query that somebody puts together in a form: its fields as texts, and the question that they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from umbel_proto.errors import UsageError
from umbel_server.console.seen.asked import whole
from umbel_server.queries.plan import Question, question_of

MAX_TEXT = 2000


@dataclass(frozen=True, slots=True)
class AskedQuery:
    """What somebody filled in; what the kind does not have is not read.

    Args:
        kind: ``histogram``, ``mean``, ``quantile`` or ``fairness``.
        model: The model.
        why: What for.
        field: What about; not of fairness.
        version: The released version; empty: the newest.
        edges: Inner edges of cells, by commas; empty: the range, cut evenly.
        low: Of a mean; empty: the least the data contract allows.
        high: Of a mean; empty: the most.
        quantiles: Of a quantile: which, by commas.
        cohort: Of fairness: the column.
        cohort_edges: Of fairness: between the cohorts, by commas.
        positive: Of fairness: the label.
        per_device: As how many examples a device counts at most.
        epsilon: What an answer may cost a device; ``none``: no noise.
        devices: How many are asked at most; empty: all.
        min_cohort: Fewest in the sum; empty: as the policy says.
        wait_s: How long to wait for devices, seconds.
        name: Its name; empty: the kind and a number.
    """

    kind: str = "histogram"
    model: str = ""
    why: str = ""
    field: str = ""
    version: str = ""
    edges: str = ""
    low: str = ""
    high: str = ""
    quantiles: str = "0.5"
    cohort: str = ""
    cohort_edges: str = ""
    positive: str = ""
    per_device: str = "1"
    epsilon: str = "1"
    devices: str = ""
    min_cohort: str = ""
    wait_s: str = "60"
    name: str = ""

    @property
    def complete(self) -> bool:
        """Whether there is something to try."""
        return bool(self.model)

    def question(self) -> Question:
        """Return the question that it means.

        Raises:
            UsageError: A field is no number, or the question cannot be.
        """
        return question_of(
            {
                "kind": self.kind,
                "model": self.model,
                "why": self.why,
                "version": whole(self.version, "Version") if self.version else None,
                "per_device": whole(self.per_device, "Examples of a device"),
                "epsilon": None if self.epsilon == "none" else _number(self.epsilon, "Epsilon"),
                "devices": whole(self.devices, "Devices") if self.devices else 0,
                "min_cohort": whole(self.min_cohort, "Fewest in the sum") if self.min_cohort else 0,
                "wait_s": _number(self.wait_s, "Wait"),
                "name": self.name,
                **self._own(),
            }
        )

    def _own(self) -> Mapping[str, Any]:
        """Return what only this kind has."""
        if self.kind == "fairness":
            return {
                "cohort": self.cohort,
                "cohort_edges": _numbers(self.cohort_edges, "Where cohorts end"),
                "positive": self.positive,
            }
        if self.kind == "mean":
            return {
                "field": self.field,
                "low": _number(self.low, "Low") if self.low else None,
                "high": _number(self.high, "High") if self.high else None,
            }
        cells = {"field": self.field, "edges": _numbers(self.edges, "Edges")}
        if self.kind == "quantile":
            return {**cells, "quantiles": sorted(_numbers(self.quantiles, "Quantiles"))}
        return cells


def _numbers(text: str, what: str) -> list[float]:
    return [_number(each, what) for each in text.split(",") if each.strip()]


def _number(text: str, what: str) -> float:
    try:
        value = float(text.strip()[:40])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{what}: {text.strip()[:40]!r} is no number.")
    return value

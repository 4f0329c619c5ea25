"""A declared query, for tests of what is made of one."""

from __future__ import annotations

from typing import Any

from umbel_proto.analytics.query import FAIRNESS, HISTOGRAM, MEAN, QUANTILE, Query
from umbel_proto.ids import FleetId, ModelName, RunId
from umbel_proto.keys import SigningKey

FLEET = FleetId("north")
KEY = SigningKey.generate()


def a_query(kind: str = HISTOGRAM, **changes: Any) -> Query:
    """Return a query of a kind, with some of its fields changed."""
    own: dict[str, Any] = {
        HISTOGRAM: {"field": "age", "edges": (10.0, 20.0)},
        MEAN: {"field": "age", "low": -3.0, "high": 5.0},
        QUANTILE: {"field": "age", "edges": (10.0, 20.0), "quantiles": (0.5,)},
        FAIRNESS: {
            "field": "prediction",
            "categories": 3,
            "cohort": "group",
            "cohort_edges": (0.5, 1.5),
            "positive": 1,
        },
    }[kind]
    made: dict[str, Any] = {
        "fleet": FLEET,
        "id": RunId("q1"),
        "kind": kind,
        "model": ModelName("tiny"),
        "version": 1,
        "package_sha256": "ab" * 32,
        "min_cohort": 3,
        "noise_multiplier": 1.5,
        "not_after_s": 1000,
        "asked_by": "anna",
        "why": "to know",
    }
    return Query(**{**made, **own, **changes})

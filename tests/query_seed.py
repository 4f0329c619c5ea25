"""Queries that were answered, one that failed and one under way, for the console's browser tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from console_world import ConsoleWorld
from rollout_world import ANN
from umbel_proto.analytics.query import Query, sign_query
from umbel_proto.ids import ModelName, RunId
from umbel_server.queries.plan import Asking
from umbel_server.queries.read import read

ERROR = 4.5
"""Standard deviation of the noise of each number."""
LABELS = tuple("0123456789")
HISTOGRAM = Query(
    fleet="garden",  # type: ignore[arg-type]
    id=RunId("digits-seen"),
    kind="histogram",
    model=ModelName("digits"),
    version=2,
    package_sha256="0" * 64,
    field="label",
    categories=len(LABELS),
    per_device=1,
    min_cohort=3,
    noise_multiplier=1.0,
    not_after_s=1 << 40,
    asked_by="ann",
    why="to see which digits people write",
)
FAIRNESS = replace(
    HISTOGRAM,
    id=RunId("older-hands"),
    kind="fairness",
    field="prediction",
    cohort="age",
    cohort_edges=(30.0, 50.0),
    positive=3,
    why="the quarterly review",
)


def queries(world: ConsoleWorld) -> None:
    """A histogram, a comparison of cohorts of which one is too small, one without an answer, and one running."""
    _put(world, HISTOGRAM)
    _answer(world, HISTOGRAM, [120.0, 80, 95, 60, 3, 44, 51, 70, 66, 101, 12])
    _put(world, FAIRNESS)
    _answer(world, FAIRNESS, [210.0, 20, 15, 190, 160, 44, 30, 150, 3, 1, 0, 2])
    _put(world, replace(HISTOGRAM, id=RunId("too-few")))
    world.store.runs.finish(RunId("too-few"), "failed", "2 devices are online, and a round needs 3")
    _put(world, replace(HISTOGRAM, id=RunId("under-way")))
    world.store.runs.begin_round(RunId("under-way"), 1, 1)
    world.store.runs.enter_phase(RunId("under-way"), 1, 1, "mask")


def _put(world: ConsoleWorld, query: Query) -> None:
    asking = Asking(600, 1.0, 60.0, LABELS if query.kind == "histogram" else ())
    signed = sign_query(world.fleet.authority_signer(), query)
    world.store.queries.ask(query, signed, asking.to_json(query), actor=ANN)


def _answer(world: ConsoleWorld, query: Query, total: list[float]) -> None:
    names = LABELS if query.kind == "histogram" else ()
    told = read(query, np.array(total), error=ERROR, names=names)
    facts = {"devices": 596, "refused": 4, "reasons": {"the battery is low": 4}}
    cost = {"error": ERROR, "epsilon": 1.0, "delta": 1e-6}
    world.store.queries.answer(query.id, {**told, **facts, **cost})

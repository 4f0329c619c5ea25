"""Queries as their screens show them: what was asked, what it cost, and the answer's figures with their intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from umbel_server.fleet.layout import FleetDir
from umbel_server.queries.plan import Asking
from umbel_server.queries.shown import RATES, cell_words, query_json
from umbel_server.store.participants import Lost, Turnout
from umbel_server.store.queries import QueryRecord
from umbel_server.store.store import Store


@dataclass(frozen=True, slots=True)
class QueryRow:
    """A query in the list.

    Args:
        record: The query.
        version: Of the model.
        about: The field; of fairness, the cohorts' column.
        epsilon: What an answer costs a device; None: infinite.
        devices: How many are in the sum; None: none was opened.
    """

    record: QueryRecord
    version: int
    about: str
    epsilon: float | None
    devices: int | None


@dataclass(frozen=True, slots=True)
class Line:
    """A figure of an answer.

    Args:
        of: The cell, the cohort or the quantile.
        what: What the figure is.
        count: How many examples, with their interval; None: not of this figure.
        figure: Value, interval, and half-widths by noise and by sampling; None: too few to show.
        apart: Against the other cohorts; None: not compared.
        share: Whether the figure is a share.
    """

    of: str
    what: str
    count: Mapping[str, float] | None
    figure: Mapping[str, float] | None
    apart: Mapping[str, Any] | None = None
    share: bool = True


@dataclass(frozen=True, slots=True)
class QuerySeen:
    """A query.

    Args:
        record: The query.
        told: How far it is and what it answered, as over the API.
        asking: How it is put.
        about: The field; of fairness, the cohorts' column.
        lines: Figures of the answer; none: there is none.
        turnout: How many devices were in each attempt, by its number.
        lost: Why devices are not in the sum.
        budget: What a device may spend over its life: epsilon.
        budget_delta: At which delta.
    """

    record: QueryRecord
    told: Mapping[str, Any]
    asking: Asking
    about: str
    lines: tuple[Line, ...]
    turnout: Mapping[int, Turnout]
    lost: tuple[Lost, ...]
    budget: float
    budget_delta: float

    @property
    def charged(self) -> int:
        """How many devices paid: those in the sum, and those that the sum lacks."""
        return sum(each.summed + each.charged for each in self.turnout.values())


def query_rows(store: Store, *, state: str = "", kind: str = "", model: str = "") -> tuple[QueryRow, ...]:
    """Return queries, the newest first.

    Args:
        store: The store.
        state: Only in this state; empty: in any.
        kind: Only of this kind; empty: of any.
        model: Only of this model; empty: of any.
    """
    return tuple(
        _row(each)
        for each in reversed(store.queries.all())
        if state in ("", each.state) and kind in ("", each.kind) and model in ("", each.model)
    )


def query_seen(fleet: FleetDir, store: Store, record: QueryRecord) -> QuerySeen:
    """Return a query with its answer."""
    policy = fleet.policy()
    turnout = store.participants.turnout(record.id)
    return QuerySeen(
        record=record,
        told=query_json(store, record),
        asking=Asking.from_json(record.plan),
        about=_row(record).about,
        lines=() if record.result is None else tuple(_LINES[record.kind](record.result)),
        turnout={attempt: each for (_, attempt), each in sorted(turnout.items())},
        lost=store.participants.lost(record.id),
        budget=policy.budget_epsilon,
        budget_delta=policy.budget_delta,
    )


def answer_chart(seen: QuerySeen) -> dict[str, Any]:
    """Return the answer's figures with their intervals of 95 %: noise and sampling together."""
    compared = seen.record.kind == "fairness"
    # One bar a place: intervals are drawn in its middle.
    lines = sorted(seen.lines, key=lambda each: list(RATES.values()).index(each.what) if compared else 0)
    figures = [each.figure for each in lines]
    return {
        "kind": "bar" if seen.record.kind in ("histogram", "fairness") else "scatter",
        "unit": "%" if all(each.share for each in seen.lines) else "",
        "x": {
            "type": "category",
            "values": [f"{each.what}, {each.of}" if compared else each.of for each in lines],
            "name": seen.about,
        },
        "y": {"name": ""},
        "series": [
            {
                "name": "rate" if compared else lines[0].what,
                **{key: [each and each[of] for each in figures] for key, of in _AXES},
                "tone": "accent",
            }
        ]
        if lines
        else [],
        "empty": "There is no answer, or too few examples to tell one from noise.",
    }


def _row(record: QueryRecord) -> QueryRow:
    plan, result = json.loads(record.plan), record.result
    asked = plan["query"]
    return QueryRow(
        record,
        asked["version"],
        asked["cohort"] if record.kind == "fairness" else asked["field"],
        plan["asking"]["epsilon"] if result is None else result["epsilon"],
        None if result is None else result["devices"],
    )


def _histogram(result: Mapping[str, Any]) -> Iterator[Line]:
    for cell in result["cells"]:
        yield Line(cell.get("label") or cell_words(cell), "share", cell["count"], cell["share"])


def _mean(result: Mapping[str, Any]) -> Iterator[Line]:
    yield Line("all", "mean", result["examples"], result["mean"], share=False)


def _quantile(result: Mapping[str, Any]) -> Iterator[Line]:
    for each in result["quantiles"]:
        yield Line(f"{each['quantile']:g}", "quantile", None, each["figure"], share=False)


def _fairness(result: Mapping[str, Any]) -> Iterator[Line]:
    for cohort in result["cohorts"]:
        for name, words in RATES.items():
            rate = cohort["rates"][name]
            shown = not cohort["suppressed"]
            yield Line(
                cell_words(cohort),
                words,
                cohort["examples"],
                rate["figure"] if shown else None,
                rate["against_others"] if shown else None,
            )


_LINES = {"histogram": _histogram, "mean": _mean, "quantile": _quantile, "fairness": _fairness}
_AXES = (("values", "value"), ("low", "low"), ("high", "high"))

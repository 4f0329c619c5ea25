"""The charts of a federated run over its rounds: what was learned, what it cost, how long updates were, who took part."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from umbel_server.console.seen.runs import AttemptRow, Course, metrics_of, rounds_words
from umbel_server.learning.norms import WORDS as NORMS

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


def norms_chart(run: Course) -> dict[str, Any]:
    """Return how long the updates of each round were before the clip, in clips of that round."""
    told = [each for each in _opened(run) if each.norms]
    cells = [
        [at, len(NORMS) - 1 - place, share.value, f"± {100 * share.error:.2f} %, n = {each.turnout.summed:,}"]
        for at, each in enumerate(told)
        for place, share in enumerate(each.norms)
    ]
    chart = _over_rounds(told, [], step=run.step, unit="%", empty="No round was opened yet.")
    # The longest on top. Noise may take a share out of [0, 1]: it has the color of the end it passed.
    highest = max((share.value for each in told for share in each.norms), default=1.0)
    return chart | {
        "kind": "heatmap",
        "y": {"name": "", "values": NORMS[::-1]},
        "cells": cells,
        "min": 0,
        "max": min(highest, 1.0),
    }


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
    "norms": norms_chart,
    "turnout": turnout_chart,
}


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

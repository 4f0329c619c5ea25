"""Experiments as programs read them, at the command line and over the API."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from umbel_server.experiments.decision import see, status_of

if TYPE_CHECKING:
    from umbel_server.experiments.reading import Reading
    from umbel_server.rollouts.interval import Interval
    from umbel_server.store.experiments import Decision, Experiment
    from umbel_server.store.rollouts import Rollout
    from umbel_server.store.store import Store


def experiment_json(experiment: Experiment, rollout: Rollout) -> dict[str, Any]:
    """Return an experiment as programs read it."""
    return {
        "experiment": experiment.id,
        "model": rollout.model,
        "from_version": rollout.from_version,
        "to_version": rollout.to_version,
        "state": status_of(experiment, rollout),
        "rollout_state": rollout.status,
        "reason": getattr(rollout.state, "reason", ""),
        "created_s": experiment.created_s,
        "created_by": experiment.created_by,
        "ends_s": experiment.ends_s,
        "plan": experiment.plan.to_dict(),
        "decisions": [decision_json(each) for each in experiment.decisions],
    }


def decision_json(decision: Decision) -> dict[str, Any]:
    """Return a decision as programs read it."""
    return asdict(decision)


def shown_json(store: Store, name: str) -> dict[str, Any]:
    """Return an experiment with what it says; a decided one with what was seen then.

    Raises:
        UsageError: There is none of that name.
    """
    experiment, rollout = store.experiments.get(name), store.rollouts.get(name)
    final = experiment.final
    figures = see(store, name).figures() if final is None else dict(final.figures)
    return experiment_json(experiment, rollout) | {"figures": figures}


def reading_json(reading: Reading) -> dict[str, Any]:
    """Return a reading as programs read it."""
    return {
        "at_s": reading.at_s,
        "outcome": reading.outcome.value,
        "why": reading.why,
        "treatment": asdict(reading.treatment),
        "control": asdict(reading.control),
        "ratio": {
            "share": reading.ratio.share,
            "chance": reading.ratio.chance,
            "chance_ever": reading.ratio.chance_ever,
            "mismatch": reading.ratio.mismatch,
        },
        "difference": None if reading.difference is None else _interval_json(reading.difference),
        "course": [
            {"at_s": each.at_s, "treatment": each.treatment, "control": each.control}
            | _interval_json(each.interval)
            for each in reading.course
        ],
    }


def _interval_json(interval: Interval) -> dict[str, float]:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}

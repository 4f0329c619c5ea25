"""Runs and their rounds as programs read them, at the command line and over the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from umbel_proto.privacy.auxiliary import WITHIN_CLIP
from umbel_server.learning.plan import RunPlan

if TYPE_CHECKING:
    from umbel_server.store.attempts import Reached
    from umbel_server.store.runs import RoundRecord, RunRecord
    from umbel_server.store.schedules import Schedule


def run_json(record: RunRecord, reached: Reached) -> dict[str, Any]:
    """Return a run, how far it is, and what it gave and cost so far, as JSON values."""
    plan = RunPlan.from_json(record.plan)
    figures = reached.learned
    within = (figures.get("metrics") or {}).get(WITHIN_CLIP)
    spent = reached.spent or {"epsilon_server": 0.0, "epsilon_release": 0.0}
    return {
        "run": record.id,
        "model": record.model,
        "version": plan.version,
        "state": record.state,
        "reason": record.reason,
        "rounds": plan.rounds,
        "rounds_done": reached.opened,
        "accuracy": figures.get("accuracy"),
        **({"r2": figures["r2"]} if "r2" in figures else {}),  # of a model that answers with numbers
        **({"within_clip": within} if within else {}),
        # A number that is not finite is kept as None: there was no noise.
        "epsilon_server": spent["epsilon_server"],
        "epsilon_release": spent["epsilon_release"],
        "delta": plan.privacy.delta,
        "created_s": record.created_s,
        "finished_s": record.finished_s,
    }


def attempt_json(record: RoundRecord) -> dict[str, Any]:
    """Return an attempt at a round and who was in it, as JSON values."""
    return {
        "round": record.round,
        "attempt": record.attempt,
        "state": record.state,
        "reason": record.reason,
        "started_s": record.started_s,
        "finished_s": record.finished_s,
        "figures": dict(record.figures),
        "participations": [
            {"device": p.device, "outcome": p.outcome, "reason": p.reason} for p in record.participations
        ],
    }


def schedule_json(schedule: Schedule) -> dict[str, Any]:
    """Return a schedule, and what came of it the last time, as JSON values."""
    return {
        "schedule": schedule.name,
        "model": schedule.model,
        "state": schedule.state,
        "every_s": schedule.every_s,
        "at_s": schedule.at_s,
        "labels": schedule.labels,
        "next_s": schedule.next_s,
        "last_run": schedule.last_run,
        "said": schedule.said,
    }

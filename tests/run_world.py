"""Runs on record as a server writes them, round by round, without devices that train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rollout_world import ANN, DIGITS
from umbel_proto.ids import DeviceId, RunId
from umbel_server.learning.plan import Privacy, RunPlan
from umbel_server.store.runs import Participation, RoundRecord
from umbel_server.store.schedules import Schedule
from umbel_server.store.store import Store

PLAN = RunPlan(
    model=DIGITS,
    version=2,
    package_sha256="ab" * 32,
    rounds=6,
    devices=8,
    privacy=Privacy(clip=1.0, noise_multiplier=4.0, delta=1e-6),
)
LATE = "no answer while masking"


LENGTHS = {
    "within_quarter_clip": {"mean": -0.02, "error": 0.03},
    "within_half_clip": {"mean": 0.25, "error": 0.03},
    "within_double_clip": {"mean": 0.95, "error": 0.03},
    "within_fourfold_clip": {"mean": 1.0, "error": 0.03},
}
"""Beside ``within_clip``: no update so short that noise does not make it fewer, none above four clips."""


def begin(store: Store, name: str, plan: RunPlan = PLAN) -> RunId:
    run = RunId(name)
    store.runs.create(run, plan.model, plan.to_json(), actor=ANN)
    return run


def hold_round(
    store: Store,
    run: RunId,
    number: int,
    *,
    attempt: int = 1,
    opened: bool = True,
    at_s: float,
    norms: bool = False,
) -> None:
    """Put an attempt at a round on record: two of eight devices are late or gone."""
    names = [DeviceId(f"device-{each:03d}") for each in range(8)]
    store.runs.begin_round(run, number, attempt)
    store.runs.enter_phase(run, number, attempt, "mask", names[:7])
    parts = [
        Participation(name, "summed" if opened else "charged", "" if opened else "the round was aborted")
        for name in names[:6]
    ]
    parts += [
        Participation(names[6], "charged", LATE),
        Participation(names[7], "dropped", "the battery is low"),
    ]
    store.runs.end_round(
        RoundRecord(
            run,
            number,
            attempt,
            "opened" if opened else "aborted",
            at_s,
            at_s + 42,
            "" if opened else "3 devices sent updates, and 5 are needed",
            figures(number, opened=opened, norms=norms),
            tuple(parts),
        )
    )


def figures(number: int, *, opened: bool, norms: bool = False) -> dict[str, Any]:
    spent = {
        "epsilon_server": 0.9 * number**0.5,
        "epsilon_release": 0.3 * number**0.5,
        "bytes_up_per_device": 81_000.0,
    }
    if not opened:
        return {"guard": {}, **spent}
    return {
        "accuracy": 1 - 0.5 / number,
        "clip": 1.0,
        "guard": {"norm": 0.8 / number, "limit": 3.0},
        "metrics": {
            "accuracy": {"mean": 0.9 - 0.4 / number, "error": 0.02},
            "loss": {"mean": 1.5 / number, "error": 0.05},
            "within_clip": {"mean": 0.7, "error": 0.03},
            **(LENGTHS if norms else {}),
        },
        **spent,
    }


def trained(store: Store, name: str, *, at_s: float, rounds: int = 3, plan: RunPlan = PLAN) -> RunId:
    """A run that has done some rounds, the second of them at its second attempt."""
    run = begin(store, name, replace(plan, rounds=max(plan.rounds, rounds)))
    norms = plan.metrics.norms
    for number in range(1, rounds + 1):
        if number == 2:
            hold_round(store, run, number, opened=False, at_s=at_s + 60 * number)
        attempt, later_s = 2 if number == 2 else 1, at_s + 60 * number + 50
        hold_round(store, run, number, attempt=attempt, at_s=later_s, norms=norms)
    return run


def schedule(store: Store, name: str, *, now_s: float, **changes: Any) -> Schedule:
    made = Schedule(
        name=name,
        model=DIGITS,
        plan={"model": "digits", "rounds": 2, "devices": 8},
        every_s=7 * 86400.0,
        at_s=2 * 3600 + 1800,
        labels=0,
        state="active",
        next_s=now_s + 86400,
        since_s=now_s,
    )
    made = replace(made, **changes)
    store.schedules.add(made, ANN)
    return made

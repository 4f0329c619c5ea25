"""What other tools are told of a run: its plan, its state, and the figures of each round.

No device is named: how many were in a sum is told, and who was not. The names of the server's own files stay here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from umbel_proto.ids import check_name

REASON = "umbel.reason"
"""What a run ended for, in the words of people or of the service, which may name a file: other servers are not told."""
_FILES = ("heldout", "result.calibration")
"""Fields of a plan that name a file of the server."""
_SCALARS = {
    "accuracy": "heldout/accuracy",
    "r2": "heldout/r2",
    "epsilon_server": "privacy/epsilon_server",
    "epsilon_release": "privacy/epsilon_release",
    "clip": "round/clip",
    "bytes_up_per_device": "round/bytes_up_per_device",
    "bytes_down_per_device": "round/bytes_down_per_device",
}


@dataclass(frozen=True, slots=True)
class Point:
    """A figure of a round.

    Args:
        name: Its name, as ``devices/loss``.
        round: The round, from 1.
        at_s: When the round ended, Unix seconds.
        value: The figure, finite.
    """

    name: str
    round: int
    at_s: float
    value: float


@dataclass(frozen=True, slots=True)
class Exported:
    """What is told of a run.

    Args:
        run: Its name.
        model: What it trains.
        state: ``running``, ``paused``, ``finished``, ``stopped`` or ``failed``.
        created_s: When it was created, Unix seconds: with its name, what tells it from others.
        finished_s: When it ended; None while it runs.
        plan: Its plan, each field by its name in the TOML file, as ``training.epochs``.
        about: Its version, lineage and state, by name.
        points: The figures of its rounds, in the rounds' order.
    """

    run: str
    model: str
    state: str
    created_s: float
    finished_s: float | None
    plan: Mapping[str, bool | int | float | str]
    about: Mapping[str, str]
    points: tuple[Point, ...]


def exported(run: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]) -> Exported:
    """Return what is told of a run.

    Args:
        run: The run and its plan, as ``umbel rounds show --json`` has them.
        attempts: Its attempts at rounds, as there.

    Raises:
        UsageError: The run's name is none: it comes from a service, and a directory is called by it.
    """
    check_name(run["run"], "run")
    plan = {name: value for name, value in _flat(run["plan"]) if name not in _FILES}
    tries = Counter(each["round"] for each in attempts)
    opened = [each for each in attempts if each["state"] == "opened"]
    about = {
        "umbel.run": run["run"],
        "umbel.created_s": repr(float(run["created_s"])),
        "umbel.model": run["model"],
        "umbel.version": str(run["version"]),
        "umbel.package_sha256": str(plan.pop("package_sha256", "")),
        "umbel.state": run["state"],
        REASON: run["reason"],
        "umbel.rounds_done": str(run["rounds_done"]),
        "umbel.delta": repr(run["delta"]),
    }
    return Exported(
        run=run["run"],
        model=run["model"],
        state=run["state"],
        created_s=float(run["created_s"]),
        finished_s=run["finished_s"],
        plan=plan,
        about={name: value for name, value in about.items() if value},
        points=tuple(point for each in opened for point in _points(each, tries[each["round"]])),
    )


def _points(attempt: Mapping[str, Any], tries: int) -> Iterator[Point]:
    figures = attempt["figures"]
    outcomes = Counter(each["outcome"] for each in attempt["participations"])
    found: dict[str, Any] = {
        "round/devices": outcomes["summed"],
        "round/lost": outcomes.total() - outcomes["summed"],
        "round/attempts": tries,
        "round/seconds": attempt["finished_s"] - attempt["started_s"],
        **{name: figures.get(figure) for figure, name in _SCALARS.items()},
        "round/norm": (figures.get("guard") or {}).get("norm"),
    }
    for name, measured in (figures.get("metrics") or {}).items():
        found[f"devices/{name}"] = measured["mean"]
        found[f"devices/{name}_error"] = measured["error"]
    for name, value in found.items():
        if value is not None:  # A number that is not finite is kept as None: there was no noise.
            yield Point(name, attempt["round"], attempt["finished_s"], float(value))


def _flat(fields: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{under}{name}.")
        elif value is not None:
            yield under + name, value if isinstance(value, bool | int | float | str) else json.dumps(value)

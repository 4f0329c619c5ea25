"""A finished run's model as a signed package: the workbench packs it, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umbel_proto.errors import RefusedError, StorageError, UnavailableError, UsageError
from umbel_proto.ids import RunId
from umbel_server.access.actor import Actor
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning.plan import RunPlan
from umbel_server.learning.run import TRAINED
from umbel_server.registry.versions import add
from umbel_server.signals import end_with_parent
from umbel_server.store.registry import Version, versions
from umbel_server.store.runs import RunRecord
from umbel_server.store.store import Store

PACKED = "model.umbel"
"""The package's name in its run's directory."""


@dataclass(frozen=True, slots=True)
class Packed:
    """What a run has learned, as a package.

    Args:
        path: Where the package lies.
        version: It in the registry.
    """

    path: Path
    version: Version

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, without where it lies."""
        made = self.version
        return {
            "run": made.run,
            "model": made.model,
            "version": made.version,
            "sha256": made.sha256.hex(),
            "size": made.size,
        }


def packed(fleet: FleetDir, run: RunId) -> Path:
    """Return where a run's package lies, or will."""
    return fleet.runs / run / PACKED


def lineage(store: Store, record: RunRecord) -> dict[str, Any]:
    """Return where a run's model comes from: the run, its rounds, its devices, its privacy."""
    plan = RunPlan.from_json(record.plan)
    rounds = [each for each in store.runs.rounds(record.id) if each.state == "opened"]
    if not rounds:
        raise RefusedError(f"Run {record.id} has completed no round: there is nothing to pack.")
    last = rounds[-1].figures
    facts = {
        "run": record.id,
        "rounds": len(rounds),
        "devices_most": max(sum(p.outcome == "summed" for p in each.participations) for each in rounds),
        "epsilon_server": last.get("epsilon_server"),
        "epsilon_release": last.get("epsilon_release"),
        "delta": plan.privacy.delta,
    }
    return {name: value for name, value in facts.items() if value is not None}  # None: there was no noise.


def pack(
    fleet: FleetDir,
    store: Store,
    record: RunRecord,
    actor: Actor,
    *,
    calibration: Path | None = None,
    heldout: Path | None = None,
    key: Path | None = None,
    version: int | None = None,
    out: Path | None = None,
) -> Packed:
    """Make a signed package of what a run has learned, and put it into the registry as a draft.

    Args:
        fleet: The fleet.
        store: Its store.
        record: The run; finished or stopped.
        actor: Who asks for it.
        calibration: An ``.npz`` file with ``x``; by default the plan's.
        heldout: An ``.npz`` file with ``x`` and ``y`` for the card; by default the plan's, if it has one.
        key: The release key; by default the fleet's.
        version: The new version; by default the one after the newest that is released or in the registry.
        out: Where to write; by default the run's directory.

    Returns:
        The package.

    Raises:
        RefusedError: The run has not ended, has learned nothing, or the workbench refuses.
        UsageError: The plan names no calibration data and none is given.
        UnavailableError: The workbench cannot be started.
    """
    plan = RunPlan.from_json(record.plan)
    if record.finished_s is None:
        does = "still runs" if record.state == "running" else "is paused"
        raise RefusedError(f"Run {record.id} {does}: wait for its end, or stop it.")
    params = fleet.runs / record.id / TRAINED
    if not params.exists():
        raise RefusedError(
            f"Run {record.id} has left no parameters: it is {record.state}: {record.reason or 'no reason'}."
        )
    data = calibration or (Path(plan.result.calibration) if plan.result.calibration else None)
    if data is None:
        raise UsageError(
            "Quantizing needs data: name it with --calibration FILE.npz, or in the plan's [result]."
        )
    with store.database.read() as connection:
        drafts = versions(connection, plan.model)
    released = [each for each in store.releases.all() if each.model == plan.model]
    taken = [each.version for each in drafts] + [each.version for each in released]
    newest = max(taken, default=plan.version)
    judged = heldout or (Path(plan.heldout) if plan.heldout else None)
    where = out or packed(fleet, record.id)
    words: list[object] = [
        "model", "pack", fleet.package(bytes.fromhex(plan.package_sha256)),
        "--params", params, "--calibration", data,
        "--version", version or newest + 1, "--key", key or fleet.release_key,
        "--lineage", json.dumps(lineage(store, record)), "--out", where,
        *(["--heldout", judged] if judged is not None else []),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-m", "umbel", *map(str, words)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "10000"},
            preexec_fn=_begin,
        )
    except OSError as exc:
        raise UnavailableError(f"The workbench cannot be started: {exc.strerror}.") from exc
    if done.returncode != 0:
        raise RefusedError(_last_line(done.stderr) or f"umbel model pack ended with code {done.returncode}.")
    try:
        package = where.read_bytes()
    except OSError as exc:
        raise StorageError(f"The package {where} cannot be read: {exc.strerror}.") from exc
    return Packed(where, add(fleet, store, package, actor, run=record.id))


def _begin() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # What a service holds back, this process shall hear.
    end_with_parent(signal.SIGTERM)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""

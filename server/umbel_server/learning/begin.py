"""Begin a run: a plan is read, checked against policy and budget, put on record, and handed to Flower."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel_proto.errors import MissingExtraError, RefusedError, StorageError, UmbelError, UsageError
from umbel_proto.ids import RunId, check_name
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning.link import NodeId
from umbel_server.learning.lock import require_free
from umbel_server.learning.plan import RunPlan
from umbel_server.store.audit import plain

if TYPE_CHECKING:
    from umbel_server.access.actor import Actor
    from umbel_server.control import Control
    from umbel_server.learning.fleet_ledger import Cost
    from umbel_server.store.runs import RunRecord
    from umbel_server.store.store import Store


@dataclass(frozen=True, slots=True)
class Checked:
    """A plan that the fleet's policy and budget cover.

    Args:
        plan: The plan.
        cost: What each participation is charged with.
        figures: What the run will cost and how exact it will be; names carry units.
    """

    plan: RunPlan
    cost: Cost
    figures: dict[str, Any]


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a plan's fields from a TOML file; what they name beside the file counts from there.

    Raises:
        UsageError: The file cannot be read or is not TOML.
    """
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise UsageError(f"The plan {path} cannot be read: {exc.strerror}.") from exc
    except (ValueError, RecursionError) as exc:  # No TOML, no UTF-8, a number or a nesting without end.
        raise UsageError(f"The plan {path} is not TOML: {exc}.") from exc
    result = raw.get("result")
    for table, name in ((raw, "heldout"), (result if isinstance(result, dict) else {}, "calibration")):
        if table.get(name):
            table[name] = str((path.parent / str(table[name])).resolve())
    return raw


def pin(raw: dict[str, Any], store: Store) -> RunPlan:
    """Return the plan of some fields, for the release they name or, without a version, the model's newest.

    Raises:
        UsageError: They are no plan, or the model is not released.
    """
    model = raw.get("model")
    of_model = [release for release in store.releases.all() if release.model == model]
    wanted = raw.get("version", of_model[-1].version if of_model else None)
    found = next((release for release in of_model if release.version == wanted), None)
    if found is None:
        which = f"{model!r}" if wanted is None else f"version {wanted} of {model!r}"
        raise UsageError(
            f"The plan names {which}, and the fleet has released no such package: publish it first."
        )
    return RunPlan.from_mapping({**raw, "version": found.version, "package_sha256": found.sha256.hex()})


def check(fleet: FleetDir, store: Store, plan: RunPlan) -> Checked:
    """Return what a plan costs, if the fleet's policy and budget cover it beside the runs under way.

    Raises:
        RefusedError: Devices would refuse it.
        BudgetError: Devices could not pay for it.
        UmbelError: The package or the held-out data cannot be read.
    """
    from umbel_proto.package import read_package
    from umbel_server.learning.budget import plan_privacy
    from umbel_server.learning.evaluate import HeldOut
    from umbel_server.learning.fleet_ledger import Cost, FleetLedger
    from umbel_server.learning.measure import quantities

    path = fleet.package(bytes.fromhex(plan.package_sha256))
    try:
        package = read_package(path.read_bytes(), release_key=fleet.release_public())
    except OSError as exc:
        raise StorageError(f"{path} cannot be read ({exc.strerror}): publish the package again.") from exc
    manifest = package.manifest
    if plan.heldout:
        HeldOut(package, Path(plan.heldout))  # Read now, so that the run does not fail for it later.
    if plan.result.calibration and not Path(plan.result.calibration).is_file():
        raise UsageError(f"The plan's calibration data {plan.result.calibration} is no file.")
    asked = quantities(plan, len(manifest.labels))
    ledger = FleetLedger.of(store, fleet.runs)
    planned = plan_privacy(plan, fleet.policy(), manifest.dim, len(asked), ledger)
    figures = {
        "epsilon_server": _finite(planned.epsilon_server),
        "epsilon_release": _finite(planned.epsilon_release),
        "delta": planned.delta,
        "bytes_per_parameter": planned.encoding.bytes_per_parameter,
        "error": planned.error,
        "quantities": len(asked),
        "quantities_noise": math.sqrt(planned.encoding.bound_sq / planned.encoding.vector_bound_sq) - 1,
    }
    return Checked(plan, Cost.of(planned), figures)


def record(
    fleet: FleetDir,
    store: Store,
    run: RunId,
    checked: Checked,
    *,
    actor: Actor | None = None,
    reason: str = "",
) -> None:
    """Put a checked run on record.

    Its cost is on disk before the run is: another run that is checked from now on sees what this one may take.

    Raises:
        UsageError: The name is taken.
        StorageError: The run's directory cannot be written.
    """
    plan = checked.plan
    if store.runs.get(run) is not None:
        raise UsageError(f"There is already a run {run}: choose another name.")
    directory = fleet.runs / run
    try:
        directory.mkdir(exist_ok=True)
    except OSError as exc:
        raise StorageError(f"{directory} cannot be made: {exc.strerror}.") from exc
    checked.cost.save(directory)
    store.runs.create(run, plan.model, plan.to_json(), actor=actor, reason=reason)


def begin(
    fleet: FleetDir,
    store: Store,
    control: Control,
    run: RunId,
    checked: Checked,
    *,
    actor: Actor | None = None,
    reason: str = "",
) -> None:
    """Put a checked run on record and start its server process.

    Raises:
        UsageError: The name is taken.
        UnavailableError: The SuperLink does not answer, or refuses; the run is on record as failed.
    """
    record(fleet, store, run, checked, actor=actor, reason=reason)
    try:
        control.start(fleet, run)
    except UmbelError as exc:
        store.runs.finish(run, "failed", f"it was not started: {exc}")
        raise


def start(
    fleet: FleetDir, store: Store, raw: dict[str, Any], *, name: str, dry_run: bool, actor: Actor
) -> tuple[RunId, dict[str, Any]]:
    """Check a plan's fields, and start its run unless it is only tried; return its name and what it will cost.

    Raises:
        UmbelError: As ``pin``, ``check`` and ``begin`` do.
    """
    checked = check(fleet, store, pin(raw, store))
    run = name_of(store, checked.plan, name)
    if not dry_run:
        launch(fleet, store, run, checked, actor=actor)
    return run, checked.figures


def launch(
    fleet: FleetDir, store: Store, run: RunId, checked: Checked, *, actor: Actor, reason: str = ""
) -> None:
    """Start the run of a checked plan at the fleet's SuperLink.

    Raises:
        UmbelError: As ``begin`` does, or Flower is not installed.
    """
    with superlink(fleet) as control:
        register(store, control)
        begin(fleet, store, control, run, checked, actor=actor, reason=reason)


def resume(
    fleet: FleetDir,
    store: Store,
    found: RunRecord,
    *,
    actor: Actor,
    reason: str,
    since_s: float | None = None,
) -> None:
    """Let a paused run go on or, of one that runs, start its server process again after it was killed.

    Raises:
        UmbelError: As ``take_up`` does, or Flower is not installed.
    """
    with superlink(fleet) as control:
        take_up(fleet, store, control, found, actor=actor, reason=reason, since_s=since_s)


def take_up(
    fleet: FleetDir,
    store: Store,
    control: Control,
    found: RunRecord,
    *,
    actor: Actor,
    reason: str,
    since_s: float | None = None,
) -> None:
    """Do what ``resume`` does, at a SuperLink.

    Args:
        fleet: The fleet.
        store: Its store.
        control: The SuperLink.
        found: The run.
        actor: Who resumes it.
        reason: Why.
        since_s: When it was paused, as whoever decided saw it; None: whenever it was.

    Raises:
        RefusedError: The run is over, or was paused anew since then.
        UsageError: It is not paused, and its server process lives.
        UnavailableError: The SuperLink does not answer. One that was paused may be running by then, without a process.
    """
    if found.finished_s is not None:
        raise RefusedError(f"Run {found.id} is {found.state}: only one that has not ended can be resumed.")
    directory, paused = fleet.runs / found.id, found.state == "paused"
    if not paused:
        require_free(directory)
    register(store, control)
    if paused:
        # On record first: there a process looks that leaves the run.
        store.pauses.end(found.id, actor=actor, reason=reason, since_s=since_s)
        try:
            require_free(directory)
        except UsageError:
            return  # It is in the round still in which it was paused, and goes on.
    control.start(fleet, found.id)
    if not paused:
        store.audit.record(actor, action="run.resume", object=f"run:{found.id}", reason=plain(reason))


def name_of(store: Store, plan: RunPlan, name: str) -> RunId:
    """Return a run's name: the one that is wanted or, empty, the first that is free.

    Raises:
        UsageError: It is not a name.
    """
    return RunId(check_name(name, "run")) if name else free_name(store, plan.model)


def free_name(store: Store, model: str) -> RunId:
    """Return the first name of the model and a number that no run has."""
    taken = {record.id for record in store.runs.all()}
    return next(name for i in range(1, len(taken) + 2) if (name := RunId(f"{model}-{i}")) not in taken)


@contextmanager
def superlink(fleet: FleetDir) -> Iterator[Control]:
    """Speak to a fleet's SuperLink for the length of a block.

    Raises:
        MissingExtraError: Flower is not installed.
    """
    try:
        from umbel_server.control import Control
    except ModuleNotFoundError as exc:
        raise MissingExtraError("server", "Starting a run") from exc
    control = Control(fleet)
    try:
        yield control
    finally:
        control.close()


def register(store: Store, control: Control) -> None:
    """Tell Flower of the devices that have enrolled and that it does not know, and of nodes to forget."""
    for node_key, node in store.devices.retired():
        control.unregister(NodeId(node))
        store.devices.forgotten(node_key)
    for device, node_key in store.devices.unregistered():
        store.devices.set_node_id(device, control.register(device, node_key))


def _finite(value: float) -> float | None:
    return None if value == float("inf") else value

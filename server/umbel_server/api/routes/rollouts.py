"""Rollouts: how a new version reaches devices, and how it is taken back."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from umbel_proto.ids import DeviceId, ModelName
from umbel_server.access.permissions import Permission
from umbel_server.api.guard import GuardedRoute, may
from umbel_server.api.paging import DEFAULT_LIMIT, AfterName, Cursor, Limit, Page, after, page_of
from umbel_server.api.problems import missing
from umbel_server.api.service import ActorOf, StoreOf
from umbel_server.api.texts import Asked, Name, Named, Reason, Why
from umbel_server.rollouts.begin import Proposal, begin, propose
from umbel_server.rollouts.dry_run import dry_run
from umbel_server.rollouts.plan import RolloutPlan
from umbel_server.rollouts.shown import rollout_json, status_json
from umbel_server.rollouts.state import Event, Pause, Resume, RollBack, StopKeeping
from umbel_server.store.placements import Member
from umbel_server.store.rollouts import Rollout
from umbel_server.store.store import Store

router = APIRouter(prefix="/api/v1/rollouts", tags=["rollouts"], route_class=GuardedRoute)
holds = APIRouter(prefix="/api/v1/holds", tags=["rollouts"], route_class=GuardedRoute)
pins = APIRouter(prefix="/api/v1/pins", tags=["rollouts"], route_class=GuardedRoute)

Version = Annotated[int, Field(ge=1, lt=1 << 32)]


class RolloutShown(BaseModel):
    """A rollout."""

    rollout: str
    model: str
    from_version: int
    to_version: int
    state: Literal["draft", "running", "paused", "kept", "rolled-back", "finished"]
    step: int | None = Field(description="The step that it is in or ended in, from 0.")
    since_s: float | None = Field(description="When that began, Unix seconds.")
    reason: str = Field(description="Why it is in this state.")
    revision: int = Field(description="Grows with every change.")
    created_s: float
    plan: dict[str, Any] = Field(description="Steps, gates and rate, as a plan's TOML has them.")


class Counts(BaseModel):
    """What became of the devices of a rollout."""

    offered: int
    running: int
    failed: int
    back: int = Field(description="The version before answers there again.")
    other: int = Field(description="They were heard of since, and another version answers there.")
    waiting: int = Field(
        description="They were not heard of since they were offered the candidate, or since that was rolled back."
    )


class ShadowCounts(BaseModel):
    """What became of devices that were asked to run the candidate beside what answers."""

    asked: int
    running: int
    unavailable: int = Field(description="They cannot hold two versions, or do not know how.")
    failed: int


class ClassCounts(BaseModel):
    """The devices of one class, as they say they are."""

    device_class: str = Field(alias="class", description="ARCH-MEMORY-ENGINE, as in aarch64-4g-onnx.")
    devices: Counts
    shadows: ShadowCounts


class GateShown(BaseModel):
    """What a gate says."""

    gate: str
    outcome: Literal["pass", "fail", "not enough yet", "undefined"]
    why: str
    estimate: float | None = Field(description="How much worse the candidate is, in the tolerance's unit.")
    low: float | None
    high: float | None
    tolerance: float
    devices: int = Field(description="With the candidate.")
    control: int = Field(description="Without it.")


class EventShown(BaseModel):
    """What happened to a rollout."""

    at_s: float
    actor: str
    event: str
    reason: str
    gates: list[dict[str, Any]] = Field(description="The verdicts that it rests on.")


class RolloutStatus(RolloutShown):
    """A rollout, what its gates say now, and what happened to it."""

    devices: Counts
    shadows: ShadowCounts
    classes: list[ClassCounts] = Field(description="The same by class of device.")
    gates: list[GateShown]
    events: list[EventShown]


class MemberShown(BaseModel):
    """A device that was offered a rollout's candidate."""

    device: str
    admitted_s: float
    failed: bool
    version: int | None = Field(description="What answers there by its own word; null: it never said.")


class Proposed(Asked):
    """A rollout that is asked for."""

    model: Name
    version: Version
    from_version: Version | None = Field(None, description="Null: what devices are offered now.")
    name: Name | None = None
    plan: dict[str, Any] = Field(
        default_factory=dict, description="Steps, gates and rate, as a plan's TOML has them."
    )


class Tried(Proposed):
    """A rollout that is only looked at."""

    shown: Annotated[int, Field(ge=0, le=100_000, description="So many devices of each step are named.")] = (
        1000
    )


class New(Proposed):
    """A rollout to begin."""

    reason: Reason


class Stop(Asked):
    """How to end a rollout."""

    devices: Literal["keep", "roll-back"] = Field(description="What becomes of those with the candidate.")
    reason: Reason


class StepReach(BaseModel):
    """Whom a step would reach first."""

    name: str
    count: int
    devices: list[str] = Field(description="The first of them.")


class DryRun(BaseModel):
    """What a rollout would do."""

    rollout: str
    model: str
    from_version: int
    to_version: int
    plan: dict[str, Any]
    steps: list[StepReach]
    pinned: list[str] = Field(description="Devices that stay as they are.")
    doubt: str | None = Field(description="Why it would not start; null: it would.")


class Held(BaseModel):
    """A model whose new versions come by rollouts only."""

    model: str
    version: int | None = Field(description="What devices get that no rollout reaches; null: the newest.")


class Pin(Asked):
    """Where a device stays."""

    version: Version
    reason: Reason


class Pinned(BaseModel):
    """A device that stays at a version."""

    device: str
    model: str
    version: int | None = Field(description="Null: it gets what the others get.")


@router.get("", dependencies=[may(Permission.ROLLOUTS_READ)])
def list_rollouts(
    store: StoreOf, after_name: AfterName = "", limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[RolloutShown]:
    """List the rollouts by name."""
    found = store.rollouts.page(after=after(cursor) or after_name, limit=limit + 1)
    return page_of(found, limit, key=lambda each: each.id, show=_show)


@router.post("", status_code=201, dependencies=[may(Permission.ROLLOUTS_WRITE)])
def start_rollout(store: StoreOf, actor: ActorOf, new: New) -> RolloutShown:
    """Begin to bring a released version to devices: the first step reaches them when they next ask."""
    return _show(begin(store, _proposal(store, new), actor=actor, reason=new.reason))


@router.post("/plan", dependencies=[may(Permission.ROLLOUTS_READ)])
def plan_rollout(store: StoreOf, asked: Tried) -> DryRun:
    """Show whom a rollout would reach, and change nothing."""
    found = dry_run(store, _proposal(store, asked))
    steps = [StepReach(**{**each, "devices": each["devices"][: asked.shown]}) for each in found.pop("steps")]
    return DryRun(**found, steps=steps)


@router.get("/{name}", dependencies=[may(Permission.ROLLOUTS_READ)])
def get_rollout(store: StoreOf, name: Named) -> RolloutStatus:
    """Show a rollout, what its gates say now, and what happened to it."""
    return RolloutStatus.model_validate(status_json(store, _found(store, name), now_s=store.clock()))


@router.get("/{name}/devices", dependencies=[may(Permission.ROLLOUTS_READ)])
def list_rollout_devices(
    store: StoreOf, name: Named, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[MemberShown]:
    """List the devices that were offered the candidate, by name."""
    rollout, last = _found(store, name), after(cursor) or ""
    found = store.progress.devices(rollout, limit=limit + 1, after=last)
    return page_of(found, limit, key=lambda each: each.device, show=_member)


@router.post("/{name}/pause", dependencies=[may(Permission.ROLLOUTS_WRITE)])
def pause_rollout(store: StoreOf, actor: ActorOf, name: Named, why: Why) -> RolloutShown:
    """Reach no further devices for now."""
    return _happen(store, actor, name, Pause(why.reason))


@router.post("/{name}/resume", dependencies=[may(Permission.ROLLOUTS_WRITE)])
def resume_rollout(store: StoreOf, actor: ActorOf, name: Named, why: Why) -> RolloutShown:
    """Go on with a paused rollout; its step begins anew."""
    return _happen(store, actor, name, Resume(), why.reason)


@router.post("/{name}/stop", dependencies=[may(Permission.ROLLOUTS_WRITE)])
def stop_rollout(store: StoreOf, actor: ActorOf, name: Named, stop: Stop) -> RolloutShown:
    """End a rollout; rolling back, also one that has ended already."""
    event = StopKeeping(stop.reason) if stop.devices == "keep" else RollBack(stop.reason)
    return _happen(store, actor, name, event)


@holds.get("", dependencies=[may(Permission.ROLLOUTS_READ)])
def list_holds(store: StoreOf, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Page[Held]:
    """List the models whose new versions come by rollouts only."""
    last = after(cursor) or ""
    found = sorted(item for item in store.rollouts.baselines().items() if item[0] > last)
    return page_of(
        found[: limit + 1],
        limit,
        key=lambda item: item[0],
        show=lambda item: Held(model=item[0], version=item[1]),
    )


@holds.post("/{name}", dependencies=[may(Permission.ROLLOUTS_WRITE)])
def hold_model(store: StoreOf, actor: ActorOf, name: Named, why: Why) -> Held:
    """Let new versions of a model reach devices by rollouts only; until then they get the newest one of now."""
    versions = [each.version for each in store.releases.all() if each.model == name]
    if not versions:
        raise missing(f"released version of {name}")
    model = ModelName(name)
    version = store.rollouts.baselines().get(model, max(versions))
    store.rollouts.hold(model, version, actor=actor, reason=why.reason)
    return Held(model=name, version=version)


@holds.post("/{name}/end", dependencies=[may(Permission.ROLLOUTS_WRITE)])
def unhold_model(store: StoreOf, actor: ActorOf, name: Named, why: Why) -> Held:
    """Let the newest version of a model reach every device at once again."""
    store.rollouts.hold(ModelName(name), None, actor=actor, reason=why.reason)
    return Held(model=name, version=None)


@pins.put("/{device}/{name}", dependencies=[may(Permission.ROLLOUTS_WRITE)])
def pin_device(store: StoreOf, actor: ActorOf, device: Named, name: Named, pin: Pin) -> Pinned:
    """Let a device stay at a version of a model, whatever the others get."""
    if not any((each.model, each.version) == (name, pin.version) for each in store.releases.all()):
        raise missing(f"released version {pin.version} of {name}")
    store.placements.pin(DeviceId(device), ModelName(name), pin.version, actor=actor, reason=pin.reason)
    return Pinned(device=device, model=name, version=pin.version)


@pins.post("/{device}/{name}/end", dependencies=[may(Permission.ROLLOUTS_WRITE)])
def unpin_device(store: StoreOf, actor: ActorOf, device: Named, name: Named, why: Why) -> Pinned:
    """Let a device have what the others get again."""
    store.placements.pin(DeviceId(device), ModelName(name), None, actor=actor, reason=why.reason)
    return Pinned(device=device, model=name, version=None)


def _proposal(store: Store, asked: Proposed) -> Proposal:
    plan = RolloutPlan.from_dict(asked.plan)
    return propose(store, asked.model, asked.version, plan, name=asked.name, since=asked.from_version)


def _happen(store: Store, actor: ActorOf, name: str, event: Event, reason: str = "") -> RolloutShown:
    _found(store, name)
    return _show(store.rollouts.happen(name, event, actor=actor, reason=reason))


def _found(store: Store, name: str) -> Rollout:
    found = store.rollouts.find(name)
    if found is None:
        raise missing(f"rollout {name}")
    return found


def _show(rollout: Rollout) -> RolloutShown:
    return RolloutShown(**rollout_json(rollout))


def _member(member: Member) -> MemberShown:
    return MemberShown(
        device=member.device, admitted_s=member.admitted_s, failed=member.failed, version=member.version
    )

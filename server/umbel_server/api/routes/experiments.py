"""Experiments: which of two versions is better for what people do, and who decided by what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from umbel_server.access.permissions import Permission
from umbel_server.api.guard import GuardedRoute, may
from umbel_server.api.paging import DEFAULT_LIMIT, Cursor, Limit, Page, after, page_of
from umbel_server.api.problems import missing
from umbel_server.api.service import ActorOf, ServiceOf, StoreOf
from umbel_server.api.texts import Asked, Name, Named, Reason
from umbel_server.experiments.begin import begin, design
from umbel_server.experiments.decision import decide
from umbel_server.experiments.dry_run import dry_run
from umbel_server.experiments.plan import ExperimentPlan
from umbel_server.experiments.shown import experiment_json, shown_json
from umbel_server.rollouts.begin import Proposal
from umbel_server.store.store import Store

router = APIRouter(prefix="/api/v1/experiments", tags=["experiments"], route_class=GuardedRoute)

Version = Annotated[int, Field(ge=1, lt=1 << 32)]


class ExperimentDecisionShown(BaseModel):
    """A decision about an experiment, for good."""

    number: int
    at_s: float
    actor: str
    decision: Literal["ship", "stop", "extend"]
    comment: str
    figures: dict[str, Any] = Field(description="What was seen when it was decided.")


class ExperimentShown(BaseModel):
    """An experiment."""

    experiment: str
    model: str
    from_version: int
    to_version: int
    state: Literal["draft", "running", "paused", "ended", "rolled-back", "shipped", "stopped"] = Field(
        description="rolled-back: its guardrails or somebody took the candidate back, and nobody has decided."
    )
    rollout_state: str = Field(description="The state of its rollout, which has the same name.")
    reason: str = Field(description="Why its rollout is in its state.")
    created_s: float
    created_by: str
    ends_s: float = Field(description="When somebody is to decide, Unix seconds.")
    plan: dict[str, Any] = Field(description="As a plan's TOML has it.")
    decisions: list[ExperimentDecisionShown]


class ArmShown(BaseModel):
    """The devices of an arm."""

    drawn: int = Field(description="Drawn into it, and they asked.")
    compared: int = Field(description="Of them, those that reported enough.")
    pinned: int = Field(description="Left out: they stay at a version.")
    gone: int = Field(description="Left out: they may not call any more.")
    mean: float | None = Field(description="Of the metric over devices; null: not told of so few.")


class RatioShown(BaseModel):
    """The devices of both arms against the draw."""

    share: float = Field(description="Of the treatment by the draw.")
    chance: float = Field(description="Of a chi-square test at this look alone.")
    chance_ever: float = Field(description="That counts look so uneven at any look.")
    mismatch: bool


class IntervalShown(BaseModel):
    """How much higher the metric is in the treatment; the bounds hold at all looks together."""

    estimate: float
    low: float
    high: float


class PointShown(IntervalShown):
    """The same as it was known at a time."""

    at_s: float
    treatment: int
    control: int


class FiguresShown(BaseModel):
    """What an experiment says; of a decided one, what was seen then."""

    at_s: float
    outcome: Literal[
        "too little yet",
        "the arms do not match",
        "only told with noise",
        "better",
        "worse",
        "no difference that matters",
        "not sure yet",
    ]
    why: str
    treatment: ArmShown
    control: ArmShown
    ratio: RatioShown
    difference: IntervalShown | None
    course: list[PointShown]
    gates: list[dict[str, Any]] = Field(description="What its guardrails say, as a rollout's gates.")


class ExperimentSeen(ExperimentShown):
    """An experiment, and what it says."""

    figures: FiguresShown


class ProposedExperiment(Asked):
    """An experiment that is asked for."""

    model: Name
    version: Version
    name: Name | None = None
    plan: dict[str, Any] = Field(description="As a plan's TOML has it; metric and least_effect are needed.")


class TriedExperiment(ProposedExperiment):
    """An experiment that is only looked at."""

    shown: Annotated[int, Field(ge=0, le=100_000, description="So many devices of each arm are named.")] = (
        1000
    )


class NewExperiment(ProposedExperiment):
    """An experiment to begin."""

    reason: Reason


class ExperimentDecided(Asked):
    """What is to become of an experiment."""

    decision: Literal["ship", "stop", "extend"]
    days: Annotated[float, Field(gt=0, le=60)] | None = Field(
        None, description="Of an extension: for how long from now on."
    )
    reason: Reason


class ArmDrawn(BaseModel):
    """Whom an arm would draw."""

    count: int
    devices: list[str] = Field(description="The first of them.")


class ExperimentDryRun(BaseModel):
    """Whom an experiment would draw."""

    experiment: str
    model: str
    from_version: int
    to_version: int
    plan: dict[str, Any]
    treatment: ArmDrawn
    control: ArmDrawn
    pinned: int = Field(description="Devices that stay at a version, whoever is drawn.")
    others: int = Field(description="Devices in no arm.")
    devices_at_one_deviation: float = Field(
        description="Of both arms, to tell apart a difference of one standard deviation between devices."
    )
    doubt: str | None = Field(description="Why it would not start; null: it would.")


@router.get("", dependencies=[may(Permission.ROLLOUTS_READ)])
def list_experiments(
    store: StoreOf, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[ExperimentShown]:
    """List the experiments by name."""
    last = after(cursor) or ""
    found = sorted((each for each in store.experiments.all() if each.id > last), key=lambda each: each.id)
    return page_of(
        found[: limit + 1],
        limit,
        key=lambda each: each.id,
        show=lambda each: ExperimentShown(**experiment_json(each, store.rollouts.get(each.id))),
    )


@router.post("", status_code=201, dependencies=[may(Permission.ROLLOUTS_WRITE)])
def start_experiment(
    service: ServiceOf, store: StoreOf, actor: ActorOf, new: NewExperiment
) -> ExperimentShown:
    """Begin an experiment: each of its devices is in its arm from when it next asks."""
    plan = ExperimentPlan.from_dict(new.plan)
    proposal = _design(service, store, new, plan)
    made, rollout = begin(store, proposal, plan, actor=actor, reason=new.reason)
    return ExperimentShown(**experiment_json(made, rollout))


@router.post("/plan", dependencies=[may(Permission.ROLLOUTS_READ)])
def plan_experiment(service: ServiceOf, store: StoreOf, asked: TriedExperiment) -> ExperimentDryRun:
    """Show whom an experiment would draw, and change nothing."""
    plan = ExperimentPlan.from_dict(asked.plan)
    found = dry_run(store, _design(service, store, asked, plan), plan, shown=asked.shown)
    return ExperimentDryRun.model_validate(found)


@router.get("/{name}", dependencies=[may(Permission.ROLLOUTS_READ)])
def get_experiment(store: StoreOf, name: Named) -> ExperimentSeen:
    """Show an experiment, what it says, and what was decided."""
    _require(store, name)
    return ExperimentSeen(**shown_json(store, name))


@router.post("/{name}/decide", dependencies=[may(Permission.ROLLOUTS_WRITE)])
def decide_experiment(
    store: StoreOf, actor: ActorOf, name: Named, what: ExperimentDecided
) -> ExperimentShown:
    """Ship, stop or extend an experiment. What was seen is kept with it."""
    _require(store, name)
    decided = decide(store, name, what.decision, actor=actor, comment=what.reason, days=what.days)
    return ExperimentShown(**experiment_json(decided, store.rollouts.get(name)))


def _design(service: ServiceOf, store: Store, asked: ProposedExperiment, plan: ExperimentPlan) -> Proposal:
    kept_days = service.fleet.settings.retention.hours_days
    return design(store, asked.model, asked.version, plan, name=asked.name, kept_days=kept_days)


def _require(store: Store, name: str) -> None:
    if store.experiments.find(name) is None:
        raise missing(f"experiment {name}")

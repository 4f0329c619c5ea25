"""Queries: questions about devices' local examples, answered by one noised sum each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from umbel_proto.ids import RunId
from umbel_server.access.permissions import Permission
from umbel_server.api.guard import GuardedRoute, may
from umbel_server.api.paging import DEFAULT_LIMIT, Cursor, Limit, Page, after, page_of
from umbel_server.api.problems import missing
from umbel_server.api.service import ActorOf, ServiceOf, StoreOf, TokenOf
from umbel_server.api.texts import Asked, Name, Named, Words
from umbel_server.queries.shown import query_json

router = APIRouter(prefix="/api/v1/queries", tags=["queries"], route_class=GuardedRoute)

Kind = Literal["histogram", "mean", "quantile", "fairness"]
Field_ = Annotated[Words, Field(max_length=80)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Edges = Annotated[list[Number], Field(max_length=127)]


class NewQuery(Asked):
    """A question to put to the fleet."""

    kind: Kind
    model: Name
    why: Annotated[Words, Field(min_length=1, max_length=200, description="The devices' users read it.")]
    field: Field_ = Field("", description="label, prediction, confidence, or a column; not of fairness.")
    version: Annotated[int, Field(ge=1, lt=1 << 31)] | None = Field(None, description="Null: the newest.")
    edges: Edges = Field([], description="Of numbers, the inner edges of cells; none: the range, cut evenly.")
    low: Number | None = Field(None, description="Of a mean; null: the least that the data contract allows.")
    high: Number | None = Field(None, description="Of a mean; null: the most.")
    quantiles: Annotated[list[Number], Field(max_length=9)] = Field([], description="Of a quantile: which.")
    cohort: Field_ = Field("", description="Of fairness: the column.")
    cohort_edges: Edges = Field([], description="Of fairness: where one cohort ends and the next begins.")
    positive: Field_ = Field("", description="Of fairness: the label that rates are of, by name or number.")
    per_device: Annotated[int, Field(ge=1, le=10_000)] = Field(
        1, description="As how many examples a device counts at most."
    )
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        1.0, description="What an answer may cost a device; null: no noise, where the policy allows that."
    )
    devices: Annotated[int, Field(ge=0, le=1 << 14)] = Field(0, description="Asked at most; 0: all.")
    min_cohort: Annotated[int, Field(ge=0, le=1 << 14)] = Field(
        0, description="Fewest in the sum; 0: as the policy says."
    )
    wait_s: Annotated[float, Field(gt=0, le=3600)] = Field(60.0, description="For devices, seconds.")
    name: Name | None = Field(None, description="Null: the kind and a number.")
    dry_run: bool = Field(False, description="Check it and ask nobody.")


class Expected(BaseModel):
    """How exact an answer will be, if each device counts as much as it may."""

    of: str
    examples: float
    half_width: float = Field(description="Of the interval of 95 %: noise and sampling together.")
    noise: float
    sampling: float


class QueryCost(BaseModel):
    """What a query costs and how exact it will be, before anybody is asked."""

    query: str
    asked: bool = Field(description="Whether devices are being asked.")
    kind: Kind
    model: str
    version: int
    asks: str = Field(description="In plain words.")
    epsilon: float | None = Field(description="What an answer costs a device; null: infinite.")
    epsilon_after: float | None = Field(description="The most that any device will have spent in all.")
    budget_epsilon: float | None = Field(description="What a device may spend in all; null: no limit.")
    delta: float
    noise_multiplier: float
    error: float = Field(description="Standard deviation of each number of the sum, in examples.")
    able: int = Field(description="Devices that can pay.")
    devices: int = Field(description="Devices that are asked, if they are online.")
    min_cohort: int
    expected: Expected


class QueryShown(BaseModel):
    """A query, how far it is, and what it answered."""

    query: str
    kind: Kind
    model: str
    version: int
    field: str
    asked_by: str
    why: str
    state: Literal["running", "finished", "stopped", "failed"]
    reason: str = Field(description="Why it ended without an answer; empty otherwise.")
    phase: str | None = Field(description="The phase of its session; null: none is under way.")
    created_s: float = Field(description="Unix seconds.")
    finished_s: float | None
    question: dict[str, Any] = Field(description="As it was declared and signed.")
    result: dict[str, Any] | None = Field(description="Figures with their intervals; null: none.")


@router.get("", dependencies=[may(Permission.PRIVACY_READ)])
def list_queries(store: StoreOf, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Page[QueryShown]:
    """List the queries by name, with what they answered."""
    last = after(cursor) or ""
    found = sorted((each for each in store.queries.all() if each.id > last), key=lambda each: each.id)
    return page_of(
        found[: limit + 1],
        limit,
        key=lambda each: each.id,
        show=lambda each: QueryShown(**query_json(store, each)),
    )


@router.post("", status_code=201, dependencies=[may(Permission.QUERIES_WRITE)])
def ask_query(service: ServiceOf, actor: ActorOf, token: TokenOf, new: NewQuery) -> QueryCost:
    """Check a question against policy and budgets, have the fleet's authority sign it, and put it to the fleet."""
    from umbel_server.queries.ask import ask
    from umbel_server.queries.plan import question_of
    from umbel_server.queries.sign import by_authority

    fleet, store = service.fleet, service.store
    fields = new.model_dump(exclude={"dry_run"})
    question = question_of({**fields, "name": new.name or ""})
    sign = by_authority(fleet, store, token=token)
    return QueryCost(**ask(fleet, store, question, dry_run=new.dry_run, actor=actor, sign=sign))


@router.get("/{name}", dependencies=[may(Permission.PRIVACY_READ)])
def get_query(store: StoreOf, name: Named) -> QueryShown:
    """Show a query, how far it is, and what it answered."""
    found = store.queries.get(RunId(name))
    if found is None:
        raise missing(f"query {name}")
    return QueryShown(**query_json(store, found))

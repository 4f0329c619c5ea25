"""Ask: a question is completed, checked against policy and budget, signed by the authority, put on record and started."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from umbel_proto.analytics.query import Query
from umbel_proto.errors import BudgetError, StorageError, UmbelError, UsageError
from umbel_proto.ids import RunId, check_name
from umbel_proto.package import read_package
from umbel_proto.privacy.accounting import SKELLAM_ORDERS, rdp_to_epsilon
from umbel_proto.privacy.counts import CountPlan
from umbel_proto.privacy.forecast import check_delta
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning.begin import register, superlink
from umbel_server.learning.fleet_ledger import FleetLedger
from umbel_server.queries.drive import unable
from umbel_server.queries.plan import Asking, Question, complete, cost_of
from umbel_server.queries.read import expected
from umbel_server.queries.sign import Sign, with_key
from umbel_server.store.audit import Sought
from umbel_server.store.store import Store

if TYPE_CHECKING:
    from umbel_server.access.actor import Actor

LIFE_S = 2 * 3600.0
"""How long devices answer a query after it was signed, at least; a server that was killed has that long to come back."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A query that the fleet's policy and budgets cover.

    Args:
        query: The question.
        asking: How it is put.
        planned: How its answers are summed.
        figures: What it will cost and how exact it will be, as JSON values.
    """

    query: Query
    asking: Asking
    planned: CountPlan
    figures: dict[str, Any]


def check(fleet: FleetDir, store: Store, question: Question, *, asked_by: str) -> Checked:
    """Return a query with what it costs, if the fleet's policy and budgets cover it. Nothing is asked or kept.

    Args:
        fleet: The fleet.
        store: Its store.
        question: What is asked.
        asked_by: Who asks.

    Raises:
        UsageError: The question makes no sense, or the model is not released.
        RefusedError: Devices would refuse it.
        BudgetError: Too few devices can pay for it.
    """
    found = [release for release in store.releases.all() if release.model == question.model]
    version = question.version or (found[-1].version if found else None)
    release = next((each for each in found if each.version == version), None)
    if release is None:
        raise UsageError(
            f"The fleet has released no version {version or ''} of {question.model[:63]!r}: ask about a model of  "
            "umbel registry list."
        )
    path = fleet.package(release.sha256)
    try:
        package = read_package(path.read_bytes(), release_key=fleet.release_public())
    except OSError as exc:
        raise StorageError(f"{path} cannot be read ({exc.strerror}): publish the package again.") from exc
    policy, now_s = fleet.policy(), store.clock()
    ledger = FleetLedger.of(store, fleet.runs)
    name = RunId(check_name(question.name, "query")) if question.name else free_name(store, question.kind)
    query, asking, planned = complete(
        question,
        package.manifest,
        fleet=fleet.name,
        name=name,
        package_sha256=package.sha256,
        policy=policy,
        devices=len(ledger.active),
        not_after_s=int(now_s + LIFE_S + question.wait_s) + 1,
        asked_by=asked_by,
    )
    if planned.noise_multiplier:
        check_delta(policy.budget_delta, asking.devices)
    able = len(ledger.active) - len(unable(planned, policy, ledger))
    if able < query.min_cohort:
        raise BudgetError(
            f"{able} of {len(ledger.active)} devices can pay epsilon {planned.epsilon:.4g} at delta "
            f"{policy.budget_delta:g} after what they spent, and a sum has at least {query.min_cohort}: allow a smaller "
            "epsilon."
        )
    cost = cost_of(planned).curve()
    after = max(
        (
            rdp_to_epsilon(ledger.curve(device) + cost, policy.budget_delta, SKELLAM_ORDERS)
            for device in ledger.active
        ),
        default=planned.epsilon,
    )
    answering = min(able, asking.devices)
    figures = {
        "query": query.id,
        "kind": query.kind,
        "model": query.model,
        "version": query.version,
        "asks": query.sentence,
        "epsilon": _finite(planned.epsilon),
        "epsilon_after": _finite(after),
        "budget_epsilon": _finite(policy.budget_epsilon),
        "delta": policy.budget_delta,
        "noise_multiplier": planned.noise_multiplier,
        "error": planned.error(answering),
        "able": able,
        "devices": answering,
        "min_cohort": query.min_cohort,
        "expected": expected(query, devices=answering, error=planned.error(answering)),
    }
    return Checked(query, asking, planned, figures)


def record(fleet: FleetDir, store: Store, checked: Checked, *, actor: Actor, sign: Sign) -> None:
    """Have a checked query signed and put it on record; its cost is on disk before.

    Raises:
        UsageError: The name is taken.
        RefusedError: The authority does not sign it.
        UnavailableError: The authority does not answer.
        StorageError: The authority's key is not here, or the directory cannot be written.
    """
    query = checked.query
    if store.runs.get(query.id) is not None or store.queries.get(query.id) is not None:
        raise UsageError(f"There is already a run or query {query.id}: choose another name.")
    signed = sign(query)
    directory = fleet.runs / query.id
    try:
        directory.mkdir(exist_ok=True)
    except OSError as exc:
        raise StorageError(f"{directory} cannot be made: {exc.strerror}.") from exc
    cost_of(checked.planned).save(directory)
    store.queries.ask(query, signed, checked.asking.to_json(query), actor=actor)


def ask(
    fleet: FleetDir,
    store: Store,
    question: Question,
    *,
    dry_run: bool,
    actor: Actor,
    sign: Sign | None = None,
) -> dict[str, Any]:
    """Check a question and, unless it is only tried, ask it; return what it will cost and how exact it will be.

    Args:
        fleet: The fleet.
        store: Its store.
        question: What is asked.
        dry_run: Whether nobody is asked.
        actor: Who asks.
        sign: Has it signed; None: with the key that the fleet's directory says.

    Raises:
        UmbelError: As ``check`` and ``record`` do; or the SuperLink does not answer, and the query is on record as failed.
    """
    checked = check(fleet, store, question, asked_by=actor.name)
    if not dry_run:
        with superlink(fleet) as control:
            register(store, control)
            record(fleet, store, checked, actor=actor, sign=sign or with_key(fleet))
            try:
                control.start(fleet, checked.query.id)
            except UmbelError as exc:
                store.runs.finish(checked.query.id, "failed", f"it was not asked: {exc}")
                raise
    return {**checked.figures, "asked": not dry_run}


def free_name(store: Store, kind: str) -> RunId:
    """Return the first name of the kind and a number that no query and no run has, and no question ever had."""
    taken = {record.id for record in store.queries.all()} | {record.id for record in store.runs.all()}
    names = (RunId(f"{kind}-{number}") for number in itertools.count(1))
    # A question that was signed and then not asked keeps its name: the authority signs no other under it.
    return next(
        name
        for name in names
        if name not in taken and not store.audit.latest(Sought(object=f"query:{name}"), limit=1)
    )


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value

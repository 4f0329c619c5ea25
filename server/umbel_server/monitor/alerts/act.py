"""What a rule does when its alert begins to fire: a rollout is paused or taken back, a run proposed or started."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from umbel_proto.errors import RefusedError, UmbelError, UnavailableError, UsageError
from umbel_proto.ids import ModelName
from umbel_server.access.actor import Actor
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning.begin import check, pin, read_mapping, record
from umbel_server.monitor.alerts.rules import EVERY_MODEL, PAUSE, ROLL_BACK, START, Rule, Rules
from umbel_server.rollouts.state import Event, Pause, RollBack
from umbel_server.store.alerts import Act, Alert
from umbel_server.store.proposed_runs import ACCEPTED, BEGUN, FAILED
from umbel_server.store.rollouts import Rollout
from umbel_server.store.store import Store

MAX_REASON = 1500


def actor_of(rule: str) -> Actor:
    """Return who acts where a rule does."""
    return Actor(f"alert:{rule}", frozenset())


def acting(store: Store, rule: Rule, directory: Path) -> Act:
    """Return what does a rule's actions, in the transaction in which its alert begins to fire.

    What cannot be done now, as where no rollout is under way, is told and never keeps people from being told.

    Args:
        store: The store.
        rule: The rule.
        directory: Where its plan is relative to.
    """

    def act(connection: Connection, alert: Alert) -> Iterable[tuple[str, str]]:
        for action in rule.actions:
            try:
                if action in (PAUSE, ROLL_BACK):
                    yield action, _rollouts(connection, store, rule, action, alert)
                else:
                    yield action, _propose(connection, store, rule, action, alert, directory)
            except UnavailableError:
                raise  # The store: all of it is tried again.
            except UmbelError as exc:
                yield action, f"not done: {exc}"

    return act


def _rollouts(connection: Connection, store: Store, rule: Rule, action: str, alert: Alert) -> str:
    reason = f"alert {alert.rule} ({alert.fingerprint[:8]}): {alert.why}"[:MAX_REASON]
    done = []
    for rollout in store.rollouts.all():
        if not (rollout.live and _concerns(rollout, action, alert)):
            continue
        event: Event = Pause(reason) if action == PAUSE else RollBack(reason)
        try:
            store.rollouts.happen_within(
                connection, rollout.id, event, actor=actor_of(rule.name), reason=reason
            )
        except RefusedError as exc:
            done.append(f"{rollout.id}: {exc}")
            continue
        done.append(f"rollout {rollout.id} is {'paused' if action == PAUSE else 'rolled back'}")
    return "; ".join(done) or "not done: no rollout that it is about is under way"


def _concerns(rollout: Rollout, action: str, alert: Alert) -> bool:
    """Whether to act on a rollout: nothing new for a model in trouble, and back with what is in trouble itself."""
    if rollout.model != alert.labels.get("model"):
        return False
    return action == PAUSE or str(rollout.to_version) == alert.labels.get("version")


def _propose(
    connection: Connection, store: Store, rule: Rule, action: str, alert: Alert, directory: Path
) -> str:
    plan: dict[str, Any] = read_mapping(directory / rule.plan)
    model = alert.labels.get("model", "")
    if plan.get("model") != model:
        return f"not done: the plan {rule.plan} trains another model than {model}"
    number = store.proposed_runs.propose_within(
        connection,
        actor_of(rule.name),
        rule=rule.name,
        fingerprint=alert.fingerprint,
        model=ModelName(model),
        plan=plan,
        why=alert.why,
        rest_s=rule.rest_s,
        accepted=action == START,
    )
    if number is None:
        return "not done: the rule has proposed a run of this model lately, or one is open"
    return f"run {number} is {'accepted' if action == START else 'proposed'}"


def check_plans(rules: Rules) -> None:
    """Check that the plans of rules can be read and train the models that the rules look at.

    Otherwise nobody would hear of it before a rule fires and proposes nothing. What is not looked at may wait for its plan.

    Raises:
        UsageError: A plan cannot be read, or trains another model; the sentence names its rule.
    """
    for rule in rules.rules.values():
        if not (rule.enabled and rule.plan):
            continue
        path = rules.directory / rule.plan
        try:
            model = read_mapping(path).get("model")
        except UsageError as exc:
            wrong = str(exc).removesuffix(".").replace("The plan", "the plan", 1)
            raise UsageError(f"Rule {rule.name}: {wrong}: write it as for  umbel rounds start.") from exc
        if not isinstance(model, str):
            raise UsageError(
                f"Rule {rule.name}: the plan {path} names no model: write it as for  umbel rounds start."
            )
        if rule.model not in (EVERY_MODEL, model):
            raise UsageError(
                f"Rule {rule.name}: the plan {path} trains {model[:80]!r}, and the rule looks at {rule.model}: "
                "let both name one model."
            )


def require_possible(fleet: FleetDir, store: Store, plan: dict[str, Any]) -> None:
    """Check that a run of a plan could begin now.

    Raises:
        UmbelError: It could not, and why.
    """
    check(fleet, store, pin(dict(plan), store))


def begin_accepted(fleet: FleetDir, store: Store) -> int:
    """Put accepted runs on record: the service of runs then drives them; return how many.

    Who is killed at any moment begins none twice: a run's name is its proposal's.
    """
    begun = 0
    for proposed in store.proposed_runs.all(states=(ACCEPTED,)):
        assert proposed.run is not None
        if store.runs.get(proposed.run) is None:
            try:
                checked = check(fleet, store, pin(dict(proposed.plan), store))
                record(
                    fleet,
                    store,
                    proposed.run,
                    checked,
                    actor=Actor(proposed.decided_by, frozenset()),
                )
            except UnavailableError:
                continue  # It is tried again.
            except UmbelError as exc:
                if store.runs.get(proposed.run) is None:
                    store.proposed_runs.ended(proposed.id, FAILED, f"it did not begin: {exc}")
                    continue
        store.proposed_runs.ended(proposed.id, BEGUN)
        begun += 1
    return begun

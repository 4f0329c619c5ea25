"""Runs that alerts propose: somebody accepts or declines them, or a rule's policy does; then they are begun."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import ModelName, RunId
from umbel_server.access.actor import Actor
from umbel_server.clock import Clock
from umbel_server.store.audit import Audit
from umbel_server.store.database import Database
from umbel_server.store.tables_alerts import proposed_runs

OPEN, ACCEPTED, BEGUN, DECLINED, FAILED = "open", "accepted", "begun", "declined", "failed"
MAX_SAID = 2000


@dataclass(frozen=True, slots=True)
class ProposedRun:
    """A run that an alert proposes.

    Args:
        id: Its number.
        rule: The rule that proposes it.
        fingerprint: The alert that it is because of.
        model: The model that it would train.
        plan: The plan's fields, as its author wrote them.
        why: What was found.
        state: ``open``, ``accepted``, ``begun``, ``declined`` or ``failed``.
        made_s: When it was proposed, Unix seconds.
        decided_s: When it was accepted or declined; None: it is open.
        decided_by: Who decided; empty: it is open.
        said: Why it was decided so, or why it did not begin.
        run: The run that it becomes; None: none yet.
    """

    id: int
    rule: str
    fingerprint: str
    model: ModelName
    plan: Mapping[str, Any]
    why: str
    state: str
    made_s: float
    decided_s: float | None
    decided_by: str
    said: str
    run: RunId | None


class ProposedRuns:
    """The proposed runs of a store.

    Args:
        database: The database.
        audit: Where every decision is recorded.
        clock: Dates changes.
    """

    def __init__(self, database: Database, audit: Audit, clock: Clock) -> None:
        self._database = database
        self._audit = audit
        self._clock = clock

    def propose_within(
        self,
        connection: Connection,
        actor: Actor,
        *,
        rule: str,
        fingerprint: str,
        model: ModelName,
        plan: Mapping[str, Any],
        why: str,
        rest_s: float,
        accepted: bool,
    ) -> int | None:
        """Propose a run in the transaction of what it follows from.

        Args:
            connection: The transaction.
            actor: Who proposes it.
            rule: The rule.
            fingerprint: The alert.
            model: The model.
            plan: The plan's fields.
            why: What was found.
            rest_s: Least time since the rule's last one of the model, seconds.
            accepted: Whether the rule's policy accepts it at once.

        Returns:
            Its number; None: one is open, or was made within that time.
        """
        now_s = self._clock()
        of_rule = (proposed_runs.c.rule == rule, proposed_runs.c.model == model)
        query = select(proposed_runs.c.state, proposed_runs.c.made_s).where(*of_rule)
        if any(
            row.state in (OPEN, ACCEPTED) or now_s - row.made_s < rest_s for row in connection.execute(query)
        ):
            return None
        made = connection.execute(
            insert(proposed_runs).values(
                rule=rule,
                fingerprint=fingerprint,
                model=model,
                plan=json.dumps(dict(plan), sort_keys=True, allow_nan=False),
                why=why[:MAX_SAID],
                state=OPEN,
                made_s=now_s,
                decided_by="",
                said="",
            )
        )
        key = made.inserted_primary_key
        assert key is not None
        number = int(key[0])
        self._audit.append(
            connection,
            actor,
            action="proposed-run.create",
            object=f"proposed-run:{number}",
            reason=why[:MAX_SAID],
            after={"model": model, "rule": rule, "alert": fingerprint},
        )
        if accepted:
            self._decide(connection, number, ACCEPTED, actor, f"rule {rule} starts runs by itself")
        return number

    def get(self, number: int) -> ProposedRun:
        """Return a proposed run.

        Raises:
            UsageError: There is none of that number.
        """
        with self._database.read() as connection:
            return _found(connection, number)

    def all(self, *, states: Sequence[str] | None = None) -> tuple[ProposedRun, ...]:
        """Return proposed runs, the newest first; in some states only, if they are given."""
        query = select(proposed_runs)
        if states is not None:
            query = query.where(proposed_runs.c.state.in_(states))
        with self._database.read() as connection:
            return tuple(map(_proposed, connection.execute(query.order_by(proposed_runs.c.id.desc()))))

    def accept(self, number: int, *, actor: Actor, reason: str) -> ProposedRun:
        """Let a proposed run be begun.

        Raises:
            UsageError: There is none of that number.
            RefusedError: It was decided already.
        """
        with self._database.write() as connection:
            return self._decide(connection, number, ACCEPTED, actor, reason)

    def decline(self, number: int, *, actor: Actor, reason: str) -> ProposedRun:
        """Let a proposed run be.

        Raises:
            UsageError: There is none of that number.
            RefusedError: It was decided already.
        """
        with self._database.write() as connection:
            return self._decide(connection, number, DECLINED, actor, reason)

    def ended(self, number: int, state: str, said: str = "") -> None:
        """Note that an accepted run was begun, or cannot be."""
        with self._database.write() as connection:
            connection.execute(
                update(proposed_runs)
                .where(proposed_runs.c.id == number, proposed_runs.c.state == ACCEPTED)
                .values(state=state, **({"said": said[:MAX_SAID]} if said else {}))
            )

    def open_count(self) -> int:
        """Return how many wait for a decision."""
        with self._database.read() as connection:
            query = select(func.count()).where(proposed_runs.c.state == OPEN)
            return int(connection.execute(query).scalar_one())

    def _decide(
        self, connection: Connection, number: int, state: str, actor: Actor, reason: str
    ) -> ProposedRun:
        before = _found(connection, number)
        if before.state != OPEN:
            raise RefusedError(
                f"Proposed run {number} is {before.state}, as {before.decided_by} decided: look at it again."
            )
        # Its name is of its number, so that who is killed between two steps finds the run again.
        run = f"{before.model[:40]}-proposed-{number}" if state == ACCEPTED else None
        connection.execute(
            update(proposed_runs)
            .where(proposed_runs.c.id == number)
            .values(
                state=state,
                decided_s=self._clock(),
                decided_by=actor.name,
                said=reason[:MAX_SAID],
                run=run,
            )
        )
        self._audit.append(
            connection,
            actor,
            action=f"proposed-run.{'accept' if state == ACCEPTED else 'decline'}",
            object=f"proposed-run:{number}",
            reason=reason,
            before={"state": before.state},
            after={"state": state, "run": run},
        )
        return _found(connection, number)


def _found(connection: Connection, number: int) -> ProposedRun:
    row = connection.execute(select(proposed_runs).where(proposed_runs.c.id == number)).one_or_none()
    if row is None:
        raise UsageError(f"There is no proposed run {number}:  umbel alert proposals  shows those there are.")
    return _proposed(row)


def _proposed(row: Row[Any]) -> ProposedRun:
    return ProposedRun(
        id=row.id,
        rule=row.rule,
        fingerprint=row.fingerprint,
        model=ModelName(row.model),
        plan=json.loads(row.plan),
        why=row.why,
        state=row.state,
        made_s=row.made_s,
        decided_s=row.decided_s,
        decided_by=row.decided_by,
        said=row.said,
        run=None if row.run is None else RunId(row.run),
    )

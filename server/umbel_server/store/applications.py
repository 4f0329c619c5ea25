"""Devices that wait for an operator's word, and the word."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Row, select, update

from umbel_proto.enrollment import fingerprint
from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import check_name
from umbel_proto.keys import VerifyKey
from umbel_server.access.actor import Actor
from umbel_server.clock import Clock
from umbel_server.store.admission import APPROVED, DAY_S, PENDING, REJECTED
from umbel_server.store.audit import Audit
from umbel_server.store.database import Database
from umbel_server.store.tables_enrollment import applications


@dataclass(frozen=True, slots=True)
class Pending:
    """A device that waits.

    Args:
        id: What operators call it.
        fingerprint: Of its identity key: what the device shows too.
        name: The name it would like; empty: any.
        facts: What it says it is.
        asked_s: When it asked first, Unix seconds.
        expires_s: Until when it waits.
    """

    id: str
    fingerprint: str
    name: str
    facts: Mapping[str, str | int]
    asked_s: float
    expires_s: float


class Applications:
    """What waits in a store."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._audit = Audit(database, clock)

    def pending(self) -> tuple[Pending, ...]:
        """Return what waits, the oldest first."""
        query = (
            select(applications)
            .where(applications.c.state == PENDING, applications.c.expires_s > self._clock())
            .order_by(applications.c.asked_s, applications.c.id)
        )
        with self._database.read() as connection:
            return tuple(_pending(row) for row in connection.execute(query))

    def approve(
        self, application: str, *, fingerprint: str, actor: Actor, reason: str = "", name: str = ""
    ) -> Pending:
        """Let a device in: it is there when it asks again, for which it has a day at least.

        Args:
            application: What waits.
            fingerprint: What the device itself shows: without it nobody knows whom they let in.
            actor: Who says so.
            reason: Why, for the audit log.
            name: What to call it instead of what it asked for.

        Raises:
            UsageError: Nothing of that id waits.
            RefusedError: The fingerprint is another.
        """
        if name:
            check_name(name, "device")
        return self._decide(application, APPROVED, actor, reason, fingerprint=fingerprint, name=name)

    def reject(self, application: str, *, actor: Actor, reason: str) -> Pending:
        """Turn a device away; it is told the reason.

        Raises:
            UsageError: Nothing of that id waits, or no reason is given.
        """
        if not reason.strip():
            raise UsageError("The device is told why: add  --reason TEXT.")
        return self._decide(application, REJECTED, actor, reason)

    def _decide(
        self,
        application: str,
        state: str,
        actor: Actor,
        reason: str,
        *,
        fingerprint: str | None = None,
        name: str = "",
    ) -> Pending:
        now_s = self._clock()
        with self._database.write() as connection:
            row = connection.execute(
                select(applications).where(applications.c.id == application)
            ).one_or_none()
            if row is None or row.state != PENDING or now_s >= row.expires_s:
                raise UsageError(f"No device waits as {application}: see  umbel fleet pending.")
            waiting = _pending(row)
            if fingerprint is not None and not _same(fingerprint, waiting.fingerprint):
                raise RefusedError(
                    f"The device that waits as {application} has another fingerprint: compare all of what the device "
                    "shows with  umbel fleet pending, and reject it if they differ."
                )
            values = {"state": state, "reason": reason, "decided_s": now_s, "name": name or row.name}
            if state == APPROVED:
                values["expires_s"] = max(row.expires_s, now_s + DAY_S)
            connection.execute(update(applications).where(applications.c.id == application).values(**values))
            self._audit.append(
                connection, actor, action=f"application.{state}", object=f"application:{application}",
                reason=reason, before={"state": PENDING},
                after={"state": state, "fingerprint": waiting.fingerprint, "name": name or row.name},
            )  # fmt: skip
        return waiting


def _pending(row: Row[tuple[object, ...]]) -> Pending:
    return Pending(
        row.id,
        fingerprint(VerifyKey(row.identity_key)),
        row.name,
        {} if row.facts is None else json.loads(row.facts),
        row.asked_s,
        row.expires_s,
    )


def _same(given: str, shown: str) -> bool:
    """Compare as people type: spaces and capitals do not matter."""
    plain = given.replace(" ", "").replace("-", "").lower().encode()
    return hmac.compare_digest(plain, shown.replace("-", "").encode())

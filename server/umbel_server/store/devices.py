"""Devices: who was let in, with which keys, and when they were last heard of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Row, Select, bindparam, or_, select, update
from sqlalchemy.exc import IntegrityError

from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import DeviceId
from umbel_proto.keys import VerifyKey
from umbel_server.access.actor import Actor, local_actor
from umbel_server.clock import Clock
from umbel_server.store.admission import (
    ACTIVE,
    REVOKED,
    Enters,
    WaitingError,
    admit,
    require_active,
    retire_node,
)
from umbel_server.store.admission import Application as Application
from umbel_server.store.audit import Audit
from umbel_server.store.database import Database
from umbel_server.store.tables import devices
from umbel_server.store.tables_enrollment import retired_nodes
from umbel_server.store.terms import OPEN, Terms

AUTHORITY = Actor("service:ca", frozenset())
"""Who lets devices in, on the word of a token or of an operator."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the fleet.

    Args:
        id: Its name.
        active: Whether it may call; a revoked one may not.
        identity_key: Its key for rounds.
        node_key: Its Flower node key, SubjectPublicKeyInfo, DER.
        node_id: Flower's id of the node; None until it is registered.
        enrolled_s: When it enrolled, Unix seconds.
        certificate_not_after_s: When its newest certificate ends.
        last_seen_s: Its last authenticated call, to some seconds.
        tls_key_hash: SHA-256 of its TLS key's SubjectPublicKeyInfo: no certificate for another key is its own.
        quarantined_s: Since when it is quarantined; None: it is not.
        quarantine_reason: Why; empty if it is not.
        facts: What it said it is: ``arch``, ``os``, ``memory_mib``, ``engine``.
    """

    id: DeviceId
    active: bool
    identity_key: VerifyKey
    node_key: bytes
    node_id: int | None
    enrolled_s: float
    certificate_not_after_s: float
    last_seen_s: float
    tls_key_hash: bytes
    quarantined_s: float | None
    quarantine_reason: str
    facts: Mapping[str, str | int]

    @property
    def quarantined(self) -> bool:
        """Whether it is kept apart: it may renew and fetch releases, and nothing it sends counts."""
        return self.quarantined_s is not None

    @property
    def trusted(self) -> bool:
        """Whether it may take part in rounds."""
        return self.active and not self.quarantined


class Devices:
    """The devices of a store."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._audit = Audit(database, clock)

    def enroll(self, application: Application, *, certificate_life_s: float, terms: Terms = OPEN) -> Device:
        """Let a device in, using up its token in the same transaction.

        The same application again, while the token is valid, is the same device: its reply was
        lost. A device that comes back with its identity and node keys and a new token keeps its name.

        Raises:
            TokenError: The token is unknown, expired or used.
            RefusedError: The device is revoked or was rejected, or its keys are another's.
            UsageError: The name is taken or not a name.
            QuotaError: The fleet takes no more, or not now.
            WaitingError: It waits for an operator's word, and has to ask again.
        """
        now_s = self._clock()
        not_after_s = now_s + certificate_life_s
        try:
            with self._database.write() as connection:
                outcome = admit(connection, application, now_s=now_s, not_after_s=not_after_s, terms=terms)
                if isinstance(outcome, Enters):
                    device = _device(connection.execute(_by_id(outcome.device)).one())
                    if outcome.how != "again":
                        self._audit.append(
                            connection, AUTHORITY, action="device.enroll", object=f"device:{device.id}",
                            reason="", after={"how": outcome.how, "facts": dict(device.facts)},
                        )  # fmt: skip
                    return device
        except IntegrityError as exc:
            raise RefusedError("The device's keys belong to another device: let it make new ones.") from exc
        raise WaitingError(outcome.application)

    def get(self, device: DeviceId) -> Device | None:
        """Return a device, revoked or not; None if there is none of that name."""
        with self._database.read() as connection:
            row = connection.execute(_by_id(device)).one_or_none()
        return None if row is None else _device(row)

    def admit(self, device: DeviceId) -> Device:
        """Return a device that may call.

        Raises:
            RefusedError: It is unknown or revoked.
        """
        with self._database.read() as connection:
            row = connection.execute(_by_id(device)).one_or_none()
        require_active(device, None if row is None else row.status)
        assert row is not None
        return _device(row)

    def all(self) -> tuple[Device, ...]:
        """Return every device, by name."""
        with self._database.read() as connection:
            rows = connection.execute(select(devices).order_by(devices.c.id)).all()
        return tuple(map(_device, rows))

    def page(self, *, after: str = "", limit: int) -> tuple[Device, ...]:
        """Return devices by name, those after a name, at most ``limit``."""
        query = select(devices).where(devices.c.id > after).order_by(devices.c.id).limit(limit)
        with self._database.read() as connection:
            return tuple(map(_device, connection.execute(query)))

    def unregistered(self) -> list[tuple[DeviceId, bytes]]:
        """Return the active devices that Flower does not know yet, each with its node key (SPKI, DER)."""
        query = (
            select(devices.c.id, devices.c.node_key)
            .where(devices.c.node_id.is_(None), devices.c.status == ACTIVE)
            .order_by(devices.c.enrolled_s)
        )
        with self._database.read() as connection:
            return [(DeviceId(row.id), row.node_key) for row in connection.execute(query)]

    def set_node_id(self, device: DeviceId, node_id: int) -> None:
        """Keep Flower's id, unsigned 64 bits, of a device's node.

        Raises:
            UsageError: There is no such device.
        """
        self._change(device, node_id=str(node_id))

    def renewed(self, device: DeviceId, *, not_after_s: float, tls_key_hash: bytes) -> None:
        """Keep when a device's newest certificate ends, and for which key it is.

        Args:
            device: The device.
            not_after_s: Unix seconds.
            tls_key_hash: SHA-256 of the key's SubjectPublicKeyInfo; certificates for another are its own no more.
        """
        self._change(device, certificate_not_after_s=not_after_s, enrolled_key=tls_key_hash)

    def revoke(self, device: DeviceId, *, actor: Actor | None = None, reason: str = "") -> None:
        """Refuse every call of a device from now on, and its node at the SuperLink; again is no error.

        Args:
            device: The device.
            actor: Who says so; by default whoever runs this process.
            reason: Why, for the audit log.

        Raises:
            UsageError: There is no such device.
        """
        with self._database.write() as connection:
            row = _existing(connection, device)
            if row.status == REVOKED:
                return
            now_s = self._clock()
            retire_node(connection, row, now_s=now_s)
            connection.execute(
                update(devices).where(devices.c.id == device).values(status=REVOKED, revoked_s=now_s)
            )
            self._audit.append(
                connection, actor or local_actor(), action="device.revoke", object=f"device:{device}",
                reason=reason, before={"status": row.status}, after={"status": REVOKED},
            )  # fmt: skip

    def quarantine(self, device: DeviceId, *, reason: str, actor: Actor | None = None) -> None:
        """Keep a device apart: nothing it sends counts, and it takes no part in rounds; again gives another reason.

        It may renew and fetch releases: what is wrong with it may be mended by one.

        Raises:
            UsageError: There is no such device, it is revoked, or no reason is given.
        """
        if not reason.strip():
            raise UsageError("A quarantine needs a reason: add  --reason TEXT.")
        with self._database.write() as connection:
            row = _existing(connection, device)
            if row.status == REVOKED:
                raise UsageError(f"Device {device} is revoked: that is more than a quarantine.")
            since_s = self._clock() if row.quarantined_s is None else row.quarantined_s
            self._set_quarantine(connection, row, since_s, reason, actor, reason)

    def release(self, device: DeviceId, *, reason: str = "", actor: Actor | None = None) -> None:
        """End a device's quarantine; what it sent meanwhile stays apart. Without a quarantine nothing happens.

        Raises:
            UsageError: There is no such device.
        """
        with self._database.write() as connection:
            row = _existing(connection, device)
            if row.quarantined_s is not None:
                self._set_quarantine(connection, row, None, None, actor, reason)

    def shut_out(self) -> frozenset[bytes]:
        """Return the node keys (SPKI, DER) that the SuperLink refuses: of revoked, replaced and quarantined devices."""
        query = select(devices.c.node_key).where(
            or_(devices.c.status != ACTIVE, devices.c.quarantined_s.is_not(None))
        )
        with self._database.read() as connection:
            now = connection.execute(query).scalars().all()
            gone = connection.execute(select(retired_nodes.c.node_key)).scalars().all()
        return frozenset((*now, *gone))

    def untrusted(self) -> frozenset[DeviceId]:
        """Return the devices that may not take part in rounds: revoked and quarantined ones."""
        query = select(devices.c.id).where(
            or_(devices.c.status != ACTIVE, devices.c.quarantined_s.is_not(None))
        )
        with self._database.read() as connection:
            return frozenset(map(DeviceId, connection.execute(query).scalars()))

    def retired(self) -> list[tuple[bytes, int]]:
        """Return the nodes that Flower is still to forget, each with its node key (SPKI, DER) and Flower's id."""
        query = select(retired_nodes).where(retired_nodes.c.node_id.is_not(None))
        with self._database.read() as connection:
            return [(row.node_key, int(row.node_id)) for row in connection.execute(query)]

    def forgotten(self, node_key: bytes) -> None:
        """Keep that Flower has forgotten a node."""
        gone = update(retired_nodes).where(retired_nodes.c.node_key == node_key).values(node_id=None)
        with self._database.write() as connection:
            connection.execute(gone)

    def _set_quarantine(
        self,
        connection: Connection,
        row: Row[tuple[object, ...]],
        since_s: float | None,
        words: str | None,
        actor: Actor | None,
        reason: str,
    ) -> None:
        connection.execute(
            update(devices)
            .where(devices.c.id == row.id)
            .values(quarantined_s=since_s, quarantine_reason=words)
        )
        self._audit.append(
            connection,
            actor or local_actor(),
            action="device.release" if since_s is None else "device.quarantine",
            object=f"device:{row.id}",
            reason=reason,
            before={"quarantined": row.quarantined_s is not None},
            after={"quarantined": since_s is not None},
        )

    def seen(self, when: Mapping[DeviceId, float]) -> None:
        """Keep when devices were last heard of, Unix seconds."""
        rows = [{"device": device, "seen": seen_s} for device, seen_s in when.items()]
        statement = (
            update(devices)
            .where(devices.c.id == bindparam("device"), devices.c.last_seen_s < bindparam("seen"))
            .values(last_seen_s=bindparam("seen"))
        )
        if rows:
            with self._database.write() as connection:
                connection.execute(statement, rows)

    def _change(self, device: DeviceId, **values: object) -> None:
        with self._database.write() as connection:
            changed = connection.execute(update(devices).where(devices.c.id == device).values(**values))
            if changed.rowcount != 1:
                raise UsageError(f"There is no device {device}: see  umbel fleet devices.")


def _existing(connection: Connection, device: DeviceId) -> Row[tuple[object, ...]]:
    row = connection.execute(_by_id(device)).one_or_none()
    if row is None:
        raise UsageError(f"There is no device {device}: see  umbel fleet devices.")
    return row


def _by_id(device: DeviceId) -> Select[tuple[object, ...]]:
    return select(devices).where(devices.c.id == device)


def _device(row: Row[tuple[object, ...]]) -> Device:
    return Device(
        id=DeviceId(row.id),
        active=row.status == ACTIVE,
        identity_key=VerifyKey(row.identity_key),
        node_key=row.node_key,
        node_id=None if row.node_id is None else int(row.node_id),
        enrolled_s=row.enrolled_s,
        certificate_not_after_s=row.certificate_not_after_s,
        last_seen_s=row.last_seen_s,
        tls_key_hash=row.enrolled_key,
        quarantined_s=row.quarantined_s,
        quarantine_reason=row.quarantine_reason or "",
        facts={} if row.facts is None else json.loads(row.facts),
    )

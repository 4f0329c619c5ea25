"""Devices: who was let in, with which keys, and when they were last heard of."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, Row, Select, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import DeviceId, check_name
from umbel_proto.keys import VerifyKey
from umbel_server.clock import Clock
from umbel_server.store.database import Database
from umbel_server.store.tables import devices
from umbel_server.store.tokens import Token, find_token, use_token

ACTIVE, REVOKED = "active", "revoked"


@dataclass(frozen=True, slots=True)
class Application:
    """What a device asks to be let in with; its signatures were checked.

    Args:
        token: The token's secret.
        name: The name it would like; empty: any.
        identity_key: Its key for rounds.
        node_key: Its Flower node key, SubjectPublicKeyInfo, DER.
        tls_key_hash: SHA-256 of its TLS key's SubjectPublicKeyInfo, 32 bytes.
    """

    token: bytes = field(repr=False)
    name: str
    identity_key: VerifyKey
    node_key: bytes
    tls_key_hash: bytes


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
    """

    id: DeviceId
    active: bool
    identity_key: VerifyKey
    node_key: bytes
    node_id: int | None
    enrolled_s: float
    certificate_not_after_s: float
    last_seen_s: float


class Devices:
    """The devices of a store."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def enroll(self, application: Application, *, certificate_life_s: float) -> Device:
        """Let a device in, using up its token in the same transaction.

        The same application again, while the token is valid, is the same device: its reply was
        lost. A device that comes back with its identity and node keys and a new token keeps its name.

        Raises:
            TokenError: The token is unknown, expired or used.
            RefusedError: The device is revoked, or its keys are another's.
            UsageError: The name is taken or not a name.
        """
        now_s = self._clock()
        try:
            with self._database.write() as connection:
                device = _enroll(connection, application, now_s, now_s + certificate_life_s)
                return _device(connection.execute(_by_id(device)).one())
        except IntegrityError as exc:
            raise RefusedError("The device's keys belong to another device: let it make new ones.") from exc

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
        found = self.get(device)
        if found is None:
            raise RefusedError(f"Device {device} is not enrolled in this fleet.")
        if not found.active:
            raise RefusedError(f"Device {device} is revoked.")
        return found

    def all(self) -> tuple[Device, ...]:
        """Return every device, by name."""
        with self._database.read() as connection:
            rows = connection.execute(select(devices).order_by(devices.c.id)).all()
        return tuple(map(_device, rows))

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

    def renewed(self, device: DeviceId, *, not_after_s: float) -> None:
        """Keep when a device's newest certificate ends."""
        self._change(device, certificate_not_after_s=not_after_s)

    def revoke(self, device: DeviceId) -> None:
        """Refuse every call of a device from now on; again is no error.

        Raises:
            UsageError: There is no such device.
        """
        self._change(device, status=REVOKED, revoked_s=self._clock())

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


def _enroll(connection: Connection, application: Application, now_s: float, not_after_s: float) -> DeviceId:
    token = find_token(connection, application.token, now_s=now_s)
    dates = {"certificate_not_after_s": not_after_s, "last_seen_s": now_s}
    repeated = connection.execute(
        select(devices).where(
            devices.c.token_hash == token.hash, devices.c.enrolled_key == application.tls_key_hash
        )
    ).one_or_none()
    if repeated is not None:
        _check_same(repeated, application)
        connection.execute(update(devices).where(devices.c.id == repeated.id).values(**dates))
        return DeviceId(repeated.id)
    use_token(connection, token)
    entry = {"token_hash": token.hash, "enrolled_key": application.tls_key_hash, **dates}
    known = connection.execute(
        select(devices).where(devices.c.identity_key == application.identity_key.raw)
    ).one_or_none()
    if known is not None:
        _check_same(known, application)
        if token.device not in (None, known.id):
            raise RefusedError(f"The enrollment token is for {token.device}, and this device is {known.id}.")
        connection.execute(update(devices).where(devices.c.id == known.id).values(**entry))
        return DeviceId(known.id)
    device = _choose_name(connection, token, application.name)
    connection.execute(
        insert(devices).values(
            id=device,
            status=ACTIVE,
            identity_key=application.identity_key.raw,
            node_key=application.node_key,
            enrolled_s=now_s,
            **entry,
        )
    )
    return device


def _check_same(row: Row[tuple[object, ...]], application: Application) -> None:
    same = hmac.compare_digest(row.identity_key, application.identity_key.raw)
    if not (same and hmac.compare_digest(row.node_key, application.node_key)):
        raise RefusedError("The device's keys belong to another device: let it make new ones.")
    if row.status != ACTIVE:
        raise RefusedError(f"Device {row.id} is revoked.")


def _choose_name(connection: Connection, token: Token, wish: str) -> DeviceId:
    name = token.device or wish
    if not name:
        return DeviceId(f"dev-{secrets.token_hex(4)}")
    check_name(name, "device")
    if connection.execute(_by_id(DeviceId(name))).one_or_none() is not None:
        raise UsageError(f"There is already a device {name}: choose another name.")
    return DeviceId(name)


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
    )

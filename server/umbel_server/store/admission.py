"""Letting devices in: what a token allows, how many a fleet takes, and who waits for an operator's word.

Everything that one enrollment changes is one transaction: killed at any moment, either nothing happened, or the same
request gets the same device.

Source: docs/spec/enrollment.md.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, Row, func, insert, select, update

from umbel_proto.errors import RefusedError, UnavailableError, UsageError
from umbel_proto.ids import DeviceId, check_name
from umbel_proto.keys import VerifyKey
from umbel_server.store.database import insert as insert_once
from umbel_server.store.tables import devices
from umbel_server.store.tables_enrollment import applications, retired_nodes
from umbel_server.store.terms import Terms
from umbel_server.store.tokens import Token, find_token, require_current, use_token

ACTIVE, REVOKED = "active", "revoked"
PENDING, APPROVED, REJECTED = "pending", "approved", "rejected"
DAY_S = 86400
MINUTE_S = 60
_ID_BYTES = 4


class QuotaError(UnavailableError):
    """The fleet takes no more devices, or not now."""


class WaitingError(UnavailableError):
    """The device waits for an operator's word.

    Args:
        application: What operators call what waits.
    """

    def __init__(self, application: str) -> None:
        super().__init__(
            f"The device waits for approval as {application}: ask the fleet's operator to compare its fingerprint, and "
            "ask again."
        )
        self.application = application


def require_active(device: DeviceId, status: str | None) -> None:
    """Check that a device may call.

    Args:
        device: Who calls.
        status: Its status; None: there is none of that name.

    Raises:
        RefusedError: It may not.
    """
    if status is None:
        raise RefusedError(f"Device {device} is not enrolled in this fleet.")
    if status != ACTIVE:
        raise revoked(device)


def revoked(device: str) -> RefusedError:
    """Return the refusal of a device that was put out of the fleet, which is for good."""
    return RefusedError(
        f"Device {device} is revoked: it goes on alone with what it has. To come back it needs a token from the fleet's "
        "operator, and another name."
    )


def another_key(device: DeviceId) -> RefusedError:
    """Return the refusal of a certificate for a key that the device no longer has."""
    return RefusedError(f"Device {device} has enrolled again since, with another key: this one is out.")


@dataclass(frozen=True, slots=True)
class Application:
    """What a device asks to be let in with; its signatures were checked.

    Args:
        token: The token's secret.
        name: The name it would like; empty: any.
        identity_key: Its key for rounds.
        node_key: Its Flower node key, SubjectPublicKeyInfo, DER.
        tls_key_hash: SHA-256 of its TLS key's SubjectPublicKeyInfo, 32 bytes.
        facts: JSON: what it says it is; None: nothing.
    """

    token: bytes = field(repr=False)
    name: str
    identity_key: VerifyKey
    node_key: bytes
    tls_key_hash: bytes
    facts: str | None = None


@dataclass(frozen=True, slots=True)
class Waits:
    """A device that waits.

    Args:
        application: What operators call it.
    """

    application: str


@dataclass(frozen=True, slots=True)
class Enters:
    """A device that is in.

    Args:
        device: Its name.
        how: ``again``: its answer was lost; ``back``: with its identity and a new token; ``replaced``: in the place
            of the one that had the name; ``new``.
    """

    device: DeviceId
    how: str


def admit(
    connection: Connection, application: Application, *, now_s: float, not_after_s: float, terms: Terms
) -> Enters | Waits:
    """Let a device in, or let it wait, using up its token in the same transaction.

    The same application again is the same device, or waits on: its answer was lost.

    Raises:
        TokenError: The token is unknown, expired or used.
        RefusedError: The device is revoked or was rejected, or its keys are another's.
        UsageError: The name is taken or not a name.
        QuotaError: The fleet takes no more, or not now.
    """
    token = find_token(connection, application.token)
    repeated = connection.execute(
        select(devices).where(
            devices.c.token_hash == token.hash, devices.c.enrolled_key == application.tls_key_hash
        )
    ).one_or_none()
    if repeated is not None:
        require_current(token, now_s=now_s)
        _check_same(repeated, application)
        dates = {"certificate_not_after_s": not_after_s, "last_seen_s": now_s}
        connection.execute(update(devices).where(devices.c.id == repeated.id).values(**dates))
        return Enters(DeviceId(repeated.id), "again")
    asked = connection.execute(
        select(applications).where(
            applications.c.token_hash == token.hash,
            applications.c.enrolled_key == application.tls_key_hash,
        )
    ).one_or_none()
    if asked is not None:
        return _decided(connection, token, application, asked, now_s, not_after_s, terms)
    require_current(token, now_s=now_s)
    use_token(connection, token)
    _check_pace(connection, terms, now_s)
    if terms.approve or token.approval:
        return _wait(connection, token, application, now_s, terms)
    return _enter(connection, token, application, now_s, not_after_s, terms)


def _decided(
    connection: Connection,
    token: Token,
    application: Application,
    asked: Row[tuple[object, ...]],
    now_s: float,
    not_after_s: float,
    terms: Terms,
) -> Enters | Waits:
    same = hmac.compare_digest(asked.identity_key, application.identity_key.raw)
    if not (same and hmac.compare_digest(asked.node_key, application.node_key)):
        raise RefusedError("The device's keys belong to another device: let it make new ones.")
    if asked.state == REJECTED:
        raise RefusedError(f"The fleet's operator rejected this device: {asked.reason}")
    if now_s >= asked.expires_s:
        raise RefusedError(f"The device waited for approval too long, as {asked.id}: ask for a new token.")
    if asked.state == PENDING:
        return Waits(asked.id)
    named = replace(application, name=asked.name)  # The operator may have chosen another.
    return _enter(connection, token, named, now_s, not_after_s, terms)


def _wait(
    connection: Connection, token: Token, application: Application, now_s: float, terms: Terms
) -> Waits:
    waiting = connection.execute(
        select(func.count())
        .select_from(applications)
        .where(applications.c.state == PENDING, applications.c.expires_s > now_s)
    ).scalar_one()
    if terms.max_pending and waiting >= terms.max_pending:
        raise QuotaError(
            f"{waiting} devices wait for approval already, as many as may: let the operator decide on some."
        )
    _check_free(connection, token, application)
    waits = Waits(secrets.token_hex(_ID_BYTES))
    connection.execute(
        insert(applications).values(
            id=waits.application,
            token_hash=token.hash,
            enrolled_key=application.tls_key_hash,
            identity_key=application.identity_key.raw,
            node_key=application.node_key,
            name=token.device or application.name,
            facts=application.facts,
            state=PENDING,
            reason="",
            asked_s=now_s,
            expires_s=now_s + terms.approval_days * DAY_S,
        )
    )
    return waits


def _enter(
    connection: Connection,
    token: Token,
    application: Application,
    now_s: float,
    not_after_s: float,
    terms: Terms,
) -> Enters:
    entry = {
        "token_hash": token.hash,
        "enrolled_key": application.tls_key_hash,
        "facts": application.facts,
        "certificate_not_after_s": not_after_s,
        "last_seen_s": now_s,
    }
    known = connection.execute(
        select(devices).where(devices.c.identity_key == application.identity_key.raw)
    ).one_or_none()
    if known is not None:
        _check_same(known, application)
        if token.device not in (None, known.id):
            raise RefusedError(f"The enrollment token is for {token.device}, and this device is {known.id}.")
        connection.execute(update(devices).where(devices.c.id == known.id).values(**entry))
        return Enters(DeviceId(known.id), "back")
    _refuse_retired(connection, application)
    keys = {
        "identity_key": application.identity_key.raw,
        "node_key": application.node_key,
        "enrolled_s": now_s,
        "status": ACTIVE,
        "revoked_s": None,
    }
    lost = _lost(connection, token)
    if lost is not None:
        retire_node(connection, lost, now_s=now_s)
        connection.execute(
            update(devices).where(devices.c.id == lost.id).values(**keys, **entry, node_id=None)
        )
        return Enters(DeviceId(lost.id), "replaced")
    _check_room(connection, terms)
    device = _choose_name(connection, token, application.name)
    connection.execute(insert(devices).values(id=device, **keys, **entry))
    return Enters(device, "new")


def retire_node(connection: Connection, device: Row[tuple[object, ...]], *, now_s: float) -> None:
    """Note a device's Flower node as gone: the SuperLink's gate refuses its key, and Flower is told to forget it."""
    row = {
        "node_key": device.node_key,
        "device_id": device.id,
        "node_id": device.node_id,
        "retired_s": now_s,
    }
    connection.execute(insert_once(connection, retired_nodes).values(row).on_conflict_do_nothing())


def _refuse_retired(connection: Connection, application: Application) -> None:
    gone = select(retired_nodes.c.device_id).where(retired_nodes.c.node_key == application.node_key)
    if connection.execute(gone).first() is not None:
        raise RefusedError("The device's keys were another's that is gone: let it make new ones.")


def _lost(connection: Connection, token: Token) -> Row[tuple[object, ...]] | None:
    """Return the device whose place the token gives away; None if it gives none."""
    if not token.replaces or token.device is None:
        return None
    return connection.execute(select(devices).where(devices.c.id == token.device)).one_or_none()


def _check_pace(connection: Connection, terms: Terms, now_s: float) -> None:
    if not terms.per_minute:
        return
    since = now_s - MINUTE_S
    entered = select(func.count()).select_from(devices).where(devices.c.enrolled_s > since)
    waiting = select(func.count()).select_from(applications).where(applications.c.asked_s > since)
    if (
        connection.execute(entered).scalar_one() + connection.execute(waiting).scalar_one()
        >= terms.per_minute
    ):
        raise QuotaError(
            f"{terms.per_minute} devices were let in within a minute, as many as may: try again in a minute."
        )


def _check_room(connection: Connection, terms: Terms) -> None:
    if not terms.max_devices:
        return
    count = select(func.count()).select_from(devices).where(devices.c.status == ACTIVE)
    if connection.execute(count).scalar_one() >= terms.max_devices:
        raise QuotaError(
            f"The fleet has {terms.max_devices} devices, as many as it may: its operator may revoke some, or raise "
            "max_devices of [enrollment] in fleet.toml."
        )


def _check_same(row: Row[tuple[object, ...]], application: Application) -> None:
    same = hmac.compare_digest(row.identity_key, application.identity_key.raw)
    if not (same and hmac.compare_digest(row.node_key, application.node_key)):
        raise RefusedError("The device's keys belong to another device: let it make new ones.")
    if row.status != ACTIVE:
        raise revoked(row.id)


def _check_free(connection: Connection, token: Token, application: Application) -> None:
    """Say at once what would stand against the device later, when it was approved."""
    known = connection.execute(
        select(devices).where(devices.c.identity_key == application.identity_key.raw)
    ).one_or_none()
    if known is not None:
        _check_same(known, application)
    elif _lost(connection, token) is None:
        _refuse_retired(connection, application)
        _choose_name(connection, token, application.name)


def _choose_name(connection: Connection, token: Token, wish: str) -> DeviceId:
    name = token.device or wish
    if not name:
        return DeviceId(f"dev-{secrets.token_hex(4)}")
    check_name(name, "device")
    if connection.execute(select(devices.c.id).where(devices.c.id == name)).first() is not None:
        if token.device:
            raise UsageError(
                f"There is already a device {name}: for its successor ask for a token with  umbel fleet token --name "
                f"{name} --replaces."
            )
        raise UsageError(f"There is already a device {name}: choose another name.")
    return DeviceId(name)

"""``umbel fleet policy``: what every device insists on, and when the fleet lets it train."""

from __future__ import annotations

import enum
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel_server.fleet.layout import FleetDir
from umbel_server.remote.place import FleetOption, ServerOption
from umbel_server.remote.subjects import fleet_at
from umbel_server.terminal import print_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from umbel_proto.credentials import FleetPolicy
    from umbel_proto.keys import SigningKey
    from umbel_server.access.actor import Actor
    from umbel_server.store.store import Store


ANNOUNCE = "announce_reviews"
"""What of a policy may be changed beside the fields of ``Rules``: whether devices announce reviews."""


class Unknown(enum.StrEnum):
    """What a device does where something that is demanded cannot be known."""

    ALLOW = "allow"
    REFUSE = "refuse"


def policy(
    directory: FleetOption = None,
    server: ServerOption = None,
    idle: Annotated[
        bool | None, typer.Option("--idle/--no-idle", help="Train only while a device has little to do.")
    ] = None,
    charging: Annotated[
        bool | None, typer.Option("--charging/--no-charging", help="Train only while it charges.")
    ] = None,
    unmetered: Annotated[
        bool | None, typer.Option("--unmetered/--no-unmetered", help="Train only where sending is free.")
    ] = None,
    consent: Annotated[
        bool | None, typer.Option("--consent/--no-consent", help="Train only where the user said yes.")
    ] = None,
    min_battery: Annotated[
        float | None, typer.Option(help="How full its battery must be, 0 to 1.", show_default=False)
    ] = None,
    unknown: Annotated[
        Unknown | None, typer.Option(help="What to do where a device cannot know.", show_default=False)
    ] = None,
    announce_reviews: Annotated[
        bool | None,
        typer.Option(
            "--announce-reviews/--no-announce-reviews",
            help="Ask devices to announce which predictions wait for a person, without inputs.",
        ),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the audit log.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show the fleet policy, or change when devices may train and what they announce. They learn of it within a day."""
    demands = {
        "idle": idle,
        "charging": charging,
        "unmetered": unmetered,
        "consent": consent,
        "min_battery": min_battery,
        "unknown": None if unknown is None else unknown.value,
        ANNOUNCE: announce_reviews,
    }
    asked = {name: value for name, value in demands.items() if value is not None}
    with fleet_at(directory, server) as fleet:
        now = fleet.change_policy(asked, reason) if asked else fleet.policy()
    if as_json:
        print(json.dumps(now, indent=2, allow_nan=False))
        return
    told = {name: value for name, value in now.items() if name != "training"}
    rows = [*told.items(), *((f"training: {name}", value) for name, value in now["training"].items())]
    print_table(("policy", ""), [(name, _shown(value)) for name, value in rows])


def change_policy(
    fleet: FleetDir,
    store: Store,
    asked: dict[str, Any],
    *,
    actor: Actor,
    reason: str = "",
    check: Callable[[FleetPolicy], None] = lambda policy: None,
    key: SigningKey | None = None,
) -> FleetPolicy:
    """Change on which conditions devices train, or what they announce, and put on record who did.

    Args:
        fleet: The fleet.
        store: Its store.
        asked: What changes: fields of ``Rules``, or ``ANNOUNCE``.
        actor: Who changes them.
        reason: Why.
        check: Raises if the policy is not as the actor saw it.
        key: The authority's, where it is at hand already.

    Raises:
        UsageError: A value is out of range.
        StorageError: The authority's key is not here, or the disk is full.
    """
    with store.database.write() as connection:
        before = fleet.policy()
        check(before)
        after = _changed(before, asked)
        if after != before:
            store.audit.append(
                connection,
                actor,
                action="policy.change",
                object=f"policy:{after.version}",
                reason=reason,
                before=_changeable(before),
                after=_changeable(after),
            )
            _sign(fleet, after, key)  # Last, so that nothing is done that cannot be put on record.
    return after


def change_training(fleet: FleetDir, asked: dict[str, Any]) -> FleetPolicy:
    """Sign a newer policy in which devices train on other conditions; the gateway hands it out from now on.

    Args:
        fleet: The fleet.
        asked: Fields of ``Rules`` that change.

    Raises:
        UsageError: A value is out of range.
        StorageError: The authority's key is not here, or the disk is full.
    """
    before = fleet.policy()
    after = _changed(before, asked)
    if after != before:
        _sign(fleet, after)
    return after


def _changed(before: FleetPolicy, asked: dict[str, Any]) -> FleetPolicy:
    rules = {name: value for name, value in asked.items() if name != ANNOUNCE}
    training, announce = replace(before.training, **rules), asked.get(ANNOUNCE, before.announce_reviews)
    if (training, announce) == (before.training, before.announce_reviews):
        return before
    return replace(before, training=training, announce_reviews=announce, version=before.version + 1)


def _changeable(policy: FleetPolicy) -> dict[str, Any]:
    """Return what of a policy operators change from day to day, as the audit log keeps it."""
    return {**asdict(policy.training), ANNOUNCE: policy.announce_reviews}


def _sign(fleet: FleetDir, policy: FleetPolicy, key: SigningKey | None = None) -> None:
    from umbel_proto.credentials import sign_policy
    from umbel_server.files import PUBLIC_MODE, write_atomically

    signed = sign_policy(key or fleet.authority_signer(), policy)
    write_atomically(fleet.policy_bin, signed, mode=PUBLIC_MODE)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "no limit" if value is None else str(value)

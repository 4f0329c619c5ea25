"""``umbel fleet rotate``: a new telemetry key, and the ones before it until nothing sealed to them is on its way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from umbel_server.fleet.layout import FleetDir

KEEP_DAYS = 90
"""Longer than a device is away and comes back, with reports that it sealed to an older key."""
_DAY_S = 86400


def rotate(
    directory: Annotated[
        Path, typer.Option("--fleet", envvar="UMBEL_FLEET", help="The fleet's directory.", show_default=False)
    ],
    keep_days: Annotated[
        int, typer.Option(help="Delete keys that were retired longer ago.", min=1)
    ] = KEEP_DAYS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Give the fleet a new telemetry key. Devices seal to it from their next renewal on, within a day."""
    from umbel_server.access.actor import local_actor
    from umbel_server.access.chain import keep_checkpoint
    from umbel_server.clock import system_clock

    fleet = FleetDir.open(directory)
    with fleet.open_store() as store:
        new, old, deleted = rotate_telemetry_key(fleet, keep_days=keep_days, now_s=system_clock())
        store.audit.record(
            local_actor(),
            action="telemetry-key.rotate",
            object=f"telemetry-key:{new}",
            before={"key_id": old},
            after={"key_id": new, "deleted": deleted},
        )
        keep_checkpoint(fleet, store)
    if as_json:
        print(json.dumps({"key_id": new, "retired": old, "deleted": deleted}, indent=2))
        return
    typer.echo(f"New telemetry key {new}; {old} still opens what devices sealed to it.")
    for each in deleted:
        typer.echo(f"Deleted {each}, retired more than {keep_days} days ago.")


def rotate_telemetry_key(fleet: FleetDir, *, keep_days: int, now_s: float) -> tuple[str, str, list[str]]:
    """Make a new telemetry key; killed at any moment, no batch is left without its key.

    Args:
        fleet: The fleet.
        keep_days: Keys that were retired longer ago are deleted.
        now_s: The time, Unix seconds.

    Returns:
        The ids of the new key, of the one before it, and of those that were deleted.

    Raises:
        StorageError: The private key is not here, or the disk is full.
    """
    from umbel_proto.seal import generate_keypair
    from umbel_server.files import PUBLIC_MODE, write_atomically

    old, (private, public) = fleet.telemetry_private(), generate_keypair()
    # The old key is kept first and the public half, which devices get, is told last.
    write_atomically(fleet.retired_telemetry_key(old.public.key_id), old.raw)
    write_atomically(fleet.telemetry_key, private.raw)
    write_atomically(fleet.telemetry_pub, public.raw, mode=PUBLIC_MODE)
    deleted = []
    for file in fleet.retired_telemetry_keys():
        if now_s - file.stat().st_mtime > keep_days * _DAY_S:
            file.unlink()
            deleted.append(file.stem.removeprefix("telemetry-"))
    return public.key_id, old.public.key_id, deleted

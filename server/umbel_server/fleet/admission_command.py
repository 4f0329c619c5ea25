"""``umbel fleet pending | approve | reject | quarantine | release-quarantine``: who gets in, and who is kept apart."""

from __future__ import annotations

from typing import Annotated

import typer

from umbel_server.remote.place import FleetOption, ServerOption
from umbel_server.remote.subjects import fleet_at
from umbel_server.terminal import JsonOption, duration, print_json, print_table

Waiting = Annotated[str, typer.Argument(help="What waits, as umbel fleet pending shows it.", metavar="ID")]
Member = Annotated[str, typer.Argument(help="The device's id, as umbel fleet devices shows it.")]
Reason = Annotated[str, typer.Option(help="Why, for the record.", show_default=False)]


def register(fleet: typer.Typer) -> None:
    """Add the commands."""
    fleet.command()(pending)
    fleet.command()(approve)
    fleet.command()(reject)
    fleet.command()(quarantine)
    fleet.command("release-quarantine")(release_quarantine)


def pending(directory: FleetOption = None, server: ServerOption = None, as_json: JsonOption = False) -> None:
    """List the devices that wait for approval, each with the fingerprint that it shows too."""
    from umbel_server.clock import system_clock

    with fleet_at(directory, server) as fleet:
        waiting = fleet.pending()
    if as_json:
        print_json(waiting)
        return
    now_s = system_clock()
    print_table(
        ("id", "fingerprint", "name", "is", "waits", "until"),
        [
            (
                each["id"],
                each["fingerprint"],
                each["name"] or "-",
                " ".join(map(str, each["facts"].values())) or "-",
                duration(now_s - each["asked_s"]),
                f"{duration(each['expires_s'] - now_s)} from now",
            )
            for each in waiting
        ],
    )


def approve(
    waiting: Waiting,
    fingerprint: Annotated[
        str,
        typer.Option(help="What the device itself shows: umbel enroll, umbel status.", show_default=False),
    ],
    directory: FleetOption = None,
    server: ServerOption = None,
    name: Annotated[str, typer.Option(help="What to call it instead of what it asked for.")] = "",
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Let a device in that waits. It is there within a minute."""
    with fleet_at(directory, server) as fleet:
        fleet.approve(waiting, fingerprint=fingerprint, name=name, reason=reason)
    _say(
        {"id": waiting, "state": "approved"}, f"Approved {waiting}: it is let in when it asks again.", as_json
    )


def reject(
    waiting: Waiting,
    reason: Reason,
    directory: FleetOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a device away that waits. It is told the reason."""
    with fleet_at(directory, server) as fleet:
        fleet.reject(waiting, reason)
    _say({"id": waiting, "state": "rejected"}, f"Rejected {waiting}.", as_json)


def quarantine(
    device: Member,
    reason: Reason,
    directory: FleetOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep a device apart: no rounds, and nothing it reports counts. It may renew and fetch releases."""
    with fleet_at(directory, server) as fleet:
        fleet.quarantine(device, reason)
    _say({"device": device, "status": "quarantined"}, f"Device {device} is quarantined.", as_json)


def release_quarantine(
    device: Member,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    as_json: JsonOption = False,
) -> None:
    """End a device's quarantine. What it reported meanwhile stays apart."""
    with fleet_at(directory, server) as fleet:
        fleet.release(device, reason)
    _say({"device": device, "status": "active"}, f"Device {device} is quarantined no more.", as_json)


def _say(fields: dict[str, str], sentence: str, as_json: bool) -> None:
    if as_json:
        print_json(fields)
    else:
        typer.echo(sentence)

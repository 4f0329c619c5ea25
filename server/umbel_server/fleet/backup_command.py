"""``umbel fleet backup`` and ``umbel fleet restore``."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umbel_server.fleet.layout import FleetDir
from umbel_server.terminal import JsonOption

if TYPE_CHECKING:
    from umbel_server.fleet.backup import Backup

FleetOption = Annotated[
    Path, typer.Option("--fleet", envvar="UMBEL_FLEET", help="The fleet's directory.", show_default=False)
]


def backup(
    file: Annotated[Path, typer.Argument(help="The file to write; it must not exist.", show_default=False)],
    directory: FleetOption,
    without_keys: Annotated[
        bool, typer.Option("--without-keys", help="Leave private keys out: a copy to look at, not to run.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a fleet into one file, while its services run."""
    from umbel_server.access.actor import local_actor
    from umbel_server.access.reads import Read
    from umbel_server.fleet.backup import back_up

    fleet = FleetDir.open(directory)
    made = back_up(fleet, file, keys=not without_keys)
    with fleet.open_store() as store:
        store.audit.record(
            local_actor(),
            action=Read.BACKUP.value,
            object=f"fleet:{fleet.name}",
            after={"files": made.files, "keys": made.keys},
        )
    _say(made, file, as_json=as_json)
    if made.keys and not as_json:
        typer.echo("It has the fleet's private keys: keep it as you keep those.")


def restore(
    file: Annotated[Path, typer.Argument(help="What umbel fleet backup wrote.", show_default=False)],
    directory: FleetOption,
    as_json: JsonOption = False,
) -> None:
    """Make a fleet's directory, and its store, of such a copy."""
    from umbel_server.access.actor import local_actor
    from umbel_server.fleet.backup import restore as make

    made = make(file, directory)
    fleet = FleetDir.open(directory)
    with fleet.open_store() as store:
        store.audit.record(
            local_actor(),
            action="fleet.restore",
            object=f"fleet:{fleet.name}",
            after={"taken_s": made.taken_s, "files": made.files},
        )
    _say(made, directory, as_json=as_json)
    if not as_json:
        typer.echo(
            "Next, if devices have seen newer lists of releases:  umbel fleet trust rotate online --sign ROOT_KEY --fleet "
            f"{directory}"
        )


def _say(made: Backup, where: Path, *, as_json: bool) -> None:
    if as_json:
        told = {
            "fleet": made.fleet,
            "taken_s": made.taken_s,
            "files": made.files,
            "size": made.size,
            "keys": made.keys,
        }
        print(json.dumps({**told, "path": str(where)}, indent=2))
    else:
        when = datetime.fromtimestamp(made.taken_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        typer.echo(f"{where}: fleet {made.fleet} as of {when}, {made.files} files, {made.size:,} bytes.")

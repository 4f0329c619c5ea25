"""``umbel audit``: who did what, and whether the record of it is whole."""

from __future__ import annotations

import csv
import datetime
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel_proto.errors import UsageError
from umbel_server.remote.place import FleetOption, ServerOption
from umbel_server.remote.subjects import audit_at
from umbel_server.terminal import JsonOption, print_json, print_table

if TYPE_CHECKING:
    from umbel_server.store.audit import Sought

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="See who did what, and check that the record of it is whole.",
)

ActorOption = Annotated[str | None, typer.Option(help="Only what this actor did.", show_default=False)]
ActionOption = Annotated[
    str | None,
    typer.Option(help="Only this action, or all that begin with this word.", show_default=False),
]
ObjectOption = Annotated[
    str | None,
    typer.Option("--object", help="Only what was done to this, as device:rose.", show_default=False),
]
SinceOption = Annotated[
    str | None, typer.Option(help="Only from this time on, as 2030-01-31 or 2030-01-31T12:00Z.")
]
COLUMNS = ("sequence", "time", "actor", "action", "object", "reason", "before", "after", "hash")


@app.command("list")
def list_(
    directory: FleetOption = None,
    server: ServerOption = None,
    actor: ActorOption = None,
    action: ActionOption = None,
    object_: ObjectOption = None,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option(help="At most so many, the newest.", min=1, max=10_000)] = 50,
    as_json: JsonOption = False,
) -> None:
    """List what was done, the newest first."""
    with audit_at(directory, server) as log:
        entries = log.latest(_sought(actor, action, object_, since), limit)
    if as_json:
        print_json(entries)
        return
    print_table(
        ("#", "time", "actor", "action", "object", "reason"),
        [
            (str(each["sequence"]), *(each[name] for name in ("time", "actor", "action", "object", "reason")))
            for each in entries
        ],
    )


@app.command()
def export(
    directory: FleetOption = None,
    server: ServerOption = None,
    actor: ActorOption = None,
    action: ActionOption = None,
    object_: ObjectOption = None,
    since: SinceOption = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values, not JSON lines.")] = False,
) -> None:
    """Write what was done to standard output, the oldest first: a JSON object a line, or CSV."""
    with audit_at(directory, server) as log:
        entries = log.all(_sought(actor, action, object_, since))
        if as_csv:
            _write_csv(entries)
        else:
            for entry in entries:
                print(json.dumps(entry))


@app.command()
def verify(
    directory: FleetOption = None,
    server: ServerOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Also against checkpoints that were kept elsewhere.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check that no entry was altered, taken out, put in or moved, and that none is missing at the end."""
    from umbel_server.access import chain

    others = []
    if checkpoint is not None:
        try:
            others = chain.read_checkpoints(checkpoint.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as exc:
            raise UsageError(f"The checkpoints {checkpoint} cannot be read.") from exc
    with audit_at(directory, server) as log:
        sequence, head = log.verify(others)
    if as_json:
        print_json({"entries": sequence, "head": head})
    else:
        typer.echo(f"The audit log is whole: {sequence} entries, up to {head}.")


@app.command()
def checkpoint(directory: FleetOption = None, server: ServerOption = None) -> None:
    """Print how far the log goes, signed: a line to keep where nobody can reach who reaches the service."""
    with audit_at(directory, server) as log:
        made = log.checkpoint()
    if made is None:
        raise UsageError("Nothing was ever done in this fleet: there is nothing to sign yet.")
    print(made)


def _sought(actor: str | None, action: str | None, object_: str | None, since: str | None) -> Sought:
    from umbel_server.store.audit import Sought

    since_s = None
    if since is not None:
        try:
            when = datetime.datetime.fromisoformat(since)
        except ValueError as exc:
            raise UsageError(
                f"--since {since[:40]!r} is no time: write it as 2030-01-31 or 2030-01-31T12:00Z."
            ) from exc
        since_s = (when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp()
    return Sought(actor, action, object_, since_s)


def _write_csv(entries: Iterable[dict[str, Any]]) -> None:
    from umbel_server.store.audit import canonical

    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(COLUMNS)
    for each in entries:
        words = (each["actor"], each["action"], each["object"], each["reason"])
        texts = (*words, canonical(each["before"]), canonical(each["after"]))
        out.writerow((each["sequence"], each["time"], *map(_inert, texts), each["hash"]))


def _inert(text: str) -> str:
    # A spreadsheet computes what begins so.
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text

"""What of a fleet's devices a command's options ask for."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from umbel_proto.errors import UsageError
from umbel_server.store.wanted import Status, Wanted

TABLE_ROWS = 100
StatusOption = Annotated[
    str | None, typer.Option(help=f"Those that are {', '.join(get_args(Status))}.", show_default=False)
]
VersionOption = Annotated[
    str | None,
    typer.Option(metavar="MODEL[@VERSION]", help="Those on which it answers.", show_default=False),
]
TagOption = Annotated[
    str | None, typer.Option("--tag", "--cohort", help="Those that have this tag.", show_default=False)
]
GroupOption = Annotated[
    str | None, typer.Option(help="Those that are in this group, or have this tag.", show_default=False)
]


def wanted_of(status: str | None, version: str | None, tag: str | None) -> Wanted:
    """Return what options ask for.

    Raises:
        UsageError: There is no such status, or the version is no number.
    """
    known = {word: word for word in get_args(Status)}
    if status is not None and status not in known:
        raise UsageError(f"No device is {status[:80]!r}: choose {', '.join(known)}.")
    model, _, number = (version or "").partition("@")
    if number and not (number.isascii() and number.isdecimal() and len(number) < 19):
        raise UsageError(f"{number[:80]!r} is no version: write  --version MODEL@NUMBER.")
    return Wanted(
        status=None if status is None else known[status],
        tag=tag,
        model=model or None,
        version=int(number) if number else None,
    )

"""``umbel doctor``: look at everything a device needs, and say what to do."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import click

from umbel._commands.options import Command, home_option, json_option
from umbel._commands.table import Table
from umbel._commands.terminal import device_home, print_json

_SIGNS = {"ok": "ok", "warning": "warning", "wrong": "WRONG"}


@click.command(cls=Command)
@home_option
@click.option("--offline", is_flag=True, help="Ask neither gateway nor SuperLink.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, *, home: Path | None, offline: bool, as_json: bool) -> None:
    """Check clock, certificate, disk, connection, models and data, and say what to do."""
    from umbel._doctor import examine

    found = list(examine(device_home(home), now_s=time.time(), online=not offline))
    healthy = all(each.state != "wrong" for each in found)
    if as_json:
        print_json({"healthy": healthy, "findings": [asdict(each) for each in found]})
    else:
        table = Table("", "check", "", "found")
        for each in found:
            table.add_row(each.check, _SIGNS[each.state], each.found)
        table.print()
    if not healthy:
        ctx.exit(1)

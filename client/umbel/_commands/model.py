"""``umbel model list``, ``use`` and ``retry``: the versions of a device; the workbench adds commands for packages."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from umbel._commands.options import Argument, Group, home_option, json_option
from umbel._commands.rooms import load_group
from umbel._commands.table import Table
from umbel._commands.terminal import device_home, print_json
from umbel._words import as_time
from umbel_proto.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from umbel._releases.packages import Installed
    from umbel._releases.shelf import Shelf

NAME = "model"


class ModelGroup(Group):
    """The device's commands, and those that the workbench adds to ``umbel model``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands: the device's first."""
        own = super().list_commands(ctx)
        with contextlib.suppress(MissingExtraError):
            own += [name for name in _workbench().list_commands(ctx) if name not in own]
        return own

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return one of the device's commands, or else of the workbench's.

        Raises:
            MissingExtraError: The workbench is not installed.
        """
        own = super().get_command(ctx, cmd_name)
        return own if own is not None else _workbench().get_command(ctx, cmd_name)


def _workbench() -> click.Group:
    return load_group(NAME)


app = ModelGroup(NAME, help="Show and change which versions a device runs; build, pack and inspect packages.")
model_argument = click.argument("model", cls=Argument, help="The model's name.")


@app.command("list")
@home_option
@json_option
def list_(*, home: Path | None, as_json: bool) -> None:
    """Show which versions of every model this device holds, and which failed on it."""
    shelf = _shelf(home)
    models = [_told(shelf, name) for name in shelf.versions.models()]
    used, quota = shelf.used_bytes(), shelf.quota_bytes
    if as_json:
        print_json({"models": models, "bytes": used, "quota_bytes": quota})
        return
    within = "" if quota is None else f" of {quota / (1 << 20):.1f}"
    table = Table(
        f"models on this device, {used / (1 << 20):.1f}{within} MiB",
        "model",
        "version",
        "",
        "variant, or why not",
    )
    for model in models:
        for slot in ("active", "previous"):
            if (held := model[slot]) is not None:
                table.add_row(model["model"], str(held["version"]), slot, held["variant"])
        for failure in model["failed"]:
            table.add_row(
                model["model"],
                str(failure["version"]),
                f"not used since {as_time(failure['at_s'])}",
                failure["why"],
            )
    table.print()


@app.command()
@model_argument
@click.argument(
    "slot",
    cls=Argument,
    type=click.Choice(["previous"]),
    metavar="previous",
    help="The version before the active one.",
)
@home_option
def use(*, model: str, slot: str, home: Path | None) -> None:
    """Go back to the version before the active one. Newer releases than that are still taken."""
    shelf = _shelf(home)
    active, before = shelf.active(model), shelf.previous(model)
    if active is None:
        raise UsageError(f"No model {model!r} is installed on this device.")
    why = f"was set back to {slot} by the device's owner"
    failure = shelf.versions.failure(active.sha256, active.version, why, told=True)
    if before is None or not shelf.versions.fall_back(model, failure):
        raise UsageError(f"This device has no version of {model} before the active {active.version}.")
    click.echo(
        f"{model} answers by version {before.version}; {active.version} is not used again before  "
        f"umbel model retry {model}"
    )


@app.command()
@model_argument
@home_option
def retry(*, model: str, home: Path | None) -> None:
    """Let versions that failed on this device be tried again, when they are offered the next time."""
    shelf = _shelf(home)
    if model not in shelf.versions.models():
        raise UsageError(f"No model {model!r} is known on this device.")
    forgotten = shelf.versions.retry(model)
    if forgotten:
        numbers = ", ".join(str(failure.version) for failure in forgotten)
        click.echo(f"{model}: {numbers} may be tried again.")
    else:
        click.echo(f"{model}: no version had failed.")


def _shelf(home: Path | None) -> Shelf:
    from umbel._releases.shelf import open_shelf

    where = device_home(home)
    _ = where.identity  # Not enrolled: said before anything is made.
    shelf = open_shelf(where, clock=time.time)
    shelf.versions.collect()
    return shelf


def _told(shelf: Shelf, model: str) -> dict[str, Any]:
    slots = shelf.versions.slots(model)
    failed = [{"version": each.version, "why": each.why, "at_s": each.at_s} for each in slots.failed]
    return {
        "model": model,
        "active": _held(shelf.active(model)),
        "previous": _held(shelf.previous(model)),
        "failed": failed,
    }


def _held(installed: Installed | None) -> dict[str, Any] | None:
    if installed is None:
        return None
    return {
        "version": installed.version,
        "variant": installed.variant,
        "bytes": installed.size,
        "sha256": installed.sha256,
        "latency_us": installed.latency_us,
    }

"""The commands of the other rooms, found by name if they are installed, and loaded only when one is asked for."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import click

from umbel._commands.options import Group
from umbel_proto.errors import MissingExtraError

GROUP = "umbel.commands"

# Said in `umbel --help` without loading anything: command -> (extra it comes with, summary).
_KNOWN = {
    "access": ("server", "Make tokens for programs that use the service, and take them back."),
    "alert": ("server", "See what the fleet's rules found, acknowledge it, and say whom to tell."),
    "audit": ("server", "See who did what, and check that the record of it is whole."),
    "demo": ("demo", "Bring up a whole fleet on this machine, train it, and show the figures."),
    "experiment": ("server", "Compare two versions by what people do with them."),
    "fleet": ("server", "Create a fleet, let devices in, publish models, read what devices report."),
    "query": (
        "server",
        "Ask a fleet about its devices' examples: one noised sum, charged to their privacy budgets.",
    ),
    "registry": ("server", "Govern versions: approvals, cards, comparisons, retirement."),
    "rollout": ("server", "Bring a new version to devices step by step, and take it back."),
    "login": ("server", "Sign in to a fleet's service, so that commands work there."),
    "logout": ("server", "Revoke the token of a login and forget it."),
    "monitor": ("server", "See how the models of a fleet are doing."),
    "rounds": ("server", "Start federated runs, follow them, and read what happened."),
    "serve": ("server", "Run the fleet's services, all or one."),
    "model": ("models", "Build, pack and inspect models."),
    "whoami": ("server", "Say who you are at a fleet's service, and what you may do there."),
    "user": ("server", "Make accounts, and say what they may do."),
}


class UmbelGroup(Group):
    """``umbel``'s own commands, and those that installed packages add under ``umbel.commands``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands: ours first."""
        own = super().list_commands(ctx)
        return own + sorted(name for name in _entry_points() if name not in own)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return one of our commands or, for ``--help``, only the summary of another."""
        if (own := super().get_command(ctx, cmd_name)) is not None or cmd_name not in _entry_points():
            return own
        _, summary = _KNOWN.get(cmd_name, ("", "Added by another package."))
        return click.Command(cmd_name, help=summary)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is to run, and load it if it is not ours.

        Raises:
            MissingExtraError: Its room, or what that needs, is not installed.
        """
        asked = args[0]
        if asked in _KNOWN and self.get_command(ctx, asked) is None and not ctx.resilient_parsing:
            raise MissingExtraError(_KNOWN[asked][0], f"umbel {asked}")
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name not in self.commands and (point := _entry_points().get(name)):
            try:
                command = _load(point)
            except MissingExtraError:
                if not ctx.resilient_parsing:  # A shell that completes a line asks as well: it is not told.
                    raise
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it imports only then may be missing as well.

        Raises:
            Exit: With 130, after Ctrl-C.
            MissingExtraError: What it needs is not installed.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as exc:
            raise click.exceptions.Exit(130) from exc
        except ModuleNotFoundError as exc:
            name = ctx.invoked_subcommand or ""
            if name not in _KNOWN:
                raise
            raise _missing(name, exc) from exc


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def load_group(name: str) -> click.Group:
    """Import the group of commands that another room adds under a name.

    Raises:
        MissingExtraError: What it needs is not installed.
    """
    point = _entry_points().get(name)
    if point is None:
        raise MissingExtraError(_KNOWN[name][0], f"This command of umbel {name}")
    found = _load(point)
    assert isinstance(found, click.Group)
    return found


def _load(point: importlib.metadata.EntryPoint) -> click.Command:
    """Import a command.

    Raises:
        MissingExtraError: What it needs is not installed.
    """
    try:
        found = point.load()
    except ImportError as exc:
        raise _missing(point.name, exc) from exc
    if isinstance(found, click.Command):
        return found
    import typer.main  # What is no command of click's was written with this, and has imported it.

    return typer.main.get_command(found)


def _missing(command: str, exc: ImportError) -> MissingExtraError:
    """Return the error that says which extra a command needs.

    Raises:
        ImportError: A module of ours is missing: that is no extra, but a bug.
    """
    if (exc.name or "").partition(".")[0].startswith("umbel"):
        raise exc
    extra, _ = _KNOWN.get(command, (command, ""))
    return MissingExtraError(extra, f"umbel {command}")

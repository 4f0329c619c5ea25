"""How the device's commands take options and arguments, and how ``--help`` explains them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from umbel._home.directory import HOME_VARIABLE

PATH = click.Path(path_type=Path)
"""A file or directory; that it is there is said by whoever opens it."""

WHOLE_SENTENCE = 200
"""A summary is shortened only from here on: lines break, and a sentence cut off says nothing."""


class Argument(click.Argument):
    """An argument that ``--help`` explains, as it explains options."""

    def __init__(self, declarations: list[str], *, help: str, **attributes: Any) -> None:  # noqa: A002  # As click's options call it.
        super().__init__(declarations, **attributes)
        self.help = help

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Return the argument's value, or say where else it may stand."""
        try:
            return super().process_value(ctx, value)
        except click.MissingParameter as exc:
            if self.envvar:
                exc.message = f"Give it, or set {self.envvar}."
            raise

    def make_metavar(self, ctx: click.Context) -> str:
        """Return how the argument is written in a line of usage, in brackets where it may be left out."""
        word = super().make_metavar(ctx)
        if not self.required and not word.startswith("["):
            word = f"[{word}]"
        return f"{word}..." if self.nargs != 1 and not word.endswith("...") else word


class Command(click.Command):
    """A command whose ``--help`` explains arguments before options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the parameters are."""
        arguments = [each for each in self.get_params(ctx) if isinstance(each, Argument)]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl([(each.make_metavar(ctx), _explained(each)) for each in arguments])
        super().format_options(ctx, formatter)


class Group(click.Group):
    """A command of several words, whose ``--help`` shows the whole first sentence of each."""

    command_class: type[click.Command] | None = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, as they were added."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the commands do."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, each.get_short_help_str(WHOLE_SENTENCE))
            for name, each in found
            if each is not None and not each.hidden
        ]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def _explained(argument: Argument) -> str:
    return f"{argument.help}  [env var: {argument.envvar}]" if argument.envvar else argument.help


home_option = click.option(
    "--home",
    type=PATH,
    metavar="DIR",
    envvar=HOME_VARIABLE,
    show_envvar=True,
    show_default="~/.umbel",
    help="The device's directory.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")

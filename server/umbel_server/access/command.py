"""``umbel user`` and ``umbel access token``: accounts and what they sign in with."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from umbel_proto.errors import UsageError
from umbel_server.remote.place import FleetOption, ServerOption
from umbel_server.remote.subjects import access_at
from umbel_server.terminal import JsonOption, print_json, print_table

user = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make accounts, and say what they may do.",
)
access = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
token = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make tokens for programs, and take them back.",
)
access.add_typer(token, name="token")


@access.callback()
def _access() -> None:
    """Tokens with which programs use the service."""


NameArgument = Annotated[str, typer.Argument(help="The account's name.")]
ReasonOption = Annotated[str, typer.Option(help="Why, for the audit log.")]
PasswordFileOption = Annotated[
    Path | None,
    typer.Option(
        help="Take the password from this file's first line, not from a prompt.", show_default=False
    ),
]


@user.command()
def add(
    name: NameArgument,
    role: Annotated[list[str], typer.Option(help="What it may do; several times for several.")],
    directory: FleetOption = None,
    server: ServerOption = None,
    password_file: PasswordFileOption = None,
    no_password: Annotated[
        bool, typer.Option("--no-password", help="For a program: it only ever has tokens.")
    ] = False,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make an account. Asks for its password."""
    from umbel_server.access.permissions import parse_roles

    roles = parse_roles(role)
    with access_at(directory, server) as at:
        at.require_no_user(name)
        made = at.add_user(name, roles, None if no_password else _password(password_file), reason)
    _tell(made, f"User {name} is {_roles(made)}.", as_json)


@user.command("list")
def list_users(
    directory: FleetOption = None, server: ServerOption = None, as_json: JsonOption = False
) -> None:
    """List the accounts."""
    with access_at(directory, server) as at:
        found = at.users()
    if as_json:
        print_json(found)
        return
    print_table(
        ("user", "status", "roles", "signs in", "last"),
        [
            (
                each["name"],
                "active" if each["active"] else "disabled",
                _roles(each),
                "elsewhere"
                if each["subject"]
                else "with a password"
                if each["has_password"]
                else "with tokens",
                _day(each["signed_in_s"]),
            )
            for each in found
        ],
    )


@user.command()
def role(
    name: NameArgument,
    roles: Annotated[list[str], typer.Argument(help="All that it has from now on.", metavar="ROLE...")],
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Give an account other roles, in force with its next request."""
    from umbel_server.access.permissions import parse_roles

    wanted = parse_roles(roles)
    with access_at(directory, server) as at:
        made = at.set_roles(name, wanted, reason)
    _tell(made, f"User {name} is {_roles(made)}.", as_json)


@user.command()
def disable(
    name: NameArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Refuse an account from now on, and revoke its tokens for good."""
    with access_at(directory, server) as at:
        made = at.set_active(name, False, reason)
    _tell(made, f"User {name} is disabled.", as_json)


@user.command()
def enable(
    name: NameArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Let an account in again; it needs new tokens."""
    with access_at(directory, server) as at:
        made = at.set_active(name, True, reason)
    _tell(made, f"User {name} is active again.", as_json)


@user.command()
def password(
    name: NameArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    password_file: PasswordFileOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Give an account another password; its tokens and sessions end."""
    with access_at(directory, server) as at:
        at.require_user(name)
        made = at.set_password(name, _password(password_file), reason)
    _tell(made, f"User {name} has a new password.", as_json)


@token.command("create")
def create_token(
    name: Annotated[str, typer.Argument(help="The account it stands for.")],
    scope: Annotated[
        list[str], typer.Option(help="What it may do, as devices:read, devices or read; several times.")
    ],
    directory: FleetOption = None,
    server: ServerOption = None,
    days: Annotated[float, typer.Option(help="How long it is in force.")] = 90.0,
    purpose: Annotated[str, typer.Option(help="What it is for.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Print a new API token. It is shown once: the store keeps only a hash."""
    with access_at(directory, server) as at:
        made = at.create_token(name, scope, days, purpose)
    if as_json:
        print_json(made)
    else:
        typer.echo(made["token"])


@token.command("list")
def list_tokens(
    directory: FleetOption = None,
    server: ServerOption = None,
    name: Annotated[str | None, typer.Option(help="Only this account's.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """List the tokens: whose they are, what they may do, when they were used."""
    from umbel_server.clock import system_clock

    with access_at(directory, server) as at:
        found = at.tokens(name)
    if as_json:
        print_json(found)
        return
    now_s = system_clock()
    print_table(
        ("token", "user", "state", "until", "used", "purpose", "scopes"),
        [
            (
                each["id"],
                each["user"],
                "revoked" if each["revoked_s"] else "expired" if now_s >= each["expires_s"] else "in force",
                _day(each["expires_s"]),
                _day(each["used_s"]),
                each["purpose"],
                " ".join(each["scopes"]),
            )
            for each in found
        ],
    )


@token.command("revoke")
def revoke_token(
    id_: Annotated[str, typer.Argument(metavar="ID", help="As umbel access token list shows it.")],
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Refuse a token from now on."""
    with access_at(directory, server) as at:
        revoked = at.revoke_token(id_, reason)
    if as_json:
        print_json(revoked)
    else:
        typer.echo(f"Token {id_} of {revoked['user']} is revoked.")


def _password(file: Path | None) -> str:
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").splitlines()[0]
        except (OSError, UnicodeDecodeError, IndexError) as exc:
            raise UsageError(f"The file {file} holds no password in its first line.") from exc
    if not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask for a password: give it with --password-file.")
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))


def _tell(account: dict[str, Any], sentence: str, as_json: bool) -> None:
    if as_json:
        print_json(account)
    else:
        typer.echo(sentence)


def _roles(account: dict[str, Any]) -> str:
    return ", ".join(account["roles"])


def _day(when_s: float | None) -> str:
    if when_s is None:
        return "never"
    return datetime.datetime.fromtimestamp(when_s, datetime.UTC).strftime("%Y-%m-%d %H:%M")

"""Where a command does its work: in the fleet's directory, or at its service."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import click
import typer
from click.core import ParameterSource

from umbel_proto.errors import UsageError
from umbel_server.access.acting import TOKEN_VARIABLE
from umbel_server.fleet.layout import FleetDir

if TYPE_CHECKING:
    from umbel_server.remote.client import Client, Place
    from umbel_server.store.store import Store

CA_VARIABLE = "UMBEL_SERVER_CA"

FleetOption = Annotated[
    Path | None,
    typer.Option("--fleet", envvar="UMBEL_FLEET", help="The fleet's directory.", show_default=False),
]
DirectoryOption = Annotated[
    Path, typer.Option("--fleet", envvar="UMBEL_FLEET", help="The fleet's directory.", show_default=False)
]
"""Of a command that works nowhere else."""
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        envvar="UMBEL_SERVER",
        metavar="URL",
        help="The fleet's service, instead of its directory; by default where you are signed in.",
        show_default=False,
    ),
]
_Here = TypeVar("_Here")
_Far = TypeVar("_Far")


@contextmanager
def at(
    directory: Path | None,
    server: str | None,
    here: Callable[[FleetDir, Store, Path | None], _Here],
    far: Callable[[Client], _Far],
    *,
    token_file: Path | None = None,
) -> Iterator[_Here | _Far]:
    """Yield what a command works on: a subject in the fleet's directory, or the same subject at its service.

    The two answer alike: tests/conformance/test_remote.py asks both the same.

    Args:
        directory: What ``--fleet`` says.
        server: What ``--server`` says.
        here: Makes it of the fleet, its store, and the token of ``--as``.
        far: Makes it of a client of the service.
        token_file: Holds the token to show; None: the variable's, or that of the login.

    Raises:
        UsageError: Neither is said, or both.
    """
    found = chosen(directory, server)
    if isinstance(found, Path):
        fleet = FleetDir.open(found)
        with fleet.open_store() as store:
            yield here(fleet, store, token_file)
        return
    with signed_in(found, token_file=token_file) as client:
        yield far(client)


def chosen(directory: Path | None, server: str | None) -> Path | str:
    """Return the directory, or the service's address; what is typed counts before what a variable says.

    Raises:
        UsageError: Neither is said, or both.
    """
    from umbel_server.remote.logins import Logins, server_of

    if directory is not None and server is not None:
        typed = {name for name in ("directory", "server") if _typed(name)}
        if len(typed) == 2:
            raise UsageError("Say --fleet, its directory, or --server, its service: not both.")
        if typed == {"server"}:
            directory = None
    if directory is not None:
        return directory
    if server is not None:
        return server_of(server)
    login = Logins.of_user().find(None)
    if login is None:
        raise UsageError(
            "Say which fleet: --fleet, its directory ( UMBEL_FLEET ), or --server, its service, after  umbel login."
        )
    return login.server


@contextmanager
def signed_in(server: str, *, token_file: Path | None = None) -> Iterator[Client]:
    """Yield a client of a service."""
    from umbel_server.remote.client import Client

    with Client(place_of(server, token_file=token_file)) as client:
        yield client


def place_of(server: str, *, token_file: Path | None = None) -> Place:
    """Return a service with the token to show there.

    Raises:
        UsageError: There is no token for it.
        StorageError: The file of logins cannot be read.
    """
    from umbel_server.remote.client import Place
    from umbel_server.remote.logins import Logins

    token = read_token(token_file) if token_file is not None else os.environ.get(TOKEN_VARIABLE) or None
    ca = os.environ.get(CA_VARIABLE)
    login = Logins.of_user().find(server) if token is None or ca is None else None
    if token is None and login is None:
        raise UsageError(f"You are not signed in at {server}: run  umbel login --server {server}")
    if token is None and login is not None:
        token = login.token
    if ca is not None:
        return Place(server, token, read_ca(Path(ca)))
    return Place(server, token, None if login is None else login.ca)


def read_token(file: Path) -> str:
    """Return the API token of a file's first line; ``-`` is standard input.

    Raises:
        UsageError: It cannot be read, or holds none.
    """
    import sys

    from umbel_server.access.api_token import looks_like_token

    try:
        lines = (sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")).split()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"The token file {file} cannot be read.") from exc
    if len(lines) != 1 or not looks_like_token(lines[0]):
        raise UsageError(
            f"{'Standard input' if str(file) == '-' else file} holds no API token and nothing else."
        )
    return lines[0]


def read_ca(file: Path) -> str:
    """Return a certificate, PEM.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        return file.read_text("ascii")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"The CA certificate {file} cannot be read.") from exc


def needed(reason: str) -> str:
    """Return why something is done; the service keeps it with what was done.

    Raises:
        UsageError: Nothing is said.
    """
    if not reason.strip():
        raise UsageError("Say why with --reason: the service keeps it with what was done.")
    return reason


def _typed(name: str) -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE

"""``umbel login``, ``umbel logout`` and ``umbel whoami``: who one is at a fleet's service."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel_proto.errors import CertificateError, RefusedError, UsageError
from umbel_server.remote.place import ServerOption, read_ca, read_token
from umbel_server.terminal import JsonOption, print_json

if TYPE_CHECKING:
    from umbel_server.remote.logins import Login


login = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
logout = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
whoami = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@login.command()
def sign_in(
    server: Annotated[
        str | None,
        typer.Option(
            envvar="UMBEL_SERVER",
            metavar="URL",
            help="The fleet's service, https://HOST:PORT.",
            show_default=False,
        ),
    ] = None,
    user: Annotated[
        str, typer.Option(help="Your account; without it you are asked.", show_default=False)
    ] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What to be allowed here, as devices:read, rollouts or read; several times.",
            show_default="all",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="Take an API token from this file, - for standard input, and no password.",
            show_default=False,
        ),
    ] = None,
    password_file: Annotated[
        Path | None,
        typer.Option(
            help="Take the password from this file's first line, not from a prompt.", show_default=False
        ),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            help="The fleet's CA certificate, PEM, that vouches for the service.", show_default=False
        ),
    ] = None,
    fingerprint: Annotated[
        str,
        typer.Option(
            help="SHA-256 of that certificate, instead of its file: umbel fleet fingerprint.",
            show_default=False,
        ),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Sign in to a fleet's service, so that commands work there; a password's token holds for half a day."""
    from umbel_server.access.permissions import parse_scopes
    from umbel_server.remote.client import Client, Place
    from umbel_server.remote.logins import Login, Logins, server_of

    if server is None:
        raise UsageError("Say where: umbel login --server https://HOST:PORT.")
    logins, address = Logins.of_user(), server_of(server)
    scopes = None if scope is None else sorted(parse_scopes(scope))
    before = logins.find(address)
    if ca is not None:
        trusted: str | None = read_ca(ca)
    elif before is not None and not fingerprint:
        trusted = before.ca
    else:
        trusted = _find_trust(address, fingerprint)
    if token_file is None:
        name = user or _ask("User")
        asked = {
            "name": name,
            "password": _password(password_file),
            "scopes": scopes,
            "purpose": "umbel login",
        }
        with Client(Place(address, None, trusted)) as client:
            token = str(client.post("/sign-in", asked)["token"])
    else:
        token = read_token(token_file)
    with Client(Place(address, token, trusted)) as client:
        if token_file is not None and scopes is not None:
            raise UsageError("A token's scopes are its own: leave out --scope.")
        me = client.get("/me")
    logins.keep(
        Login(
            server=address,
            account=str(me["name"]),
            token=token,
            token_id=str(me["token"]),
            expires_s=float(me["expires_s"]),
            ca=trusted,
        )
    )
    if before is not None and before.token != token:
        _revoke(before)
    _tell(address, me, as_json, f"You are {me['name']} at {address}, until {_moment(me['expires_s'])}.")


@logout.command()
def sign_out(
    server: ServerOption = None,
    everywhere: Annotated[bool, typer.Option("--all", help="Wherever you are signed in.")] = False,
) -> None:
    """Revoke the token of a login and forget it."""
    from umbel_server.remote.logins import Logins, server_of

    logins = Logins.of_user()
    if everywhere:
        leaving = logins.to_leave()
    else:
        found = logins.find(None if server is None else server_of(server))
        leaving = () if found is None else (found,)
    if not leaving:
        typer.echo("You are not signed in.")
        return
    for each in leaving:
        told = _revoke(each)
        logins.drop(each.server)
        typer.echo(f"You are signed out of {each.server}.{told}")


@whoami.command()
def say_who(server: ServerOption = None, as_json: JsonOption = False) -> None:
    """Say who you are at a service, what you may do there, and until when."""
    from umbel_server.remote.place import chosen, signed_in

    place = chosen(None, server)
    with signed_in(str(place)) as client:
        me = client.get("/me")
    roles, may = ", ".join(me["roles"]), " ".join(me["permissions"])
    sentence = f"You are {me['name']} ({roles}) at {place}, until {_moment(me['expires_s'])}.\nYou may: {may}"
    _tell(str(place), me, as_json, sentence)


def show_fingerprint(
    directory: Annotated[
        Path, typer.Option("--fleet", envvar="UMBEL_FLEET", help="The fleet's directory.", show_default=False)
    ],
) -> None:
    """Print the fingerprint of the authority that vouches for the fleet's services: for who signs in from afar."""
    from umbel_server.files import read_file
    from umbel_server.fleet.layout import FleetDir

    pem = read_file(FleetDir.open(directory).ca_pem, "CA certificate")
    typer.echo(printed_fingerprint(pem.decode("ascii")))


def printed_fingerprint(pem: str) -> str:
    """Return SHA-256 of a certificate as openssl prints it, 32 pairs of hexadecimal digits.

    Raises:
        CertificateError: It is none.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    try:
        return (
            x509.load_pem_x509_certificate(pem.encode("ascii")).fingerprint(hashes.SHA256()).hex(":").upper()
        )
    except ValueError as exc:
        raise CertificateError("What the service shows as its authority is no certificate.") from exc


def _find_trust(server: str, fingerprint: str) -> str | None:
    """Return who vouches for a service that was never used before: this system, or who has a fingerprint."""
    import hmac

    from umbel_server.remote.client import Client, Place
    from umbel_server.remote.shown import shown_authority

    if not fingerprint:
        try:
            with Client(Place(server, None, None)) as client:
                client.get("/authority")
            return None
        except CertificateError:
            pass
    # Whoever answers may show what they like: nothing of it is used unless its fingerprint is the one.
    pem = shown_authority(server)
    found = printed_fingerprint(pem)
    if fingerprint:
        said = "".join(each for each in fingerprint if each not in ": ").upper()
        if not hmac.compare_digest(said.encode(), found.replace(":", "").encode()):
            raise CertificateError(
                f"The authority of {server} has the fingerprint {found}, which is another: ask the service's operator."
            )
        return pem
    if not sys.stdin.isatty():
        raise UsageError(
            f"Nothing says that {server} is the fleet's: give --ca FILE, or --fingerprint of  umbel fleet fingerprint."
        )
    typer.echo(f"The authority that vouches for {server} has the SHA-256 fingerprint\n  {found}")
    if not typer.confirm("Is it the one that  umbel fleet fingerprint  prints at the service?"):
        raise RefusedError("Nothing was sent: ask the service's operator for the fingerprint.")
    return pem


def _revoke(login: Login) -> str:
    """Revoke a login's token; return what to say if that cannot be done."""
    from umbel_proto.errors import UmbelError
    from umbel_server.remote.client import Client, Place

    try:
        with Client(Place(login.server, login.token, login.ca)) as client:
            client.post("/sign-out")
    except RefusedError:
        return ""  # It was in force no more.
    except UmbelError as exc:
        return f" Its token could not be revoked ({exc}): it ends {_moment(login.expires_s)}."
    return ""


def _ask(what: str) -> str:
    if not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask for your account: give it with --user.")
    return str(typer.prompt(what))


def _password(file: Path | None) -> str:
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").splitlines()[0]
        except (OSError, UnicodeDecodeError, IndexError) as exc:
            raise UsageError(f"The file {file} holds no password in its first line.") from exc
    if not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask for a password: give it with --password-file.")
    return str(typer.prompt("Password", hide_input=True))


def _tell(server: str, me: dict[str, Any], as_json: bool, sentence: str) -> None:
    if as_json:
        print_json({"server": server, **me})
    else:
        typer.echo(sentence)


def _moment(unix_s: float) -> str:
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")

"""``umbel fleet trust``: who signs for what devices may install, and what to do when a key is old, lost or stolen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umbel_proto.errors import UsageError
from umbel_server.clock import system_clock
from umbel_server.fleet.layout import FleetDir
from umbel_server.terminal import JsonOption, duration, print_table

if TYPE_CHECKING:
    from securesystemslib.signer import Signer, SSlibKey

    from umbel_server.store.store import Store
    from umbel_server.trust.repository import Repository

trust = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Say who signs for what devices may install: keys, thresholds, and what to do when a key is lost.",
)

FleetOption = Annotated[
    Path, typer.Option("--fleet", envvar="UMBEL_FLEET", help="The fleet's directory.", show_default=False)
]


@trust.command()
def init(directory: FleetOption, as_json: JsonOption = False) -> None:
    """Let the releases of a fleet be signed that was made before they were: its keys, and what is released already."""
    from umbel_proto.package import read_package
    from umbel_server.files import read_file
    from umbel_server.trust.release import sign_release
    from umbel_server.trust.repository import Repository, sign_releases

    fleet = FleetDir.open(directory)
    if not Repository.of(fleet).exists:
        sign_releases(fleet, clock=system_clock)
    with fleet.open_store() as store:
        released = store.releases.all()
        _record(fleet, store, "trust.init", "trust:root", {"releases": len(released)})
    for release in released:
        package = read_package(
            read_file(fleet.package(release.sha256), "released package"), release_key=fleet.release_public()
        )
        sign_release(fleet, package, key=fleet.release_signer(), clock=system_clock)
    if as_json:
        _print({"root": str(fleet.root_key), "targets": str(fleet.targets_key), "releases": len(released)})
        return
    typer.echo(
        f"{len(released)} releases are signed. Devices learn of it when they renew their certificates."
    )
    typer.echo(f"Move {fleet.root_key} and {fleet.targets_key} to where no network reaches, with a copy.")


@trust.command()
def show(directory: FleetOption, as_json: JsonOption = False) -> None:
    """Show who signs for what, until when it holds, and what waits for signatures."""
    from umbel_server.trust.repository import Repository
    from umbel_server.trust.shown import shown

    now_s = system_clock()
    roles, waiting = shown(Repository.of(FleetDir.open(directory)))
    if as_json:
        _print({"roles": roles, "waiting": waiting})
        return
    print_table(
        ("role", "version", "holds for", "releases", "signatures", "keys"),
        [
            (
                told["role"],
                str(told["version"]),
                duration(told["expires_s"] - now_s) if told["expires_s"] > now_s else "EXPIRED",
                "-" if told["releases"] is None else str(told["releases"]),
                f"{told['threshold']} of {len(told['keys'])}",
                " ".join(key[:16] for key in told["keys"]),
            )
            for told in roles
        ],
    )
    _tell(waiting)


@trust.command()
def rotate(
    role: Annotated[str, typer.Argument(help="root, targets, online, or a model.")],
    directory: FleetOption,
    new: Annotated[
        list[Path] | None,
        typer.Option(
            help="A key of the role from now on, private or public; again for each.", show_default=False
        ),
    ] = None,
    sign: Annotated[
        list[Path] | None, typer.Option(help="A private key to sign the change with.", show_default=False)
    ] = None,
    threshold: Annotated[int, typer.Option(help="How many keys of root or targets must sign.", min=1)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Give a role other keys: all that it has from now on. It is in force once enough keys have signed it."""
    from umbel_server.trust.repository import Repository

    fleet = FleetDir.open(directory)
    repository = Repository.of(fleet)
    if (role == "online") == bool(new):
        raise UsageError(
            "The service makes its own key: leave --new away."
            if new
            else f"Name the keys of {role} from now on, each with --new FILE."
        )
    if threshold > 1 and role not in ("root", "targets"):
        raise UsageError(f"One key signs for {role}: a threshold is for root and targets.")
    keys = [_public(path) for path in new or ()]
    signers = [*map(_signer, sign or ()), *_private(new or ())]
    if role == "online":
        waiting = repository.rotate_online(signers)
    elif role in ("root", "targets"):
        waiting = repository.rotate(role, keys, threshold, signers)
    else:
        waiting = repository.rotate_line(role, keys, signers)
    after = {"keys": [key.keyid for key in keys], "threshold": threshold, "waiting": waiting}
    with fleet.open_store() as store:
        _record(fleet, store, "trust.rotate", f"trust:{role}", after)
    _done(repository, waiting, as_json=as_json)


@trust.command("sign")
def sign_(
    keys: Annotated[list[Path], typer.Argument(help="Private keys.")],
    directory: FleetOption,
    as_json: JsonOption = False,
) -> None:
    """Sign what waits for these keys; or, where nothing does, sign anew what they stand for, so that it holds longer."""
    from umbel_server.trust.repository import Repository

    fleet = FleetDir.open(directory)
    repository = Repository.of(fleet)
    signed = repository.sign([_signer(path) for path in keys])
    with fleet.open_store() as store:
        _record(fleet, store, "trust.sign", "trust:waiting", {"signed": signed})
    if not as_json:
        typer.echo(f"Signed: {', '.join(signed)}.")
    _done(repository, {role: count for role, count in signed.items() if count}, as_json=as_json)


def _record(fleet: FleetDir, store: Store, action: str, what: str, after: object) -> None:
    from umbel_server.access.actor import local_actor
    from umbel_server.access.chain import keep_checkpoint

    store.audit.record(local_actor(), action=action, object=what, after=after)
    keep_checkpoint(fleet, store)


def _done(repository: Repository, waiting: dict[str, int], *, as_json: bool) -> None:
    if as_json:
        _print({"root": repository.read().root.signed.version, "waiting": waiting})
        return
    if not waiting:
        typer.echo("It is in force: devices learn of it the next time they check for releases.")
    _tell(waiting)


def _tell(waiting: dict[str, int]) -> None:
    for role, count in waiting.items():
        more = (
            f"needs {count} more signatures: run  umbel fleet trust sign KEY"
            if count
            else "waits for the others"
        )
        typer.echo(f"A new {role} is not in force yet: it {more}")


def _signer(path: Path) -> Signer:
    from umbel_proto.keys import SigningKey
    from umbel_server.files import read_file
    from umbel_server.trust.metadata import signer

    return signer(SigningKey.from_pem(read_file(path, "private key")))


def _private(paths: list[Path] | tuple[()]) -> list[Signer]:
    """Return the private keys among some: one that is new also signs that it is."""
    return [_signer(path) for path in paths if b"PRIVATE" in path.read_bytes()]


def _public(path: Path) -> SSlibKey:
    from umbel_proto.keys import SigningKey, VerifyKey
    from umbel_server.files import read_file
    from umbel_server.trust.metadata import public

    data = read_file(path, "key")
    return public(SigningKey.from_pem(data).public if b"PRIVATE" in data else VerifyKey(data))


def _print(value: object) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))

"""``umbel registry``: versions, who approves of them, and what is known about them.

What a command needs is imported when it runs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel_proto.errors import UsageError
from umbel_server.access.acting import TOKEN_VARIABLE
from umbel_server.remote.place import FleetOption, ServerOption
from umbel_server.remote.subjects import registry_at
from umbel_server.terminal import JsonOption, duration, print_json, print_table

if TYPE_CHECKING:
    from umbel_server.registry.approval import Verdict

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Govern models: add versions, approve of them, compare and retire them.",
)

_VERSION = re.compile(r"([a-z0-9][a-z0-9._-]{0,62})@([1-9][0-9]{0,9})")

AsOption = Annotated[
    Path | None,
    typer.Option(
        "--as",
        help=f"Act as the account of the API token in this file; or in {TOKEN_VARIABLE}.",
        metavar="TOKEN_FILE",
        show_default=False,
    ),
]
VersionArgument = Annotated[str, typer.Argument(help="The version, as digits@2.", metavar="MODEL@VERSION")]
ModelArgument = Annotated[str, typer.Argument(help="The model.", metavar="MODEL")]
CommentOption = Annotated[str, typer.Option(help="Why; it stays on record.", show_default=False)]
ReasonOption = Annotated[str, typer.Option(help="Why, for the audit log.", show_default=False)]
KeyOption = Annotated[
    Path | None, typer.Option(help="The release key; by default the fleet's own.", show_default=False)
]


@app.command()
def add(
    package: Annotated[Path, typer.Argument(help="The signed package.", show_default=False)],
    directory: FleetOption = None,
    server: ServerOption = None,
    run: Annotated[
        str, typer.Option(help="The run that trained it; by default the one that its lineage names.")
    ] = "",
    code: Annotated[
        str, typer.Option(help="Version of the code that made it; by default of its lineage.")
    ] = "",
    as_: AsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a package into the registry, as a draft of its version."""
    try:
        data = package.read_bytes()
    except OSError as exc:
        raise UsageError(f"The package {package} cannot be read: {exc.strerror}.") from exc
    with registry_at(directory, server, token_file=as_) as registry:
        made = registry.add(data, run=run, code=code)
    if as_json:
        print_json(made)
        return
    named = f"{made['model']}@{made['version']}"
    typer.echo(f"{named} is {made['stage']}: {made['size']} bytes, sha256 {made['sha256']}.")
    if made["run"] is not None:
        typer.echo(f"It comes of run {made['run']}, {made['rounds']} rounds.")
    typer.echo(f'Next:  umbel registry request {named} --comment "WHY"')


@app.command()
def describe(
    model: ModelArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    owner: Annotated[str | None, typer.Option(help="Who answers for it.", show_default=False)] = None,
    purpose: Annotated[str | None, typer.Option(help="What it is for.", show_default=False)] = None,
    risk: Annotated[
        str | None,
        typer.Option(help="Class of the EU AI Act: minimal, limited or high.", show_default=False),
    ] = None,
    review: Annotated[
        str | None, typer.Option(help="When it is looked at again.", metavar="DATE", show_default=False)
    ] = None,
    decommission: Annotated[
        str | None, typer.Option(help="When it is to be given up.", show_default=False)
    ] = None,
    reason: ReasonOption = "",
    as_: AsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say who answers for a model, what it is for and how risky that is; show it, if nothing is said."""
    said = {
        "owner": owner,
        "purpose": purpose,
        "risk": risk,
        "review_date": review,
        "decommission": decommission,
    }
    news = {name: value for name, value in said.items() if value is not None}
    with registry_at(directory, server, token_file=as_) as registry:
        line = registry.describe(model, news, reason) if news else registry.line(model)
    if line is None:
        raise UsageError(f"Nobody has heard of {model}: see  umbel registry list.")
    if as_json:
        print_json(line)
        return
    for name, value in line.items():
        typer.echo(f"{name.replace('_', ' '):<13} {value or '-'}")


@app.command("list")
def list_(
    directory: FleetOption = None,
    server: ServerOption = None,
    model: Annotated[str, typer.Option(help="Only this model's.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List the versions, and where each stands."""
    from umbel_server.clock import system_clock
    from umbel_server.registry.overview import review_text

    with registry_at(directory, server) as registry:
        lines = registry.all(model or None)
    if as_json:
        print_json(lines)
        return
    now_s = system_clock()
    print_table(
        ("version", "stage", "for", "approvals", "owner", "risk", "review", "run", "size"),
        [
            (
                f"{each['model']}@{each['version']}",
                each["stage"],
                duration(now_s - each["stage_s"]),
                each["approvals"],
                each["model_line"]["owner"] or "-",
                each["model_line"]["risk"],
                review_text(each["model_line"]["review_date"], now_s),
                each["run"] or "-",
                f"{each['size']:,}",
            )
            for each in lines
        ],
    )


@app.command()
def show(
    version: Annotated[
        str, typer.Argument(help="The version, as digits@2; a model: its newest.", metavar="MODEL@VERSION")
    ],
    directory: FleetOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a version: where it comes from, who approved of it and by what evidence, and what was said."""
    from umbel_server.registry.overview import detail_text

    with registry_at(directory, server) as registry:
        model, number = (version, registry.newest(version)) if "@" not in version else parse_version(version)
        found = registry.show(model, number)
    if as_json:
        print_json(found)
    else:
        typer.echo(detail_text(found))


@app.command()
def request(
    version: VersionArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    comment: CommentOption = "",
    as_: AsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask that a version be approved, by the evidence that there is."""
    model, number = parse_version(version)
    with registry_at(directory, server, token_file=as_) as registry:
        asked = registry.request(model, number, comment)
        lies = registry.package(asked["sha256"])
    needed = asked["approvals_needed"]
    if as_json:
        print_json(
            {
                "model": model,
                "version": number,
                "request": asked["request"],
                "evidence_sha256": asked["evidence_sha256"],
                "approvals_needed": needed,
            }
        )
        return
    typer.echo(f"Asked for approval of {version}, evidence {asked['evidence_sha256'][:16]}.")
    if needed:
        typer.echo(
            f"{needed} accounts besides {asked['requested_by']} must look at it ( umbel registry show {version} ) and "
            f'approve:\n  umbel registry approve {version} --comment "WHY" --as TOKEN_FILE'
        )
    else:
        typer.echo(f"This fleet asks for no approval. Next:  umbel fleet publish {lies}")


@app.command()
def approve(
    version: VersionArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    comment: CommentOption = "",
    as_: AsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Approve of a version, as an account that neither asked for it nor added it."""
    from umbel_server.registry.approval import Verdict

    _decide(version, directory, server, Verdict.APPROVE, comment, as_, as_json)


@app.command()
def reject(
    version: VersionArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    comment: CommentOption = "",
    as_: AsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say no to a version: it is a draft again."""
    from umbel_server.registry.approval import Verdict

    _decide(version, directory, server, Verdict.REJECT, comment, as_, as_json)


@app.command()
def comment(
    version: VersionArgument,
    text: Annotated[str, typer.Argument(help="What you have to say.", show_default=False)],
    directory: FleetOption = None,
    server: ServerOption = None,
    as_: AsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say something about a version; it stays on record."""
    model, number = parse_version(version)
    with registry_at(directory, server, token_file=as_) as registry:
        said = registry.comment(model, number, text)
    if as_json:
        print_json({"model": model, "version": number, **said})
    else:
        typer.echo(f"{said['author']} said so of {version}.")


@app.command()
def stage(
    version: VersionArgument,
    to: Annotated[str, typer.Argument(help="deprecated, or released again.", metavar="STAGE")],
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: ReasonOption = "",
    as_: AsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Deprecate a released version, or reinstate a deprecated one; devices keep it either way."""
    from umbel_server.registry.stages import Event, Stage

    events = {Stage.DEPRECATED: Event.DEPRECATE, Stage.RELEASED: Event.REINSTATE}
    others = {
        Stage.DRAFT: "umbel registry add",
        Stage.CANDIDATE: "umbel registry request",
        Stage.APPROVED: "umbel registry approve",
        Stage.RETIRED: "umbel registry retire",
    }
    if to not in events:
        other = f": {others[Stage(to)]}  does that" if to in others else ""
        raise UsageError(f"A version is not made {to} by hand{other}; choose of {', '.join(events)}.")
    model, number = parse_version(version)
    with registry_at(directory, server, token_file=as_) as registry:
        moved = registry.move(model, number, events[Stage(to)], reason)
    _tell(moved, as_json)


@app.command()
def retire(
    version: VersionArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: ReasonOption = "",
    key: KeyOption = None,
    as_: AsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let no device fetch a version any more, for good. Devices that run it keep running it."""
    from umbel_proto.keys import SigningKey
    from umbel_server.files import read_file

    signing = None if key is None else SigningKey.from_pem(read_file(key, "release key"))
    model, number = parse_version(version)
    with registry_at(directory, server, token_file=as_) as registry:
        moved = registry.retire(model, number, reason, signing)
    _tell(moved, as_json)


@app.command()
def compare(
    before: Annotated[str, typer.Argument(help="The one, as digits@1.", metavar="MODEL@VERSION")],
    after: Annotated[str, typer.Argument(help="The other.", metavar="MODEL@VERSION")],
    directory: FleetOption = None,
    server: ServerOption = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it as a PNG too.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two versions: figures and whether they differ by more than chance, sizes, contracts, lineage, privacy."""
    from umbel_server.registry.overview import comparison_text

    with registry_at(directory, server) as registry:
        found = registry.compare(parse_version(before), parse_version(after), plot)
    if as_json:
        print_json(found)
    else:
        typer.echo(comparison_text(found))


@app.command()
def card(
    version: VersionArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    out: Annotated[Path | None, typer.Option(help="Write it to this file.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="CycloneDX JSON, not Markdown.")] = False,
) -> None:
    """Print a version's model card: Markdown with Hugging Face's front matter, or CycloneDX."""
    with registry_at(directory, server) as registry:
        text = registry.card(*parse_version(version), as_json=as_json)
    _write(text, out)


@app.command()
def datasheet(
    version: VersionArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    out: Annotated[Path | None, typer.Option(help="Write it to this file.", show_default=False)] = None,
) -> None:
    """Print a version's data sheet, Markdown."""
    with registry_at(directory, server) as registry:
        text = registry.datasheet(*parse_version(version))
    _write(text, out)


def parse_version(text: str) -> tuple[str, int]:
    """Return a model and a version of ``MODEL@VERSION``.

    Raises:
        UsageError: It is something else.
    """
    match = _VERSION.fullmatch(text)
    if match is None:
        raise UsageError(f"{text[:80]!r} names no version: write MODEL@VERSION, as digits@2.")
    return match[1], int(match[2])


def _decide(
    version: str,
    directory: Path | None,
    server: str | None,
    verdict: Verdict,
    comment: str,
    as_: Path | None,
    as_json: bool,
) -> None:
    from umbel_server.registry.stages import Stage

    model, number = parse_version(version)
    with registry_at(directory, server, token_file=as_) as registry:
        who, now = registry.decide(model, number, verdict, comment)
        lies = registry.package(now["sha256"])
    if as_json:
        print_json(now)
    elif now["stage"] == Stage.APPROVED:
        typer.echo(f"{version} is approved. Next:  umbel fleet publish {lies}")
    elif now["stage"] == Stage.CANDIDATE:
        typer.echo(f"{who} approves of {version}; {now['approvals_missing']} more must.")
    else:
        typer.echo(f"{who} rejects {version}: it is {now['stage']}.")


def _tell(moved: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(moved)
    else:
        typer.echo(f"{moved['model']}@{moved['version']} is {moved['stage']}.")


def _write(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(text, nl=False)
        return
    from umbel_server.files import PUBLIC_MODE, write_atomically

    write_atomically(out, text.encode(), mode=PUBLIC_MODE)

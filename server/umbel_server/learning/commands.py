"""The ML engineer's commands: ``umbel rounds``, which starts runs and reads what happened.

What a command needs is imported when it runs.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from umbel_proto.errors import RefusedError
from umbel_server.learning.export_command import export
from umbel_server.learning.schedule_commands import app as schedule
from umbel_server.remote.place import FleetOption, ServerOption
from umbel_server.remote.subjects import runs_at
from umbel_server.terminal import JsonOption, print_json, print_table

POLL_S = 0.5

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Start federated runs, follow them, and read what happened.",
)

app.add_typer(schedule, name="schedule")
app.command()(export)

RunArgument = Annotated[
    str, typer.Argument(help="The run's name, as umbel rounds list shows it.", show_default=False)
]


@app.command()
def start(
    plan: Annotated[Path, typer.Argument(help="The run's plan, a TOML file.", show_default=False)],
    directory: FleetOption = None,
    server: ServerOption = None,
    name: Annotated[str, typer.Option(help="The run's name; by default the model's and a number.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the plan and start nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a plan against the fleet's policy and budget, and start its run."""
    with runs_at(directory, server) as runs:
        made = runs.start(plan, name=name, dry_run=dry_run)
    if as_json:
        print_json(made)
        return
    typer.echo(
        f"Each device will have spent epsilon {_number(made['epsilon_server'])} at delta {made['delta']:g} on "
        f"it at the end, against the server; {_number(made['epsilon_release'])} against those who see only its "
        "models, if devices are drawn honestly and in secret."
    )
    if made.get("quantities"):  # A service of an older version does not tell.
        typer.echo(
            f"The {made['quantities']} quantities beside each update make the noise on it "
            f"{made['quantities_noise']:.1%} larger."
        )
    if dry_run:
        typer.echo("The plan is good. Nothing was started.")
    else:
        where = f" --fleet {directory}" if directory is not None else ""
        typer.echo(f"Run {made['run']} is started.\nNext:  umbel rounds watch {made['run']}{where}")


@app.command()
def pause(
    run: RunArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "paused by an operator",
    as_json: JsonOption = False,
) -> None:
    """Let a run begin no more rounds for now. The round it is in goes on to its end."""
    with runs_at(directory, server) as runs:
        runs.pause(run, reason)
    if as_json:
        print_json({"run": run, "state": "paused"})
    else:
        typer.echo(f"Run {run} is paused after its round.\nNext:  umbel rounds resume {run}")


@app.command()
def resume(
    run: RunArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "resumed by an operator",
    as_json: JsonOption = False,
) -> None:
    """Let a paused run go on, or start a run's server process again after it was killed; it goes on after the last round on record."""
    with runs_at(directory, server) as runs:
        runs.resume(run, reason)
    if as_json:
        print_json({"run": run, "state": "running"})
    else:
        typer.echo(f"Run {run} goes on.")


@app.command()
def stop(
    run: RunArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "stopped by an operator",
    as_json: JsonOption = False,
) -> None:
    """End a run after the round it is in, or one that is paused."""
    with runs_at(directory, server) as runs:
        runs.stop(run, reason)
    if as_json:
        print_json({"run": run, "state": "stopped"})
    else:
        typer.echo(f"Run {run} stops after its round.")


@app.command()
def pack(
    run: RunArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="An .npz file with x to quantize with; by default the plan's.", show_default=False),
    ] = None,
    heldout: Annotated[
        Path | None,
        typer.Option(
            help="An .npz file with x and y for the card; by default the plan's.", show_default=False
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="The release key; by default the fleet's own.", show_default=False)
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(
            help="The new version; by default one above the newest in the registry.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write; by default the run's directory.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a signed package of what a run has learned, a draft in the registry. It needs umbel[models]."""
    with runs_at(directory, server) as runs:
        made = runs.pack(run, calibration=calibration, heldout=heldout, key=key, version=version, out=out)
    if as_json:
        print_json(made)
        return
    where = "" if directory is None else f" --fleet {directory}"
    written = f"{made['package']}\n" if "package" in made else ""
    typer.echo(
        f"{written}{made['model']} {made['version']} is a draft in the registry.\n"
        f"Next:  umbel registry show {made['model']}@{made['version']}{where}"
    )


@app.command("list")
def list_(
    directory: FleetOption = None,
    server: ServerOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many, by name.", show_default=False)
    ] = None,
    after: Annotated[str, typer.Option(help="Those after this name.", show_default=False)] = "",
    as_json: JsonOption = False,
) -> None:
    """List the runs, oldest first; with --limit or --after, by name."""
    with runs_at(directory, server) as runs:
        lines = runs.all(limit=limit, after=after)
    if as_json:
        print_json(lines)
        return
    print_table(
        ("run", "model", "state", "rounds", "accuracy", "epsilon", "to out-\nsiders", "reason"),
        [
            (
                line["run"],
                f"{line['model']}@{line['version']}",
                line["state"],
                f"{line['rounds_done']}/{line['rounds']}",
                _cell(line["accuracy"], ".3f"),
                _number(line["epsilon_server"]),
                _number(line["epsilon_release"]),
                line["reason"],
            )
            for line in lines
        ],
    )
    if len(lines) == limit:
        typer.echo(f"There may be more:  --after {lines[-1]['run']}", err=True)


@app.command()
def show(
    run: RunArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it as a PNG too.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a run round by round: who was in it, what it learned, what it cost."""
    with runs_at(directory, server) as runs:
        summary, attempts = runs.show(run), runs.attempts(run)
        if plot is not None:
            runs.draw(run, plot)
    if as_json:
        print_json({**summary, "attempts": attempts})
        return
    reason = f": {summary['reason']}" if summary["reason"] else ""
    typer.echo(f"Run {run} of {summary['model']}@{summary['version']} is {summary['state']}{reason}.")
    names = [n for n in ("accuracy", "loss", "training_loss") if any(n in _metrics(r) for r in attempts)]
    print_table(
        ("round", "state", "in sum", "lost", "held\nout", *(f"devices'\n{n}" for n in names), "clip", "epsilon", "to out-\nsiders", "s"),
        [
            (
                f"{r['round']}" + (f" (try {r['attempt']})" if r["attempt"] > 1 else ""),
                r["state"],
                str(sum(p["outcome"] == "summed" for p in r["participations"])),
                str(sum(p["outcome"] != "summed" for p in r["participations"])),
                _cell(r["figures"].get("accuracy", r["figures"].get("r2")), ".3f"),
                *(_metric(_metrics(r).get(n)) for n in names),
                _cell(r["figures"].get("clip"), ".3g"),
                *(_number(r["figures"][n]) if n in r["figures"] else "-" for n in ("epsilon_server", "epsilon_release")),
                f"{r['finished_s'] - r['started_s']:.1f}" if r["finished_s"] else "-",
            )
            for r in attempts
        ],
    )  # fmt: skip
    _print_norms(attempts)
    for r in attempts:
        if r["reason"]:
            typer.echo(f"Round {r['round']}, try {r['attempt']}: {r['reason']}.")
    refused = Counter(
        f"{p['device']}: {p['reason']}" for r in attempts for p in r["participations"] if p["reason"]
    )
    for line, times in sorted(refused.items()):
        typer.echo(f"{line}" + (f" ({times} times)" if times > 1 else ""))


@app.command()
def watch(run: RunArgument, directory: FleetOption = None, server: ServerOption = None) -> None:
    """Follow a run with a progress bar until it ends; Ctrl-C leaves it running."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with runs_at(directory, server) as runs:
        summary = runs.show(run)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns) as progress:
            task = progress.add_task(f"{run}", total=summary["rounds"])
            while True:
                summary = runs.show(run)
                said = f"{run}  held-out {_cell(summary.get('r2', summary['accuracy']), '.3f')}  epsilon {_number(summary['epsilon_server'])}"
                if summary.get("within_clip"):
                    said += f"  within the clip {_metric(summary['within_clip'])}"
                if summary["state"] == "paused":
                    said += "  paused"
                progress.update(task, completed=summary["rounds_done"], description=said)
                if summary["state"] not in ("running", "paused"):
                    break
                time.sleep(POLL_S)
    if summary["state"] == "failed":
        raise RefusedError(f"Run {run} failed: {summary['reason']}")
    typer.echo(f"Run {run} is {summary['state']}.")


def _print_norms(attempts: list[dict[str, Any]]) -> None:
    """Print how long updates were in the rounds that asked for it and whose sum was used."""
    from umbel_server.learning.norms import WORDS, histogram

    rows = [(r, found) for r in attempts if r["state"] == "opened" and (found := histogram(_metrics(r)))]
    if not rows:
        return
    typer.echo("\nLength of the updates before the clip, in clips of the round: share of those in the sum.")
    print_table(
        ("round", "in sum", *WORDS),
        [
            (
                f"{r['round']}" + (f" (try {r['attempt']})" if r["attempt"] > 1 else ""),
                str(sum(p["outcome"] == "summed" for p in r["participations"])),
                *(f"{each.value:.3f} +- {each.error:.3f}" for each in found),
            )
            for r, found in rows
        ],
    )


def _metrics(attempt: dict[str, Any]) -> dict[str, dict[str, float]]:
    return dict(attempt["figures"].get("metrics") or {})


def _metric(value: dict[str, float] | None) -> str:
    return "-" if value is None else f"{value['mean']:.3f} +- {value['error']:.3f}"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"

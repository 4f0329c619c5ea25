"""``umbel experiment``: which of two versions is better, by what people do with it; and who decided."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umbel_proto.errors import MissingExtraError, UsageError
from umbel_server.experiments.tables import date_of, print_dry_run, print_list, print_shown
from umbel_server.remote.place import FleetOption, ServerOption
from umbel_server.remote.subjects import experiments_at
from umbel_server.terminal import JsonOption, print_json

if TYPE_CHECKING:
    from umbel_server.experiments.plan import ExperimentPlan

# Typer would print local variables with a traceback.
app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Compare a version with the one before by what people do with it, and decide.",
)

ReasonOption = Annotated[str, typer.Option(help="Why; it is kept for good.", show_default=False)]
NameArgument = Annotated[str, typer.Argument(help="The experiment, as umbel experiment list shows it.")]
ModelArgument = Annotated[str, typer.Argument(help="The model.")]
VersionArgument = Annotated[int, typer.Argument(help="The candidate, released before.", min=1)]
PlanOption = Annotated[Path, typer.Option("--plan", help="A TOML file: metric, least effect, shares, gates.")]
NameOption = Annotated[
    str | None,
    typer.Option(help="What to call the experiment. Another name draws other devices.", show_default=False),
]


@app.command("plan")
def show_plan(
    model: ModelArgument,
    version: VersionArgument,
    plan_file: PlanOption,
    directory: FleetOption = None,
    server: ServerOption = None,
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show whom an experiment would draw, and how much it would have to see; change nothing."""
    plan = _plan(plan_file)
    with experiments_at(directory, server) as experiments:
        found = experiments.plan(model, version, plan, name=name)
    if as_json:
        print_json(found)
    else:
        print_dry_run(found, plan)


@app.command()
def start(
    model: ModelArgument,
    version: VersionArgument,
    plan_file: PlanOption,
    directory: FleetOption = None,
    server: ServerOption = None,
    name: NameOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Begin an experiment: its devices are drawn by hash, and each is in its arm from when it next asks."""
    plan = _plan(plan_file)
    with experiments_at(directory, server) as experiments:
        made = experiments.start(model, version, plan, name=name, reason=reason)
    if as_json:
        print_json(made)
        return
    typer.echo(
        f"Experiment {made['experiment']} compares {made['model']} {made['to_version']} with "
        f"{made['from_version']} by {plan.metric}; somebody is to decide by {date_of(made['ends_s'])}."
    )
    typer.echo(f"See what it says:  umbel experiment show {made['experiment']}")


@app.command()
def show(
    name: NameArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the interval over time as a PNG too.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an experiment says, over time, and who decided; of a decided one, what was seen then."""
    with experiments_at(directory, server) as experiments:
        shown = experiments.show(name)
    if plot is not None:
        try:
            from umbel_server.experiments.plot import draw
        except ModuleNotFoundError as exc:
            raise MissingExtraError("demo", "Drawing a plot") from exc
        draw(shown, plot)
    if as_json:
        print_json(shown)
    else:
        print_shown(shown)


@app.command("list")
def show_list(
    directory: FleetOption = None, server: ServerOption = None, as_json: JsonOption = False
) -> None:
    """List the experiments, the newest first."""
    with experiments_at(directory, server) as experiments:
        found = experiments.all()
    if as_json:
        print_json({"experiments": found})
    else:
        print_list(found)


@app.command()
def decide(
    name: NameArgument,
    decision: Annotated[str, typer.Argument(help="ship, stop or extend.")],
    reason: ReasonOption,
    directory: FleetOption = None,
    server: ServerOption = None,
    days: Annotated[
        float | None, typer.Option(help="Of extend: for how long from now on.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Decide: ship goes on as a rollout, stop takes the candidate back, extend goes on looking. It is kept for good."""
    if decision not in ("ship", "stop", "extend"):
        raise UsageError(f"{decision!r} is no decision: choose  ship,  stop  or  extend.")
    with experiments_at(directory, server) as experiments:
        after = experiments.decide(name, decision, reason, days=days)
    if as_json:
        print_json(after)
        return
    match decision:
        case "ship":
            typer.echo(
                f"Experiment {name} ships: rollout {name} goes on. Watch it:  umbel rollout status {name}"
            )
        case "stop":
            typer.echo(
                f"Experiment {name} is stopped: devices with {after['to_version']} go back when they next ask."
            )
        case _:
            typer.echo(f"Experiment {name} goes on; somebody is to decide by {date_of(after['ends_s'])}.")


@app.command()
def stop(
    name: NameArgument,
    reason: ReasonOption,
    directory: FleetOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """End an experiment, whatever it says: devices with the candidate go back when they next ask."""
    decide(name, "stop", reason, directory, server, None, as_json)


def _plan(file: Path) -> ExperimentPlan:
    from umbel_server.experiments.plan import ExperimentPlan

    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"The plan {file} cannot be read: {exc}.") from exc
    return ExperimentPlan.from_toml(text)

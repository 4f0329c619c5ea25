"""``umbel experiment``: which of two versions is better, by what people do with it; and who decided."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel_proto.errors import MissingExtraError, UsageError
from umbel_server.fleet.layout import FleetDir

if TYPE_CHECKING:
    from umbel_server.experiments.plan import ExperimentPlan
    from umbel_server.rollouts.begin import Proposal
    from umbel_server.store.store import Store

# Typer would print local variables with a traceback.
app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Compare a version with the one before by what people do with it, and decide.",
)

FleetOption = Annotated[
    Path, typer.Option("--fleet", envvar="UMBEL_FLEET", help="The fleet's directory.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
ReasonOption = Annotated[str, typer.Option(help="Why; it is kept for good.", show_default=False)]
NameArgument = Annotated[str, typer.Argument(help="The experiment, as umbel experiment list shows it.")]
ModelArgument = Annotated[str, typer.Argument(help="The model.")]
VersionArgument = Annotated[int, typer.Argument(help="The candidate, released before.", min=1)]
PlanOption = Annotated[Path, typer.Option("--plan", help="A TOML file: metric, least effect, shares, gates.")]
NameOption = Annotated[
    str | None,
    typer.Option(help="What to call the experiment. Another name draws other devices.", show_default=False),
]
BAR, SHOWN = 33, 12


@app.command("plan")
def show_plan(
    model: ModelArgument,
    version: VersionArgument,
    directory: FleetOption,
    plan_file: PlanOption,
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show whom an experiment would draw, and how much it would have to see; change nothing."""
    from umbel_server.experiments.begin import draw
    from umbel_server.experiments.sequence import tuned_information

    plan = _plan(plan_file)
    with _store(directory) as (fleet, store):
        proposal = _design(fleet, store, model, version, plan, name)
        drawn = draw(store, proposal)
        doubt = _doubt(store, proposal, plan)
    arms = plan.treatment_share * (1 - plan.treatment_share)
    # Of values with standard deviation 1: devices of both arms until the interval is as narrow as the effect.
    needed = tuned_information(error=plan.error, effect=1.0) / arms
    if as_json:
        _print_json(
            {
                "experiment": proposal.name,
                "model": proposal.model,
                "from_version": proposal.from_version,
                "to_version": proposal.to_version,
                "plan": plan.to_dict(),
                "treatment": list(drawn.treatment),
                "control": list(drawn.control),
                "pinned": drawn.pinned,
                "others": drawn.others,
                "devices_at_one_deviation": needed,
                "doubt": doubt,
            }
        )
        return
    typer.echo(
        f"Experiment {proposal.name} would compare {proposal.model} {proposal.to_version} with "
        f"{proposal.from_version} by {plan.metric}."
    )
    typer.echo(f"  treatment  {len(drawn.treatment)} devices, {plan.treatment:g} %")
    typer.echo(f"  control    {len(drawn.control)} devices, {plan.control:g} %")
    typer.echo(f"  in no arm  {drawn.others}, and {drawn.pinned} pinned")
    typer.echo(f"  guards     {', '.join(gate.name for gate in plan.gates) or 'none'}")
    typer.echo(f"  then       {', '.join(step.name for step in plan.following)}")
    typer.echo(
        f"A difference of {plan.least_effect:g} is told apart by about {needed:,.0f} devices in both arms if that is "
        f"one standard deviation between devices, {4 * needed:,.0f} if half of one, {100 * needed:,.0f} if a tenth."
    )
    if doubt:
        typer.echo(f"It would not start: {doubt}")


@app.command()
def start(
    model: ModelArgument,
    version: VersionArgument,
    directory: FleetOption,
    plan_file: PlanOption,
    name: NameOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Begin an experiment: its devices are drawn by hash, and each is in its arm from when it next asks."""
    from umbel_server.access.actor import local_actor
    from umbel_server.experiments.begin import begin
    from umbel_server.experiments.shown import experiment_json

    plan = _plan(plan_file)
    with _store(directory) as (fleet, store):
        proposal = _design(fleet, store, model, version, plan, name)
        made, rollout = begin(store, proposal, plan, actor=local_actor(), reason=reason)
    if as_json:
        _print_json(experiment_json(made, rollout))
        return
    typer.echo(
        f"Experiment {made.id} compares {rollout.model} {rollout.to_version} with {rollout.from_version} by "
        f"{plan.metric}; somebody is to decide by {_date(made.ends_s)}."
    )
    typer.echo(f"See what it says:  umbel experiment show {made.id}")


@app.command()
def show(
    name: NameArgument,
    directory: FleetOption,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the interval over time as a PNG too.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an experiment says, over time, and who decided; of a decided one, what was seen then."""
    from umbel_server.experiments.shown import shown_json

    with _store(directory) as (_, store):
        shown = shown_json(store, name)
    if plot is not None:
        try:
            from umbel_server.experiments.plot import draw
        except ModuleNotFoundError as exc:
            raise MissingExtraError("demo", "Drawing a plot") from exc
        draw(shown, plot)
    if as_json:
        _print_json(shown)
    else:
        _print_shown(shown)


@app.command("list")
def show_list(directory: FleetOption, as_json: JsonOption = False) -> None:
    """List the experiments, the newest first."""
    from umbel_server.experiments.shown import experiment_json

    with _store(directory) as (_, store):
        found = [experiment_json(each, store.rollouts.get(each.id)) for each in store.experiments.all()]
    if as_json:
        _print_json({"experiments": found})
        return
    rows: list[tuple[str, ...]] = [
        (
            each["experiment"],
            each["model"],
            f"{each['from_version']} -> {each['to_version']}",
            each["plan"]["metric"],
            each["state"],
            _date(each["ends_s"]),
        )
        for each in found
    ]
    _print_table(("experiment", "model", "versions", "metric", "state", "decide by"), rows)


@app.command()
def decide(
    name: NameArgument,
    decision: Annotated[str, typer.Argument(help="ship, stop or extend.")],
    directory: FleetOption,
    reason: ReasonOption,
    days: Annotated[
        float | None, typer.Option(help="Of extend: for how long from now on.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Decide: ship goes on as a rollout, stop takes the candidate back, extend goes on looking. It is kept for good."""
    if decision not in ("ship", "stop", "extend"):
        raise UsageError(f"{decision!r} is no decision: choose  ship,  stop  or  extend.")
    _decide(directory, name, decision, reason, days, as_json)


@app.command()
def stop(
    name: NameArgument, directory: FleetOption, reason: ReasonOption, as_json: JsonOption = False
) -> None:
    """End an experiment, whatever it says: devices with the candidate go back when they next ask."""
    _decide(directory, name, "stop", reason, None, as_json)


@contextmanager
def _store(directory: Path) -> Iterator[tuple[FleetDir, Store]]:
    fleet = FleetDir.open(directory)
    with fleet.open_store() as store:
        yield fleet, store


def _plan(file: Path) -> ExperimentPlan:
    from umbel_server.experiments.plan import ExperimentPlan

    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"The plan {file} cannot be read: {exc}.") from exc
    return ExperimentPlan.from_toml(text)


def _design(
    fleet: FleetDir, store: Store, model: str, version: int, plan: ExperimentPlan, name: str | None
) -> Proposal:
    from umbel_server.experiments.begin import design

    kept_days = fleet.settings.retention.hours_days
    return design(store, model, version, plan, name=name, kept_days=kept_days)


def _doubt(store: Store, proposal: Proposal, plan: ExperimentPlan) -> str | None:
    from umbel_server.experiments.begin import require_enough

    try:
        require_enough(store, proposal, plan)
    except UsageError as exc:
        return str(exc)
    return None


def _decide(
    directory: Path, name: str, decision: str, reason: str, days: float | None, as_json: bool
) -> None:
    from umbel_server.access.actor import local_actor
    from umbel_server.access.chain import keep_checkpoint
    from umbel_server.experiments.decision import decide as put
    from umbel_server.experiments.shown import experiment_json

    with _store(directory) as (fleet, store):
        after = put(store, name, decision, actor=local_actor(), comment=reason, days=days)
        rollout = store.rollouts.get(name)
        keep_checkpoint(fleet, store)
    if as_json:
        _print_json(experiment_json(after, rollout))
        return
    match decision:
        case "ship":
            typer.echo(
                f"Experiment {name} ships: rollout {name} goes on. Watch it:  umbel rollout status {name}"
            )
        case "stop":
            typer.echo(
                f"Experiment {name} is stopped: devices with {rollout.to_version} go back when they next ask."
            )
        case _:
            typer.echo(f"Experiment {name} goes on; somebody is to decide by {_date(after.ends_s)}.")


def _print_shown(shown: Mapping[str, Any]) -> None:
    figures, plan = shown["figures"], shown["plan"]
    typer.echo(
        f"Experiment {shown['experiment']}: {shown['model']} {shown['from_version']} -> {shown['to_version']}, "
        f"{shown['state']}, decide by {_date(shown['ends_s'])}"
    )
    if plan["question"]:
        typer.echo(f"  question  {plan['question']}")
    if shown["reason"]:
        typer.echo(f"  reason    {shown['reason']}")
    typer.echo(f"  says      {figures['outcome']}. {figures['why']}")
    if (found := figures["difference"]) is not None:
        typer.echo(
            f"  {plan['metric']}: {found['estimate']:+.4g} ({found['low']:+.4g} to {found['high']:+.4g}) from "
            f"{figures['control']['mean']:.4g}, {'higher' if plan['higher_is_better'] else 'lower'} is better"
        )
    _print_table(
        ("arm", "drawn", "compared", "pinned", "revoked", "mean"),
        [
            (
                arm,
                *(str(figures[arm][count]) for count in ("drawn", "compared", "pinned", "gone")),
                "-" if figures[arm]["mean"] is None else f"{figures[arm]['mean']:.4g}",
            )
            for arm in ("treatment", "control")
        ],
    )
    ratio = figures["ratio"]
    typer.echo(
        f"Share of the treatment {ratio['share']:.3g} by the draw; chance of these counts or odder ones "
        f"{ratio['chance']:.2g} at this look, {ratio['chance_ever']:.2g} at any."
    )
    if figures["course"]:
        _print_table(
            ("until", "devices", "difference", "interval", "| is no difference"), _course_rows(figures)
        )
    if figures["gates"]:
        _print_table(
            ("guard", "verdict", "figures"),
            [(each["gate"], each["outcome"], each["why"]) for each in figures["gates"]],
        )
    if shown["decisions"]:
        _print_table(
            ("when", "who", "decision", "why"),
            [
                (_time(each["at_s"]), each["actor"], each["decision"], each["comment"])
                for each in shown["decisions"]
            ],
        )


def _course_rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the newest looks and some before them, each with its interval as a bar."""
    course = figures["course"]
    every = -(-len(course) // SHOWN)
    points = course[::-1][::every][::-1]
    reach = 2 * max(abs(course[-1]["low"]), abs(course[-1]["high"]))
    return [
        (
            _time(each["at_s"]),
            f"{each['treatment']} and {each['control']}",
            f"{each['estimate']:+.4g}",
            f"{each['low']:+.4g} to {each['high']:+.4g}",
            _bar(each, reach),
        )
        for each in points
    ]


def _bar(point: Mapping[str, Any], reach: float) -> str:
    middle = BAR // 2

    def cell(value: float) -> int:
        return round(min(max(value / reach, -1.0), 1.0) * middle) + middle

    bar = ["-" if cell(point["low"]) <= i <= cell(point["high"]) else " " for i in range(BAR)]
    bar[middle] = "|"
    bar[cell(point["estimate"])] = "o"
    return "".join(bar)


def _date(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).strftime("%Y-%m-%d")


def _time(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).strftime("%Y-%m-%d %H:%MZ")


def _print_json(value: object) -> None:
    from umbel_server.cli import print_json

    print_json(value)


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from umbel_server.cli import print_table

    print_table(header, rows)

"""``umbel rollout``: bring a new version to devices step by step, watch it, and take it back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel_proto.errors import UsageError
from umbel_server.fleet.layout import FleetDir
from umbel_server.remote.place import DirectoryOption, FleetOption, ServerOption
from umbel_server.remote.subjects import rollouts_at
from umbel_server.rollouts.shown import told
from umbel_server.terminal import JsonOption, print_json, print_table

if TYPE_CHECKING:
    from umbel_server.rollouts.plan import RolloutPlan, Step
    from umbel_server.rollouts.state import Event

# Typer would print local variables with a traceback.
app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Bring a new version to devices step by step, and take it back.",
)

ReasonOption = Annotated[str, typer.Option(help="Why; it is kept for good.", show_default=False)]
NameArgument = Annotated[str, typer.Argument(help="The rollout, as umbel rollout list shows it.")]
ModelArgument = Annotated[str, typer.Argument(help="The model.")]
DeviceArgument = Annotated[str, typer.Argument(help="The device, as umbel fleet devices shows it.")]
VersionArgument = Annotated[int, typer.Argument(help="The version, released before.", min=1)]
PlanOption = Annotated[
    Path | None, typer.Option("--plan", help="A TOML file with steps and gates.", show_default=False)
]
PercentOption = Annotated[
    list[float] | None,
    typer.Option("--percent", help="A step's share of the devices; once for each step.", show_default=False),
]
HoursOption = Annotated[
    float | None, typer.Option(help="How long each step lasts at least.", show_default=False)
]
LongestOption = Annotated[
    float | None,
    typer.Option(help="After how long a step goes on with gates unsure.", show_default=False),
]
RateOption = Annotated[
    int | None, typer.Option(help="Devices that may be offered it in a minute.", show_default=False)
]
LeastOption = Annotated[
    int | None, typer.Option(help="Devices of either side that gates need.", show_default=False)
]
NameOption = Annotated[str | None, typer.Option(help="What to call the rollout.", show_default=False)]
FromOption = Annotated[
    int | None,
    typer.Option("--from", help="The version that devices come from.", show_default="what they are offered"),
]


@app.command()
def start(
    model: ModelArgument,
    version: VersionArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    plan_file: PlanOption = None,
    percent: PercentOption = None,
    hours: HoursOption = None,
    longest_hours: LongestOption = None,
    rate: RateOption = None,
    least_devices: LeastOption = None,
    name: NameOption = None,
    since: FromOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Begin to bring a released version to devices: the first step reaches them when they next ask."""
    plan = _plan(plan_file, percent, hours, longest_hours, rate, least_devices)
    with rollouts_at(directory, server) as rollouts:
        made = rollouts.start(model, version, plan, name=name, since=since, reason=reason)
    if as_json:
        print_json(made)
        return
    name, steps = made["rollout"], _steps(_plan_of(made))
    typer.echo(
        f"Rollout {name} brings {made['model']} {made['to_version']} to devices that have {made['from_version']}."
    )
    typer.echo(f"Its steps: {steps}. Watch it:  umbel rollout status {name}")


@app.command("plan")
def show_plan(
    model: ModelArgument,
    version: VersionArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    plan_file: PlanOption = None,
    percent: PercentOption = None,
    hours: HoursOption = None,
    longest_hours: LongestOption = None,
    rate: RateOption = None,
    least_devices: LeastOption = None,
    name: NameOption = None,
    since: FromOption = None,
    list_devices: Annotated[bool, typer.Option("--devices", help="List the devices of each step.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show which devices a rollout would reach in each step, and change nothing."""
    plan = _plan(plan_file, percent, hours, longest_hours, rate, least_devices)
    with rollouts_at(directory, server) as rollouts:
        found = rollouts.plan(model, version, plan, name=name, since=since)
    if as_json:
        print_json(found)
        return
    typer.echo(
        f"Rollout {found['rollout']} would bring {found['model']} {found['to_version']} to devices that have "
        f"{found['from_version']}."
    )
    rows: list[tuple[str, ...]] = []
    total = 0
    counts = {each["name"]: each["count"] for each in found["steps"]}
    for step in plan.steps:
        total += 0 if step.shadow else counts[step.name]
        share = _share(step)
        rows.append((step.name, share, str(counts[step.name]), str(total), _lasts(step)))
    print_table(("step", "share", "devices", "in all", "lasts"), rows)
    if list_devices:
        for each in found["steps"]:
            more = each["count"] - len(each["devices"])
            told_of = " ".join(each["devices"]) + (f" and {more} more" if more else "")
            typer.echo(f"{each['name']}: {told_of or 'none'}")
    if found["pinned"]:
        typer.echo(f"{len(found['pinned'])} pinned devices stay as they are.")
    if found["doubt"]:
        typer.echo(f"It would not start: {found['doubt']}")


@app.command("list")
def show_list(
    directory: FleetOption = None,
    server: ServerOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many, by name.", show_default=False)
    ] = None,
    after: Annotated[str, typer.Option(help="Those after this name.", show_default=False)] = "",
    as_json: JsonOption = False,
) -> None:
    """List the rollouts, the newest first; with --limit or --after, by name."""
    with rollouts_at(directory, server) as rollouts:
        found, held = rollouts.all(limit=limit, after=after)
    if as_json:
        print_json({"rollouts": found, "baselines": held})
        return
    rows: list[tuple[str, ...]] = [
        (
            each["rollout"],
            each["model"],
            f"{each['from_version']} -> {each['to_version']}",
            each["state"],
            _step_name(each),
            each["reason"],
        )
        for each in found
    ]
    print_table(("rollout", "model", "versions", "state", "step", "reason"), rows)
    for model, version in held.items():
        typer.echo(f"{model}: devices that no rollout reaches get version {version}.")
    if len(found) == limit:
        typer.echo(f"There may be more:  --after {found[-1]['rollout']}", err=True)


@app.command()
def status(
    name: NameArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show where a rollout stands, what its gates say, and what happened to it."""
    with rollouts_at(directory, server) as rollouts:
        found = rollouts.status(name)
    if as_json:
        print_json(found)
        return
    counts = found["devices"]
    typer.echo(
        f"Rollout {found['rollout']}: {found['model']} {found['from_version']} -> {found['to_version']}, "
        f"{found['state']}"
    )
    typer.echo(f"  step     {_step_name(found)}, of {_steps(_plan_of(found))}")
    if found["reason"]:
        typer.echo(f"  reason   {found['reason']}")
    typer.echo(
        f"  devices  {counts['offered']} offered, {counts['running']} run it, {counts['failed']} failed, "
        f"{counts['back']} went back, {counts['other']} run another version, {counts['waiting']} not heard of since"
    )
    shadows = found["shadows"]
    if shadows["asked"]:
        typer.echo(
            f"  shadows  {shadows['asked']} asked, {shadows['running']} run it beside what answers, "
            f"{shadows['unavailable']} cannot, {shadows['failed']} failed"
        )
    if len(found["classes"]) > 1:
        columns = ("class", "offered", "run it", "failed", "shadows")
        print_table(columns, [_class_row(each) for each in found["classes"]])
    if found["gates"]:
        gates: list[tuple[str, ...]] = [
            (each["gate"], each["outcome"], each["why"]) for each in found["gates"]
        ]
        print_table(("gate", "verdict", "figures"), gates)
    print_table(("when", "who", "what", "why"), [_event_row(event) for event in found["events"]])


@app.command()
def pause(
    name: NameArgument,
    reason: ReasonOption,
    directory: FleetOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reach no further devices for now; those that have the candidate keep it."""
    from umbel_server.rollouts.state import Pause

    _happen(directory, server, name, Pause(_needed(reason)), "", as_json)


@app.command()
def resume(
    name: NameArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Go on with a paused rollout; its step begins anew."""
    from umbel_server.rollouts.state import Resume

    _happen(directory, server, name, Resume(), reason, as_json)


@app.command()
def stop(
    name: NameArgument,
    reason: ReasonOption,
    directory: FleetOption = None,
    server: ServerOption = None,
    keep: Annotated[
        bool | None,
        typer.Option(
            "--keep/--roll-back",
            help="Devices that have the candidate keep it, or go back when they next ask.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """End a rollout. With --roll-back also one that has ended already."""
    from umbel_server.rollouts.state import RollBack, StopKeeping

    if keep is None:
        raise UsageError("Say what becomes of devices that have the candidate: --keep or --roll-back.")
    why = _needed(reason)
    _happen(directory, server, name, StopKeeping(why) if keep else RollBack(why), "", as_json)


@app.command()
def hold(
    model: ModelArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: ReasonOption = "",
) -> None:
    """Let new versions of a model reach devices by rollouts only."""
    with rollouts_at(directory, server) as rollouts:
        version = rollouts.hold(model, reason)
    typer.echo(f"Devices get {model} {version}; newer versions by  umbel rollout start  only.")


@app.command()
def unhold(
    model: ModelArgument,
    reason: ReasonOption,
    directory: FleetOption = None,
    server: ServerOption = None,
) -> None:
    """Let the newest version of a model reach every device at once again."""
    with rollouts_at(directory, server) as rollouts:
        rollouts.unhold(model, _needed(reason))
    typer.echo(f"Devices get the newest version of {model} as soon as it is released.")


@app.command()
def pin(
    device: DeviceArgument,
    model: ModelArgument,
    version: VersionArgument,
    reason: ReasonOption,
    directory: FleetOption = None,
    server: ServerOption = None,
) -> None:
    """Let a device stay at a version of a model, whatever the others get; it goes back for it if it has a newer one."""
    with rollouts_at(directory, server) as rollouts:
        rollouts.pin(device, model, version, _needed(reason))
    typer.echo(f"{device} stays at {model} {version}.")


@app.command()
def unpin(
    device: DeviceArgument,
    model: ModelArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: ReasonOption = "",
) -> None:
    """Let a device have what the others get again."""
    with rollouts_at(directory, server) as rollouts:
        rollouts.pin(device, model, None, reason)
    typer.echo(f"{device} gets of {model} what the others get.")


@app.command()
def tag(
    device: DeviceArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: ReasonOption = "",
    tags: Annotated[list[str] | None, typer.Argument(help="Its tags from now on; none: no tags.")] = None,
) -> None:
    """Give a device tags, which steps of a rollout can ask for: a place, a class of hardware, a cohort."""
    with rollouts_at(directory, server) as rollouts:
        rollouts.tag(device, tags or [], reason)
    typer.echo(f"{device}: {' '.join(sorted(tags or ())) or 'no tags'}")


def serve_rollouts(
    directory: DirectoryOption,
    poll_s: Annotated[float, typer.Option(help="How often to look at rollouts, seconds.", min=0.01)] = 10.0,
) -> None:
    """Let rollouts go on, or take them back, by what devices report. Prints `ready rollouts`."""
    from umbel_server.signals import StopSignals

    with StopSignals() as signals:
        from umbel_server.rollouts.decider import Decider
        from umbel_server.services.logs import configure_logs
        from umbel_server.services.ready import ready

        opened = FleetDir.open(directory)
        configure_logs(opened.settings.log)
        with opened.open_store() as store:
            ready("rollouts")
            Decider(store).run(signals.came, poll_s=poll_s)


def _happen(
    directory: Path | None, server: str | None, name: str, event: Event, reason: str, as_json: bool
) -> None:
    with rollouts_at(directory, server) as rollouts:
        after = rollouts.happen(name, event, reason)
    if as_json:
        print_json(after)
    else:
        typer.echo(f"Rollout {after['rollout']} {told(after)}.")


def _plan(
    file: Path | None,
    percent: list[float] | None,
    hours: float | None,
    longest_hours: float | None,
    rate: int | None,
    least_devices: int | None,
) -> RolloutPlan:
    """Return the plan of a file, or the usual one, with what was said beside it."""
    from dataclasses import replace

    from umbel_server.rollouts.plan import HOUR_S, RolloutPlan, Step

    plan = RolloutPlan() if file is None else RolloutPlan.from_toml(_read(file))
    steps = plan.steps
    if percent:
        steps = tuple(Step(f"{share:g}-percent", share) for share in percent)
    if hours is not None:
        steps = tuple(replace(step, least_s=hours * HOUR_S) for step in steps)
    if longest_hours is not None:
        steps = tuple(replace(step, longest_s=longest_hours * HOUR_S) for step in steps)
    return replace(
        plan,
        steps=steps,
        rate=plan.rate if rate is None else rate,
        least_devices=plan.least_devices if least_devices is None else least_devices,
    )


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"The plan {file} cannot be read: {exc}.") from exc


def _needed(reason: str) -> str:
    if not reason.strip():
        raise UsageError("Say why with --reason: it is kept with what happened.")
    return reason.strip()


def _plan_of(shown: dict[str, Any]) -> RolloutPlan:
    from umbel_server.rollouts.plan import RolloutPlan

    return RolloutPlan.from_dict(shown["plan"])


def _class_row(each: dict[str, Any]) -> tuple[str, ...]:
    counts = each["devices"]
    told_of = (counts["offered"], counts["running"], counts["failed"], each["shadows"]["running"])
    return each["class"], *map(str, told_of)


def _step_name(shown: dict[str, Any]) -> str:
    return "-" if shown["step"] is None else str(shown["plan"]["step"][shown["step"]]["name"])


def _steps(plan: RolloutPlan) -> str:
    return ", ".join(f"{step.name} ({_share(step)})" for step in plan.steps)


def _share(step: Step) -> str:
    of = sorted(step.tags) + sorted(step.classes)
    beside = "beside what answers on " if step.shadow else ""
    return f"{beside}{step.percent:g} %" + (f" of {' '.join(of)}" if of else "")


def _lasts(step: Step) -> str:
    hours = f"{step.least_s / 3600:g} h"
    return f"{hours} at least" if step.longest_s is None else f"{hours} to {step.longest_s / 3600:g} h"


def _event_row(event: dict[str, Any]) -> tuple[str, ...]:
    import datetime

    when = datetime.datetime.fromtimestamp(event["at_s"], datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return when, event["actor"], event["event"], event["reason"]

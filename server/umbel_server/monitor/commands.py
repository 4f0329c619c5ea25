"""``umbel monitor``: how the models of a fleet are doing."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from umbel_server.monitor.drift import FLOOR, LEVEL
from umbel_server.monitor.drift_report import DAYS, MAX_DAYS
from umbel_server.monitor.waive_commands import unwaive, waive, waivers
from umbel_server.remote.place import FleetOption, ServerOption
from umbel_server.remote.subjects import monitor_at
from umbel_server.terminal import JsonOption, print_json, print_table

if TYPE_CHECKING:
    from umbel_server.monitor.calibration import Calibration
    from umbel_server.monitor.drift_report import DriftLine
    from umbel_server.monitor.fairness import CohortLine
    from umbel_server.monitor.performance import Estimated, Lineage
    from umbel_server.monitor.rates import Gap, Rate

# Typer would print local variables with a traceback.
app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="See how the models of a fleet are doing.",
)

ModelArgument = Annotated[str, typer.Argument(help="The model.")]
VersionOption = Annotated[
    int | None,
    typer.Option(help="The version.", min=1, show_default="the one that most was reported of"),
]
DaysOption = Annotated[int, typer.Option(help="How many days to look at.", min=1, max=MAX_DAYS)]


@app.callback()
def monitor() -> None:
    """See how the models of a fleet are doing."""


app.command()(waive)
app.command()(unwaive)
app.command()(waivers)


@app.command("drift")
def show_drift(
    model: ModelArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    version: VersionOption = None,
    days: DaysOption = DAYS,
    level: Annotated[float, typer.Option(help="Chance of any false alarm, if nothing has changed.")] = LEVEL,
    floor: Annotated[float, typer.Option(help="Share of values that must have moved.")] = FLOOR,
    as_json: JsonOption = False,
) -> None:
    """Say whether inputs and answers are distributed as they were, and how sure that is."""
    with monitor_at(directory, server) as monitor:
        found = monitor.drift(model, version, days=days, level=level, floor=floor)
    if as_json:
        print_json(found.to_json())
        return
    print_table(
        ("against", "feature", "worth", "PSI", "JS", "W1", "moved", "adjusted p", "verdict"),
        [_drift_row(line) for line in found.lines],
    )
    for note in found.notes:
        typer.echo(note)
    names = ", ".join(sorted({line.finding.feature for line in found.drifted}))
    typer.echo(
        f"{found.model} {found.version}, {days} days: "
        + (f"{names} drifted." if names else "no drift found.")
        + f" If nothing has changed, a false alarm against either has chance {level:g}."
    )


def _drift_row(line: DriftLine) -> tuple[str, ...]:
    finding = line.finding
    of = "baseline" if line.against == "baseline" else "days before"
    head = (of, finding.feature, f"{line.values:,.0f}")
    told = finding.comparison
    if told is None:
        return (*head, "-", "-", "-", "-", "-", finding.why)
    transport = told.wasserstein
    return (
        *head,
        f"{told.stability_index.value:.4f}",
        f"{told.jensen_shannon.value:.3f}",
        "-" if transport is None else f"{transport.value:.3g}",
        f"{told.moved:.1%}",
        "-" if finding.adjusted is None else f"{finding.adjusted:.2g}",
        f"DRIFTED: {finding.why}" if finding.drifted else finding.why,
    )


@app.command("performance")
def show_performance(
    model: ModelArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    version: VersionOption = None,
    days: DaysOption = DAYS,
    as_json: JsonOption = False,
) -> None:
    """Say how often a model is right: by labels that came later, and by how sure it is."""
    from umbel_server.monitor.performance import Performance

    with monitor_at(directory, server) as monitor:
        look = monitor.performance(model, version, days=days)
    if as_json:
        print_json(look.to_json())
        return
    now, before = look.now, look.before
    assert isinstance(now, Performance)
    assert isinstance(before, Performance)
    rows: list[tuple[str, ...]] = [
        ("realized: labels that agree", _rate(now.realized), _rate(before.realized)),
        ("reviews that let it stand", _rate(now.people), _rate(before.people)),
        ("estimated from confidences", _rate(now.estimated), _rate(before.estimated)),
        ("promised when it was made", "-" if now.promised is None else f"{now.promised:.1%}", ""),
        ("estimated less promised", _gap(now.change), _gap(before.change)),
        ("realized less estimated", _gap(now.calibration), _gap(before.calibration)),
        ("calibration error", _error(now.curve), _error(before.curve)),
        ("second labels that agree", _rate(now.labels.agreement), _rate(before.labels.agreement)),
        ("labels by source", _sources(now.labels), _sources(before.labels)),
    ]
    print_table((f"{look.model} {look.version}", f"last {days} days", "days before"), rows)
    if now.curve is not None:
        print_table(
            ("confidence", "labels", "right", "95 % interval"),
            [
                (
                    f"{each.low:.1%}..{each.high:.1%}",
                    f"{each.labels:,.0f}",
                    f"{each.right:.1%}",
                    f"{each.right_low:.1%}..{each.right_high:.1%}",
                )
                for each in now.curve.cells
            ],
        )
    for sentence in now.blind:
        typer.echo(sentence)


@app.command("fairness")
def show_fairness(
    model: ModelArgument,
    label: Annotated[str, typer.Option(help="The label that rates are of, by name or number.")],
    directory: FleetOption = None,
    server: ServerOption = None,
    version: VersionOption = None,
    days: DaysOption = DAYS,
    least_devices: Annotated[int, typer.Option(help="Of how many devices anything shown is.", min=2)] = 10,
    matters: Annotated[float, typer.Option(help="How large a gap must be for a finding.")] = 0.03,
    as_json: JsonOption = False,
) -> None:
    """Say whether a model treats the devices of a cohort otherwise than the others."""
    from umbel_server.monitor.fairness import Fairness

    with monitor_at(directory, server) as monitor:
        look = monitor.fairness(model, version, label=label, days=days, least=least_devices, matters=matters)
    if as_json:
        print_json(look.to_json())
        return
    now, before = look.now, look.before
    assert isinstance(now, Fairness)
    assert isinstance(before, Fairness)
    earlier = {(line.cohort, line.metric): line for line in before.lines}
    rows: list[tuple[str, ...]] = []
    for line in now.lines:
        was = earlier.get((line.cohort, line.metric))
        rows.append(
            (
                line.cohort,
                line.metric,
                "-" if line.own is None else f"{line.own:.1%}",
                "-" if line.others is None else f"{line.others:.1%}",
                _gap(line.gap),
                "-" if was is None or was.gap is None else f"{100 * was.gap.value:+.1f}",
                _verdict(line),
            )
        )
    print_table(("cohort", "figure", "here", "others", "gap, points", "days before", ""), rows)
    if now.hidden:
        typer.echo(
            f"{now.hidden} cohorts are hidden: fewer than {now.least} devices, or such a few would follow from them."
        )
    for sentence in now.blind:
        typer.echo(sentence)


@app.command("operations")
def show_operations(
    model: ModelArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    version: VersionOption = None,
    days: DaysOption = DAYS,
    as_json: JsonOption = False,
) -> None:
    """Say how devices run a model: how fast, how often it fails, what it costs, and what ends soon."""
    from umbel_server.monitor.operations import Operations

    with monitor_at(directory, server) as monitor:
        look = monitor.operations(model, version, days=days)
    if as_json:
        print_json(look.to_json())
        return
    now = look.now
    assert isinstance(now, Operations)
    cost = now.energy
    rows: list[tuple[str, ...]] = [
        ("devices that reported", f"{now.devices:,}"),
        ("predictions", f"{now.predictions:,}"),
        ("errors", _rate(now.errors)),
        *((f"latency {name}, us", f"{value:,.0f}") for name, value in now.latency_us.items()),
        *((f"memory {name}, MiB", f"{value:,.0f}") for name, value in now.memory_mib.items()),
        ("devices that gave it up", ", ".join(now.gave_up[:10]) or "none"),
        (
            "energy, J per 1,000 predictions",
            "not told" if cost is None else f"{cost.joules:.3g} ({cost.devices} devices; {cost.method})",
        ),
        (
            "energy, J per training in a round",
            "not told"
            if now.training is None
            else f"{now.training.joules:.3g} ({now.training.devices} devices; {now.training.method})",
        ),
        ("delivered, bytes", f"{now.delivered_bytes:,}; deltas saved {now.saved_bytes:,}"),
        ("batches", f"{now.waiting:,} wait, {now.rejected:,} rejected"),
        ("device certificates", f"{now.expiring:,} end within 7 days, {now.expired:,} have ended"),
        *(
            (
                f"{each.what} ends",
                f"{datetime.datetime.fromtimestamp(each.ends_s, datetime.UTC):%Y-%m-%d %H:%MZ}",
            )
            for each in now.endings
        ),
    ]
    if now.odd:
        rows.append(("left out, not to be believed", ", ".join(now.odd[:10])))
    print_table((f"{look.model} {look.version}", f"last {days} days"), rows)


def _verdict(line: CohortLine) -> str:
    if line.waived is not None:
        end = datetime.datetime.fromtimestamp(line.waived.expires_s, datetime.UTC)
        told = f"waived by {line.waived.by} until {end:%Y-%m-%d}"
        return f"FINDING, {told}" if line.finding else told
    return "FINDING" if line.finding else ""


def _rate(of: Rate | Estimated | None) -> str:
    if of is None:
        return "-"
    return f"{of.value:.1%} ({of.low:.1%}..{of.high:.1%}) of {of.counted:,} on {of.devices:,} devices"


def _error(of: Calibration | None) -> str:
    if of is None:
        return "-"
    told = f"{100 * of.error:.1f} points ({100 * of.low:.1f}..{100 * of.high:.1f}) of {of.labels:,} labels"
    return f"{told}; of a calibrated model {100 * of.chance:.1f}"


def _sources(of: Lineage) -> str:
    told = {**of.sources, "reviews": of.reviews, "overrides": of.overrides}
    return ", ".join(f"{count:,} {name}" for name, count in told.items() if count) or "none"


def _gap(of: Gap | None) -> str:
    if of is None:
        return "-"
    return f"{100 * of.value:+.1f} ({100 * of.low:+.1f}..{100 * of.high:+.1f})"

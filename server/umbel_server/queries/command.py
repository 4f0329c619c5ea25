"""``umbel query``: ask a fleet about its devices' local examples, and read what it answered."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel_proto.errors import RefusedError, UsageError
from umbel_server.queries.tables import print_answer, print_cost
from umbel_server.remote.place import FleetOption, ServerOption
from umbel_server.remote.subjects import queries_at
from umbel_server.terminal import JsonOption, print_json, print_table

if TYPE_CHECKING:
    from umbel_server.queries.at_hand import QueriesAtHand
    from umbel_server.remote.queries import QueriesFar

# Typer would print local variables with a traceback.
app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Ask a fleet about its devices' examples: one noised sum, charged to their privacy budgets.",
)

POLL_S = 0.5
PHASES = ("train", "share", "mask", "confirm", "unmask")

ModelArgument = Annotated[
    str, typer.Argument(help="The model whose local data sets are asked about.", show_default=False)
]
WhyOption = Annotated[str, typer.Option(help="What for; the devices' users read it.", show_default=False)]
FieldOption = Annotated[
    str,
    typer.Option(
        "--field", help="label, prediction, confidence, or a column of the data contract.", show_default=False
    ),
]
EdgesOption = Annotated[
    str,
    typer.Option(
        help="Inner edges of the cells, by commas; by default the range, cut evenly.", show_default=False
    ),
]
EpsilonOption = Annotated[
    str,
    typer.Option(help="What an answer may cost a device; 'none': no noise, where the policy allows that."),
]
PerDeviceOption = Annotated[int, typer.Option(help="As how many examples a device counts at most.", min=1)]
DevicesOption = Annotated[int, typer.Option(help="How many devices are asked at most; 0: all.", min=0)]
CohortSizeOption = Annotated[
    int, typer.Option("--min-cohort", help="Fewest devices in the sum; 0: as the policy says.", min=0)
]
VersionOption = Annotated[
    int | None, typer.Option("--version", help="The released version.", min=1, show_default="the newest")
]
WaitOption = Annotated[float, typer.Option("--wait", help="How long to wait for devices, seconds.")]
NameOption = Annotated[
    str, typer.Option(help="Its name; by default the kind and a number.", show_default=False)
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what it costs and how exact it will be, and ask nobody.")
]
DetachOption = Annotated[bool, typer.Option("--detach", help="Do not wait for the answer.")]


@app.callback()
def query() -> None:
    """Ask a fleet about its devices' examples: one noised sum, charged to their privacy budgets."""


@app.command()
def histogram(
    model: ModelArgument,
    field: FieldOption,
    why: WhyOption,
    directory: FleetOption = None,
    server: ServerOption = None,
    edges: EdgesOption = "",
    epsilon: EpsilonOption = "1",
    per_device: PerDeviceOption = 1,
    devices: DevicesOption = 0,
    min_cohort: CohortSizeOption = 0,
    version: VersionOption = None,
    wait_s: WaitOption = 60.0,
    name: NameOption = "",
    dry_run: DryRunOption = False,
    detach: DetachOption = False,
    as_json: JsonOption = False,
) -> None:
    """Count examples by a field: labels, or numbers between edges."""
    own = {"field": field, "edges": _numbers(edges, "--edges")}
    common = _common(why, epsilon, per_device, devices, min_cohort, version, wait_s, name)
    _ask("histogram", model, {**common, **own}, directory, server, dry_run, detach, as_json)


@app.command()
def mean(
    model: ModelArgument,
    field: FieldOption,
    why: WhyOption,
    directory: FleetOption = None,
    server: ServerOption = None,
    low: Annotated[
        float | None, typer.Option(help="Smaller values count as this.", show_default="as the contract says")
    ] = None,
    high: Annotated[
        float | None, typer.Option(help="Larger values count as this.", show_default="as the contract says")
    ] = None,
    epsilon: EpsilonOption = "1",
    per_device: PerDeviceOption = 1,
    devices: DevicesOption = 0,
    min_cohort: CohortSizeOption = 0,
    version: VersionOption = None,
    wait_s: WaitOption = 60.0,
    name: NameOption = "",
    dry_run: DryRunOption = False,
    detach: DetachOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take the mean of a number, clamped to a range that is known beforehand."""
    own = {"field": field, "low": low, "high": high}
    common = _common(why, epsilon, per_device, devices, min_cohort, version, wait_s, name)
    _ask("mean", model, {**common, **own}, directory, server, dry_run, detach, as_json)


@app.command()
def quantile(
    model: ModelArgument,
    field: FieldOption,
    why: WhyOption,
    directory: FleetOption = None,
    server: ServerOption = None,
    quantiles: Annotated[str, typer.Option("--at", help="Which, by commas.")] = "0.5",
    edges: EdgesOption = "",
    epsilon: EpsilonOption = "1",
    per_device: PerDeviceOption = 1,
    devices: DevicesOption = 0,
    min_cohort: CohortSizeOption = 0,
    version: VersionOption = None,
    wait_s: WaitOption = 60.0,
    name: NameOption = "",
    dry_run: DryRunOption = False,
    detach: DetachOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find quantiles of a number, from its noised histogram."""
    own = {
        "field": field,
        "edges": _numbers(edges, "--edges"),
        "quantiles": sorted(_numbers(quantiles, "--at")),
    }
    common = _common(why, epsilon, per_device, devices, min_cohort, version, wait_s, name)
    _ask("quantile", model, {**common, **own}, directory, server, dry_run, detach, as_json)


@app.command()
def fairness(
    model: ModelArgument,
    cohort: Annotated[
        str, typer.Option(help="The column that says whom rates are compared of.", show_default=False)
    ],
    positive: Annotated[
        str, typer.Option(help="The label that rates are of, by name or number.", show_default=False)
    ],
    why: WhyOption,
    directory: FleetOption = None,
    server: ServerOption = None,
    cohort_edges: Annotated[
        str,
        typer.Option(
            help="Where one cohort ends and the next begins, by commas; by default between the column's values.",
            show_default=False,
        ),
    ] = "",
    epsilon: EpsilonOption = "1",
    per_device: PerDeviceOption = 1,
    devices: DevicesOption = 0,
    min_cohort: CohortSizeOption = 0,
    version: VersionOption = None,
    wait_s: WaitOption = 60.0,
    name: NameOption = "",
    dry_run: DryRunOption = False,
    detach: DetachOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare how often a label is given, rightly and wrongly, by cohorts whose members no server learns."""
    own = {
        "cohort": cohort,
        "cohort_edges": _numbers(cohort_edges, "--cohort-edges"),
        "positive": positive,
    }
    common = _common(why, epsilon, per_device, devices, min_cohort, version, wait_s, name)
    _ask("fairness", model, {**common, **own}, directory, server, dry_run, detach, as_json)


@app.command("list")
def list_(directory: FleetOption = None, server: ServerOption = None, as_json: JsonOption = False) -> None:
    """List the queries, the oldest first: who asked what, and what it cost."""
    with queries_at(directory, server) as queries:
        lines = queries.all()
    if as_json:
        print_json(lines)
        return
    rows: list[tuple[str, ...]] = [
        (
            line["query"],
            f"{line['model']}@{line['version']}",
            line["field"] if line["kind"] != "fairness" else line["question"]["cohort"],
            line["asked_by"],
            line["state"],
            str(line["result"]["devices"]) if line["result"] else "-",
            "-" if not line["result"] else _epsilon(line["result"]["epsilon"]),
            line["why"] if not line["reason"] else line["reason"],
        )
        for line in lines
    ]
    print_table(("query", "model", "about", "asked by", "state", "devices", "epsilon", "why"), rows)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="The query, as umbel query list shows it.", show_default=False)],
    directory: FleetOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a query and what it answered, with intervals of 95 %."""
    with queries_at(directory, server) as queries:
        found = queries.show(name)
    if as_json:
        print_json(found)
    else:
        print_answer(found)


def _common(
    why: str,
    epsilon: str,
    per_device: int,
    devices: int,
    min_cohort: int,
    version: int | None,
    wait_s: float,
    name: str,
) -> dict[str, Any]:
    return {
        "why": why,
        "epsilon": None if epsilon == "none" else _one(epsilon, "--epsilon"),
        "per_device": per_device,
        "devices": devices,
        "min_cohort": min_cohort,
        "version": version,
        "wait_s": wait_s,
        **({"name": name} if name else {}),
    }


def _ask(
    kind: str,
    model: str,
    fields: dict[str, Any],
    directory: Path | None,
    server: str | None,
    dry_run: bool,
    detach: bool,
    as_json: bool,
) -> None:
    """Ask, say what it costs, wait, and print the answer."""
    with queries_at(directory, server) as queries:
        made = queries.ask({"kind": kind, "model": model, **fields}, dry_run=dry_run)
        if not as_json:
            print_cost(made)
        if dry_run or detach:
            if as_json:
                print_json(made)
            else:
                typer.echo("Nobody was asked." if dry_run else f"Next:  umbel query show {made['query']}")
            return
        found = _wait(queries, made["query"], quiet=as_json)
    if found["state"] != "finished":
        raise RefusedError(f"Query {found['query']} was not answered: {found['reason']}")
    if as_json:
        print_json(found)
    else:
        print_answer(found)


def _wait(queries: QueriesAtHand | QueriesFar, name: str, *, quiet: bool) -> dict[str, Any]:
    """Follow a query until it ends; Ctrl-C leaves it running."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, quiet=quiet)) as progress:
        task = progress.add_task(f"{name}  waits for devices", total=len(PHASES))
        while True:
            found = queries.show(name)
            phase = found["phase"]
            if phase in PHASES:
                progress.update(task, completed=PHASES.index(phase), description=f"{name}  {phase}")
            if found["state"] != "running":
                progress.update(task, completed=len(PHASES), description=f"{name}  {found['state']}")
                return found
            time.sleep(POLL_S)


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(each) for each in text.split(",") if each.strip()] if text.strip() else []
    except ValueError as exc:
        raise UsageError(f"{option} is {text[:40]!r}: give numbers by commas, such as 0.5,1,2.") from exc


def _one(text: str, option: str) -> float:
    found = _numbers(text, option)
    if len(found) != 1:
        raise UsageError(f"{option} is {text[:40]!r}: give one number, such as 1.")
    return found[0]


def _epsilon(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.3g}"

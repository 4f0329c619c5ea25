"""The ML engineer's commands: ``umbel rounds``, which starts runs and reads what happened.

What a command needs is imported when it runs.
"""

from __future__ import annotations

import json
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel_proto.errors import MissingExtraError, RefusedError, StorageError, UmbelError, UsageError
from umbel_proto.ids import RunId, check_name
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning.lock import require_free
from umbel_server.learning.plan import RunPlan

if TYPE_CHECKING:
    from umbel_server.flower import Control
    from umbel_server.store.runs import RoundRecord, RunRecord
    from umbel_server.store.store import Store

POLL_S = 0.5

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Start federated runs, follow them, and read what happened.",
)

FleetOption = Annotated[
    Path, typer.Option("--fleet", envvar="UMBEL_FLEET", help="The fleet's directory.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command()
def start(
    plan: Annotated[Path, typer.Argument(help="The run's plan, a TOML file.", show_default=False)],
    directory: FleetOption,
    name: Annotated[str, typer.Option(help="The run's name; by default the model's and a number.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the plan and start nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a plan against the fleet's policy and budget, and start its run."""
    fleet = FleetDir.open(directory)
    with fleet.open_store() as store:
        run_plan = read_plan(plan, store)
        planned = _check(fleet, store, run_plan)
        run = RunId(check_name(name, "run")) if name else _free_name(store, run_plan.model)
        if not dry_run:
            with _control(fleet) as control:
                _register(store, control)
                store.runs.create(run, run_plan.model, run_plan.to_json())
                try:
                    control.start(fleet, run)
                except UmbelError as exc:
                    store.runs.finish(run, "failed", f"it was not started: {exc}")
                    raise
    if as_json:
        _print_json({"run": run, "started": not dry_run, **planned})
        return
    typer.echo(
        f"Each device will have spent epsilon {_number(planned['epsilon_server'])} at delta {planned['delta']:g} on "
        f"it at the end, against the server; {_number(planned['epsilon_release'])} against those who see only its "
        "models, if devices are drawn honestly and in secret."
    )
    if dry_run:
        typer.echo("The plan is good. Nothing was started.")
    else:
        typer.echo(f"Run {run} is started.\nNext:  umbel rounds watch {run} --fleet {fleet.path}")


@app.command()
def resume(run: str, directory: FleetOption, as_json: JsonOption = False) -> None:
    """Start a run's server process again, after it was killed; it goes on after the last round on record."""
    fleet = FleetDir.open(directory)
    with fleet.open_store() as store:
        record = _record(store, run)
        if record.state != "running":
            raise RefusedError(f"Run {run} is {record.state}: only one that still runs can be resumed.")
        require_free(fleet.runs / record.id)
        with _control(fleet) as control:
            _register(store, control)
            control.start(fleet, record.id)
    if as_json:
        _print_json({"run": run, "state": "running"})
    else:
        typer.echo(f"Run {run} goes on.")


@app.command()
def stop(
    run: str,
    directory: FleetOption,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "stopped by an operator",
    as_json: JsonOption = False,
) -> None:
    """End a run after the round it is in."""
    with FleetDir.open(directory).open_store() as store:
        record = _record(store, run)
        if record.state != "running":
            raise RefusedError(f"Run {run} is {record.state}: only one that still runs can be stopped.")
        store.runs.finish(RunId(run), "stopped", reason)
    if as_json:
        _print_json({"run": run, "state": "stopped"})
    else:
        typer.echo(f"Run {run} stops after its round.")


@app.command("list")
def list_(directory: FleetOption, as_json: JsonOption = False) -> None:
    """List the runs, oldest first."""
    with FleetDir.open(directory).open_store() as store:
        lines = [_summary(record, store.runs.rounds(record.id)) for record in store.runs.all()]
    if as_json:
        _print_json(lines)
        return
    _print_table(
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


@app.command()
def show(
    run: str,
    directory: FleetOption,
    plot: Annotated[Path | None, typer.Option(help="Draw it as a PNG too.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a run round by round: who was in it, what it learned, what it cost."""
    with FleetDir.open(directory).open_store() as store:
        record = _record(store, run)
        rounds = store.runs.rounds(record.id)
    summary = _summary(record, rounds)
    if plot is not None:
        try:
            from umbel_server.learning.plot import draw
        except ModuleNotFoundError as exc:
            raise MissingExtraError("demo", "Drawing a plot") from exc
        draw(record, rounds, plot)
    if as_json:
        _print_json({**summary, "plan": json.loads(record.plan), "attempts": [_attempt(r) for r in rounds]})
        return
    reason = f": {record.reason}" if record.reason else ""
    typer.echo(f"Run {run} of {summary['model']}@{summary['version']} is {record.state}{reason}.")
    names = [n for n in ("accuracy", "loss", "training_loss") if any(n in _metrics(r) for r in rounds)]
    _print_table(
        ("round", "state", "in sum", "lost", "held\nout", *(f"devices'\n{n}" for n in names), "clip", "epsilon", "to out-\nsiders", "s"),
        [
            (
                f"{r.round}" + (f" (try {r.attempt})" if r.attempt > 1 else ""),
                r.state,
                str(sum(p.outcome == "summed" for p in r.participations)),
                str(sum(p.outcome != "summed" for p in r.participations)),
                _cell(r.figures.get("accuracy"), ".3f"),
                *(_metric(_metrics(r).get(n)) for n in names),
                _cell(r.figures.get("clip"), ".3g"),
                *(_number(r.figures[n]) if n in r.figures else "-" for n in ("epsilon_server", "epsilon_release")),
                f"{r.finished_s - r.started_s:.1f}" if r.finished_s else "-",
            )
            for r in rounds
        ],
    )  # fmt: skip
    for r in rounds:
        if r.reason:
            typer.echo(f"Round {r.round}, try {r.attempt}: {r.reason}.")
    refused = Counter(f"{p.device}: {p.reason}" for r in rounds for p in r.participations if p.reason)
    for line, times in sorted(refused.items()):
        typer.echo(f"{line}" + (f" ({times} times)" if times > 1 else ""))


@app.command()
def watch(run: str, directory: FleetOption) -> None:
    """Follow a run with a progress bar until it ends; Ctrl-C leaves it running."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with FleetDir.open(directory).open_store() as store:
        record = _record(store, run)
        plan = RunPlan.from_json(record.plan)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns) as progress:
            task = progress.add_task(f"{run}", total=plan.rounds)
            while True:
                record, rounds = _record(store, run), store.runs.rounds(RunId(run))
                summary = _summary(record, rounds)
                said = f"{run}  held-out {_cell(summary['accuracy'], '.3f')}  epsilon {_number(summary['epsilon_server'])}"
                progress.update(task, completed=summary["rounds_done"], description=said)
                if record.state != "running":
                    break
                time.sleep(POLL_S)
    if record.state == "failed":
        raise RefusedError(f"Run {run} failed: {record.reason}")
    typer.echo(f"Run {run} is {record.state}.")


def read_plan(path: Path, store: Store) -> RunPlan:
    """Read a run's plan from TOML. Without a version it starts from the model's newest release.

    Raises:
        UsageError: The file cannot be read, or holds no plan, or its model is not released.
    """
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise UsageError(f"The plan {path} cannot be read: {exc.strerror}.") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"The plan {path} is not TOML: {exc}.") from exc
    model = raw.get("model")
    of_model = [release for release in store.releases.all() if release.model == model]
    wanted = raw.get("version", of_model[-1].version if of_model else None)
    found = next((release for release in of_model if release.version == wanted), None)
    if found is None:
        which = f"{model!r}" if wanted is None else f"version {wanted} of {model!r}"
        raise UsageError(
            f"The plan names {which}, and the fleet has released no such package: publish it first."
        )
    raw |= {"version": found.version, "package_sha256": found.sha256.hex()}
    if raw.get("heldout"):
        raw["heldout"] = str((path.parent / str(raw["heldout"])).resolve())
    return RunPlan.from_mapping(raw)


def _check(fleet: FleetDir, store: Store, plan: RunPlan) -> dict[str, Any]:
    """Return what a plan costs, if the fleet's policy and budget cover it."""
    from umbel_proto.package import read_package
    from umbel_server.learning.budget import plan_privacy
    from umbel_server.learning.evaluate import HeldOut
    from umbel_server.learning.fleet_ledger import FleetLedger
    from umbel_server.learning.measure import quantities

    path = fleet.package(bytes.fromhex(plan.package_sha256))
    try:
        package = read_package(path.read_bytes(), release_key=fleet.release_public())
    except OSError as exc:
        raise StorageError(f"{path} cannot be read ({exc.strerror}): publish the package again.") from exc
    manifest = package.manifest
    if plan.heldout:
        HeldOut(package, Path(plan.heldout))  # Read now, so that the run does not fail for it later.
    asked = quantities(plan, len(manifest.labels))
    ledger = FleetLedger.of(store, fleet.runs)
    planned = plan_privacy(plan, fleet.policy(), manifest.dim, len(asked), ledger)
    return {
        "epsilon_server": _finite(planned.epsilon_server),
        "epsilon_release": _finite(planned.epsilon_release),
        "delta": planned.delta,
        "bytes_per_parameter": planned.encoding.bytes_per_parameter,
        "error": planned.error,
    }


@contextmanager
def _control(fleet: FleetDir) -> Iterator[Control]:
    try:
        from umbel_server.flower import Control
    except ModuleNotFoundError as exc:
        raise MissingExtraError("server", "Starting a run") from exc
    control = Control(fleet)
    try:
        yield control
    finally:
        control.close()


def _register(store: Store, control: Control) -> None:
    for device, node_key in store.devices.unregistered():
        store.devices.set_node_id(device, control.register(device, node_key))


def _record(store: Store, run: str) -> RunRecord:
    record = store.runs.get(RunId(run))
    if record is None:
        known = ", ".join(each.id for each in store.runs.all()) or "none yet"
        raise UsageError(f"There is no run {run!r} in this fleet; its runs: {known}.")
    return record


def _free_name(store: Store, model: str) -> RunId:
    taken = {record.id for record in store.runs.all()}
    return next(name for i in range(1, len(taken) + 2) if (name := RunId(f"{model}-{i}")) not in taken)


def _summary(record: RunRecord, rounds: Sequence[RoundRecord]) -> dict[str, Any]:
    plan = RunPlan.from_json(record.plan)
    opened = [r for r in rounds if r.state == "opened"]
    figures = opened[-1].figures if opened else {}
    # An attempt under way, or that a killed server left, has no figures yet.
    counted = [r.figures for r in rounds if "epsilon_server" in r.figures]
    spent = counted[-1] if counted else {"epsilon_server": 0.0, "epsilon_release": 0.0}
    return {
        "run": record.id,
        "model": record.model,
        "version": plan.version,
        "state": record.state,
        "reason": record.reason,
        "rounds": plan.rounds,
        "rounds_done": len(opened),
        "accuracy": figures.get("accuracy"),
        # A number that is not finite is kept as None: there was no noise.
        "epsilon_server": spent["epsilon_server"],
        "epsilon_release": spent["epsilon_release"],
        "delta": plan.privacy.delta,
        "created_s": record.created_s,
        "finished_s": record.finished_s,
    }


def _attempt(record: RoundRecord) -> dict[str, Any]:
    return {
        "round": record.round,
        "attempt": record.attempt,
        "state": record.state,
        "reason": record.reason,
        "started_s": record.started_s,
        "finished_s": record.finished_s,
        "figures": dict(record.figures),
        "participations": [
            {"device": p.device, "outcome": p.outcome, "reason": p.reason} for p in record.participations
        ],
    }


def _metrics(record: RoundRecord) -> dict[str, dict[str, float]]:
    return dict(record.figures.get("metrics") or {})


def _metric(value: dict[str, float] | None) -> str:
    return "-" if value is None else f"{value['mean']:.3f} +- {value['error']:.3f}"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _finite(value: float) -> float | None:
    return None if value == float("inf") else value


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def _print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from umbel_server.cli import print_table

    print_table(header, list(rows))

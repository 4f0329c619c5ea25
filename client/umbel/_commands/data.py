"""``umbel data``: the examples on this device, how long they stay, who may train on them, and when."""

from __future__ import annotations

import io
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from umbel._commands.options import PATH, Argument, Group, home_option, json_option
from umbel._commands.table import Table
from umbel._commands.terminal import device_home, print_json
from umbel._words import as_number, as_time
from umbel_proto.errors import UsageError

if TYPE_CHECKING:
    from umbel._data.dataset import DataSet, Example
    from umbel._home.directory import DeviceHome

DAY_S = 86400.0
MIB = 1024 * 1024

app = Group("data", help="Keep examples on this device to train on; say how long, and when.")

model_option = click.option(
    "--model", metavar="NAME", show_default="the only one installed", help="The model they are for."
)


@app.command("list")
@home_option
@json_option
def list_(*, home: Path | None, as_json: bool) -> None:
    """Show how many examples there are of every model. It takes no key."""
    from umbel._data.store import Store

    where = _enrolled(home)
    with Store(where.examples, where.examples_key) as store:
        held = [{**asdict(each), "retention": asdict(store.retention(each.model))} for each in store.held()]
    if as_json:
        print_json(held)
        return
    table = Table("examples on this device", "model", "examples", "KiB", "expired", "crowded out")
    for each in held:
        table.add_row(
            each["model"],
            str(each["rows"]),
            f"{each['bytes'] / 1024:.1f}",
            str(each["expired"]),
            str(each["crowded"]),
        )
    table.print()


@app.command()
@model_option
@click.option("--rows", is_flag=True, help="Show every example's id, labels and where they are from.")
@home_option
@json_option
def show(*, model: str | None, rows: bool, home: Path | None, as_json: bool) -> None:
    """Show what a model's examples are: balance, sources, agreement, copies, leaks."""
    with _open(_enrolled(home), model) as data:
        report, examples = data.report(), data.examples() if rows else ()
    if as_json:
        print_json(
            {**asdict(report), **({"examples": [_lineage(each) for each in examples]} if rows else {})}
        )
        return
    table = Table(f"examples of model {report.model}", "", "")
    for name, value in asdict(report).items():
        if name != "model":
            table.add_row(name.removesuffix("_s").replace("_", " "), _told(name, value))
    table.print()
    if rows:
        table = Table("", "id", "came", "from", "labels", "trained as", "agreement")
        for each in examples:
            said = ", ".join(f"{label.y} by {label.annotator or label.source}" for label in each.labels)
            agreement = "" if each.agreement is None else f"{each.agreement:.0%}"
            y = "" if each.y is None else str(each.y)
            table.add_row(each.id, as_time(each.at_s), each.source, said, y, agreement)
        table.print()


@app.command("import")
@click.argument("file", cls=Argument, type=PATH, help="An .npz file: x, and y where labels are known.")
@model_option
@click.option("--source", default="import", help="Where the examples are from.")
@click.option("--annotator", default="", show_default=False, help="Who gave the labels.")
@home_option
@json_option
def import_(
    *, file: Path, model: str | None, source: str, annotator: str, home: Path | None, as_json: bool
) -> None:
    """Add the examples of a file, all or none."""
    from umbel._data.examples import read_examples

    examples = read_examples(file)
    with _open(_enrolled(home), model) as data:
        added = data.add(examples.x, examples.y, source=source, annotator=annotator)
        name, held = data.model, data.report().rows
    if as_json:
        print_json({"model": name, "added": len(added), "rows": held})
    else:
        click.echo(
            f"Added {len(added)} examples of model {name}; there are {held} now. {file} is still there."
        )


@app.command()
@click.argument("file", cls=Argument, type=PATH, help="The .npz file to write.")
@model_option
@home_option
@json_option
def export(*, file: Path, model: str | None, home: Path | None, as_json: bool) -> None:
    """Write the labeled examples to a file, not encrypted, that only its owner may read."""
    import numpy as np

    from umbel._home.files import write_atomically

    with _open(_enrolled(home), model) as data:
        name, examples = data.model, data.training()
    assert examples.y is not None
    content = io.BytesIO()
    np.savez(content, x=examples.x, y=examples.y)
    write_atomically(file, content.getvalue())
    if as_json:
        print_json({"model": name, "examples": len(examples), "file": str(file)})
    else:
        click.echo(f"Wrote {len(examples)} examples of model {name} to {file}, where nothing protects them.")


@app.command()
@click.argument(
    "ids",
    cls=Argument,
    nargs=-1,
    metavar="ID",
    help="Examples, by id; without any: all of the model.",
)
@model_option
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Every example of every model, and the key to them, damaged or not.",
)
@home_option
@json_option
def delete(
    *, ids: tuple[str, ...], model: str | None, everything: bool, home: Path | None, as_json: bool
) -> None:
    """Delete examples for good."""
    where = _enrolled(home)
    if everything:
        if ids or model is not None:
            raise UsageError("--all deletes everything: leave out the model and the ids.")
        from umbel._data.store import erase

        count = erase(where.examples, where.examples_key)
    else:
        with _open(where, model) as data:
            count = data.remove(*ids) if ids else data.clear()
    if as_json:
        print_json({"deleted": count})
    else:
        click.echo(f"Deleted {count} examples.")


@app.command()
@model_option
@click.option("--max-days", type=float, help="Delete examples that are older.")
@click.option("--max-rows", type=int, help="Keep at most so many, the newest.")
@click.option("--max-mib", type=float, help="Keep at most so much, MiB encrypted.")
@home_option
@json_option
def keep(
    *,
    model: str | None,
    max_days: float | None,
    max_rows: int | None,
    max_mib: float | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Show or change how long examples are kept; what is over a bound goes now."""
    from umbel._data.rows import Retention

    with _open(_enrolled(home), model) as data:
        now = data.retention
        if max_days is not None or max_rows is not None or max_mib is not None:
            now = Retention(
                now.max_age_s if max_days is None else max_days * DAY_S,
                now.max_rows if max_rows is None else max_rows,
                now.max_bytes if max_mib is None else math.floor(max_mib * MIB),
            )
            data.retain(now)
        name = data.model
    if as_json:
        print_json({"model": name, **asdict(now)})
    else:
        click.echo(
            f"Examples of model {name} are kept for {as_number(now.max_age_s / DAY_S)} days, at most {now.max_rows} of "
            f"them and {as_number(now.max_bytes / MIB)} MiB."
        )


@app.command()
@click.option("--grant", is_flag=True, help="Allow training on this device's examples.")
@click.option("--revoke", is_flag=True, help="Take it back: every example is deleted, and the key destroyed.")
@click.option(
    "--purpose",
    default="training",
    type=click.Choice(["training", "queries", "reviews"]),
    help="What for: training; the fleet's queries; or announcing reviews. Only training's deletes when taken back.",
)
@click.option("--by", default="user", help="Who decides.")
@home_option
@json_option
def consent(*, grant: bool, revoke: bool, purpose: str, by: str, home: Path | None, as_json: bool) -> None:
    """Show or change what the user allows."""
    from umbel._data.consent import REVIEWS, TRAINING, Consent

    if grant and revoke:
        raise UsageError("Give --grant or --revoke, not both.")
    found = Consent(_enrolled(home))
    deleted = found.revoke(purpose, by=by) if revoke else 0
    if grant:
        found.grant(purpose, by=by)
    decision = found.decision(purpose)
    if as_json:
        print_json({purpose: asdict(decision), "deleted": deleted})
        return
    who = f" by {decision.by}, {as_time(decision.at_s)}" if decision.at_s is not None else ""
    gone = f" {deleted} examples were deleted." if revoke and purpose == TRAINING else ""
    if revoke and purpose == REVIEWS:
        gone = " What was announced is withdrawn with the next report."
    click.echo(f"{purpose.capitalize()}: {decision.state}{who}.{gone}")


@app.command()
@click.option("--idle/--no-idle", default=None, help="Train only while the machine has little to do.")
@click.option("--charging/--no-charging", default=None, help="Train only while it charges.")
@click.option("--unmetered/--no-unmetered", default=None, help="Train only where sending is free.")
@click.option("--consent/--no-consent", default=None, help="Train only where the user said yes.")
@click.option("--min-battery", type=float, help="How full the battery must be, 0 to 1.")
@click.option("--unknown", type=click.Choice(["allow", "refuse"]), help="What to do where nobody knows.")
@home_option
@json_option
def conditions(
    *,
    idle: bool | None,
    charging: bool | None,
    unmetered: bool | None,
    consent: bool | None,
    min_battery: float | None,
    unknown: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Show or change when this device trains, and whether it would now."""
    from umbel._rounds.conditions import Conditions

    found = Conditions(_enrolled(home))
    rules = {
        "idle": idle,
        "charging": charging,
        "unmetered": unmetered,
        "consent": consent,
        "min_battery": min_battery,
    }
    if unknown is not None or any(value is not None for value in rules.values()):
        found.require(**rules, unknown=unknown)  # type: ignore[arg-type]
    now = found.now()
    if as_json:
        print_json({"rules": asdict(found.rules), "policy": asdict(found.policy), **asdict(now)})
        return
    table = Table("", "demanded", "by the fleet", "known now")
    known = asdict(now.reading)
    told = {"idle": "load", "charging": "charging", "unmetered": "metered", "min_battery": "battery"}
    fleet = asdict(found.policy)
    for name, value in asdict(found.rules).items():
        reading = known[told[name]] if name in told else None
        now_known = "" if name not in told else "unknown" if reading is None else f"{told[name]}: {reading}"
        table.add_row(f"{name}: {value}", str(fleet[name]), now_known)
    table.print()
    click.echo(str(now))


def _enrolled(path: Path | None) -> DeviceHome:
    """Return an enrolled device's home.

    Raises:
        UsageError: No device is enrolled there.
    """
    home = device_home(path)
    _ = home.identity
    home.make()
    return home


def _open(home: DeviceHome, model: str | None) -> DataSet:
    """Return a model's data set: of the one that is installed where none is named.

    Raises:
        UsageError: None is installed, or several are.
    """
    from umbel._data.dataset import open_data
    from umbel._releases.shelf import Shelf

    shelf = Shelf(home.shelf, home.release_authority())
    if model is None:
        names = sorted({each.model for each in shelf.installed()})
        if len(names) != 1:
            have = f"it has {', '.join(names)}" if names else "it has none"
            raise UsageError(
                f"Which model are the examples for? Name one that this device has ({have}): --model NAME"
            )
        (model,) = names
    return open_data(home, shelf, model)


def _lineage(example: Example) -> dict[str, Any]:
    return {
        "id": example.id,
        "at_s": example.at_s,
        "source": example.source,
        "y": example.y,
        "agreement": example.agreement,
        "labels": [asdict(label) for label in example.labels],
    }


def _told(name: str, value: Any) -> str:
    if name.endswith("_s"):
        return as_time(value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {count}" for key, count in value.items())
    if isinstance(value, float):
        return as_number(value)
    return "-" if value is None else str(value)

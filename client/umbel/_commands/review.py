"""``umbel review``: what waits for a person on this device, and their answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from umbel._commands.options import Argument, Group, home_option, json_option
from umbel._commands.table import Table
from umbel._commands.terminal import device_home, print_json
from umbel._words import as_time
from umbel_proto.errors import UsageError

if TYPE_CHECKING:
    from umbel._device import Device
    from umbel._predict.model import Model
    from umbel._review.review import Case, Ruling

SHOWN_VALUES = 64

app = Group("review", help="Show predictions that wait for a person on this device, and decide on them.")

id_argument = click.argument("case_id", cls=Argument, metavar="ID", help="The prediction's id.")
label_argument = click.argument("label", cls=Argument, help="The class that holds, by name or number.")
by_option = click.option("--by", required=True, help="Who decides.")


@app.command("list")
@home_option
@click.option("--decided", is_flag=True, help="Show what people decided instead.")
@json_option
def list_cases(*, home: Path | None, decided: bool, as_json: bool) -> None:
    """List the predictions that wait, oldest first. Their examples stay out of it: show one with show."""
    with _open(home) as device:
        models = list(_models(device))
        cases = [(model.name, case) for model in models for case in model.review.pending()]
        rulings = [(model.name, ruling) for model in models for ruling in model.review.rulings()]
    if as_json:
        shown = [_decided(*each) for each in rulings] if decided else [_waiting(*each) for each in cases]
        print_json(shown)
    elif decided:
        table = Table("", "id", "model", "said", "decided", "by", "why", "when")
        for name, ruling in rulings:
            said = "?" if ruling.said is None else str(ruling.said)
            how = f"{ruling.name}{' (override)' if ruling.override else ''}"
            table.add_row(ruling.id, name, said, how, ruling.by, ruling.why, as_time(ruling.at_s))
        table.print()
    else:
        table = Table("", "id", "model", "version", "said", "confidence", "when")
        for name, case in cases:
            row = (case.id, name, str(case.model_version), case.name, f"{case.confidence:.3f}")
            table.add_row(*row, as_time(case.at_s))
        table.print()


@app.command()
@id_argument
@home_option
@json_option
def show(*, case_id: str, home: Path | None, as_json: bool) -> None:
    """Show one prediction that waits, with its example."""
    with _open(home) as device:
        model, case = _find(device, case_id)
        columns = [column.name for column in model._loaded.contract.columns]
    if as_json:
        print_json({**_waiting(model.name, case), "columns": columns, "x": case.x.tolist()})
        return
    table = Table(f"{case.id} of {model.name} {case.model_version}", "", "")
    table.add_row("said", f"{case.name}, confidence {case.confidence:.3f}")
    table.add_row("when", as_time(case.at_s))
    table.add_row("example", f"{case.x.dtype} {case.x.shape}")
    values = case.x.reshape(-1)[:SHOWN_VALUES].tolist()
    if columns and case.x.ndim == 1:
        for name, value in zip(columns, values, strict=False):
            table.add_row(name, f"{value:g}")
    else:
        more = " .." if case.x.size > SHOWN_VALUES else ""
        table.add_row("values", " ".join(f"{value:g}" for value in values) + more)
    table.print()


@app.command()
@id_argument
@label_argument
@by_option
@click.option("--why", default="", show_default=False, help="For what reason.")
@home_option
@json_option
def resolve(*, case_id: str, label: str, by: str, why: str, home: Path | None, as_json: bool) -> None:
    """Say what holds for a prediction that waits; its example is learned from, if the user allows training."""
    with _open(home) as device:
        model, _ = _find(device, case_id)
        ruling = model.review.resolve(case_id, _class(model, label), by=by, why=why)
    _tell(model.name, ruling, as_json=as_json)


@app.command()
@click.argument("model_name", cls=Argument, metavar="MODEL", help="The model.")
@id_argument
@label_argument
@by_option
@click.option("--why", required=True, help="For what reason.")
@home_option
@json_option
def override(
    *, model_name: str, case_id: str, label: str, by: str, why: str, home: Path | None, as_json: bool
) -> None:
    """Put a person's label in the place of any prediction's, reviewed or automatic."""
    with _open(home) as device:
        model = device.model(model_name)
        ruling = model.review.override(case_id, _class(model, label), by=by, why=why)
    _tell(model.name, ruling, as_json=as_json)


def _open(home: Path | None) -> Device:
    from umbel._device import Device

    return Device.open(device_home(home).path, online=False)


def _models(device: Device) -> Iterator[Model]:
    """Yield the installed models that can have reviews."""
    for release in device.status().models:
        model = device.model(release.model)
        if model.labels:
            yield model


def _find(device: Device, case_id: str) -> tuple[Model, Case]:
    for model in _models(device):
        for case in model.review.pending():
            if case.id == case_id:
                return model, case
    raise UsageError(f"No prediction {case_id!r} waits on this device: see  umbel review list")


def _class(model: Model, label: str) -> int:
    if label in model.labels:
        return list(model.labels).index(label)
    if label.isdecimal() and int(label) < len(model.labels):
        return int(label)
    raise UsageError(f"Model {model.name} has no class {label!r}: choose one of {', '.join(model.labels)}.")


def _waiting(model: str, case: Case) -> dict[str, Any]:
    return {
        "id": case.id,
        "model": model,
        "version": case.model_version,
        "label": case.label,
        "name": case.name,
        "confidence": case.confidence,
        "at_s": case.at_s,
    }


def _decided(model: str, ruling: Ruling) -> dict[str, Any]:
    return {"model": model, **asdict(ruling)}


def _tell(model: str, ruling: Ruling, *, as_json: bool) -> None:
    if as_json:
        print_json(_decided(model, ruling))
    else:
        click.echo(f"{ruling.id} of {model}: {ruling.name}, by {ruling.by}.")

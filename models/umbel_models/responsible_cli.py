"""``umbel model assess``: everything that responsible training measures, of a task and its model."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel_models.load import load_task
from umbel_models.task import TASKS, Task
from umbel_proto.errors import MissingExtraError, UsageError
from umbel_proto.package import PARAMETERS, read_package

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from umbel_models.responsible.figures import Figures


def assess(
    task: Annotated[
        str, typer.Argument(help=f"A Python file with one Task, or the task {', '.join(sorted(TASKS))}.")
    ],
    package: Annotated[
        Path | None, typer.Option(help="A package whose parameters to assess; without it, trains some.")
    ] = None,
    release_key: Annotated[
        Path | None,
        typer.Option("--release-key", help="The fleet's public release key: its 32 bytes, or PEM."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="How long to train, without a package.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of everything drawn at random.")] = 0,
    fairer: Annotated[bool, typer.Option("--fairer", help="Train in fairer ways too, and compare.")] = False,
    by_cohort: Annotated[
        bool,
        typer.Option("--by-cohort", help="Cohorts may be known at decision time: calibrate each by itself."),
    ] = False,
    ratings: Annotated[
        Path | None,
        typer.Option(help="A .csv file: a row a unit, a column an annotator, a number or nothing in each."),
    ] = None,
    shifted: Annotated[
        list[Path] | None, typer.Option(help="An .npz file with x and y to measure the model on; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sections as JSON.")] = False,
    plot: Annotated[Path | None, typer.Option(help="A .png file to draw to.")] = None,
) -> None:
    """Measure a model's fairness, calibration, robustness and explanations, and leaks in its data."""
    from umbel_models.cli import _examples, _progress, _write

    loaded = load_task(task)
    if package is not None and release_key is None:
        raise UsageError("Give --release-key with --package: only a signed package is assessed.")
    # What is read is read, and what is missing is missed, before minutes of work.
    rated = None if ratings is None else _ratings(ratings)
    others = {path.stem: _examples(path) for path in shifted or ()}
    others = {name: each._replace(x=loaded.contract.check(each.x)[0]) for name, each in others.items()}
    picture = None if plot is None else _picture()
    try:
        from umbel_models.responsible.mitigation import Recipe
        from umbel_models.responsible.report import assess as measure
    except ImportError as exc:
        raise MissingExtraError("models", "Assessing a model") from exc
    tell, recipe = _progress(), Recipe(epochs=epochs, seed=seed)
    if package is not None and release_key is not None:
        module = _packed(loaded, package, release_key)
    else:
        module = recipe.train(loaded, loaded.data().train, progress=tell)
    found = measure(
        loaded,
        module,
        fairer=recipe if fairer else None,
        by_cohort=by_cohort,
        ratings=rated,
        shifted=others,
        seed=seed,
        progress=tell,
    )
    if plot is not None and picture is not None:
        _write(plot, picture(found, title=loaded.model))
    if as_json:
        typer.echo(json.dumps(found.sections, indent=1))
        return
    for line in _lines(found.sections):
        typer.echo(line)


def read_sections(path: Path) -> dict[str, Figures]:
    """Return the sections of a card that ``umbel model assess --json`` printed to a file.

    Raises:
        UsageError: The file holds something else.
    """
    from umbel_models.cli import _read

    try:
        sections = json.loads(_read(path))
    except ValueError as exc:
        raise UsageError(f"{path} is not JSON: write what  umbel model assess --json  prints to it.") from exc
    if not isinstance(sections, dict) or not all(isinstance(each, dict) for each in sections.values()):
        raise UsageError(
            f"{path} holds no sections of figures: write what  umbel model assess --json  prints."
        )
    return sections


def _packed(task: Task, path: Path, release_key: Path) -> nn.Module:
    """Return the task's module with the parameters of a package."""
    import torch

    from umbel_models.cli import _read, _verify_key

    package = read_package(_read(path), release_key=_verify_key(release_key))
    module = task.module()
    arrays = package.tensors(PARAMETERS)
    shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
    if {name: array.shape for name, array in arrays.items()} != shapes:
        raise UsageError(
            f"{path} holds {package.manifest.model}, whose parameters are not those of {task.model}."
        )
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(torch.from_numpy(arrays[name]))
    return module


def _ratings(path: Path) -> NDArray[Any]:
    import numpy as np

    from umbel_models.cli import _read

    try:
        rows = csv.reader(_read(path).decode().splitlines())
        table = [[float(cell) if cell.strip() else float("nan") for cell in row] for row in rows if row]
        return np.array(table, np.float64)
    except ValueError as exc:
        raise UsageError(
            f"{path} is no table of ratings: give a row a unit, with as many cells in each, numbers or nothing."
        ) from exc


def _picture() -> Any:
    try:
        from umbel_models.responsible.plot import picture
    except ImportError as exc:
        raise MissingExtraError("demo", "Drawing") from exc
    return picture


def _lines(sections: Mapping[str, Figures]) -> Iterator[str]:
    for title, figures in sections.items():
        yield f"{title}"
        for name, value in figures.items():
            if name.endswith((" low", " high")) and name.rpartition(" ")[0] in figures:
                continue
            low, high = figures.get(f"{name} low"), figures.get(f"{name} high")
            sure = "" if low is None or high is None else f"  ({low} to {high})"
            text = str(value).rstrip("\n")
            yield f"  {name}:" if "\n" in text else f"  {name}: {text}{sure}"
            if "\n" in text:
                yield from (f"    {line}" for line in text.splitlines())
        yield ""

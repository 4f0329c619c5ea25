"""``umbel model assess``: everything that responsible training measures, of a task and its model."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel_models import files
from umbel_models.load import load_task
from umbel_models.options import ReleaseKeyOption, SeedOption, TaskArgument, progress
from umbel_proto.errors import MissingExtraError, UsageError
from umbel_proto.package import read_package

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from umbel_models.responsible.figures import Figures


def assess(
    task: TaskArgument,
    package: Annotated[
        Path | None, typer.Option(help="A package whose parameters to assess; without it, trains some.")
    ] = None,
    release_key: ReleaseKeyOption = None,
    epochs: Annotated[int, typer.Option(min=1, help="How long to train, without a package.")] = 20,
    seed: SeedOption = 0,
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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the sections as JSON, and of which parameters.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="A .png file to draw to.")] = None,
) -> None:
    """Measure a model's fairness, calibration, robustness and explanations, and leaks in its data."""
    loaded = load_task(task)
    loaded.require_labels("An assessment")
    if (package is None) != (release_key is None):
        raise UsageError("--package and --release-key go together: only a signed package is assessed.")
    # What is read is read, and what is missing is missed, before minutes of work.
    base = None
    if package is not None and release_key is not None:
        base = read_package(files.read(package), release_key=files.verify_key(release_key))
    rated = None if ratings is None else _ratings(ratings)
    others = {path.stem: files.examples(path) for path in shifted or ()}
    others = {name: each._replace(x=loaded.contract.check(each.x)[0]) for name, each in others.items()}
    picture = None
    if plot is not None:
        files.require_writable(plot)
        picture = _picture()
    try:
        from umbel_models.responsible.mitigation import Recipe
        from umbel_models.responsible.report import assess as measure
        from umbel_models.restore import restored
        from umbel_models.tempering import temperature_of
    except ImportError as exc:
        raise MissingExtraError("models", "Assessing a model") from exc
    tell, recipe = progress(), Recipe(epochs=epochs, seed=seed)
    temperature = 1.0
    if base is not None:
        module = restored(loaded, base)
        temperature = temperature_of(base.file(base.manifest.variants[base.manifest.default_variant].file))
    else:
        tell("reading the task's data")
        module = recipe.train(loaded, loaded.data().train, progress=tell)
    found = measure(
        loaded,
        module,
        fairer=recipe if fairer else None,
        by_cohort=by_cohort,
        temperature=temperature,
        ratings=rated,
        shifted=others,
        seed=seed,
        progress=tell,
    )
    if plot is not None and picture is not None:
        files.write(plot, picture(found, title=loaded.model))
    if as_json:
        typer.echo(json.dumps({"parameters": found.parameters, "sections": found.sections}, indent=1))
        return
    for line in _lines(found.sections):
        typer.echo(line)


def _ratings(path: Path) -> NDArray[Any]:
    import numpy as np

    try:
        rows = csv.reader(files.read(path).decode().splitlines())
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

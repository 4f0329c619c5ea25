"""``umbel model``: build, pack and show model packages."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from umbel_models import files
from umbel_models.compress_cli import COMMANDS
from umbel_models.finetune_cli import finetune
from umbel_models.load import load_task
from umbel_models.options import (
    KeyOption,
    LineageOption,
    OutOption,
    ReleaseKeyOption,
    SectionsOption,
    TaskArgument,
    VersionOption,
    progress,
)
from umbel_models.responsible_cli import assess
from umbel_models.task import OwnMetric
from umbel_proto.errors import MissingExtraError, UsageError
from umbel_proto.package import Package, inspect_package, read_package

app = typer.Typer(
    help="Build, pack and show signed model packages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for command in (assess, *COMMANDS, finetune):
    app.command()(command)


class By(StrEnum):
    """What the devices of a split differ in."""

    label = "label"
    source = "source"


@app.command()
def build(
    task: TaskArgument,
    out: OutOption,
    key: KeyOption,
    version: VersionOption = 1,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="An .npz file: x to quantize with, y to calibrate confidence on; by default the task's own."
        ),
    ] = None,
    lineage: LineageOption = None,
    sections: SectionsOption = None,
    tflite: Annotated[
        bool, typer.Option("--tflite", help="Add variants for devices that have LiteRT.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made, and notes, as JSON.")] = False,
) -> None:
    """Write the first package of a task, with its initial parameters, exported and verified."""
    pack_module = _workbench()
    signing = files.signing_key(key)
    files.require_writable(out)
    judged = files.sections(sections)
    loaded = load_task(task)
    inputs, labels = (None, None) if calibration is None else files.calibration(calibration)
    notes: list[str] = []
    data = pack_module.build(
        loaded,
        key=signing,
        version=version,
        calibration=inputs,
        calibration_y=labels,
        lineage=files.facts(lineage),
        sections=judged.figures,
        sections_of=judged.parameters,
        lite=tflite,
        progress=progress(),
        note=notes.append,
    )
    files.write(out, data)
    if as_json:
        made = {
            "file": str(out),
            "model": loaded.model,
            "version": version,
            "bytes": len(data),
            "notes": notes,
        }
        typer.echo(json.dumps(made))
        return
    typer.echo(f"{out}: {loaded.model} {version}, {len(data):,} bytes")
    for sentence in notes:
        typer.echo(f"Note: {sentence}")


@app.command()
def pack(
    base: Annotated[Path, typer.Argument(help="The package whose model was trained further.")],
    params: Annotated[
        Path, typer.Option(help="The new parameters: a run's trained.params, or a .safetensors file.")
    ],
    calibration: Annotated[
        Path, typer.Option(help="An .npz file: x to quantize with, y, if known, to calibrate confidence on.")
    ],
    version: Annotated[int, typer.Option(min=2, help="The version to give it.")],
    key: KeyOption,
    out: OutOption,
    lineage: LineageOption = None,
    sections: SectionsOption = None,
    heldout: Annotated[
        Path | None, typer.Option(help="An .npz file with x and y to evaluate on, for the card.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="The task whose own metrics to compute on --heldout: its Python file, or its name."
        ),
    ] = None,
) -> None:
    """Write the next version of a package: new parameters, quantized and with golden vectors anew."""
    pack_module = _workbench()
    signing = files.signing_key(key)
    files.require_writable(out)
    judged = files.sections(sections)
    package = read_package(files.read(base), release_key=signing.public)
    if task is not None and heldout is None:
        raise UsageError("--task computes its metrics on held-out examples: give --heldout as well.")
    metrics = None if task is None else _own_metrics(task, package)
    inputs, labels = files.calibration(calibration)
    notes: list[str] = []
    data = pack_module.repack(
        package,
        files.parameters(params, package),
        calibration=inputs,
        calibration_y=labels,
        version=version,
        key=signing,
        lineage=files.facts(lineage),
        sections=judged.figures,
        sections_of=judged.parameters,
        held_out=None if heldout is None else files.examples(heldout),
        metrics=metrics,
        progress=progress(),
        note=notes.append,
    )
    files.write(out, data)
    typer.echo(f"{out}: {package.manifest.model} {version}, {len(data):,} bytes")
    for sentence in notes:
        typer.echo(f"Note: {sentence}")


@app.command()
def split(
    task: TaskArgument,
    out: Annotated[Path, typer.Option("--out", help="The directory to write to.")],
    devices: Annotated[int, typer.Option(min=1, help="How many devices share the training data.")] = 8,
    by: Annotated[
        By | None,
        typer.Option(
            help="What devices differ in: by default source, such as a person, where data has one, else label."
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="By label, how evenly: 100 nearly even, 0.1 a class or two each; 1."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Who gets what; the same seed, the same split.")] = 0,
) -> None:
    """Share a task's data among devices: shard-N.npz, train.npz, heldout.npz and calibration.npz."""
    _workbench()
    import numpy as np

    from umbel_models.federated import by_chance, by_label, by_source

    loaded = load_task(task)
    parts = loaded.data()
    if by is By.label:
        loaded.require_labels("Sharing by label")
    if by is None and parts.train.source is not None:
        by = By.source
    if by is None and not loaded.labels:
        if alpha is not None:
            raise UsageError(
                f"--alpha says how evenly labels are shared, and {loaded.model} answers with numbers."
            )
        shards = by_chance(parts.train, devices, seed=seed)
    elif by is None or by is By.label:
        shards = by_label(parts.train, devices, alpha=1.0 if alpha is None else alpha, seed=seed)
    elif alpha is None:
        shards = by_source(parts.train, devices, seed=seed)
    else:
        raise UsageError("--alpha says how evenly labels are shared: give --by label as well.")
    sets = {"train": parts.train, "heldout": parts.held_out, "calibration": parts.calibration}
    sets |= {f"shard-{number}": shard for number, shard in enumerate(shards)}
    files.make_folder(out)
    for name, examples in sets.items():
        buffer = io.BytesIO()
        np.savez(buffer, x=examples.x, y=examples.y)
        files.write(out / f"{name}.npz", buffer.getvalue())
    typer.echo(
        f"{out}: {len(parts.train.y):,} examples on {devices} devices, {len(parts.held_out.y):,} held out"
    )


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A package.")],
    release_key: ReleaseKeyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest and the card as JSON.")] = False,
    as_card: Annotated[
        bool, typer.Option("--card", help="Print the model card and the data sheet as Markdown.")
    ] = False,
) -> None:
    """Show what a package declares. Without --release-key its signature is not checked."""
    data = files.read(file)
    if release_key is None:
        manifest = inspect_package(data)
    else:
        manifest = read_package(data, release_key=files.verify_key(release_key)).manifest
    from umbel_models import show as words

    card, checked = words.card_of(data, manifest), release_key is not None
    if as_card:
        if card is None:
            raise UsageError(f"{file} has no model card: build it with this umbel.")
        sheet = words.datasheet_of(data, manifest)
        typer.echo(card.to_markdown() + (f"\n{sheet}" if sheet else ""), nl=False)
    elif as_json:
        typer.echo(json.dumps(words.body(manifest, card, checked=checked)))
    else:
        typer.echo("\n".join(words.lines(manifest, card, size=len(data), checked=checked)))


@app.command()
def bench(
    file: Annotated[Path, typer.Argument(help="A package.")],
    release_key: Annotated[
        Path, typer.Option("--release-key", help="The fleet's public release key: nothing else is run.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure every variant of a package on this machine: latency, size, agreement; and a training step."""
    _workbench()
    from umbel_models.bench import measure

    package = read_package(files.read(file), release_key=files.verify_key(release_key))
    measured = measure(package, progress=progress())
    typer.echo(json.dumps(measured.to_json()) if as_json else "\n".join(measured.lines()))


def _own_metrics(name: str, package: Package) -> Mapping[str, OwnMetric]:
    """Return what computes the figures of a task's own, for a package of its model.

    Raises:
        UsageError: There is no such task, it is another model's, or it has no metrics.
    """
    task, model = load_task(name), package.manifest.model
    if task.model != model:
        raise UsageError(
            f"{name} is the task of {task.model}, and the package is of {model}: give the task of {model}."
        )
    if not task.metrics:
        raise UsageError(f"Task {task.model} has no metrics of its own: leave out --task.")
    return task.metrics


def _workbench() -> Any:
    """Return the module that packs: it needs more than the commands that only read."""
    try:
        from umbel_models import pack as module
    except ImportError as exc:
        raise MissingExtraError("models", "Building packages") from exc
    return module

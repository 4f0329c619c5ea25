"""``umbel model finetune``: from what rounds of pretraining have learned to a classifier that needs few labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from umbel_models import files
from umbel_models.load import load_task
from umbel_models.options import KeyOption, OutOption, SeedOption, TaskArgument, VersionOption, progress
from umbel_proto.errors import MissingExtraError
from umbel_proto.package import read_package


def finetune(
    pretrained: Annotated[Path, typer.Argument(help="A package that rounds of pretraining have trained.")],
    task: TaskArgument,
    out: OutOption,
    key: KeyOption,
    version: VersionOption = 1,
    labels: Annotated[
        int,
        typer.Option(min=0, help="Labelled examples of each class to train the last layer on before."),
    ] = 0,
    whole: Annotated[
        bool, typer.Option("--whole", help="Let devices train and send all parameters, not the last layer.")
    ] = False,
    seed: SeedOption = 0,
    tflite: Annotated[
        bool, typer.Option("--tflite", help="Add variants for devices that have LiteRT.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Write the package of a task whose layers before the last are pretrained: devices train the last one."""
    signing, loaded = files.signing_key(key), load_task(task)
    if labels:
        loaded.require_labels("Training on a few labels")
    files.require_writable(out)
    base = read_package(files.read(pretrained), release_key=signing.public)
    try:
        from umbel_models.adapt import freeze, head
        from umbel_models.compare import with_module
        from umbel_models.pack import build
        from umbel_models.pretrain import few_labels, tune
        from umbel_models.pretraining import pretrained as with_layers
    except ImportError as exc:
        raise MissingExtraError("models", "Training on the workbench") from exc
    module, data, tell = with_layers(loaded, base), loaded.data(), progress()
    if labels:
        tell("training the last layer")
        module = tune(module, loaded.loss, few_labels(data.train, labels, seed=seed), seed=seed)
    module = module if whole else freeze(module, head(module))
    made = build(
        replace(with_module(loaded, module), data=lambda: data),
        key=signing,
        version=version,
        lineage={
            "pretrained_model": base.manifest.model,
            "pretrained_version": base.manifest.version,
            "pretrained_sha256": base.sha256,
            "labels_of_each_class": labels,
        },
        lite=tflite,
        progress=tell,
    )
    manifest = read_package(made, release_key=signing.public).manifest
    files.write(out, made)
    every = sum(value.numel() for value in module.parameters())
    if as_json:
        facts = {"file": str(out), "model": manifest.model, "version": version, "bytes": len(made)}
        typer.echo(json.dumps({**facts, "parameters": every, "trained": manifest.dim}))
        return
    typer.echo(
        f"{out}: {manifest.model} {version}, {len(made):,} bytes; rounds train {manifest.dim:,} of {every:,} parameters"
    )

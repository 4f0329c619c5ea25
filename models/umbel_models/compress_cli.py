"""``umbel model prune``, ``distill``, ``adapt``, ``pretrain``: a smaller or cheaper model, with what it saves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel_models.load import load_task
from umbel_models.task import TASKS, Split, Task
from umbel_proto.errors import MissingExtraError, UsageError
from umbel_proto.package import PARAMETERS, Package, read_package

if TYPE_CHECKING:
    from torch import nn

    from umbel_models.compare import Figures
    from umbel_proto.manifest import Scalar

TaskArgument = Annotated[
    str, typer.Argument(help=f"A Python file with one Task, or the task {', '.join(sorted(TASKS))}.")
]
KeyOption = Annotated[Path, typer.Option("--key", help="The fleet's release key, a PEM file.")]
OutOption = Annotated[Path, typer.Option("--out", help="The package to write.")]
PackageOption = Annotated[
    Path | None,
    typer.Option(help="A package of the task whose parameters to begin with; without it, trains some."),
]
VersionOption = Annotated[int, typer.Option(min=1, help="The version to give it.")]
EpochsOption = Annotated[int, typer.Option(min=0, help="Passes over the data in each training.")]
RateOption = Annotated[float, typer.Option(help="Learning rate of each training.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of everything drawn at random.")]
DevicesOption = Annotated[int, typer.Option(min=1, help="Devices in a round, for its noise.")]
EpsilonOption = Annotated[float, typer.Option(help="Epsilon of 20 rounds of a device, for their noise.")]
LiteOption = Annotated[bool, typer.Option("--tflite", help="Add TFLite variants, and compare them too.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the table as JSON.")]


@dataclass(frozen=True, slots=True)
class Job:
    """What every command here is asked for."""

    task: str
    out: Path
    key: Path
    package: Path | None
    version: int
    epochs: int
    learning_rate: float
    seed: int
    devices: int
    epsilon: float
    lite: bool
    as_json: bool

    def training(self) -> dict[str, Any]:
        """Return how each training goes."""
        return {
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "batch_size": 32,
            "seed": self.seed,
        }


def prune(
    task: TaskArgument,
    out: OutOption,
    key: KeyOption,
    fraction: Annotated[float, typer.Option(help="Part of the channels to remove from each layer.")] = 0.5,
    by: Annotated[str, typer.Option(help="What makes a channel important: taylor or l1.")] = "taylor",
    package: PackageOption = None,
    version: VersionOption = 1,
    epochs: EpochsOption = 30,
    learning_rate: RateOption = 2e-3,
    seed: SeedOption = 0,
    devices: DevicesOption = 1000,
    epsilon: EpsilonOption = 8.0,
    tflite: LiteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove channels from a model, so that all of its graphs shrink, and train what is left on."""
    job = Job(
        task, out, key, package, version, epochs, learning_rate, seed, devices, epsilon, tflite, as_json
    )
    if by not in ("l1", "taylor"):
        raise UsageError(f"Channels cannot be ranked by {by!r}: choose taylor or l1.")
    if not 0 <= fraction < 1:
        raise UsageError(f"--fraction is {fraction}: choose the part of channels to remove, in [0, 1).")

    def pruned(whole: Task, module: nn.Module, data: Split, tell: Callable[[str], None]) -> nn.Module:
        from umbel_models.prune import prune as cut_and_train

        tell(f"removing {fraction:.0%} of the channels by {by}, and training on")
        return cut_and_train(module, whole.loss, data.train, fraction=fraction, by=by, **job.training())  # type: ignore[arg-type]

    _run(job, "pruned", pruned)


def distill(
    task: TaskArgument,
    out: OutOption,
    key: KeyOption,
    student: Annotated[
        str | None,
        typer.Option(help="A task, by name or file, whose module to teach; by default the trained one, cut."),
    ] = None,
    fraction: Annotated[
        float, typer.Option(help="Without --student: part of the channels that the student lacks.")
    ] = 0.5,
    temperature: Annotated[float, typer.Option(help="The greater, the more unlikely labels count.")] = 3.0,
    soft: Annotated[float, typer.Option(help="Part of the loss that comes from the teacher.")] = 0.9,
    package: PackageOption = None,
    version: VersionOption = 1,
    epochs: EpochsOption = 30,
    learning_rate: RateOption = 2e-3,
    seed: SeedOption = 0,
    devices: DevicesOption = 1000,
    epsilon: EpsilonOption = 8.0,
    tflite: LiteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Teach a smaller model what the task's model knows."""
    job = Job(
        task, out, key, package, version, epochs, learning_rate, seed, devices, epsilon, tflite, as_json
    )
    other = None if student is None else load_task(student)

    def distilled(whole: Task, module: nn.Module, data: Split, tell: Callable[[str], None]) -> nn.Module:
        from umbel_models.distill import distill as teach
        from umbel_models.prune import cut

        shape = whole.contract.fields[0].shape
        if other is None:
            pupil = cut(module, shape, fraction=fraction, loss=whole.loss, examples=data.train)
        else:
            pupil = other.module()
        tell("teaching the student")
        return teach(
            module, pupil, whole.loss, data.train, temperature=temperature, soft=soft, **job.training()
        )

    _run(job, "distilled", distilled)


def adapt(
    task: TaskArgument,
    out: OutOption,
    key: KeyOption,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Rank of the corrections; without it, the last layer is trained."),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(help="A layer to correct; repeatable. By default all that save something."),
    ] = None,
    with_head: Annotated[bool, typer.Option("--head", help="With --rank: train the last layer too.")] = False,
    package: PackageOption = None,
    version: VersionOption = 1,
    epochs: EpochsOption = 30,
    learning_rate: RateOption = 2e-3,
    seed: SeedOption = 0,
    devices: DevicesOption = 1000,
    epsilon: EpsilonOption = 8.0,
    tflite: LiteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Freeze a trained model but for its last layer, or for corrections of low rank: only they travel."""
    job = Job(
        task, out, key, package, version, epochs, learning_rate, seed, devices, epsilon, tflite, as_json
    )
    if rank is None and (layer or with_head):
        raise UsageError("--layer and --head go with --rank: without it, the last layer alone is trained.")

    def adapted(whole: Task, module: nn.Module, data: Split, tell: Callable[[str], None]) -> nn.Module:
        from umbel_models.adapt import freeze, head, low_rank

        tell("freezing the model")
        if rank is None:
            return freeze(module, head(module))
        return low_rank(module, rank, layers=layer or (), also=head(module) if with_head else (), seed=seed)

    _run(job, "head" if rank is None else f"rank {rank}", adapted)


def pretrain(
    task: TaskArgument,
    out: OutOption,
    key: KeyOption,
    labels: Annotated[int, typer.Option(min=1, help="Labelled examples of each class.")] = 5,
    copies: Annotated[int, typer.Option(min=1, help="How often each window comes, differently hidden.")] = 2,
    version: VersionOption = 1,
    epochs: EpochsOption = 30,
    learning_rate: RateOption = 1e-3,
    seed: SeedOption = 0,
    devices: DevicesOption = 1000,
    epsilon: EpsilonOption = 8.0,
    tflite: LiteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Learn from the task's windows without their labels, then from a few labels; beside those labels alone."""
    job = Job(task, out, key, None, version, epochs, learning_rate, seed, devices, epsilon, tflite, as_json)

    def few(whole: Task, module: nn.Module, data: Split) -> nn.Module:
        from umbel_models.fit import fit
        from umbel_models.pretrain import few_labels

        chosen = few_labels(data.train, labels, seed=seed)
        return fit(module, whole.loss, chosen, **{**job.training(), "batch_size": 10, "learning_rate": 1e-3})

    def ready(whole: Task, module: nn.Module, data: Split, tell: Callable[[str], None]) -> nn.Module:
        from umbel_models.pretrain import pretrain as fill_in

        tell("learning to fill in hidden parts of windows")
        return few(whole, fill_in(whole.module(), data.train.x, copies=copies, **job.training()), data)

    _run(job, "pretrained", ready, begin=few, before=f"{labels} labels each", alike=True)


def _run(
    job: Job,
    name: str,
    change: Callable[[Task, nn.Module, Split, Callable[[str], None]], nn.Module],
    *,
    begin: Callable[[Task, nn.Module, Split], nn.Module] | None = None,
    before: str = "whole",
    alike: bool = False,
) -> None:
    """Change a task's trained module; write the package of what comes out, and show what it saves.

    Args:
        job: What was asked for.
        name: What to call the changed module.
        change: Changes it.
        begin: Trains the module there is before; by default on all of the task's data.
        before: What to call that.
        alike: Whether the change is one of parameters only.
    """
    from umbel_models.cli import _progress, _read, _signing_key, _write

    signing, task = _signing_key(job.key), load_task(job.task)
    try:
        from umbel_models.compare import Rounds, measure, section, table, with_module
        from umbel_models.exported import exported
        from umbel_models.fit import fit
        from umbel_models.pack import build
    except ImportError as exc:
        raise MissingExtraError("models", "Training on the workbench") from exc
    tell = _progress()
    tell("reading the task's data")
    data = task.data()

    def ready(module: nn.Module, graphs: Mapping[str, bytes] | None = None) -> Task:
        if graphs is None:  # exporting takes longest: once
            graphs = exported(with_module(task, module), progress=tell).files
        return replace(with_module(task, module, graphs=graphs), data=lambda: data)

    def pack(what: Task, sections: Mapping[str, Figures]) -> bytes:
        facts: dict[str, Scalar] = {"compression": name} if name in sections else {}
        return build(
            what,
            key=signing,
            version=job.version,
            lineage=facts,
            sections=sections,
            lite=job.lite,
            progress=tell,
        )

    def opened(packed: bytes) -> Package:
        return read_package(packed, release_key=signing.public)

    if job.package is not None:
        base = opened(_read(job.package))
        module = _filled(task, base)
    else:
        tell("training the model that there is without this")
        module = (
            begin(task, task.module(), data)
            if begin
            else fit(task.module(), task.loss, data.train, **job.training())
        )
        base = None
    changed = ready(change(task, module, data, tell))
    if base is None:
        same = changed if alike else task
        base = opened(pack(ready(module, same.committed() if same.committed else None), {}))
    tell("measuring")
    models = {before: base, name: opened(pack(changed, {}))}
    figures = measure(models, data, Rounds(devices=job.devices, epsilon=job.epsilon))
    made = pack(changed, {name: section(figures[before], figures[name])})
    _write(job.out, made)
    if job.as_json:
        typer.echo(json.dumps(figures))
        return
    from rich.console import Console

    Console().print(table(figures, title=f"{task.model}, {name}"))
    typer.echo(f"{job.out}: {task.model} {job.version}, {len(made):,} bytes")


def _filled(task: Task, package: Package) -> nn.Module:
    """Return the task's module with the parameters of a package."""
    import torch

    module, arrays = task.module(), package.tensors(PARAMETERS)
    parameters = dict(module.named_parameters())
    if {n: a.shape for n, a in arrays.items()} != {n: tuple(v.shape) for n, v in parameters.items()}:
        raise UsageError(
            f"The package holds {package.manifest.model}, whose parameters are not those of {task.model}: give one that "
            "umbel model build or pack wrote for this task."
        )
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(torch.from_numpy(arrays[name]))
    return module


COMMANDS = (prune, distill, adapt, pretrain)

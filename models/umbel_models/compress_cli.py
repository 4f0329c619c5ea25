"""``umbel model prune``, ``distill``, ``adapt``, ``pretrain``: a smaller or cheaper model, with what it saves."""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel_models import files
from umbel_models.load import load_task
from umbel_models.options import KeyOption, OutOption, SeedOption, TaskArgument, VersionOption, progress
from umbel_models.task import Split, Task
from umbel_proto.errors import MissingExtraError, UsageError
from umbel_proto.package import Package, read_package

if TYPE_CHECKING:
    from torch import nn

    from umbel_models.compare import Figures
    from umbel_proto.manifest import Scalar

PackageOption = Annotated[
    Path | None,
    typer.Option(help="A package of the task whose parameters to begin with; without it, trains some."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every command here is asked for: each field is one of its options."""

    task: TaskArgument
    out: OutOption
    key: KeyOption
    version: VersionOption = 1
    epochs: Annotated[int, typer.Option(min=0, help="Passes over the data in each training.")] = 30
    learning_rate: Annotated[float, typer.Option(help="Learning rate of each training.")] = 2e-3
    seed: SeedOption = 0
    devices: Annotated[int, typer.Option(min=1, help="Devices in a round, for its noise.")] = 1000
    epsilon: Annotated[float, typer.Option(help="Epsilon of 20 rounds of a device, for their noise.")] = 8.0
    tflite: Annotated[bool, typer.Option("--tflite", help="Add TFLite variants, and compare them too.")] = (
        False
    )
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False

    def __post_init__(self) -> None:
        for option, value in (("learning-rate", self.learning_rate), ("epsilon", self.epsilon)):
            if not 0 < value < math.inf:
                raise UsageError(f"--{option} is {value}: choose a number above 0.")

    def training(self) -> dict[str, Any]:
        """Return how each training goes."""
        return {
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "batch_size": 32,
            "seed": self.seed,
        }


def with_job(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return what makes a command of a function of a job: it takes the options of ``Job`` and the function's own.

    Args:
        defaults: Values of options of ``Job`` that the command has another default for.
    """
    hints = inspect.get_annotations(Job, eval_str=True)
    asked = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(field.name, inspect.signature(Job).parameters[field.name].default),
            annotation=hints[field.name],
        )
        for field in fields(Job)
    ]

    def command_of(function: Callable[..., None]) -> Callable[..., None]:
        _, *own = inspect.signature(function, eval_str=True).parameters.values()

        @functools.wraps(function)
        def command(**values: Any) -> None:
            job = Job(**{parameter.name: values.pop(parameter.name) for parameter in asked})
            function(job, **values)

        # Typer reads both: what a command takes, and of what type.
        mixed = [*asked[:3], *(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own), *asked[3:]]
        command.__signature__ = inspect.Signature(mixed)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in mixed}
        return command

    return command_of


@with_job()
def prune(
    job: Job,
    fraction: Annotated[float, typer.Option(help="Part of the channels to remove from each layer.")] = 0.5,
    by: Annotated[str, typer.Option(help="What makes a channel important: taylor or l1.")] = "taylor",
    package: PackageOption = None,
) -> None:
    """Remove channels from a model, so that all of its graphs shrink, and train what is left on."""
    if by not in ("l1", "taylor"):
        raise UsageError(f"Channels cannot be ranked by {by!r}: choose taylor or l1.")
    _require_fraction(fraction)

    def pruned(whole: Task, module: nn.Module, data: Split, tell: Callable[[str], None]) -> nn.Module:
        from umbel_models.prune import prune as cut_and_train

        tell(f"removing {fraction:.0%} of the channels by {by}, and training on")
        return cut_and_train(module, whole.loss, data.train, fraction=fraction, by=by, **job.training())  # type: ignore[arg-type]

    def check(whole: Task, data: Split) -> None:
        from umbel_models.prune import cut

        cut(whole.module(), whole.contract.fields[0].shape, fraction=fraction)

    _run(job, "pruned", pruned, check, package=package, numbers=True)


@with_job()
def distill(
    job: Job,
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
) -> None:
    """Teach a smaller model what the task's model knows."""
    _require_fraction(fraction)
    if not (0 <= soft <= 1 and 0 < temperature < math.inf):
        raise UsageError(
            f"--soft is {soft} and --temperature {temperature}: choose a part in [0, 1] and a number above 0."
        )
    other = None if student is None else load_task(student)
    if other is not None:
        own = load_task(job.task)
        if (other.contract, other.labels) != (own.contract, own.labels):
            raise UsageError(
                f"{other.model} has other inputs or labels than {own.model}: choose a student with the same."
            )

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

    def check(whole: Task, data: Split) -> None:
        from umbel_models.prune import cut

        if other is None:
            cut(whole.module(), whole.contract.fields[0].shape, fraction=fraction)

    _run(job, "distilled", distilled, check, package=package)


@with_job()
def adapt(
    job: Job,
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
) -> None:
    """Freeze a trained model but for its last layer, or for corrections of low rank: only they travel."""
    if rank is None and (layer or with_head):
        raise UsageError("--layer and --head go with --rank: without it, the last layer alone is trained.")

    def adapted(whole: Task, module: nn.Module, data: Split, tell: Callable[[str], None]) -> nn.Module:
        from umbel_models.adapt import freeze, head, low_rank

        tell("freezing the model")
        if rank is None:
            return freeze(module, head(module))
        return low_rank(
            module, rank, layers=layer or (), also=head(module) if with_head else (), seed=job.seed
        )

    def check(whole: Task, data: Split) -> None:
        adapted(whole, whole.module(), data, lambda step: None)

    _run(job, "head" if rank is None else f"rank {rank}", adapted, check, package=package, numbers=True)


@with_job(epochs=15)
def pretrain(
    job: Job,
    labels: Annotated[int, typer.Option(min=1, help="Labelled examples of each class.")] = 5,
    copies: Annotated[int, typer.Option(min=1, help="How often each window comes, differently hidden.")] = 1,
    tell: Annotated[
        str, typer.Option(help="What to tell of windows: their spectra, or their hidden moments.")
    ] = "spectra",
) -> None:
    """Learn from the task's windows without their labels, then from a few labels; beside those labels alone."""

    def few(whole: Task, module: nn.Module, data: Split) -> nn.Module:
        from umbel_models.fit import fit
        from umbel_models.pretrain import few_labels

        chosen = few_labels(data.train, labels, seed=job.seed)
        # What suits a network from scratch: --epochs and --learning-rate are of what comes without labels.
        return fit(module, whole.loss, chosen, epochs=40, batch_size=10, learning_rate=1e-3, seed=job.seed)

    def ready(whole: Task, module: nn.Module, data: Split, say: Callable[[str], None]) -> nn.Module:
        from umbel_models.pretrain import few_labels, tune
        from umbel_models.pretrain import pretrain as learn

        say(f"learning to tell {tell} of windows with hidden parts")
        learned = learn(whole.module(), data.train.x, tell=tell, copies=copies, **job.training())
        return tune(learned, whole.loss, few_labels(data.train, labels, seed=job.seed), seed=job.seed)

    def check(whole: Task, data: Split) -> None:
        from umbel_models.pretrain import few_labels, reconstruction, time_axis

        x = data.train.x
        few_labels(data.train, labels, seed=job.seed)
        reconstruction(whole.module(), x[:2], axis=time_axis(x.shape[1:]), tell=tell)

    _run(job, "pretrained", ready, check, begin=few, before=f"{labels} labels each", alike=True)


def _require_fraction(fraction: float) -> None:
    if not 0 <= fraction < 1:
        raise UsageError(f"--fraction is {fraction}: choose the part of channels to remove, in [0, 1).")


def _run(
    job: Job,
    name: str,
    change: Callable[[Task, nn.Module, Split, Callable[[str], None]], nn.Module],
    check: Callable[[Task, Split], object],
    *,
    package: Path | None = None,
    begin: Callable[[Task, nn.Module, Split], nn.Module] | None = None,
    before: str = "whole",
    alike: bool = False,
    numbers: bool = False,
) -> None:
    """Change a task's trained module; write the package of what comes out, and show what it saves.

    Args:
        job: What was asked for.
        name: What to call the changed module.
        change: Changes it.
        check: Refuses a task that cannot be changed so, before minutes of training.
        package: Whose parameters to begin with.
        begin: Without a package, trains the module there is before; by default on all of the task's data.
        before: What to call that.
        alike: Whether the change is one of parameters only.
        numbers: Whether it also suits models that answer with numbers.
    """
    signing, task = files.signing_key(job.key), load_task(job.task)
    if not numbers:
        task.require_labels("This way of making a model smaller")
    files.require_writable(job.out)
    base = None
    if package is not None:
        base = read_package(files.read(package), release_key=signing.public)
    try:
        from umbel_models.compare import Rounds, measure, section, table, with_module
        from umbel_models.exported import exported
        from umbel_models.fit import fit, predict
        from umbel_models.pack import build
        from umbel_models.restore import restored
    except ImportError as exc:
        raise MissingExtraError("models", "Training on the workbench") from exc
    tell = progress()
    tell("reading the task's data")
    data = task.data()
    predict(task.module(), data.train.x[:2])  # fails in words of its own where the module does
    check(task, data)

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
            lite=job.tflite,
            progress=tell,
        )

    def opened(packed: bytes) -> Package:
        return read_package(packed, release_key=signing.public)

    if base is not None:
        module = restored(task, base)
    else:
        tell("training the model that there is without this")
        module = (
            begin(task, task.module(), data)
            if begin
            else fit(task.module(), task.loss, data.train, **job.training())
        )
    changed = ready(change(task, module, data, tell))
    if base is None:
        same = changed if alike else task
        base = opened(pack(ready(module, same.committed() if same.committed else None), {}))
    tell("measuring")
    models = {before: base, name: opened(pack(changed, {}))}
    figures = measure(models, data, Rounds(devices=job.devices, epsilon=job.epsilon))
    made = pack(changed, {name: section(figures[before], figures[name])})
    files.write(job.out, made)
    if job.as_json:
        typer.echo(json.dumps(figures))
        return
    from rich.console import Console

    Console().print(table(figures, title=f"{task.model}, {name}"))
    typer.echo(f"{job.out}: {task.model} {job.version}, {len(made):,} bytes")


COMMANDS = (prune, distill, adapt, pretrain)

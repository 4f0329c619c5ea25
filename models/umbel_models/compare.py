"""What a smaller model costs and saves: accuracy, bytes, latency, what travels in a round, noise.

Everything is measured on packages, so on the bytes that devices get; latencies in turn, in one run.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import safetensors.numpy
from rich.table import Table
from torch import nn

from umbel_models.adapt import trained_names
from umbel_models.task import Split, Task
from umbel_models.variants import open_variant
from umbel_proto.answers import RMSE, SCORES, checked_answers, figure, measured
from umbel_proto.manifest import INSIDE, Manifest
from umbel_proto.package import PARAMETERS, Package
from umbel_proto.privacy.plan import plan

_CHUNKS = 15
_CHUNK_S = 0.004

Figures = dict[str, float]
"""Figures of one model, by name; the unit is in the name."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """The rounds for which noise is compared.

    Args:
        devices: Devices in a sum, all of whose noise counts.
        participations: Rounds one device takes part in.
        epsilon: Of device-level privacy against the server.
        delta: In (0, 1).
    """

    devices: int = 1000
    participations: int = 20
    epsilon: float = 8.0
    delta: float = 1e-6


def with_module(task: Task, module: nn.Module, *, graphs: Mapping[str, bytes] | None = None) -> Task:
    """Return the task with another network.

    Args:
        task: The task.
        module: The network with the parameters to begin with; those with ``requires_grad`` are trained.
        graphs: The files of a network from which this one differs only in the values of its parameters, as
            ``exported`` gives them; without them, graphs are exported when the task is packed.
    """
    values = {name: value.detach().numpy() for name, value in module.named_parameters()}
    files = None if graphs is None else {**graphs, PARAMETERS: safetensors.numpy.save(values)}
    return replace(
        task,
        module=lambda: copy.deepcopy(module).requires_grad_(),
        trainable=trained_names(module),
        committed=None if files is None else lambda: files,
    )


def measure(models: Mapping[str, Package], data: Split, rounds: Rounds) -> dict[str, Figures]:
    """Return the figures of several models of one task.

    Args:
        models: Their packages, by name.
        data: Whose held-out part accuracy is measured on, or what ``umbel_proto.answers.figure`` names.
        rounds: For which rounds noise is planned.

    Raises:
        UsageError: No plan fits the rounds, or the held-out answers are not the models'.
        MissingExtraError: The engine of a variant is not installed.
        PackageError: An engine cannot run a variant.
    """
    one, held_out = data.held_out.x[:1], data.held_out
    figures: dict[str, Figures] = {}
    calls: dict[str, dict[str, Callable[[], object]]] = {}
    for name, package in models.items():
        manifest = package.manifest
        runs = {form: open_variant(manifest, package.file, form) for form in manifest.variants}
        calls[name] = {form: partial(run, one) for form, run in runs.items()}
        y = checked_answers(manifest, held_out.y, len(held_out.x))
        good = {form: measured(manifest, run(held_out.x)[0], y) for form, run in runs.items()}
        figures[name] = {f"{figure(manifest, y)}, {form}": value for form, value in good.items()}
        figures[name] |= {f"bytes, {form}": float(_size(manifest, form)) for form in runs}
    for name, times in _latencies(calls).items():
        figures[name] |= {f"us a prediction, {form}": value for form, value in times.items()}
        figures[name] |= round_figures(models[name], rounds)
    return figures


def round_figures(package: Package, rounds: Rounds) -> Figures:
    """Return what of a model travels in rounds, and how far off noise puts the mean update.

    The noise on a coordinate hardly depends on how many there are; its length grows with their square root.
    """
    manifest = package.manifest
    planned = plan(
        dim=manifest.dim,
        clip=1.0,
        devices=rounds.devices,
        honest=rounds.devices,
        participations=rounds.participations,
        epsilon=rounds.epsilon,
        delta=rounds.delta,
    )
    return {
        "parameters": float(manifest.dim + sum(parameter.size for parameter in manifest.frozen)),
        "parameters sent in a round": float(manifest.dim),
        "bytes sent in a round": planned.encoding.padded * planned.encoding.bits / 8,
        "DP error of a coordinate, clips": planned.error,
        "DP error of an update, clips": planned.error * math.sqrt(manifest.dim),
    }


def table(figures: Mapping[str, Figures], *, title: str) -> Table:
    """Return the figures with a column for each model; the last as a share of the first."""
    first, *_, last = figures.values() if len(figures) > 1 else [*figures.values()] * 2
    shown = Table(title=title)
    shown.add_column("")
    for name in figures:
        shown.add_column(name, justify="right")
    shown.add_column("ratio", justify="right")
    for row in dict.fromkeys(name for of in figures.values() for name in of):
        values = [of.get(row) for of in figures.values()]
        ratio = last[row] / first[row] if first.get(row) and row in last else None
        shown.add_row(
            row,
            *("" if value is None else _shown(row, value) for value in values),
            "" if ratio is None else f"{ratio:.2f}x",
        )
    return shown


def section(before: Figures, after: Figures) -> dict[str, float]:
    """Return the figures as a section of a model card: each, and what it was before."""
    return {**after, **{f"{name}, before": value for name, value in before.items()}}


def _shown(row: str, value: float) -> str:
    if row.startswith((*SCORES.values(), RMSE)):
        return f"{value:.3f}"
    return f"{value:,.0f}" if value >= 1000 or value == round(value) else f"{value:.3g}"


def _size(manifest: Manifest, form: str) -> int:
    """Return the bytes of a variant's graph and of the weights that it takes."""
    variant = manifest.variants[form]
    weights = () if variant.weights == INSIDE else (variant.weights,)
    return sum(manifest.files[file].size for file in (variant.file, *weights))


def _latencies(models: Mapping[str, Mapping[str, Callable[[], object]]]) -> dict[str, Figures]:
    """Return the time of a call by model and form, us: the shortest of several turns.

    What else a machine does only adds to it; models take turns, so that all get their share of quiet moments.
    """
    found: dict[str, Figures] = {name: {} for name in models}
    for kind in dict.fromkeys(kind for calls in models.values() for kind in calls):
        calls = {name: of[kind] for name, of in models.items() if kind in of}
        counts = {name: max(1, int(_CHUNK_S / max(_seconds(call, 3), 1e-7))) for name, call in calls.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(_CHUNKS):
            for name, call in calls.items():
                times[name].append(_seconds(call, counts[name]))
        for name, each in times.items():
            found[name][kind] = 1e6 * min(each)
    return found


def _seconds(call: Callable[[], object], count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begin) / count

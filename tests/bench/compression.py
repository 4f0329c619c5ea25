"""Smaller and cheaper models: accuracy, bytes, latency, what travels and its noise, each beside the whole model.

For digits and activity: channels pruned by taylor, the same channels cut and the rest taught by the whole
model, and adaptation to data that has changed: to digits turned by 90 degrees, and to phones carried in the
hand by people unknown before. What pretraining brings is in labels.py.

Usage: python tests/bench/compression.py [PNG]     a PNG draws the figures too
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass, replace

import numpy as np
from harness import OUT, Report, often
from torch import nn

from umbel_models.adapt import freeze, head, low_rank
from umbel_models.compare import Figures, Rounds, measure, with_module
from umbel_models.distill import distill
from umbel_models.exported import exported
from umbel_models.fit import accuracy, fit
from umbel_models.pack import build
from umbel_models.prune import cut, prune
from umbel_models.task import Examples, Task, find
from umbel_models.tasks.activity.data import windows
from umbel_models.tasks.activity.people import Drift
from umbel_proto.keys import SigningKey
from umbel_proto.package import Package, read_package

KEY = SigningKey.generate()
EPOCHS = {"digits": 40, "activity": 12}
HOW = {"batch_size": 32, "learning_rate": 2e-3, "seed": 0}
FRACTIONS = (0.5, 0.75)
RANK = 4
CHANGED = 300
"""Examples of what has changed, to adapt with."""

SHOWN = (
    "accuracy, fp32",
    "accuracy, int8",
    "bytes, fp32",
    "bytes, tflite-int8",
    "us a prediction, fp32",
    "us a prediction, tflite",
    "us a prediction, tflite-int8",
    "parameters sent in a round",
    "bytes sent in a round",
    "DP error of an update, clips",
)


@dataclass(frozen=True, slots=True, eq=False)
class Changed:
    """Data that is no longer what the model learned from: some to adapt with, the rest to judge by."""

    few: Examples
    held_out: Examples


def packed(task: Task, modules: dict[str, nn.Module]) -> dict[str, Package]:
    """Return each network's package. Exporting takes longest, so networks that differ in values only share graphs."""
    known = {str(task.module()): task.committed()} if task.committed else {}
    packages = {}
    for name, module in modules.items():
        if str(module) not in known:
            known[str(module)] = exported(with_module(task, module), progress=print).files
        made = build(with_module(task, module, graphs=known[str(module)]), key=KEY, lite=True)
        packages[name] = read_package(made, release_key=KEY.public)
    return packages


def only(package: Package, names: tuple[str, ...]) -> Package:
    """Return the package as if training changed only some parameters: it predicts the same, and less travels."""
    parameters = package.manifest.parameters
    few, rest = ([p for p in parameters if (p.name in names) is kept] for kept in (True, False))
    return replace(package, manifest=replace(package.manifest, parameters=tuple(few), frozen=tuple(rest)))


def changed(name: str) -> Changed:
    if name == "digits":
        parts = find(name).data()
        turned = [Examples(np.rot90(p.x, axes=(2, 3)).copy(), p.y) for p in (parts.train, parts.held_out)]
        return Changed(turned[0].take(np.arange(CHANGED)), turned[1])
    drift = Drift(placement="hand")
    few = windows(1, range(5), per_activity=CHANGED // 30, drift=drift)
    return Changed(few, windows(1, range(5, 30), drift=drift))


def compressed(name: str, report: Report) -> dict[str, Figures]:
    task, how = find(name), {**HOW, "epochs": often(EPOCHS[name])}
    data = task.data()
    whole = fit(task.module(), task.loss, data.train, **how)
    modules: dict[str, nn.Module] = {"whole": whole}
    for fraction in FRACTIONS:
        modules[f"pruned {fraction:.0%}"] = prune(whole, task.loss, data.train, fraction=fraction, **how)
    shape = data.train.x.shape[1:]
    student = cut(whole, shape, fraction=FRACTIONS[-1], loss=task.loss, examples=data.train)
    modules[f"distilled {FRACTIONS[-1]:.0%}"] = distill(whole, student, task.loss, data.train, **how)
    modules[f"rank {RANK}"] = low_rank(whole, RANK)
    packages = packed(task, modules)
    packages["head"] = only(packages["whole"], head(whole))
    figures = measure(packages, data, Rounds())
    for each, of in figures.items():
        for row in SHOWN:
            if row in of:
                base = None if each == "whole" else figures["whole"][row]
                report.value(f"{name}, {each}: {row}", of[row], unit="", baseline=base)
    adapted(name, task, whole, report)
    return figures


def adapted(name: str, task: Task, whole: nn.Module, report: Report) -> None:
    new = changed(name)
    before = accuracy(whole, new.held_out)
    for way, module in {
        "whole": copy.deepcopy(whole).requires_grad_(),
        f"rank {RANK}": low_rank(whole, RANK),
        "head": freeze(whole, head(whole)),
    }.items():
        rate = 5e-3 if way == "whole" else 2e-2  # what suits each: corrections begin at 0, and are few
        trained = fit(module, task.loss, new.few, **{**HOW, "epochs": often(40), "learning_rate": rate})
        report.value(
            f"{name}, {way} adapted to what changed: accuracy",
            accuracy(trained, new.held_out),
            unit="",
            baseline=before,
        )


def draw(figures: dict[str, dict[str, Figures]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = {
        "accuracy, fp32": "accuracy on held-out data",
        "bytes, fp32": "bytes, fp32",
        "us a prediction, fp32": "us a prediction, onnxruntime",
        "DP error of an update, clips": "noise in an update, clips",
    }
    figure, axes = plt.subplots(len(figures), len(rows), figsize=(13, 5.6), layout="constrained")
    for line, (name, models) in zip(axes, figures.items(), strict=True):
        for axis, (row, title) in zip(line, rows.items(), strict=True):
            values = [of[row] for of in models.values()]
            bars = axis.barh(list(models), values, color=["#0b2e4a", *["#7fb3d5"] * (len(models) - 1)])
            axis.bar_label(
                bars,
                [f"{v:.3f}" if v < 1 else f"{v:,.3g}" if v < 1e3 else f"{v:,.0f}" for v in values],
                padding=2,
                fontsize=8,
            )
            axis.invert_yaxis()
            axis.margins(x=0.25)
            axis.set_title(f"{name}: {title}", fontsize=9)
            axis.tick_params(labelsize=8)
            axis.set_xticks([])  # the bars say it
            axis.spines[["top", "right"]].set_visible(False)
            if axis is not line[0]:
                axis.set_yticklabels([])
    figure.savefig(path, dpi=130)


def main() -> None:
    report = Report("compression")
    figures = {}
    for name in EPOCHS:
        with report.part(name):
            figures[name] = compressed(name, report)
    if len(figures) == len(EPOCHS):
        draw(figures, sys.argv[1] if len(sys.argv) > 1 else str(OUT / "compression.png"))
    report.finish()


if __name__ == "__main__":
    main()

"""What pretraining without labels brings: accuracy against labels, and rounds over people with few of them.

Activity: 80 people's windows without labels, then some of them labelled, judged by 24 others and by the same with
armbands, a placement nobody had before. Beside it the same network from its initial values, whose learning rate
(0.001 of 0.0003, 0.001 and 0.003) and epochs (40 of 40 and 120) were the best for 20 of the 80 people that were held
back for choosing, as were all settings here. Draws of labels are 5, which two pretrainings take in turn; half widths
are of 95 % intervals over them.

Rounds: each person's device has one labelled window of each activity. Device-level privacy at epsilon 8 over all the
rounds; updates are clipped, and noise is what the rounds' plan leaves in their mean. Learning rate and clip are chosen,
of a few, by 20 people who neither train nor judge.

Students: a network with a quarter of the channels, from scratch, with five labels each or taught by the tuned one.

Usage: python tests/bench/labels.py [PNG]     a PNG draws the figures too
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping

import numpy as np
from harness import OUT, Report, often
from numpy.typing import NDArray
from torch import nn

from umbel._data.examples import Examples as DeviceExamples
from umbel.train import TrainPlan
from umbel.train.local import train_locally
from umbel.train.onnx import OnnxTrainer
from umbel_models.adapt import freeze, head
from umbel_models.compare import with_module
from umbel_models.distill import distill
from umbel_models.federated import by_source
from umbel_models.fit import accuracy, fit
from umbel_models.pack import build
from umbel_models.pretrain import few_labels, pretrain, tune
from umbel_models.prune import cut
from umbel_models.task import Examples, Split, Task, find
from umbel_models.tasks.activity.data import windows
from umbel_models.tasks.activity.people import Drift
from umbel_proto.ids import DeviceId
from umbel_proto.keys import SigningKey
from umbel_proto.package import Package, read_package
from umbel_proto.privacy.plan import plan

LABELS = (1, 2, 5, 10, 20)
SEEDS, PRETRAININGS = 5, 2
T95 = 2.776
"""Of Student's distribution with SEEDS - 1 degrees of freedom."""

SCRATCH = {"epochs": 40, "batch_size": 10, "learning_rate": 1e-3}
PEOPLE, OTHERS, CHOOSING = range(80), range(80, 104), range(110, 130)
ROUNDS, EPSILON, DELTA = 10, 8.0, 1e-6
ARMS = Drift(placement="arm")
COLORS = {"from scratch": "#777777", "moments": "#cf8f1c", "spectra": "#0b2e4a"}

Curve = dict[str, list[tuple[float, float]]]
"""By way: mean accuracy and half width for each of LABELS."""


def ready(task: Task, x: NDArray[np.float32], seeds: int) -> dict[str, list[nn.Module]]:
    """Return networks pretrained in each way, one for each seed."""
    return {
        tell: [pretrain(task.module(), x, tell=tell, epochs=often(15), seed=seed) for seed in range(seeds)]
        for tell in ("moments", "spectra")
    }


def curves(
    task: Task,
    pool: Examples,
    judges: Mapping[str, Examples],
    networks: Mapping[str, list[nn.Module]],
    seeds: int,
) -> dict[str, Curve]:
    """Return the curve of each way, by what it is judged on."""
    found: dict[str, Curve] = {name: {} for name in judges}
    for way in COLORS:
        for each in LABELS:
            tuned = []
            for seed in range(seeds):
                few = few_labels(pool, each, seed=seed)
                if way == "spectra":
                    tuned.append(tune(networks[way][seed % len(networks[way])], task.loss, few, seed=seed))
                else:
                    start = networks[way][seed % len(networks[way])] if way in networks else task.module()
                    tuned.append(fit(start, task.loss, few, seed=seed, **SCRATCH))  # type: ignore[arg-type]
            for name, judge in judges.items():
                rates = [accuracy(module, judge) for module in tuned]
                half = T95 * float(np.std(rates, ddof=1)) / len(rates) ** 0.5 if len(rates) > 1 else 0.0
                found[name].setdefault(way, []).append((float(np.mean(rates)), half))
    return found


def told(report: Report, found: Mapping[str, Curve]) -> None:
    for name, curve in found.items():
        for place, each in enumerate(LABELS):
            base = curve["from scratch"][place][0]
            for way, points in curve.items():
                mean, half = points[place]
                report.value(f"{name}, {each} labels each, {way}: accuracy", mean, unit="", baseline=base)
                report.value(f"{name}, {each} labels each, {way}: half width", half, unit="")


def packed(task: Task, module: nn.Module) -> Package:
    key = SigningKey.generate()
    return read_package(build(with_module(task, module), key=key), release_key=key.public)


def rounds(
    package: Package,
    shards: Mapping[DeviceId, DeviceExamples],
    judge: Examples,
    module: nn.Module,
    *,
    learning_rate: float,
    clip: float | None,
    seed: int,
) -> list[float]:
    """Return the accuracy before, and after each round in which every device takes part.

    Args:
        package: Whose trainable parameters travel.
        shards: Each device's labelled windows.
        judge: What accuracy is measured on.
        module: The network of the package.
        learning_rate: Of the devices' descent.
        clip: Largest L2 norm of an update, with noise for EPSILON; None for neither.
        seed: Of the order of windows, and of the noise, which is the benchmark's only.
    """
    trainer, current = OnnxTrainer(package), package.parameters()
    chance = np.random.default_rng(seed)
    devices = len(shards)
    # The standard deviation of a coordinate of the mean, in clips.
    error = plan(
        dim=len(current),
        clip=1.0,
        devices=devices,
        honest=devices,
        participations=ROUNDS,
        epsilon=EPSILON,
        delta=DELTA,
    ).error
    how = TrainPlan(3, 6, learning_rate, 0.9, seed, optimizer="adam")
    module = copy.deepcopy(module)
    rates = [accuracy(module, judge)]
    for number in range(1, often(ROUNDS) + 1):
        total = np.zeros_like(current)
        for device, own in shards.items():
            made = train_locally(trainer, current, own, how, round_=number, device=device)
            update = made.parameters - current
            norm = float(np.linalg.norm(update))
            total += update if clip is None or norm <= clip else update * np.float32(clip / norm)
        mean = total / np.float32(devices)
        if clip is not None:
            mean += chance.normal(0, error * clip, len(mean)).astype(np.float32)
        current = current + mean
        fill(module, package, current)
        rates.append(accuracy(module, judge))
    return rates


def fill(module: nn.Module, package: Package, current: NDArray[np.float32]) -> None:
    import torch

    values = dict(module.named_parameters())
    with torch.no_grad():
        for name, array in package.split(current).items():
            values[name].copy_(torch.from_numpy(np.array(array)))


def federated(
    report: Report, task: Task, pretrained: nn.Module, seeds: int
) -> dict[str, NDArray[np.float64]]:
    """Return the accuracy after each round by way, mean of the seeds."""
    data, choosing = task.data(), windows(0, CHOOSING, per_activity=5)
    drawn = [people(data.train, seed) for seed in range(seeds + 1)]  # the last for choosing
    starts = {
        "from scratch, all sent": task.module(),
        "from scratch, last layer sent": freeze(task.module(), head(task.module())),
        "pretrained, last layer sent": freeze(pretrained, head(pretrained)),
    }
    found = {}
    for name, start in starts.items():
        package = packed(task, start)
        for private in (False, True):
            ways = [(rate, clip) for rate in (1e-3, 1e-2) for clip in ((0.3, 1.0) if private else (None,))]
            tried = {
                way: rounds(
                    package, drawn[-1], choosing, start, learning_rate=way[0], clip=way[1], seed=seeds
                )
                for way in ways
            }
            rate, clip = max(tried, key=lambda way: tried[way][-1])
            rates = np.array(
                [
                    rounds(
                        package, drawn[seed], data.held_out, start, learning_rate=rate, clip=clip, seed=seed
                    )
                    for seed in range(seeds)
                ]
            )
            full = f"{name}, epsilon {EPSILON:g}" if private else name
            found[full] = rates.mean(0)
            for number in sorted({1, 3, often(ROUNDS)} & set(range(rates.shape[1]))):
                report.value(f"{full}, round {number}: accuracy", float(rates[:, number].mean()), unit="")
            report.value(f"{full}: standard deviation over seeds", float(rates[:, -1].std()), unit="")
            report.value(f"{full}: parameters sent", package.manifest.dim, unit="")
            print(full, "learning rate and clip", rate, clip, np.round(found[full], 3), flush=True)
            report.write()
    return found


def people(pool: Examples, seed: int) -> dict[DeviceId, DeviceExamples]:
    """Return one labelled window of each activity for each person; the seed draws which."""
    shards = by_source(pool, len(PEOPLE), seed=0)
    few = [few_labels(own, 1, seed=1000 * seed + number) for number, own in enumerate(shards)]
    return {DeviceId(f"dev-{number}"): DeviceExamples(own.x, own.y) for number, own in enumerate(few)}


def students(report: Report, task: Task, data: Split, networks: list[nn.Module], seeds: int) -> None:
    """Report what a student a sixteenth as large gets from five labels each: itself, or by way of a teacher.

    The teacher has the same labels, was pretrained, and says what it thinks of the windows without labels.
    """
    small = cut(task.module(), data.train.x.shape[1:], fraction=0.75)
    rates = []
    for seed in range(seeds):
        few = few_labels(data.train, 5, seed=seed)
        teacher = tune(networks[seed % len(networks)], task.loss, few, seed=seed)
        alone = fit(small, task.loss, few, epochs=60, batch_size=10, learning_rate=6e-3, seed=seed)
        taught = distill(
            teacher, small, task.loss, data.train, soft=1.0, epochs=often(5), learning_rate=6e-3, seed=seed
        )
        rates.append([accuracy(module, data.held_out) for module in (alone, taught, teacher)])
        print("student alone, taught, teacher", np.round(rates[-1], 3), flush=True)
    mean, gain = np.mean(rates, 0), [taught - alone for alone, taught, _ in rates]
    report.value("student taught without labels: accuracy", float(mean[1]), unit="", baseline=float(mean[0]))
    report.value("its teacher: accuracy", float(mean[2]), unit="")
    half = T95 * float(np.std(gain, ddof=1)) / seeds**0.5 if seeds > 1 else 0.0
    report.value("student taught without labels: half width of the gain", half, unit="")


def draw(found: Mapping[str, Curve], rates: Mapping[str, NDArray[np.float64]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found) + 1, figsize=(14, 4.4), layout="constrained", sharey=True)
    names = {
        "from scratch": "from scratch",
        "moments": "pretrained on hidden moments",
        "spectra": "pretrained on spectra, last layer trained",
    }
    for axis, (name, curve) in zip(axes, found.items(), strict=False):
        for way, points in curve.items():
            mean, half = np.array(points).T
            axis.errorbar(LABELS, mean, half, color=COLORS[way], label=names[way], marker="o", capsize=3)
        axis.set_xscale("log", base=2)
        axis.set_xticks(LABELS, [str(each) for each in LABELS])
        axis.set_xlabel("labelled windows of each activity")
        axis.set_title(name, fontsize=10)
    axes[0].set_ylabel("accuracy")
    axes[0].legend(fontsize=8, loc="upper left")
    for name, line in rates.items():
        color = COLORS["spectra" if name.startswith("pretrained") else "from scratch"]
        axes[-1].plot(line, color=color, linestyle="--" if "epsilon" in name else "-", label=name, marker=".")
    axes[-1].set_xlabel("rounds over 80 people's devices, six labels on each")
    axes[-1].set_title("new people, in rounds", fontsize=10)
    axes[-1].legend(fontsize=8, loc="lower right")
    for axis in axes:
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    report = Report("labels")
    task, seeds = find("activity"), often(SEEDS)
    data = task.data()
    networks = ready(task, data.train.x, min(seeds, PRETRAININGS))
    judges = {"new people": data.held_out, "new people with armbands": windows(0, OTHERS, drift=ARMS)}
    found: dict[str, Curve] = {}
    rates: dict[str, NDArray[np.float64]] = {}
    with report.part("curves"):
        found = curves(task, data.train, judges, networks, seeds)
        told(report, found)
    with report.part("rounds"):
        rates = federated(report, task, networks["spectra"][0], min(seeds, 2))
    with report.part("students"):
        students(report, task, data, networks["spectra"], seeds)
    report.finish()
    OUT.mkdir(parents=True, exist_ok=True)
    draw(found, rates, sys.argv[1] if len(sys.argv) > 1 else str(OUT / "labels.png"))


if __name__ == "__main__":
    main()

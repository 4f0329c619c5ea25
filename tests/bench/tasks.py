"""What a plain training on the workbench reaches on each reference task, and what drift and gaps do to it.

Training is ``fit`` with the numbers in ``TRAINING``; accuracy is of held-out people, masses or digits. The
generator's speed counts reading and rounding as well. Seeds are fixed, so figures other than speed repeat.
Takes about two minutes of one core.

Usage: python tests/bench/tasks.py [DIRECTORY FOR activity.png AND credit.png]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from harness import Report
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import nn

from umbel_models.fit import accuracy, fit, predict
from umbel_models.task import Examples, Split, Task, find
from umbel_models.tasks.activity.data import PEOPLE, SAMPLES, windows
from umbel_models.tasks.activity.motion import ACTIVITIES
from umbel_models.tasks.activity.people import PLACEMENTS, Drift, person
from umbel_models.tasks.activity.sensor import SAMPLE_HZ
from umbel_models.tasks.credit.data import DEFAULT, FAIR, A, B, Gap, applications, split

TRAINING = {"digits": (30, 3e-3), "breast-cancer": (100, 3e-3), "credit": (5, 1e-3), "activity": (15, 1e-3)}
BATCH = 32
JUDGED = 1  # seed of people who are in no part of the task's own data
HELD_OUT = range(PEOPLE[0], PEOPLE[0] + PEOPLE[1])
DRIFTS = {
    "no drift": Drift(),
    "clock 5 % fast": Drift(clock=0.05),
    "clock 15 % fast": Drift(clock=0.15),
    "accelerometer bias 1 m/s^2": Drift(accelerometer_bias=1),
    "accelerometer bias 3 m/s^2": Drift(accelerometer_bias=3),
    "gyroscope bias 0.3 rad/s": Drift(gyroscope_bias=0.3),
    "gyroscope bias 1 rad/s": Drift(gyroscope_bias=1),
    "on the arm": Drift(placement="arm"),
    "turned by 45 degrees": Drift(turned=45),
    "turned by 180 degrees": Drift(turned=180),
    "20 years older": Drift(years=20),
    "40 years older": Drift(years=40),
    "on ice": Drift(winter=1),
}
KNOBS = {
    "base_rate": (0.0, 0.1, 0.2, 0.3),
    "measurement": (0.0, 0.4, 0.7, 1.0),
    "proxy": (0.0, 0.3, 0.6, 0.9),
}


def trained(task: Task, data: Split) -> nn.Module:
    epochs, rate = TRAINING[task.model]
    return fit(
        task.module(), task.loss, data.train, epochs=epochs, batch_size=BATCH, learning_rate=rate, seed=0
    )


def activity(report: Report, model: nn.Module, data: Split) -> None:
    begin = time.process_time()
    count = len(windows(1, range(20)).y)
    report.value("windows generated", count / (time.process_time() - begin), unit="/s", at_least=2000)
    found = predict(model, data.held_out.x).argmax(1)
    places = np.array([person(0, int(number), Drift()).placement for number in data.held_out.source])
    for place in np.unique(places):
        rows = places == place
        report.value(f"activity, {place}", float((found == data.held_out.y)[rows].mean()), unit="")
    for label, name in enumerate(ACTIVITIES):
        rows = data.held_out.y == label
        report.value(f"activity, {name}", float((found == label)[rows].mean()), unit="")
    for name, drift in DRIFTS.items():
        report.value(f"activity, {name}", accuracy(model, windows(0, HELD_OUT, drift=drift)), unit="")


def judged(model: nn.Module, examples: Examples) -> dict[str, float]:
    """Figures of cohort A and B: area under the curve, and how often who would repay is refused."""
    risk = np.diff(predict(model, examples.x), axis=1)[:, 0]
    figures = {}
    for name, number in (("A", A), ("B", B)):
        rows = examples.cohort == number
        y, told = examples.y[rows], risk[rows]
        figures[f"area {name}"] = float(roc_auc_score(y, told))
        figures[f"refused {name}"] = float((told[y != DEFAULT] > 0).mean())
    return figures


def credit(report: Report) -> dict[str, list[tuple[float, dict[str, float]]]]:
    task = find("credit")
    found: dict[str, list[tuple[float, dict[str, float]]]] = {}
    for knob, values in KNOBS.items():
        found[knob] = []
        for value in values:
            # Alone a proxy does no harm: it tells what a base rate is about.
            rest = {"proxy": 0.9} if knob == "base_rate" else {"base_rate": 0.2} if knob == "proxy" else {}
            gap = Gap(**{"base_rate": 0.0, "measurement": 0.0, "proxy": 0.0, **rest, knob: value})
            figures = judged(trained(task, split(gap)), applications(JUDGED, 40_000, gap=gap))
            found[knob].append((value, figures))
            for name in ("area", "refused"):
                report.value(
                    f"credit, {knob} {value:g}, {name} B",
                    figures[f"{name} B"],
                    unit="",
                    baseline=figures[f"{name} A"],
                )
    return found


def draw_activity(path: Path) -> None:
    seconds = np.arange(SAMPLES) / SAMPLE_HZ
    figure, axes = plt.subplots(
        len(ACTIVITIES), len(PLACEMENTS), figsize=(13, 11), sharex=True, sharey="row", layout="constrained"
    )
    for column, place in enumerate(PLACEMENTS):
        x = windows(0, [5], per_activity=1, drift=Drift(placement=place)).x
        for row, name in enumerate(ACTIVITIES):
            axis = axes[row, column]
            for channel, label in zip((6, 7, 8), "xyz", strict=True):
                axis.plot(seconds, x[row, :, channel], lw=1, label=label)
            axis.plot(seconds, x[row, :, 3], lw=0.8, color="black", alpha=0.6, label="angular rate x")
            axis.set_title(f"{name}, {place}", fontsize=9)
            axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=7, ncols=2)
    figure.supxlabel("seconds")
    figure.supylabel("total acceleration m/s$^2$, and angular rate rad/s (black)")
    figure.savefig(path, dpi=90)


def draw_credit(found: dict[str, list[tuple[float, dict[str, float]]]], path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    shown = (
        ("base_rate", "refused", "people who would repay and are refused", "base rate gap (proxy 0.9)"),
        ("measurement", "area", "area under the curve", "measurement gap"),
        ("proxy", "refused", "people who would repay and are refused", "proxy (base rate gap 0.2)"),
    )
    for axis, (knob, figure_name, label, title) in zip(axes, shown, strict=True):
        values = [value for value, _ in found[knob]]
        for cohort, color in (("A", "#1f618d"), ("B", "#c0392b")):
            points: NDArray[np.float64] = np.array(
                [each[f"{figure_name} {cohort}"] for _, each in found[knob]]
            )
            axis.plot(values, points, "o-", color=color, label=f"cohort {cohort}")
        axis.set_xlabel(title)
        axis.set_ylabel(label)
        axis.set_ylim(*((0, 0.25) if figure_name == "refused" else (0.7, 0.95)))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=90)


def main(images: Path | None) -> None:
    report = Report("tasks")
    for name in TRAINING:
        task = find(name)
        data = task.data()
        model = trained(task, data)
        report.value(f"{name}, held out", accuracy(model, data.held_out), unit="")
        if name == "activity":
            activity(report, model, data)
    report.value(
        "credit without gaps, held out",
        accuracy(trained(find("credit"), split(FAIR)), split(FAIR).held_out),
        unit="",
    )
    found = credit(report)
    report.finish()
    if images is not None:
        draw_activity(images / "activity.png")
        draw_credit(found, images / "credit.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)

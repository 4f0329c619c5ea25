"""A picture of an assessment: confidence, disturbances, what decides, and what fairer training reaches."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np

# Before pyplot: a workbench may have no screen.
mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from umbel_models.calibration import BINS, Scores, softmax
from umbel_models.responsible.report import Assessment
from umbel_models.responsible.robustness import CORRUPTIONS

BARS = 10


def picture(found: Assessment, *, title: str) -> bytes:
    """Return a picture of an assessment, a PNG file."""
    panels = [_confidence, _disturbances, _importance] + ([_fairness] if found.outcomes else [])
    rows = (len(panels) + 1) // 2 if len(panels) > 3 else 1
    figure, axes = plt.subplots(rows, len(panels) // rows, figsize=(4.6 * len(panels) // rows, 3.8 * rows))
    for axis, panel in zip(axes.ravel(), panels, strict=True):
        panel(axis, found)
    figure.suptitle(title)
    figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=130)
    plt.close(figure)
    return drawn.getvalue()


def _confidence(axis: Axes, found: Assessment) -> None:
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    warm = found.scores._replace(logits=found.scores.logits / found.calibration.temperature)
    for name, scores, marker in (("before", found.scores, "o"), ("after", warm, "s")):
        sure, right = _reliability(scores)
        axis.plot(sure, right, marker=marker, markersize=4, label=f"{name} temperature")
    axis.set(xlabel="confidence", ylabel="share that is right", title="Calibration on held-out data")
    axis.legend(frameon=False)


def _reliability(scores: Scores) -> tuple[list[float], list[float]]:
    probabilities = softmax(scores.logits)
    sure, right = probabilities.max(1), probabilities.argmax(1) == scores.y
    cell = np.minimum((sure * BINS).astype(int), BINS - 1)
    # A cell of a few examples says little, and draws the eye.
    cells = [each for each in range(BINS) if (cell == each).sum() >= 10]
    return [float(sure[cell == each].mean()) for each in cells], [
        float(right[cell == each].mean()) for each in cells
    ]


def _disturbances(axis: Axes, found: Assessment) -> None:
    for name, by_strength in found.robustness.disturbed.items():
        style = "-" if name in CORRUPTIONS else "--"
        axis.plot([0, *by_strength], [found.robustness.clean.value, *by_strength.values()], style, label=name)
    axis.set(xlabel="strength", ylabel="accuracy", ylim=(0, 1.02), title="Attacks (dashed) and corruptions")
    axis.legend(frameon=False, fontsize=7)


def _importance(axis: Axes, found: Assessment) -> None:
    names = list(found.importance)[:BARS][::-1]
    values = [found.importance[name] for name in names]
    errors = [[each.value - each.low for each in values], [each.high - each.value for each in values]]
    axis.barh(names, [each.value for each in values], xerr=errors, color="0.75", ecolor="0.3")
    axis.set(xlabel="accuracy lost when shuffled", title="What decides")


def _fairness(axis: Axes, found: Assessment) -> None:
    for name, each in found.outcomes.items():
        odds, right = each.odds, each.accuracy
        across = [[odds.value - odds.low], [odds.high - odds.value]]
        along = [[right.value - right.low], [right.high - right.value]]
        drawn = axis.errorbar(
            odds.value, right.value, xerr=across, yerr=along, marker="o", capsize=2, label=name
        )
        axis.plot(each.parity.value, right.value, "s", mfc="none", color=drawn.lines[0].get_color())
    title = "Fairer training"
    axis.set(xlabel="gap: dots equalized odds, squares parity", ylabel="accuracy", title=title)
    axis.set_xlim(left=0)
    axis.legend(frameon=False, fontsize=8)

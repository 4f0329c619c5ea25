"""A run as a picture: what it learned, by whose account, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from umbel_proto.errors import StorageError
from umbel_server.learning.norms import WORDS, Share, histogram
from umbel_server.store.runs import RoundRecord, RunRecord

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator, PercentFormatter

BLUE, GREEN, RED, GRAY = "#0b5fa5", "#2e7d32", "#a3330b", "#5a5a5a"


def draw(record: RunRecord, rounds: Sequence[RoundRecord], path: Path) -> None:
    """Draw a run's opened rounds as a PNG: held-out accuracy, the devices' own metrics, epsilon, lengths of updates.

    Raises:
        StorageError: The file cannot be written.
    """
    opened = [each for each in rounds if each.state == "opened"]
    numbers = [each.round for each in opened]
    lengths = {
        each.round: shares for each in opened if (shares := histogram(each.figures.get("metrics") or {}))
    }
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        heights = (3, 2, 2, 2) if lengths else (3, 2, 2)
        figure, axes = plt.subplots(
            len(heights), 1, figsize=(8, 8 + 2 * bool(lengths)), sharex=True, height_ratios=heights, layout="constrained"
        )  # fmt: skip
        top, middle, bottom = axes[:3]
        held = [(each.round, each.figures["accuracy"]) for each in opened if "accuracy" in each.figures]
        if held:
            top.plot(*zip(*held, strict=True), "o-", color=BLUE, lw=2, label="held out, after the round")
        for axis, name, color in (
            (top, "accuracy", GREEN),
            (middle, "loss", GREEN),
            (middle, "training_loss", GRAY),
        ):
            found = [
                (each.round, metric["mean"], metric["error"])
                for each in opened
                if (metric := (each.figures.get("metrics") or {}).get(name))
            ]
            if found:
                xs, means, errors = zip(*found, strict=True)
                label = "devices' own data, before it" if axis is top else name.replace("_", " ")
                axis.errorbar(xs, means, errors, fmt="s--", color=color, lw=1.2, capsize=3, ms=4, label=label)
        top.set(ylabel="accuracy", ylim=(0, 1.04))
        top.set_title(f"Run {record.id}", loc="left", fontweight="bold")
        middle.set(ylabel="loss (devices)")
        middle.axhline(0, color=GRAY, lw=0.7)  # Noise may take a small mean below.
        spent = [each.figures.get("epsilon_server") for each in opened]
        if all(value is not None for value in spent):
            bottom.plot(numbers, spent, "s-", color=RED, lw=2)
            bottom.set_ylim(bottom=0)
        else:
            bottom.text(0.5, 0.5, "infinite: there was no noise", transform=bottom.transAxes, ha="center")
        bottom.set(ylabel="epsilon of a device\n(against the server)")
        if lengths:
            scale = _draw_lengths(axes[3], lengths)
            # Beside all of them: a round is in one place in each.
            figure.colorbar(
                scale, ax=list(axes), shrink=0.22, anchor=(0, 0), label="share", format=PercentFormatter(1, decimals=0)
            )  # fmt: skip
        axes[-1].set(xlabel="round")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in (top, middle, bottom):
            axis.grid(axis="y", color="#dddddd", lw=0.7)
            axis.set_axisbelow(True)
            if axis.get_legend_handles_labels()[0]:
                axis.legend(frameon=False, fontsize=8.5)
        draft = path.with_name(path.name + ".part")
        try:
            figure.savefig(draft, dpi=130, format="png")
            draft.replace(path)
        except OSError as exc:
            raise StorageError(f"{path} cannot be written: {exc.strerror}.") from exc
        finally:
            plt.close(figure)


def _draw_lengths(axis: Axes, lengths: Mapping[int, Sequence[Share]]) -> ScalarMappable:
    """Draw a column of cells for each round that asked for norms, the longest updates on top; return their scale."""
    shares = np.array([[share.value for share in found] for found in lengths.values()])
    # Noise may take a share out of [0, 1]: it has the color of the end it passed.
    scale = ScalarMappable(Normalize(0.0, min(float(shares.max()), 1.0), clip=True), "Blues")
    for number, values in zip(lengths, shares, strict=True):
        axis.bar(
            [number] * len(WORDS), [1] * len(WORDS), width=1.0, bottom=range(len(WORDS)), color=scale.to_rgba(values)
        )  # fmt: skip
    axis.set(ylabel="length before the clip\n(clips of the round)", ylim=(0, len(WORDS)))
    axis.set_yticks([place + 0.5 for place in range(len(WORDS))], WORDS)
    return scale

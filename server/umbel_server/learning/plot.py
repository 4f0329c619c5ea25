"""A run as a picture: what it learned, by whose account, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

from umbel_proto.errors import StorageError
from umbel_server.store.runs import RoundRecord, RunRecord

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

BLUE, GREEN, RED, GRAY = "#0b5fa5", "#2e7d32", "#a3330b", "#5a5a5a"


def draw(record: RunRecord, rounds: Sequence[RoundRecord], path: Path) -> None:
    """Draw a run's opened rounds as a PNG: held-out accuracy, the devices' own metrics, epsilon.

    Raises:
        StorageError: The file cannot be written.
    """
    opened = [each for each in rounds if each.state == "opened"]
    numbers = [each.round for each in opened]
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, (top, middle, bottom) = plt.subplots(
            3, 1, figsize=(8, 8), sharex=True, height_ratios=(3, 2, 2), layout="constrained"
        )
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
        bottom.set(xlabel="round", ylabel="epsilon of a device\n(against the server)")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
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

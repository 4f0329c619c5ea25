"""Draw what training.py measured last: time and memory of a step beside torch and both ways of Opacus.

Usage: python tests/bench/models_plot.py docs/images/models.png
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from harness import OUT
from matplotlib.axes import Axes
from tables import when

DARK, PALE, TORCH, HOOKS, GHOST = "#0b2e4a", "#5d9ac7", "#777777", "#b9600b", "#cf8f1c"
TARGET = "crimson"
Row = dict[str, Any]
Networks = dict[str, dict[str, Row]]


@dataclass(frozen=True, slots=True)
class Series:
    """One figure of each network.

    Args:
        label: What the points are.
        row: The name of its row, without the network.
        field: Of the row: ``value`` is ours, ``baseline`` the other's, or their ``ratio``.
        color: Of its points.
        offset: Where the figure stands from its point, in points of print; None for no figure.
    """

    label: str
    row: str
    field: str
    color: str
    offset: tuple[int, int] | None


STEP = (Series("umbel over torch", "SGD, torch", "ratio", TORCH, (-4, 5)),)
PRIVATE = (
    Series("umbel over Opacus, hooks", "DP-SGD, Opacus", "ratio", HOOKS, (-4, 5)),
    Series("umbel over Opacus, ghost clipping", "DP-SGD, Opacus ghost", "ratio", GHOST, (-4, -5)),
)
MEMORY = (
    Series("Opacus, ghost clipping", "peak RSS of DP-SGD, Opacus ghost", "baseline", GHOST, None),
    Series("Opacus, hooks", "peak RSS of DP-SGD, Opacus", "baseline", HOOKS, (0, -5)),
    Series("torch, SGD", "peak RSS of the process that trains, torch", "baseline", TORCH, (2, 5)),
    Series("umbel, DP-SGD", "peak RSS of DP-SGD, of SGD", "value", PALE, (2, -5)),
    Series("umbel, SGD", "peak RSS of the process that trains, torch", "value", DARK, (-2, 5)),
)


def measured(report: dict[str, Any]) -> Networks:
    """Return the figures of each network."""
    networks: Networks = {}
    for row in report["rows"]:
        network, _, what = row["name"].partition(", ")
        networks.setdefault(network, {})[what.removesuffix(" beside it")] = row
    return networks


def called(network: str, rows: dict[str, Row]) -> str:
    if "parameters" not in rows:
        return network
    count = rows["parameters"]["value"]
    return f"{network}\n{f'{count / 1e6:.1f} M' if count >= 1e6 else f'{count:,.0f}'}"


def points(axis: Axes, networks: Networks, shown: Sequence[Series], title: str) -> None:
    """Draw a line of points for each network, with their figures."""
    for series in shown:
        at = {
            line: rows[series.row][series.field]
            for line, rows in enumerate(networks.values())
            if series.row in rows
        }
        drawn = {line: value for line, value in at.items() if value is not None}
        axis.plot(drawn.values(), drawn.keys(), "o", color=series.color, markersize=7, label=series.label)
        for line, value in drawn.items():
            if series.offset is not None:
                right, up = series.offset
                axis.annotate(
                    f"{value:.2f}" if series.field == "ratio" else f"{value:,.0f}",
                    (value, line),
                    series.offset,
                    textcoords="offset points",
                    ha="left" if right > 0 else "right" if right < 0 else "center",
                    va="bottom" if up > 0 else "top",
                    fontsize=9,
                    color=series.color,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
                )
    axis.set_title(title, fontsize=11)
    axis.minorticks_off()
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def targets(axis: Axes, networks: Networks, names: Sequence[str]) -> None:
    """Draw where each network's figure should not be beyond."""
    found = [
        (float(rows[name]["target"].strip("<= x")), line)
        for line, rows in enumerate(networks.values())
        for name in names
        if name in rows and rows[name]["target"]
    ]
    if found:
        limits, lines = np.array(found).T
        axis.vlines(limits, lines - 0.4, lines + 0.4, color=TARGET, linewidth=2, label="target, at most")


def main(path: str) -> None:
    report = json.loads((OUT / "training.json").read_text())
    networks = measured(report)
    figure, (step, private, memory) = plt.subplots(
        1, 3, figsize=(10, 6.4), sharey=True, width_ratios=(1, 1.1, 1.5), layout="constrained"
    )
    points(step, networks, STEP, "Time of a step of SGD,\numbel over torch")
    points(private, networks, PRIVATE, "Time of a step of DP-SGD,\numbel over Opacus")
    points(memory, networks, MEMORY, "Peak memory of a process\nthat trains, MB")
    for axis, shown in ((step, STEP), (private, PRIVATE)):
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xlabel("below 1: umbel is faster", fontsize=9)
        targets(axis, networks, [series.row for series in shown])
    targets(memory, networks, ["peak RSS of the process that trains, torch"])
    step.set_xlim(0, 1.25)
    private.set(xscale="log", xlim=(0.02, 1.6))
    private.set_xticks([0.03, 0.1, 0.3, 1], ["0.03", "0.1", "0.3", "1"])
    memory.set(xscale="log", xlim=(50, 3000))
    memory.set_xticks([60, 100, 200, 400, 800, 1600], ["60", "100", "200", "400", "800", "1,600"])
    for line, rows in enumerate(networks.values()):
        if rows.get("DP-SGD, Opacus", {"ratio": 0})["ratio"] is None:
            private.text(
                0.18, line, "Opacus cannot train it", ha="center", va="center", fontsize=9, color=TORCH
            )
    step.set_yticks(range(len(networks)), [called(name, rows) for name, rows in networks.items()])
    step.set_ylim(len(networks) - 0.4, -0.6)
    for axis, columns in ((step, 1), (private, 1), (memory, 2)):
        axis.minorticks_off()
        handles, labels = axis.get_legend_handles_labels()
        axis.legend(
            handles[::-1],
            labels[::-1],
            loc="upper center",
            bbox_to_anchor=(0.5, -0.1),
            ncols=columns,
            fontsize=8.5,
            frameon=False,
        )
    figure.supxlabel(
        f"Batches of 32, gradients on one thread. {when(report).strip()}", fontsize=8.5, color=TORCH
    )
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main(sys.argv[1])

"""Draw what secagg.py measured last.

Usage: python tests/bench/secagg_plot.py docs/images/secagg.png
"""

from __future__ import annotations

import json
import re
import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from harness import OUT

ROW = re.compile(r"n = (\d+), k = (\d+), d = 1e(\d)(?:, sampled)?: (a device|the server)$")
COLORS = {5: "#7fb3d5", 6: "#1f618d", 7: "#0b2e4a"}
TARGETS_S = {
    "a device": {64: 0.05, 256: 0.12, 1024: 0.10},
    "the server": {64: 0.15, 256: 1.5, 1024: 4.0},
}


def main(path: str) -> None:
    rows = json.loads((OUT / "secagg.json").read_text())["rows"]
    found = [(ROW.match(row["name"]), row) for row in rows]
    points = [(match, row) for match, row in found if match]
    degrees = {int(match[1]): int(match[2]) for match, _ in points}
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    for axis, what in zip(axes, TARGETS_S, strict=True):
        for power, color in COLORS.items():
            here = [(int(m[1]), row) for m, row in points if m[4] == what and int(m[3]) == power]
            n = [cohort for cohort, _ in here]
            style = {"color": color, "marker": "o", "markersize": 4}
            axis.plot(n, [row["value"] / 1e3 for _, row in here], label=f"umbel, d = 1e{power}", **style)
            theirs = [row["baseline"] / 1e3 for _, row in here]
            axis.plot(n, theirs, "--", label=f"Flower SecAgg+, d = 1e{power}", **style)
        targets = TARGETS_S[what]
        axis.plot(
            targets.keys(), targets.values(), "_", color="crimson", markersize=18, label="target, d = 1e6"
        )
        axis.set(
            xscale="log", yscale="log", xlabel="devices n (neighbors k)", title=f"CPU of {what}, a round"
        )
        axis.set_xticks(list(degrees), [f"{n}\n({k})" for n, k in degrees.items()])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds, one core")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main(sys.argv[1])

"""Two versions as a picture: their figures with intervals, and how far apart they are."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

from umbel_proto.errors import StorageError, UsageError
from umbel_server.registry.compare import Change, Comparison

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

BLUE, GREEN, RED, GRAY = "#0b5fa5", "#2e7d32", "#a3330b", "#5a5a5a"
_COLORS = {"better": GREEN, "worse": RED}
MAX_ROWS = 40


def draw(comparison: Comparison, path: Path) -> None:
    """Draw the figures that both versions have with their intervals as a PNG, a row each.

    Raises:
        UsageError: There is no such figure.
        StorageError: The file cannot be written.
    """
    rows = [each for each in comparison.metrics if each.interval is not None][:MAX_ROWS]
    if not rows:
        raise UsageError(
            f"{comparison.before} and {comparison.after} have no figure with an interval in common: there is "
            "nothing to draw."
        )
    rows.reverse()  # The first one on top.
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(10, 1.6 + 0.34 * len(rows)), sharey=True, width_ratios=(3, 2), layout="constrained"
        )
        for offset, color, name in ((0.14, GRAY, "before"), (-0.14, BLUE, "after")):
            for place, each in enumerate(rows):
                _point(left, each, name, place + offset, color)
        for place, each in enumerate(rows):
            assert each.interval is not None
            color = _COLORS.get(each.verdict, GRAY)
            right.plot(each.interval, [place, place], color=color, lw=2)
            right.plot(_delta(each), place, "o", color=color, ms=4)
        right.axvline(0, color=GRAY, lw=0.8)
        left.set_yticks(range(len(rows)), [f"{each.kind} {each.part}".strip() for each in rows])
        left.plot([], [], "o-", color=GRAY, label=comparison.before)
        left.plot([], [], "o-", color=BLUE, label=comparison.after)
        left.legend(frameon=False, fontsize=8.5, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        left.set_xlabel("value, 95 % interval")
        right.set_xlabel("difference, 95 % interval")
        right.set_title("green: better, red: worse", fontsize=8.5, color=GRAY, loc="left")
        for axis in (left, right):
            axis.grid(axis="x", color="#dddddd", lw=0.7)
            axis.set_axisbelow(True)
        draft = path.with_name(path.name + ".part")
        try:
            figure.savefig(draft, dpi=130, format="png")
            draft.replace(path)
        except OSError as exc:
            raise StorageError(f"{path} cannot be written: {exc.strerror}.") from exc
        finally:
            plt.close(figure)


def _point(axis: Axes, each: Change, name: str, place: float, color: str) -> None:
    metric = getattr(each, name)
    axis.plot(metric.interval, [place, place], color=color, lw=1.5)
    axis.plot(metric.value, place, "o", color=color, ms=4)


def _delta(each: Change) -> float:
    assert each.before is not None
    assert each.after is not None
    return each.after.value - each.before.value

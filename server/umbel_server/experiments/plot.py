"""The course of an experiment as a picture: what was known of the difference, at each time."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

from umbel_proto.errors import StorageError, UsageError

mpl.use("Agg")

from matplotlib import dates
from matplotlib import pyplot as plt

BLUE, GREEN, RED, GRAY = "#0b5fa5", "#2e7d32", "#a3330b", "#5a5a5a"


def draw(shown: Mapping[str, Any], path: Path) -> None:
    """Draw the interval over time, and how many devices it rests on, as a PNG.

    Args:
        shown: The experiment as `umbel_server.experiments.shown` tells it.
        path: The file.

    Raises:
        UsageError: Nothing is told yet.
        StorageError: The file cannot be written.
    """
    figures, plan = shown["figures"], shown["plan"]
    course = figures["course"]
    if not course:
        raise UsageError(
            f"There is nothing to draw of experiment {shown['experiment']} yet. {figures['why']}"
        )
    times = [datetime.datetime.fromtimestamp(point["at_s"], datetime.UTC) for point in course]
    lows, highs, estimates = ([point[name] for point in course] for name in ("low", "high", "estimate"))
    least = plan["least_effect"]
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, (top, bottom) = plt.subplots(
            2, 1, figsize=(9, 5.4), sharex=True, height_ratios=(4, 1), layout="constrained"
        )
        top.axhline(0, color=GRAY, lw=1)
        top.axhspan(-least, least, color="#eeeeee", lw=0, label=f"matters from {least:g} on")
        level = f"{100 * (1 - plan['error']):g} %, at all times together"
        top.fill_between(times, lows, highs, color=BLUE, alpha=0.2, lw=0, label=level)
        top.plot(times, estimates, color=BLUE, lw=1.8, marker="o", ms=3, label="difference")
        # The last one is what a decision rests on; the first ones would squeeze it flat.
        _limit(top, course, least)
        better, worse = ("higher", "lower") if plan["higher_is_better"] else ("lower", "higher")
        places = {"higher": (1.0, 0.98, "top"), "lower": (1.0, 0.02, "bottom")}
        for place, word, color in ((better, "better", GREEN), (worse, "worse", RED)):
            x, y, align = places[place]
            top.text(
                x,
                y,
                f"treatment {word}",
                transform=top.transAxes,
                color=color,
                ha="right",
                va=align,
                fontsize=9,
            )
        top.set_ylabel(f"{plan['metric']}\ntreatment - control")
        top.set_title(
            f"{shown['experiment']}: {shown['model']} {shown['from_version']} -> {shown['to_version']}, "
            f"{figures['outcome']}",
            loc="left",
            fontsize=11,
        )
        top.legend(frameon=False, fontsize=8.5, loc="lower left", bbox_to_anchor=(0, -0.16), ncols=3)
        for arm, color in (("treatment", BLUE), ("control", GRAY)):
            bottom.step(times, [point[arm] for point in course], where="post", color=color, label=arm)
        bottom.set_ylim(bottom=0)
        bottom.set_ylabel("devices")
        bottom.legend(frameon=False, fontsize=8.5, loc="lower right", ncols=2)
        if len(times) == 1:
            day = datetime.timedelta(hours=12)
            bottom.set_xlim(times[0] - day, times[0] + day)
        locator = dates.AutoDateLocator(minticks=3, maxticks=9)  # type: ignore[no-untyped-call]
        bottom.xaxis.set_major_locator(locator)
        bottom.xaxis.set_major_formatter(
            dates.ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
        )
        for axis in (top, bottom):
            axis.grid(axis="y", color="#dddddd", lw=0.7)
            axis.set_axisbelow(True)
        draft = path.with_name(path.name + ".part")
        try:
            figure.savefig(draft, dpi=130, format="png")
            draft.replace(path)
        except OSError as exc:
            raise StorageError(f"{path} cannot be written: {exc.strerror}.") from exc
        finally:
            plt.close(figure)


def _limit(axis: Any, course: list[Mapping[str, Any]], least: float) -> None:
    last = course[-1]
    reach = max(abs(last["low"]), abs(last["high"]), least)
    widest = max(max(abs(point["low"]), abs(point["high"])) for point in course)
    axis.set_ylim(-min(1.1 * widest, 4 * reach), min(1.1 * widest, 4 * reach))

"""Error against epsilon as a picture, with one plan marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

from umbel_proto.errors import StorageError
from umbel_proto.privacy.forecast import Forecast

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

BLUE, RED, GRAY = "#0b5fa5", "#a3330b", "#5a5a5a"


def draw(made: Forecast, curve: Sequence[Forecast], path: Path) -> None:
    """Draw the error of a mean update against epsilon_server as a PNG.

    Args:
        made: The plan to mark.
        curve: The same setting at other epsilons, ascending.
        path: The file.

    Raises:
        StorageError: The file cannot be written.
    """
    setting = made.setting
    epsilons = [each.plan.epsilon_server for each in curve]
    errors = [each.error_norm / setting.clip for each in curve]
    trusted = [each.error_norm / setting.clip * each.trusted_error / each.error for each in curve]
    error = made.error_norm / setting.clip
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
        axis.plot(
            epsilons, errors, "o-", color=BLUE, lw=2, label="devices add the noise, the server is not trusted"
        )
        axis.plot(epsilons, trusted, "--", color=GRAY, lw=1.5, label="a trusted server adds normal noise")
        axis.plot(made.plan.epsilon_server, error, "D", color=RED, ms=9, label="this plan", zorder=3)
        axis.annotate(
            f"epsilon_server {made.plan.epsilon_server:.3g}, epsilon_release {made.plan.epsilon_release:.3g}\n"
            f"noise multiplier {made.plan.noise_multiplier:.3g}, error {error:.3g} clips",
            (made.plan.epsilon_server, error),
            xytext=(14, 14),
            textcoords="offset points",
            color=RED,
        )
        axis.set_xscale("log")
        axis.set_yscale("log")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(LogLocator(subs=(1, 2, 5)))
            side.set_major_formatter(StrMethodFormatter("{x:g}"))
            side.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.25)
        axis.set_xlabel(f"epsilon_server, at delta {made.plan.delta:g}")
        axis.set_ylabel("error of the mean update: its norm over the clip")
        axis.set_title(
            f"{made.cohort:,} of {setting.devices:,} devices a round, {setting.rounds:,} rounds, "
            f"at most {made.participations:,} each, {setting.dim:,} parameters",
            loc="left",
        )
        axis.legend(frameon=False, loc="lower left")
        try:
            figure.savefig(path, dpi=120)
        except OSError as exc:
            raise StorageError(f"{path} cannot be written ({exc.strerror}): choose another place.") from exc
        finally:
            plt.close(figure)

"""What a demo run gave: a table for people, a picture, and every figure as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from umbel_server.files import PUBLIC_MODE, write_atomically


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """One completed round, as the plot shows it.

    Args:
        round: From 1.
        accuracy: On held-out data, after the round.
        epsilon_server: Spent so far by a device that took part in every round.
        summed: Devices in the sum.
        dropped: Devices that were lost after they had shared their secrets: in the middle of it.
    """

    round: int
    accuracy: float
    epsilon_server: float
    summed: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Every figure of the final table. `to_json` names them as scripts read them.

    Those of int8 are missing where the package has none.
    """

    accuracy: Mapping[str, float]
    latency_us: Mapping[str, float]
    bytes: Mapping[str, float]
    epsilon: Mapping[str, float]
    cohort_for_epsilon_4: int
    reports: Mapping[str, int]
    seconds: Mapping[str, float | Mapping[str, float]]
    rounds: int
    dropped: Sequence[str]
    joined_late: Sequence[str]
    history: Sequence[RoundFigures]

    def to_json(self) -> str:
        """Return the summary as JSON; an infinite epsilon is the string "inf"."""
        body = {
            "accuracy": self.accuracy,
            "latency_us": self.latency_us,
            "bytes": self.bytes,
            "epsilon": {
                key: "inf" if value == float("inf") else value for key, value in self.epsilon.items()
            },
            "cohort_for_epsilon_4": self.cohort_for_epsilon_4,
            "reports": self.reports,
            "seconds": self.seconds,
            "rounds": self.rounds,
            "dropped": list(self.dropped),
            "joined_late": list(self.joined_late),
        }
        return json.dumps(body, indent=1, allow_nan=False) + "\n"


def write(summary: Summary, out: Path) -> None:
    """Write ``summary.json`` and ``rounds.png`` into a directory."""
    write_atomically(out / "summary.json", summary.to_json().encode(), mode=PUBLIC_MODE)
    plot(summary.history, summary.accuracy, out / "rounds.png")


def plot(history: Sequence[RoundFigures], accuracy: Mapping[str, float], path: Path) -> None:
    """Draw accuracy and epsilon by round as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    rounds = [figures.round for figures in history]
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 6.4), sharex=True, height_ratios=(3, 2))
    top.plot([0, *rounds], [accuracy["before"], *(f.accuracy for f in history)], "o-", color="#0b5fa5", lw=2)
    for name, label, style in (
        ("plain_fedavg", "FedAvg without privacy", "--"),
        ("central", "trained centrally", ":"),
    ):
        top.axhline(accuracy[name], color="#5a5a5a", ls=style, lw=1.2)
        top.annotate(label, (0, accuracy[name]), xytext=(4, -11 if style == "--" else 4), textcoords="offset points",
                     color="#404040", fontsize=8.5)  # fmt: skip
    for figures in history:
        if figures.dropped:
            top.annotate(f"{figures.dropped} lost", (figures.round, figures.accuracy), xytext=(0, -20),
                         textcoords="offset points", ha="center", color="#a3330b", fontsize=8.5)  # fmt: skip
    top.set_ylabel("accuracy on held-out digits")
    top.set_ylim(0, 1.04)
    top.set_title("Secure, private rounds of the digits CNN", loc="left", fontweight="bold")
    bottom.plot(rounds, [figures.epsilon_server for figures in history], "s-", color="#a3330b", lw=2)
    bottom.set_ylabel("epsilon spent by a device\n(against the server)")
    bottom.set_xlabel("round")
    bottom.set_ylim(bottom=0)
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in (top, bottom):
        axis.grid(axis="y", color="#dddddd", lw=0.7)
        axis.set_axisbelow(True)
    figure.tight_layout()
    draft = path.with_suffix(".part.png")
    figure.savefig(draft, dpi=130)
    plt.close(figure)
    draft.replace(path)


def show(summary: Summary, console: Console) -> None:
    """Print the final table."""
    table = Table(title="umbel demo", title_justify="left", show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    accuracy, epsilon, size = summary.accuracy, summary.epsilon, summary.bytes
    table.add_row(
        "accuracy before -> after", f"{accuracy['before']:.3f} -> [green]{accuracy['after']:.3f}[/]"
    )
    table.add_row(
        "  the same without privacy",
        f"FedAvg {accuracy['plain_fedavg']:.3f}, centrally {accuracy['central']:.3f}",
    )
    table.add_row(
        "  on the devices' own digits",
        f"{accuracy['devices']:.2f} +- {accuracy['devices_error']:.2f} in the last round: a secure sum, no device's own",
    )
    variants = [name for name in ("int8", "fp32") if name in accuracy]
    table.add_row(
        f"{' | '.join(variants)} on a device",
        f"accuracy {' | '.join(f'{accuracy[name]:.3f}' for name in variants)},  "
        f"size {' | '.join(_kb(size[f'model_{name}']) for name in variants)},  "
        f"latency {' | '.join(f'{summary.latency_us[name]:.0f}' for name in variants)} us",
    )
    if "int8" not in variants:
        table.add_row(
            "", "int8 was left out of the package: it gets more than half a point more digits wrong."
        )
    table.add_section()
    table.add_row(
        "epsilon spent by a device",
        f"[yellow]{_epsilon(epsilon['server'])}[/] against the server, {_epsilon(epsilon['release'])} against who sees "
        f"the model (delta {epsilon['delta']:g})",
    )
    table.add_row("", f"{len(summary.reports)} devices cannot hide anyone: such an epsilon promises nothing.")
    table.add_row(
        "", f"With {summary.cohort_for_epsilon_4:,} devices the very same error would cost epsilon 4."
    )
    table.add_section()
    table.add_row(
        "bytes per device and round",
        f"up {_kb(size['up_per_device_round'])}, down {_kb(size['down_per_device_round'])}  "
        f"(Flower's plain FedAvg sends {_kb(size['flower_fedavg_up_per_device_round'])} up)",
    )
    table.add_row("rounds", f"{summary.rounds} completed")
    table.add_row("  lost in the middle of a round", ", ".join(summary.dropped) or "none")
    table.add_row("  joined late", ", ".join(summary.joined_late) or "none")
    table.add_row("reports received", _reports(summary.reports))
    table.add_section()
    by_phase = summary.seconds["by_phase"]
    assert isinstance(by_phase, Mapping)
    table.add_row("seconds per round", ", ".join(f"{name} {value:.2f}" for name, value in by_phase.items()))
    table.add_row(
        "seconds",
        f"first round's result after {summary.seconds['first_round']:.1f}, all {summary.seconds['total']:.1f}",
    )
    console.print(table)


def _reports(reports: Mapping[str, int]) -> str:
    return ", ".join(f"{device} {count}" for device, count in sorted(reports.items()))


def _kb(size: float) -> str:
    return f"{size / 1000:.1f} kB"


def _epsilon(value: float) -> str:
    return "infinite" if value == float("inf") else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"

"""``umbel privacy plan``: what a run would cost a fleet's devices, and how exact its sums would be.

What the command needs is imported when it runs.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from umbel._commands.options import PATH, Command, json_option
from umbel._commands.table import Table
from umbel._rounds.planning import in_rounds, release_assumption, run_plan, server_assumption
from umbel_proto.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from umbel_proto.privacy.forecast import Forecast, Setting

_CURVE = tuple(2.0**step for step in range(-4, 5))
"""Multiples of the plan's epsilon that ``--json`` and the plot show beside it."""


@click.command(cls=Command)
@click.option("--devices", type=int, required=True, help="Devices of the fleet.")
@click.option("--rounds", type=int, required=True, help="Rounds of the run.")
@click.option("--dim", type=int, required=True, help="Parameters of the model.")
@click.option("--epsilon", type=float, help="Keep epsilon_server to this; or give --noise.")
@click.option("--noise", type=float, help="The noise multiplier; or give --epsilon.")
@click.option("--delta", type=float, default=1e-6, help="The delta of both epsilons, below 1 / devices.")
@click.option(
    "--cohort",
    type=int,
    default=0,
    show_default="the fleet",
    help="Devices in a round, drawn at random.",
)
@click.option(
    "--participations",
    type=int,
    default=0,
    show_default="all, or from the cohort",
    help="Rounds one device may take part in.",
)
@click.option("--clip", type=float, default=1.0, help="Largest L2 norm of an update.")
@click.option(
    "--min-cohort",
    type=int,
    default=0,
    show_default="the cohort but for dropouts",
    help="Fewest devices in a sum.",
)
@click.option("--corrupt", type=float, default=0.1, help="Devices assumed to collude with the server.")
@click.option("--dropout", type=float, default=0.2, help="Devices that may vanish in a round.")
@click.option(
    "--server",
    type=click.Choice(["malicious", "curious"]),
    default="malicious",
    help="What devices assume of the server.",
)
@click.option("--metrics", type=int, default=2, help="Quantities summed beside the update; norms are 5.")
@click.option("--plot", type=PATH, metavar="FILE", help="Draw error against epsilon as a PNG.")
@json_option
def plan(
    *,
    devices: int,
    rounds: int,
    dim: int,
    epsilon: float | None,
    noise: float | None,
    delta: float,
    cohort: int,
    participations: int,
    clip: float,
    min_cohort: int,
    corrupt: float,
    dropout: float,
    server: str,
    metrics: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Plan a run's privacy: noise, layout, bytes, error, and both epsilons with what they assume."""
    from umbel_proto.privacy.forecast import Setting, forecast

    if (epsilon is None) == (noise is None):
        raise UsageError("Give either --epsilon, the budget to plan for, or --noise, the noise multiplier.")
    setting = Setting(
        devices=devices,
        rounds=rounds,
        dim=dim,
        cohort=cohort,
        participations=participations,
        delta=delta,
        clip=clip,
        min_cohort=min_cohort,
        corrupt_fraction=corrupt,
        dropout_fraction=dropout,
        server_malicious=server == "malicious",
        metrics=metrics,
    )
    made = forecast(setting, epsilon=epsilon, noise=noise)
    curve = _curve(setting, made.plan.epsilon_server) if plot is not None or as_json else []
    if plot is not None:
        try:
            from umbel._rounds.planning_plot import draw
        except ImportError as exc:
            if (exc.name or "").startswith("umbel"):
                raise
            raise MissingExtraError("demo", "A plot") from exc
        draw(made, curve, plot)
    if as_json:
        click.echo(json.dumps(_as_json(made, curve), indent=2, allow_nan=False))
        return
    _print(made)
    if plot is not None:
        click.echo(f"Error against epsilon is drawn in {plot}.")


def _curve(setting: Setting, epsilon: float) -> list[Forecast]:
    """Return plans for smaller and larger epsilons; those that no layout carries are left out."""
    from umbel_proto.privacy.forecast import forecast

    found = []
    for factor in _CURVE:
        try:
            found.append(forecast(setting, epsilon=factor * epsilon))
        except UsageError:
            continue
    return found


def _as_json(made: Forecast, curve: list[Forecast]) -> dict[str, Any]:
    setting, plan, encoding = made.setting, made.plan, made.plan.encoding
    return {
        "devices": setting.devices,
        "rounds": setting.rounds,
        "dim": setting.dim,
        "cohort": made.cohort,
        "sampling_rate": made.sampling_rate,
        "participations": made.participations,
        "min_cohort": made.min_cohort,
        "honest": plan.honest,
        "delta": plan.delta,
        "epsilon_server": plan.epsilon_server,
        "epsilon_server_assumes": server_assumption(made),
        "epsilon_release": plan.epsilon_release,
        "epsilon_release_assumes": release_assumption(made),
        "noise_multiplier": plan.noise_multiplier,
        "noise_per_device": math.sqrt(encoding.noise) / encoding.scale,
        "noise_in_sum": math.sqrt(made.cohort * encoding.noise) / encoding.scale,
        "bits": encoding.bits,
        "slots": encoding.slots,
        "bytes_per_parameter": encoding.bytes_per_parameter,
        "upload_bytes": made.upload_bytes,
        "download_bytes": made.download_bytes,
        "scale": encoding.scale,
        "bound": math.sqrt(encoding.bound_sq),
        "wrap_probability": plan.wrap_probability,
        "inflation": plan.inflation,
        "error": made.error,
        "error_norm": made.error_norm,
        "error_over_clip": made.error_norm / setting.clip,
        "error_over_trusted": made.error / made.trusted_error,
        "degree": made.graph.degree,
        "threshold": made.graph.threshold,
        "run_plan": run_plan(made),
        "curve": [
            {"epsilon_server": each.plan.epsilon_server, "error_over_clip": each.error_norm / setting.clip}
            for each in curve
        ],
    }


def _print(made: Forecast) -> None:
    setting, plan, encoding = made.setting, made.plan, made.plan.encoding
    table = Table(
        f"{setting.devices:,} devices, {setting.rounds:,} rounds, {setting.dim:,} parameters", "", ""
    )
    drawn = "all of them" if made.sampling_rate == 1 else f"drawn with probability {made.sampling_rate:.4g}"
    up, down = made.upload_bytes, made.download_bytes
    each = math.sqrt(encoding.noise) / encoding.scale
    whole = math.sqrt(made.cohort) * each
    spread = f"standard deviation {each:.4g} from each device, {whole:.4g} in the sum of {made.cohort:,}"
    for name, value in (
        ("epsilon_server", f"{plan.epsilon_server:.4g} at delta {plan.delta:g}. {server_assumption(made)}"),
        (
            "epsilon_release",
            f"{plan.epsilon_release:.4g} at delta {plan.delta:g}. {release_assumption(made)}",
        ),
        ("devices in a round", f"{made.cohort:,}, {drawn}; at least {made.min_cohort:,} in a sum"),
        ("honest devices", f"n_eff = {plan.honest:,}, of the fewest in a sum"),
        ("participations", f"at most {in_rounds(made.participations)} for one device"),
        ("noise multiplier", f"{plan.noise_multiplier:.4g}: {spread}"),
        (
            "error of the mean",
            f"{made.error:.4g} per coordinate; norm {made.error_norm:.4g}, {made.error_norm / setting.clip:.3g} clips",
        ),
        ("", f"{made.error / made.trusted_error:.2f} times what a trusted server's normal noise would cost"),
        (
            "layout",
            f"{encoding.slots} x {encoding.bits} bits in a word, {encoding.bytes_per_parameter:.2f} bytes per parameter",
        ),
        (
            "bytes",
            f"{up:,} up and {down:,} down per device and round; {_size(made.participations * up)} up in all",
        ),
        ("scale, bound B", f"{encoding.scale:.4g} steps per unit, {math.sqrt(encoding.bound_sq):.4g} steps"),
        (
            "wraps, inflation",
            f"{plan.wrap_probability:.1e} per coordinate, variance {plan.inflation:.4f} times an unlimited grid's",
        ),
        ("masking graph", f"k = {made.graph.degree} neighbors, t = {made.graph.threshold}"),
        ("in the run's plan", _settings(made)),
    ):
        table.add_row(name, value)
    table.print()


def _settings(made: Forecast) -> str:
    whole = run_plan(made)
    privacy = whole.pop("privacy")
    return ", ".join(f"{name} {value:.10g}" for name, value in (*whole.items(), *privacy.items()))


def _size(count: float) -> str:
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**power:
            return f"{count / 1000**power:.3g} {unit}"
    return f"{count:.0f} bytes"

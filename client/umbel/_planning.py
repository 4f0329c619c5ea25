"""``umbel privacy plan``: what a run would cost a fleet's devices, and how exact its sums would be.

What the command needs is imported when it runs.
"""

from __future__ import annotations

import enum
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel_proto.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from umbel_proto.privacy.forecast import Forecast, Setting

_CURVE = tuple(2.0**step for step in range(-4, 5))
"""Multiples of the plan's epsilon that ``--json`` and the plot show beside it."""


class Trust(enum.StrEnum):
    """What devices assume of the server."""

    MALICIOUS = "malicious"
    CURIOUS = "curious"


def plan_privacy(
    devices: Annotated[int, typer.Option(help="Devices of the fleet.", show_default=False)],
    rounds: Annotated[int, typer.Option(help="Rounds of the run.", show_default=False)],
    dim: Annotated[int, typer.Option(help="Parameters of the model.", show_default=False)],
    epsilon: Annotated[
        float | None, typer.Option(help="Keep epsilon_server to this; or give --noise.", show_default=False)
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="The noise multiplier; or give --epsilon.", show_default=False)
    ] = None,
    delta: Annotated[float, typer.Option(help="The delta of both epsilons, below 1 / devices.")] = 1e-6,
    cohort: Annotated[
        int, typer.Option(help="Devices in a round, drawn at random.", show_default="the fleet")
    ] = 0,
    participations: Annotated[
        int, typer.Option(help="Rounds one device may take part in.", show_default="all, or from the cohort")
    ] = 0,
    clip: Annotated[float, typer.Option(help="Largest L2 norm of an update.")] = 1.0,
    min_cohort: Annotated[
        int, typer.Option(help="Fewest devices in a sum.", show_default="the cohort but for dropouts")
    ] = 0,
    corrupt: Annotated[float, typer.Option(help="Devices assumed to collude with the server.")] = 0.1,
    dropout: Annotated[float, typer.Option(help="Devices that may vanish in a round.")] = 0.2,
    server: Annotated[Trust, typer.Option(help="What devices assume of the server.")] = Trust.MALICIOUS,
    metrics: Annotated[int, typer.Option(help="Quantities summed beside the update.")] = 2,
    plot: Annotated[
        Path | None, typer.Option(help="Draw error against epsilon as a PNG.", metavar="FILE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
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
        server_malicious=server is Trust.MALICIOUS,
        metrics=metrics,
    )
    made = forecast(setting, epsilon=epsilon, noise=noise)
    curve = _curve(setting, made.plan.epsilon_server) if plot is not None or as_json else []
    if plot is not None:
        try:
            from umbel._planning_plot import draw
        except ImportError as exc:
            if (exc.name or "").startswith("umbel"):
                raise
            raise MissingExtraError("demo", "A plot") from exc
        draw(made, curve, plot)
    if as_json:
        typer.echo(json.dumps(_as_json(made, curve), indent=2, allow_nan=False))
        return
    _print(made)
    if plot is not None:
        typer.echo(f"Error against epsilon is drawn in {plot}.")


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


def run_plan(made: Forecast) -> dict[str, Any]:
    """Return what belongs in the plan of such a run, by name."""
    return {
        "rounds": made.setting.rounds,
        "devices": made.cohort,
        "min_cohort": made.min_cohort,
        "privacy": {
            "clip": made.setting.clip,
            "noise_multiplier": _up(made.plan.noise_multiplier),
            "delta": made.plan.delta,
            "participations": made.participations,
            "sampling_rate": made.sampling_rate,
        },
    }


def server_assumption(made: Forecast) -> str:
    """Return what epsilon_server rests on, in words."""
    share = f"{made.setting.corrupt_fraction:.0%}"
    trust = (
        f"Holds even if the server lies and {share} of the devices collude with it and leave out their noise"
        if made.setting.server_malicious
        else "Holds if the server follows the protocol, however long it looks, and no device leaves out its noise"
    )
    return (
        f"{trust}: the noise of {made.plan.honest:,} is counted. It takes no secrecy of who takes part. One device takes "
        f"part in at most {_rounds(made.participations)}; its own ledger refuses what its budget does not cover."
    )


def release_assumption(made: Forecast) -> str:
    """Return what epsilon_release rests on, in words."""
    if made.sampling_rate == 1:
        return "For those who see only the released models. All devices take part: nothing is drawn, nothing gained."
    return (
        "For those who see only the released models, and only if each device is drawn into each round independently, "
        f"with probability {made.sampling_rate:.4g}, by an honest server that keeps secret whom it drew."
    )


def _print(made: Forecast) -> None:
    from rich.console import Console
    from rich.table import Table

    setting, plan, encoding = made.setting, made.plan, made.plan.encoding
    table = Table(
        title=f"{setting.devices:,} devices, {setting.rounds:,} rounds, {setting.dim:,} parameters",
        title_justify="left",
        show_header=False,
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
        ("participations", f"at most {_rounds(made.participations)} for one device"),
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
    Console().print(table)


def _settings(made: Forecast) -> str:
    whole = run_plan(made)
    privacy = whole.pop("privacy")
    return ", ".join(f"{name} {value:.10g}" for name, value in (*whole.items(), *privacy.items()))


def _rounds(count: int) -> str:
    return f"{count:,} round{'s' if count > 1 else ''}"


def _up(value: float) -> float:
    """Return a number with four digits that is no smaller: rounding must not cost privacy."""
    digits = 3 - math.floor(math.log10(value))
    return math.ceil(value * 10.0**digits) / 10.0**digits


def _size(count: float) -> str:
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**power:
            return f"{count / 1000**power:.3g} {unit}"
    return f"{count:.0f} bytes"

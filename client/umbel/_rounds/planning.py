"""What the plan of a run with a given privacy would hold, and what its epsilons rest on, in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umbel_proto.privacy.forecast import Forecast


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
        f"part in at most {in_rounds(made.participations)}; its own ledger refuses what its budget does not cover."
    )


def release_assumption(made: Forecast) -> str:
    """Return what epsilon_release rests on, in words."""
    if made.sampling_rate == 1:
        return "For those who see only the released models. All devices take part: nothing is drawn, nothing gained."
    return (
        "For those who see only the released models, and only if each device is drawn into each round independently, "
        f"with probability {made.sampling_rate:.4g}, by an honest server that keeps secret whom it drew."
    )


def in_rounds(count: int) -> str:
    """Return a number of rounds, for people."""
    return f"{count:,} round{'s' if count > 1 else ''}"


def _up(value: float) -> float:
    """Return a number with four digits that is no smaller: rounding must not cost privacy."""
    digits = 3 - math.floor(math.log10(value))
    return math.ceil(value * 10.0**digits) / 10.0**digits

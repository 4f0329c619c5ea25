"""What a run over a fleet would cost and give, before there is a fleet: for whoever has to choose.

Source: docs/spec/privacy.md, "Planning", "Whose noise counts" and "The two epsilons".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from umbel_proto.errors import UsageError
from umbel_proto.privacy.accounting import noise_multiplier
from umbel_proto.privacy.encode import MAX_AUXILIARY
from umbel_proto.privacy.plan import Plan, honest_devices, plan
from umbel_proto.secagg.graph import MAX_COHORT, MIN_COHORT, Parameters, parameters

_RARE = 0.01  # The share of devices that may run into the cap on participations.
_LUCK = 4.0  # Standard deviations by which a draw may fall short before a round has too few.
_EXCESS = 6.0  # And by which it may exceed its mean: a sum must hold them all.


@dataclass(frozen=True, slots=True)
class Setting:
    """A fleet and what is asked of it.

    Args:
        devices: The fleet's.
        rounds: Of the run.
        dim: Parameters of the model.
        cohort: Devices expected in a round; 0 for all of the fleet. Fewer are drawn at random, each
            with probability cohort / devices.
        participations: Rounds one device may take part in; 0 for what all but 1 % of devices stay
            within anyway.
        delta: Of both epsilons, below 1 / devices.
        clip: C, the largest L2 norm of an update, model units.
        min_cohort: u_min, the fewest devices a sum may have; 0 for the fewest that remain of a small
            draw after planned losses.
        corrupt_fraction: gamma, devices assumed to collude with the server.
        dropout_fraction: Devices that may vanish in a round.
        server_malicious: Whether the server may lie; if not, it is honest but curious.
        metrics: Quantities summed beside the update.

    Raises:
        UsageError: A number is out of its range; the message says which to change.
    """

    devices: int
    rounds: int
    dim: int
    cohort: int = 0
    participations: int = 0
    delta: float = 1e-6
    clip: float = 1.0
    min_cohort: int = 0
    corrupt_fraction: float = 0.1
    dropout_fraction: float = 0.2
    server_malicious: bool = True
    metrics: int = 2

    def __post_init__(self) -> None:
        if self.devices < MIN_COHORT:
            raise UsageError(f"devices is {self.devices}: a sum over fewer than {MIN_COHORT} hides nobody.")
        if self.rounds < 1:
            raise UsageError(f"rounds is {self.rounds}: choose a number >= 1.")
        cohort = self.cohort or self.devices
        if not MIN_COHORT <= cohort <= self.devices:
            raise UsageError(f"cohort is {cohort}: of {self.devices} devices, choose {MIN_COHORT} or more.")
        if cohort > MAX_COHORT:
            raise UsageError(
                f"cohort is {cohort}, and one round holds at most {MAX_COHORT}: choose a cohort that is drawn "
                "from the fleet anew in each round."
            )
        if not 0 <= self.participations <= self.rounds:
            raise UsageError(
                f"participations is {self.participations}, in a run of {self.rounds} rounds: choose at most "
                "as many, or more rounds."
            )
        if not 0 <= self.metrics <= MAX_AUXILIARY:
            raise UsageError(f"metrics is {self.metrics}: choose 0 to {MAX_AUXILIARY}.")
        check_delta(self.delta, self.devices)
        if self.min_cohort and not MIN_COHORT <= self.min_cohort <= cohort:
            raise UsageError(
                f"min_cohort is {self.min_cohort}, and a round has {cohort} devices: choose {MIN_COHORT} to {cohort}."
            )


@dataclass(frozen=True, slots=True)
class Forecast:
    """A setting with everything chosen.

    Args:
        setting: As asked.
        cohort: Devices expected in a round.
        sampling_rate: cohort over devices.
        participations: Rounds one device may take part in.
        min_cohort: Fewest devices in a sum.
        graph: Who masks with whom in such a round.
        plan: How devices encode, and what that costs.
        error: Standard deviation of a coordinate of the mean update of ``cohort`` devices, model units.
        trusted_error: The same if a trusted server added normal noise, once and without rounding.
    """

    setting: Setting
    cohort: int
    sampling_rate: float
    participations: int
    min_cohort: int
    graph: Parameters
    plan: Plan
    error: float
    trusted_error: float

    @property
    def error_norm(self) -> float:
        """Expected L2 norm of the whole mean's error, model units: compare it with the clip."""
        return self.error * math.sqrt(self.setting.dim)

    @property
    def upload_bytes(self) -> int:
        """Masked update of one device in one round, without the messages around it."""
        return 8 * self.plan.encoding.words

    @property
    def download_bytes(self) -> int:
        """Global model as one device receives it in one round."""
        return 4 * self.setting.dim


def forecast(setting: Setting, *, epsilon: float | None = None, noise: float | None = None) -> Forecast:
    """Return what a setting costs and gives.

    Args:
        setting: The fleet, and what is asked of it.
        epsilon: Keep ``epsilon_server`` to this. Exactly one of this and the next is given.
        noise: Or add this much noise, z = sqrt(n_eff mu_local) / B, > 0.

    Raises:
        UsageError: A number is out of its range, or the numbers do not go together.
    """
    if noise == 0:
        raise UsageError(
            "noise is 0: without noise nothing is private, and epsilon is infinite; choose a number > 0."
        )
    cohort = setting.cohort or setting.devices
    rate = cohort / setting.devices
    spread = math.sqrt(cohort * (1 - rate))
    participations = setting.participations or _seldom_exceeded(setting.rounds, rate)
    low = max(MIN_COHORT, math.floor(cohort - _LUCK * spread))
    least = setting.min_cohort or max(MIN_COHORT, low - math.floor(setting.dropout_fraction * low))
    graph = parameters(
        cohort,
        corrupt_fraction=setting.corrupt_fraction,
        dropout_fraction=setting.dropout_fraction,
        server_malicious=setting.server_malicious,
    )
    honest = honest_devices(
        least, corrupt_fraction=setting.corrupt_fraction, server_malicious=setting.server_malicious
    )
    planned = plan(
        dim=setting.dim,
        clip=setting.clip,
        devices=cohort + math.ceil(_EXCESS * spread),
        honest=honest,
        participations=participations,
        delta=setting.delta,
        epsilon=epsilon,
        noise_multiplier=noise,
        sampling_rate=rate,
        rounds=setting.rounds,
        auxiliary=setting.metrics,
    )
    ideal = (
        planned.noise_multiplier
        if epsilon is None
        else noise_multiplier(epsilon, setting.delta, participations)
    )
    return Forecast(
        setting=setting,
        cohort=cohort,
        sampling_rate=rate,
        participations=participations,
        min_cohort=least,
        graph=graph,
        plan=planned,
        error=planned.error_of(cohort),
        trusted_error=ideal * setting.clip / cohort,
    )


def check_delta(delta: float, devices: int) -> None:
    """Refuse a delta under which one device of the fleet might be given away whole.

    Raises:
        UsageError: ``delta`` is not in (0, 1 / devices).
    """
    if not 0 < delta < 1 / devices:
        raise UsageError(
            f"delta is {delta:g}, and with {devices} devices a delta of {1 / devices:.3g} or more would allow giving "
            f"one of them away whole: choose a delta below that, such as {_tenth(devices):g}."
        )


def _tenth(devices: int) -> float:
    """Return a power of ten that is at most a tenth of 1 / devices."""
    return 10.0 ** -(math.ceil(math.log10(devices)) + 1)


def _seldom_exceeded(rounds: int, rate: float) -> int:
    """Return the least count that a binomial variable exceeds with probability 1 % or less, >= 1."""
    if rate == 1:
        return rounds
    below = 0.0
    for count in range(rounds + 1):
        chosen = math.lgamma(rounds + 1) - math.lgamma(count + 1) - math.lgamma(rounds - count + 1)
        below += math.exp(chosen + count * math.log(rate) + (rounds - count) * math.log1p(-rate))
        if below >= 1 - _RARE:
            return max(1, count)
    return rounds

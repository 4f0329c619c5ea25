"""How to encode the updates of a run: the slot layout, the scale and the noise.

The error of the mean comes from noise, rounding and sums that outgrow their slot. A finer scale
shrinks the first two and feeds the third; the planner finds the best scale of each layout and
takes the smallest layout that costs next to nothing.

Source: docs/spec/privacy.md, "Planning".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from umbel_proto.credentials import corrupt_devices
from umbel_proto.errors import UsageError
from umbel_proto.privacy.accounting import epsilon as epsilon_of
from umbel_proto.privacy.accounting import noise_multiplier as multiplier_for
from umbel_proto.privacy.accounting import rounded_l2_bound_sq, variance_for
from umbel_proto.privacy.encode import MAX_AUXILIARY, MAX_DENOMINATOR, MAX_DIM, MAX_LENGTH, Encoding
from umbel_proto.privacy.rotate import smooth_length
from umbel_proto.privacy.skellam import MAX_VARIANCE
from umbel_proto.privacy.slots import SLOTS

MAX_INFLATION = 1.03

MIN_HEADROOM = 3.0
"""kappa: half a slot's range over the standard deviation of a sum. The wrap model needs it."""

MAX_DEVICES = 1 << 24

AUXILIARY_SHARE = 0.01
"""What a quantity summed beside the update takes of the bound: half a percent more noise each."""

_FREE = 1 / 300  # Error below this part of the spread of clipped updates is not worth wider slots.
_AS_GOOD = 1.0003  # A coarser scale within this of the best draws its noise faster and wraps less.
_GRID = 32


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do, cost and give away.

    Args:
        encoding: How devices encode.
        devices: Devices expected in a sum.
        honest: n_eff, how many of them add noise that may be counted.
        participations: Rounds one device takes part in.
        sampling_rate: Probability with which a device is drawn into a round.
        delta: The delta of both epsilons.
        epsilon_server: Against the server, which knows who takes part.
        epsilon_release: Against those who see only the released models; assumes that drawing is
            honest, independent per device and secret.
        noise_multiplier: z = sqrt(honest * mu_local) / B, of the noise as planned.
        wrap_probability: That a coordinate's sum outgrows its slot, when all updates are clipped
            and aligned.
        inflation: Variance of the sum over that of an unlimited grid; without noise, over 1 plus
            the rounding's share of independent updates' spread.
        error: Standard deviation of a coordinate of the mean update, model units, clipping aside.
        auxiliary_share: As it was asked for.
    """

    encoding: Encoding
    devices: int
    honest: int
    participations: int
    sampling_rate: float
    delta: float
    epsilon_server: float
    epsilon_release: float
    noise_multiplier: float
    wrap_probability: float
    inflation: float
    error: float
    auxiliary_share: float = AUXILIARY_SHARE

    def error_of(self, count: int) -> float:
        """Return ``error`` where ``count`` devices are in the sum, at most ``devices``."""
        encoding = self.encoding
        wraps = self.wrap_probability * (1 << 2 * encoding.bits)
        return math.sqrt(count * (float(encoding.noise) + 0.25) + wraps) / (encoding.scale * count)


def plan(
    *,
    dim: int,
    clip: float,
    devices: int,
    honest: int,
    participations: int,
    delta: float,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    sampling_rate: float = 1.0,
    rounds: int | None = None,
    auxiliary: int = 0,
    auxiliary_share: float = AUXILIARY_SHARE,
) -> Plan:
    """Plan the encoding of a run's updates.

    Args:
        dim: Parameters of the model.
        clip: C, the largest L2 norm of an update, model units.
        devices: Devices expected in a sum; also the most that may be in it.
        honest: n_eff, in [1, devices]: ``FleetPolicy.honest`` of the smallest cohort.
        participations: Rounds one device takes part in, >= 1.
        delta: In (0, 1).
        epsilon: Keep ``epsilon_server`` to this. Exactly one of this and the next is given.
        noise_multiplier: Or add this much noise, z = sqrt(honest * mu_local) / B; 0 for none.
        sampling_rate: Probability with which a device is drawn into a round, in (0, 1].
        rounds: Models that are released, for ``epsilon_release``; by default as many rounds as it takes
            for a device to be drawn so often.
        auxiliary: How many quantities are summed beside the update, 0 to 64.
        auxiliary_share: Square of each one's amplitude over that of the update's bound, in (0, 1]: a
            larger share makes it more exact, and the noise on the update larger.

    Returns:
        The smallest layout whose inflation is at most 1.03, or else the one with the least.

    Raises:
        UsageError: An argument is out of its range, or no layout holds such a sum.
    """
    planned = _planned(
        dim=dim,
        clip=clip,
        devices=devices,
        honest=honest,
        participations=participations,
        delta=delta,
        epsilon=epsilon,
        noise_multiplier=noise_multiplier,
        sampling_rate=sampling_rate,
        rounds=rounds,
        auxiliary=auxiliary,
        auxiliary_share=auxiliary_share,
    )
    if planned is None:
        raise UsageError(
            f"No slot layout carries this noise over {dim} parameters and {devices} devices: ask for less "
            "noise, or for another number of devices."
        )
    return planned


def _planned(
    *,
    dim: int,
    clip: float,
    devices: int,
    honest: int,
    participations: int,
    delta: float,
    epsilon: float | None,
    noise_multiplier: float | None,
    sampling_rate: float,
    rounds: int | None,
    auxiliary: int,
    auxiliary_share: float,
) -> Plan | None:
    """Return the plan, or None if no layout carries it."""
    _check(dim, clip, devices, honest, participations, delta, sampling_rate)
    if rounds is not None and rounds < 1:
        raise UsageError(f"rounds is {rounds}: choose a number >= 1.")
    if not 0 <= auxiliary <= MAX_AUXILIARY:
        raise UsageError(f"auxiliary is {auxiliary}: choose 0 to {MAX_AUXILIARY} quantities.")
    if not 0 < auxiliary_share <= 1:
        raise UsageError(f"auxiliary_share is {auxiliary_share}: choose one in (0, 1].")
    match epsilon, noise_multiplier:
        case float() | int(), None:
            ratio = multiplier_for(epsilon, delta, participations) ** 2
        case None, float() | int():
            if not 0 <= noise_multiplier <= 1e6:
                raise UsageError(f"noise_multiplier is {noise_multiplier}: choose a number in [0, 1e6].")
            ratio = noise_multiplier**2
        case _:
            raise UsageError("Give the plan either epsilon or noise_multiplier, and not both.")
    padded = smooth_length(dim)
    found: list[tuple[float, Encoding, _Sum]] = []
    for bits in SLOTS:
        sums = _Sum(padded, clip, devices, bits, auxiliary, auxiliary_share)
        scale = _best_scale(sums, ratio / honest)
        if scale is None:
            continue
        bound_sq = sums.bound_sq(scale)
        if epsilon is None:
            variance = ratio * bound_sq
        else:
            variance = variance_for(epsilon, bound_sq, padded + auxiliary, delta, participations)
        noise = fraction_above(variance / honest)
        if noise > MAX_VARIANCE or sums.headroom(scale, float(noise)) < MIN_HEADROOM:
            continue
        inflation = sums.inflation(scale, float(noise), ratio / honest)
        amplitudes = (sums.amplitude(scale),) * auxiliary
        encoding = Encoding(dim, padded, bits, clip, scale, bound_sq, noise, amplitudes)
        found.append((inflation, encoding, sums))
        if inflation <= MAX_INFLATION:
            break
    if not found:
        return None
    inflation, encoding, sums = min(found, key=lambda each: each[0])
    mu, total = float(encoding.noise), float(honest * encoding.noise)
    server = epsilon_of(encoding.bound_sq, encoding.coordinates, total, delta, participations)
    if rounds is None:
        rounds = math.ceil(participations / sampling_rate)
    release = epsilon_of(encoding.bound_sq, encoding.coordinates, total, delta, rounds, sampling_rate)
    return Plan(
        encoding=encoding,
        devices=devices,
        honest=honest,
        participations=participations,
        sampling_rate=sampling_rate,
        delta=delta,
        epsilon_server=server,
        epsilon_release=min(server, release),
        noise_multiplier=math.sqrt(total / encoding.bound_sq),
        wrap_probability=sums.wrap_probability(encoding.scale, mu),
        inflation=inflation,
        error=math.sqrt(sums.variance(encoding.scale, mu)) / devices,
        auxiliary_share=auxiliary_share,
    )


def honest_devices(cohort: int, *, corrupt_fraction: float, server_malicious: bool) -> int:
    """Return how many of ``cohort`` devices' noise may be counted (n_eff), as ``FleetPolicy.honest``."""
    return cohort - corrupt_devices(cohort, corrupt_fraction) - 1 if server_malicious else cohort


def cohort_for_epsilon(
    plan_: Plan, target_epsilon: float, *, corrupt_fraction: float, server_malicious: bool
) -> int:
    """Return the least number of devices that hide each other as well as it takes.

    Their mean, planned for ``target_epsilon`` against the server over as many participations, has
    the same error per coordinate as ``plan_``'s or less.

    Args:
        plan_: What sets the error, the model and the participations.
        target_epsilon: > 0, finite.
        corrupt_fraction: gamma, in [0, 1/2).
        server_malicious: Whether the server may lie; if not, it is honest but curious.

    Raises:
        UsageError: An argument is out of its range, or more than 2**24 devices would be needed.
    """
    if not 0 <= corrupt_fraction < 0.5:
        raise UsageError(f"corrupt_fraction is {corrupt_fraction}: choose one in [0, 0.5).")

    def enough(devices: int) -> bool:
        honest = honest_devices(devices, corrupt_fraction=corrupt_fraction, server_malicious=server_malicious)
        if honest < 1:
            return False
        larger = _planned(
            dim=plan_.encoding.dim,
            clip=plan_.encoding.clip,
            devices=devices,
            honest=honest,
            participations=plan_.participations,
            delta=plan_.delta,
            epsilon=target_epsilon,
            noise_multiplier=None,
            sampling_rate=1.0,
            rounds=None,
            auxiliary=len(plan_.encoding.auxiliary),
            auxiliary_share=plan_.auxiliary_share,
        )
        return larger is not None and larger.error <= plan_.error

    few, many = 0, 1
    while not enough(many):
        few, many = many, 2 * many
        if many > MAX_DEVICES:
            raise UsageError(
                f"Not even {MAX_DEVICES} devices reach epsilon {target_epsilon:g} at an error of "
                f"{plan_.error:.3g}: allow a larger epsilon or more noise."
            )
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many


@dataclass(frozen=True, slots=True)
class _Sum:
    """A model of one coordinate of the sum. ``local`` is mu_local, squared integer steps.

    Args:
        padded: D, coordinates.
        clip: C, model units.
        devices: Devices in the sum.
        bits: Bits of a slot.
        auxiliary: Quantities summed beside the update. Their words wrap at 2**64: never.
        auxiliary_share: Square of each one's amplitude over that of the update's bound.
    """

    padded: int
    clip: float
    devices: int
    bits: int
    auxiliary: int = 0
    auxiliary_share: float = AUXILIARY_SHARE

    def amplitude(self, scale: float) -> int:
        """Return the amplitude of an auxiliary quantity, integer steps, >= 1."""
        return max(1, math.isqrt(math.floor(self.auxiliary_share * self._vector_bound_sq(scale))))

    def bound_sq(self, scale: float) -> int:
        """Return the integer L2 bound squared that goes with ``scale``."""
        return self._vector_bound_sq(scale) + self.auxiliary * self.amplitude(scale) ** 2

    def _vector_bound_sq(self, scale: float) -> int:
        return math.floor(rounded_l2_bound_sq(scale * self.clip, self.padded))

    def headroom(self, scale: float, local: float) -> float:
        """Return kappa, taking all updates as clipped and aligned: the widest a sum can get."""
        spread = (self.devices * scale * self.clip) ** 2 / self.padded
        half: int = 1 << (self.bits - 1)
        return half / math.sqrt(self.devices * (local + 0.25) + spread)

    def wrap_probability(self, scale: float, local: float) -> float:
        """Return the probability that a normal variable leaves the slot's range."""
        return math.erfc(self.headroom(scale, local) / math.sqrt(2))

    def variance(self, scale: float, local: float) -> float:
        """Return the error's variance, squared model units: noise, rounding (at most 1/4) and wraps."""
        wraps = self.wrap_probability(scale, local) * (1 << 2 * self.bits)
        return (self.devices * (local + 0.25) + wraps) / scale**2

    def inflation(self, scale: float, local: float, ratio: float) -> float:
        """Return that variance over an unlimited grid's, each plus what counts as nothing.

        Args:
            scale: s.
            local: mu_local.
            ratio: mu_local / B**2 on an unlimited grid, where B is all of the update's and the quantities'.
        """
        free = _FREE * self.devices * self.clip**2 / self.padded
        whole = self.clip**2 * (1 + self.auxiliary * self.auxiliary_share)
        return (self.variance(scale, local) + free) / (self.devices * ratio * whole + free)


def _best_scale(sums: _Sum, ratio: float) -> float | None:
    """Return the coarsest scale about as good as the best, or None if no scale leaves headroom.

    Args:
        sums: What is summed.
        ratio: mu_local / B**2.
    """

    def cost(log_length: float) -> float:
        scale = math.exp(log_length) / sums.clip
        local = ratio * sums.bound_sq(scale)
        # Calibrating on the real grid adds a hair to the noise: stay off the sampler's limit.
        if local > 0.999 * MAX_VARIANCE or sums.headroom(scale, local) < MIN_HEADROOM:
            return math.inf
        return sums.variance(scale, local)

    low, high = 0.0, math.log(0.999 * MAX_LENGTH - math.sqrt(sums.padded))
    coarsest = low
    best = low
    for _ in range(4):
        step = (high - low) / _GRID
        best = min((low + step * place for place in range(_GRID + 1)), key=cost)
        low, high = max(low, best - step), min(high, best + step)
    least = cost(best)
    if math.isinf(least):
        return None
    # Below the best scale the cost only grows: find where it has grown by _AS_GOOD.
    low, high = coarsest, best
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if cost(middle) <= _AS_GOOD * least else (middle, high)
    return math.exp(high) / sums.clip


def fraction_above(value: float) -> Fraction:
    """Return the least multiple of 2**-20 that is not below ``value``."""
    return Fraction(math.ceil(value * MAX_DENOMINATOR), MAX_DENOMINATOR)


def _check(
    dim: int, clip: float, devices: int, honest: int, participations: int, delta: float, sampling_rate: float
) -> None:
    if not 1 <= dim <= MAX_DIM:
        raise UsageError(f"dim is {dim}: an update has 1 to {MAX_DIM} parameters.")
    if not (math.isfinite(clip) and clip > 0):
        raise UsageError(f"clip is {clip}: choose a finite number > 0.")
    if not 1 <= devices <= MAX_DEVICES:
        raise UsageError(f"devices is {devices}: choose a number in [1, {MAX_DEVICES}].")
    if not 1 <= honest <= devices:
        raise UsageError(f"honest is {honest}: of {devices} devices, choose a number in [1, {devices}].")
    if participations < 1:
        raise UsageError(f"participations is {participations}: choose a number >= 1.")
    if not 0 < delta < 1:
        raise UsageError(f"delta is {delta}: choose one in (0, 1).")
    if not 0 < sampling_rate <= 1:
        raise UsageError(f"sampling_rate is {sampling_rate}: choose one in (0, 1].")

"""An empirical audit of privacy: how well can the server tell whether a device sent anything?

The auditor plays the server. It knows the plan, the rotation, every update but the target's, and which
canary the target holds. It sees the exact integer sum of a session and guesses whether the canary is in it
(world 1) or whether the target sent zero (world 0). How often it errs bounds epsilon from below, whatever the
accountant says. What is audited is an argument, so that the tests can hand in encoders that are broken.

Source: Nasr, Song, Thakurta, Papernot, Carlini, "Adversary Instantiation: Lower Bounds for Differentially
Private Machine Learning", S&P 2021 (arXiv 2101.04535), for the game; Nasr et al., "Tight Auditing of
Differentially Private Machine Learning", USENIX Security 2023 (arXiv 2302.07956), section 4, for the bound
through Gaussian privacy. docs/explanation/privacy-audit.md says what it shows and what not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import TypeAlias

import dp_accounting
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from umbel_proto.privacy.encode import SHRINK, Encoding
from umbel_proto.privacy.rotate import rotate
from umbel_proto.privacy.slots import unpack

CONFIDENCE = 1 - 1e-6
"""Probability with which both ends of an audit's interval are right."""

Words: TypeAlias = NDArray[np.uint64]
Integers: TypeAlias = NDArray[np.float64]  # Whole numbers: all coordinates, then the quantities.


@dataclass(frozen=True, slots=True, eq=False)
class Contribution:
    """What a device would add to a sum.

    Args:
        update: Shape (dim,), model units.
        quantities: Auxiliary ones, each in [-1, 1].
    """

    update: NDArray[np.float32]
    quantities: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Session:
    """What everybody knows of a session.

    Args:
        encoding: The plan's.
        rotation_seed: 32 bytes.
    """

    encoding: Encoding
    rotation_seed: bytes


Release: TypeAlias = Callable[[Contribution, Session, int], Words]
"""What device ``int`` sends in a session, before masks. The thing under audit."""

Canary: TypeAlias = Callable[[Session, int], Contribution]
"""The target's contribution to the session of a round, if it takes part."""

Rerun: TypeAlias = Callable[[], list[Integers]]
Attack: TypeAlias = Callable[[list[Integers], list[Integers], Rerun], float]
"""From what is seen of each round less what is known, what the canary would add to each, and a rerun of the
program without the canary, to a score: 0 on average without the canary, 1 with it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One experiment.

    Args:
        encoding: The plan's.
        devices: Devices in a sum whose noise the auditor does not know; device 0 is the target.
        canary: What the target holds.
        rounds: Sessions that the target takes part in.
        trials: Runs of each world.
    """

    encoding: Encoding
    devices: int
    canary: Canary
    rounds: int = 1
    trials: int = 1500


@dataclass(frozen=True, slots=True)
class Finding:
    """What the auditor's errors show, with probability ``CONFIDENCE`` or more.

    Args:
        false_alarms: Bounds on P[says 1 | world 0].
        misses: Bounds on P[says 0 | world 1].
        planned: How far apart the two worlds would be with exactly the planned noise, in its standard
            deviations, to the best test (mu of Gaussian differential privacy).
    """

    false_alarms: tuple[float, float]
    misses: tuple[float, float]
    planned: float

    @property
    def separation(self) -> tuple[float, float]:
        """Bounds on how far apart the two worlds are, in standard deviations of a normal score."""
        low, high = (-stats.norm.ppf(self.false_alarms[i]) - stats.norm.ppf(self.misses[i]) for i in (1, 0))
        return float(low), float(high)

    def epsilon(self, delta: float) -> float:
        """Return the least epsilon that a mechanism this far from private can have, if scores are normal."""
        return gaussian_epsilon(self.separation[0], delta)

    def epsilon_of_any(self, delta: float) -> float:
        """Return the least epsilon, assuming nothing about the scores."""
        # (epsilon, delta) promises 1 - misses <= e^epsilon false_alarms + delta, and the same swapped.
        kept = [(1 - self.misses[1], self.false_alarms[1]), (1 - self.false_alarms[1], self.misses[1])]
        return max(0.0, *(math.log(max(hit - delta, 1e-9) / wrong) for hit, wrong in kept))

    def leaks_more_than(self, epsilon: float, delta: float) -> bool:
        """Whether ``epsilon`` is refuted: the noise is too little, or known, or the bound is broken."""
        return max(self.epsilon(delta), self.epsilon_of_any(delta)) > epsilon

    @property
    def hides_more_than_planned(self) -> bool:
        """Whether the canary is harder to see than planned: noise too large, or the update lost."""
        return self.separation[1] < self.planned


def gaussian_epsilon(separation: float, delta: float) -> float:
    """Return the epsilon at ``delta`` of telling two normal laws ``separation`` apart; 0 if below 0."""
    if separation <= 0:
        return 0.0
    return float(dp_accounting.get_epsilon_gaussian(1 / separation, delta))


def matched_filter(seen: list[Integers], added: list[Integers], rerun: Rerun) -> float:
    """The best test for independent normal noise."""
    return _inner(seen, added) / _inner(added, added)


def difference(seen: list[Integers], added: list[Integers], rerun: Rerun) -> float:
    """Subtract one round from the next: noise that is used twice is gone."""
    apart = added[0] - added[1]
    return float(np.dot(seen[0] - seen[1], apart) / np.dot(apart, apart))


def rehearsal(seen: list[Integers], added: list[Integers], rerun: Rerun) -> float:
    """Run the same program on what is public and subtract: noise that follows from it is gone."""
    return matched_filter([a - b for a, b in zip(seen, rerun(), strict=True)], added, rerun)


# What part of the matched filter's separation an attack keeps when the noise is as it should be.
KEEPS = {matched_filter: 1.0, difference: math.sqrt(0.5), rehearsal: math.sqrt(0.5)}


def audit(release: Release, setting: Setting, *, attack: Attack = matched_filter, seed: int = 0) -> Finding:
    """Play both worlds ``setting.trials`` times and say what the attacker's errors show.

    Args:
        release: What devices send.
        setting: The experiment.
        attack: How the auditor scores a trial; it says "present" above 1/2, which is fixed in advance.
        seed: Of what the auditor chooses: other devices' updates and rotations. Noise is the release's.
    """
    chance = np.random.default_rng(seed)
    encoding = setting.encoding
    nothing = Contribution(np.zeros(encoding.dim, np.float32), (0.0,) * len(encoding.auxiliary))
    others = [_random_contribution(encoding, chance) for _ in range(setting.devices - 1)]
    known = _added_up(others, encoding)
    present, absent, separation = 0, 0, 0.0
    for _ in range(setting.trials):
        sessions = [Session(encoding, chance.bytes(32)) for _ in range(setting.rounds)]
        canaries = [setting.canary(session, number) for number, session in enumerate(sessions)]
        added = [expected(canary, session) for canary, session in zip(canaries, sessions, strict=True)]
        rest = [turned(known, session) for session in sessions]
        silence = [nothing] * setting.rounds
        run = partial(_seen, release, sessions, others, rest)
        rehearse = partial(run, silence)
        present += attack(run(silence), added, rehearse) > 0.5
        absent += attack(run(canaries), added, rehearse) <= 0.5
        separation = math.sqrt(_inner(added, added))
    noise = math.sqrt(setting.devices * encoding.noise)
    return Finding(
        _bounds(present, setting.trials), _bounds(absent, setting.trials), KEEPS[attack] * separation / noise
    )


def largest_norm_sq(
    release: Release, encoding: Encoding, canary: Canary, *, trials: int, seed: int = 0
) -> int:
    """Return the largest sum of squares that a device reached without noise, to be held against B**2."""
    chance, silent = np.random.default_rng(seed), replace(encoding, noise=Fraction(0))
    largest = 0
    for _ in range(trials):
        session = Session(silent, chance.bytes(32))
        values = read(release(canary(session, 0), session, 0), silent)
        largest = max(largest, int(np.dot(values, values)))
    return largest


def read(total: Words, encoding: Encoding) -> Integers:
    """Return the integers of a sum: the coordinates, then the quantities."""
    vector = unpack(total[: encoding.packed], encoding.bits, encoding.padded)
    return np.concatenate([vector, total[encoding.packed :].view(np.int64)]).astype(np.float64)


def expected(contribution: Contribution, session: Session) -> Integers:
    """Return what a contribution is to add to a sum, before rounding, by the specification."""
    return turned(_added_up([contribution], session.encoding), session)


def turned(steps: Integers, session: Session) -> Integers:
    """Return what the coordinates of ``_added_up`` are in a session: rotated, but for the quantities."""
    padded = session.encoding.padded
    return np.concatenate([rotate(steps[:padded].astype(np.float32), session.rotation_seed), steps[padded:]])


@dataclass(slots=True)
class Direction:
    """A canary along one random direction; its sign flips from round to round.

    Args:
        dim: Parameters.
        norm: Its length, model units. Beyond the clip it must be clipped.
        quantities: What goes with it.
    """

    dim: int
    norm: float
    quantities: tuple[float, ...] = ()
    _unit: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        unit = np.random.default_rng(self.dim).standard_normal(self.dim)
        self._unit = unit / np.linalg.norm(unit)

    def __call__(self, session: Session, number: int) -> Contribution:
        sign = (-1) ** number
        update = (sign * self.norm * self._unit).astype(np.float32)
        return Contribution(update, tuple(sign * each for each in self.quantities))


def _seen(
    release: Release,
    sessions: Sequence[Session],
    others: Sequence[Contribution],
    rest: Sequence[Integers],
    target: Sequence[Contribution],
) -> list[Integers]:
    """Run the sessions and return what the auditor sees of each, less what it knows."""
    seen = []
    for session, known, mine in zip(sessions, rest, target, strict=True):
        total = np.zeros(session.encoding.words, np.uint64)
        for device, contribution in enumerate([mine, *others]):
            total += release(contribution, session, device)
        seen.append(read(total, session.encoding) - known)
    return seen


def _added_up(contributions: Sequence[Contribution], encoding: Encoding) -> Integers:
    """Return contributions clipped, in steps and summed, not rotated; then their quantities."""
    total = np.zeros(encoding.coordinates)
    for each in contributions:
        norm = float(np.linalg.norm(each.update.astype(np.float64)))
        factor = encoding.scale * SHRINK * (min(1.0, encoding.clip / norm) if norm else 1.0)
        total[: encoding.dim] += factor * each.update
        total[encoding.padded :] += np.multiply(each.quantities, encoding.auxiliary)
    return total


def _random_contribution(encoding: Encoding, chance: np.random.Generator) -> Contribution:
    update = chance.standard_normal(encoding.dim) * encoding.clip * chance.uniform(0, 2) / encoding.dim**0.5
    quantities = chance.uniform(-1, 1, len(encoding.auxiliary))
    return Contribution(update.astype(np.float32), tuple(quantities.tolist()))


def _inner(left: Sequence[Integers], right: Sequence[Integers]) -> float:
    return float(sum(np.dot(a, b) for a, b in zip(left, right, strict=True)))


def _bounds(count: int, trials: int) -> tuple[float, float]:
    """Return both Clopper-Pearson bounds; all four of a finding hold together with ``CONFIDENCE``."""
    each = (1 - CONFIDENCE) / 4
    low = stats.beta.ppf(each, count, trials - count + 1) if count else 0.0
    high = stats.beta.isf(each, count + 1, trials - count) if count < trials else 1.0
    return float(low), float(high)

"""Law: the mean that a session opens is off by as much as its plan says: the variance of the error over the
planned one lies in 0.97 .. 1.03.

Everything between plan and mean is the real thing: encoding with fresh noise, masks, lost devices, opening,
decoding; only the network is in memory. Keys and noise are fresh in each run, so these tests may fail by
chance. A sample variance over N normal errors is off by sqrt(2 / N) as a standard deviation: 0.45 % for the
100,000 errors of the smallest test here. What the plan does not know for sure, the variance of rounding
(planned 1/4, usually 1/6) and wraps, is below 0.2 % in each case. So 3 % are six standard deviations: a false
alarm in 1e9 tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from simulation.fleet import Fleet, descriptor
from umbel_proto.ids import DeviceId
from umbel_proto.prg import Keystream
from umbel_proto.privacy.accounting import rounded_l2_bound_sq
from umbel_proto.privacy.encode import Encoding, decode, encode
from umbel_proto.privacy.plan import MIN_HEADROOM, Plan, plan
from umbel_proto.privacy.slots import unpack
from umbel_proto.secagg.server import Opened
from umbel_proto.secagg.session import rotation_seed, session_id

DIM = 100_000
CLIP = 0.7
Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Case:
    """A plan that takes the layout of ``bits``."""

    bits: int
    devices: int
    epsilon: float
    participations: int = 1

    def plan(self) -> Plan:
        made = plan(
            dim=DIM,
            clip=CLIP,
            devices=self.devices,
            honest=self.devices * 4 // 5,
            participations=self.participations,
            delta=1e-6,
            epsilon=self.epsilon,
        )
        assert made.encoding.bits == self.bits
        return made


COHORT = 20
CASES = [
    pytest.param(Case(16, COHORT, 8.0), id="16 bits"),
    pytest.param(Case(21, COHORT, 1.0, participations=4), id="21 bits"),
    # Only a million devices fill slots of 32 bits. A cohort of twenty is what is left of them.
    pytest.param(Case(32, 1 << 22, 8.0, participations=10), id="32 bits"),
]


def updates(count: int, *, norms: tuple[float, float], aligned: bool = False) -> list[Vector]:
    """Return updates whose L2 norms lie between ``norms``, in units of the clip."""
    chance = np.random.default_rng(count)
    one = chance.standard_normal(DIM)
    made = []
    for _ in range(count):
        x = one if aligned else chance.standard_normal(DIM)
        made.append((x * (CLIP * chance.uniform(*norms) / np.linalg.norm(x))).astype(np.float32))
    return made


def clipped_mean(kept: Sequence[Vector]) -> NDArray[np.float64]:
    wide = [x.astype(np.float64) for x in kept]
    return np.mean([x * min(1.0, CLIP / float(np.linalg.norm(x))) for x in wide], axis=0)


def opened_error(encoding: Encoding, sent: Sequence[Vector], lost: Sequence[tuple[int, str]] = ()) -> float:
    """Run a session and return the mean squared error of its mean; ``lost`` are (device, phase)."""
    fleet = Fleet(len(sent), session=descriptor(encoding=encoding, min_cohort=5))
    seed = rotation_seed(session_id(fleet.descriptor.to_bytes()))
    fleet.vectors = {
        DeviceId(f"d{i}"): encode(x, encoding, rotation_seed=seed).words for i, x in enumerate(sent)
    }
    for number, phase in lost:
        fleet.vanish(f"d{number}", phase)
    end = fleet.run_round()
    assert isinstance(end, Opened)
    silent = {number for number, phase in lost if phase in ("train", "share", "mask")}
    kept = [x for i, x in enumerate(sent) if i not in silent]
    mean = decode(end.total, encoding, count=len(kept), rotation_seed=seed)
    return float(np.mean((mean - clipped_mean(kept)) ** 2))


def planned_for(encoding: Encoding, survivors: int) -> float:
    """Return the variance of the mean's error over ``survivors``: docs/spec/privacy.md, 3.1, without wraps."""
    return float(survivors * (encoding.noise + Fraction(1, 4))) / (encoding.scale * survivors) ** 2


@pytest.mark.parametrize("norms", [(0.1, 0.9), (1.5, 8.0), (0.1, 4.0)], ids=["unclipped", "clipped", "mixed"])
@pytest.mark.parametrize("case", CASES[:2])
def test_a_session_errs_as_much_as_its_plan_says(case: Case, norms: tuple[float, float]) -> None:
    made = case.plan()
    measured = opened_error(made.encoding, updates(COHORT, norms=norms))
    assert 0.97 < measured / made.error**2 < 1.03


@pytest.mark.parametrize("case", CASES)
def test_a_session_that_lost_devices_errs_as_much_as_its_survivors_noise(case: Case) -> None:
    encoding = case.plan().encoding
    lost = [(1, "share"), (4, "mask"), (7, "mask"), (8, "unmask")]
    measured = opened_error(encoding, updates(COHORT, norms=(0.1, 4.0)), lost)
    assert 0.97 < measured / planned_for(encoding, COHORT - 3) < 1.03


@pytest.mark.parametrize("case", CASES[:2])
def test_updates_that_all_point_one_way_err_as_much_as_their_plan_says(case: Case) -> None:
    made = case.plan()
    measured = opened_error(made.encoding, updates(COHORT, norms=(2.0, 3.0), aligned=True))
    assert 0.97 < measured / made.error**2 < 1.03


@pytest.mark.parametrize("bits", [21, 32])
def test_wider_slots_than_planned_change_nothing(bits: int) -> None:
    made = CASES[0].values[0].plan()
    encoding = replace(made.encoding, bits=bits)
    assert 0.97 < opened_error(encoding, updates(COHORT, norms=(0.1, 4.0))) / made.error**2 < 1.03


def test_quantities_beside_the_update_leave_its_error_as_planned() -> None:
    made = plan(
        dim=DIM,
        clip=CLIP,
        devices=COHORT,
        honest=16,
        participations=1,
        delta=1e-6,
        epsilon=8.0,
        auxiliary=5,
    )
    encoding, sent = made.encoding, updates(COHORT, norms=(0.1, 4.0))
    total = np.zeros(encoding.words, np.uint64)
    for x in sent:
        total += encode(x, encoding, rotation_seed=bytes(32), auxiliary=[1.0] * 5).words
    mean = decode(total, encoding, count=COHORT, rotation_seed=bytes(32))
    measured = float(np.mean((mean - clipped_mean(sent)) ** 2))
    assert 0.97 < measured / made.error**2 < 1.03


# Sums that outgrow their slots. The planner stays far from them, so these encodings are made by hand, right
# at the least headroom that it allows (kappa = 3, one sum in 370 outgrows its slot).


def shaped(shape: str, dim: int, chance: np.random.Generator) -> Vector:
    x = np.zeros(dim, np.float32)
    match shape:
        case "one-hot":
            x[chance.integers(dim)] = 1
        case "sparse":
            x[chance.integers(0, dim, 20)] = 1
        case "constant":
            x[:] = 1
        case "alternating":
            x[::2], x[1::2] = 1, -1
        case _:
            x[:] = chance.standard_normal(dim)
    return x


@settings(max_examples=15)
@given(
    shape=st.sampled_from(["one-hot", "sparse", "constant", "alternating", "normal"]),
    devices=st.integers(2, 20),
    share=st.floats(0.05, 0.95),
    headroom=st.floats(MIN_HEADROOM, 4.5),
    seed=st.integers(0, 2**32 - 1),
)
def test_aligned_sums_outgrow_their_slots_no_more_often_than_planned(
    shape: str, devices: int, share: float, headroom: float, seed: int
) -> None:
    """Whatever share of a sum's variance is noise, the rest being the same update on all devices.

    The keystreams come from ``seed``, and Hypothesis draws the same examples each time: it passes or fails for
    good. With fresh ones, each example would raise a false alarm with probability 1e-6.
    """
    dim, bits = 30_000, 16
    chance = np.random.default_rng(seed)
    spread = (2.0 ** (bits - 1) / headroom) ** 2
    noise = Fraction(min(share * spread / devices, 2.0**24)).limit_denominator(1000)
    length = float(np.sqrt((spread - devices * (float(noise) + 0.25)) * dim)) / devices
    bound_sq = int(rounded_l2_bound_sq(length, dim)) + 1
    narrow = Encoding(dim, dim, bits, 1.0, length, bound_sq, noise)
    wide = replace(narrow, bits=32)
    update = shaped(shape, dim, chance) * np.float32(1e6)
    rotation = chance.bytes(32)
    sums = {encoding: np.zeros(encoding.words, np.uint64) for encoding in (narrow, wide)}
    for _ in range(devices):
        key = chance.bytes(32)
        for encoding, total in sums.items():
            total += encode(update, encoding, rotation_seed=rotation, randomness=Keystream(key)).words
    exact = unpack(sums[wide], wide.bits, dim)
    read = unpack(sums[narrow], narrow.bits, dim)
    # A neighbor of a sum that is 2**bits off is one off.
    wrapped = int((np.abs(exact - read) > 1).sum())
    planned = 2 * stats.norm.sf(headroom)
    assert wrapped <= stats.binom.isf(1e-6, dim, planned)
    assert wrapped == int(((exact < -(2**15)) | (exact >= 2**15)).sum())

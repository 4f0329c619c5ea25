"""Law: the server cannot tell a device's presence from a sum better than the accountant says, and tells it about
as well as the planned noise lets it. And the audit that says so sees each of the ways to break the noise.

`privacy_audit.py` is the audit. Here it is run on the real encoder, and on encoders that are broken on purpose:
if a broken one passed, the audit would be worth nothing. Noise is fresh in each run. An audit of a sound encoder
raises a false alarm with probability 1e-6 at most, by construction of its bounds. Those of the broken ones have
the trials it takes to be seen through with probability 1 - 1e-6 or more: the closest call is half the variance.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from privacy_audit import (
    Canary,
    Contribution,
    Direction,
    Finding,
    Release,
    Session,
    Setting,
    Words,
    audit,
    difference,
    gaussian_epsilon,
    largest_norm_sq,
    rehearsal,
)

from umbel_proto.ids import RunId
from umbel_proto.prg import Keystream
from umbel_proto.privacy.accounting import rounded_l2_bound_sq, variance_for
from umbel_proto.privacy.encode import SHRINK, Encoding, encode
from umbel_proto.privacy.ledger import Charge, spent
from umbel_proto.privacy.plan import honest_devices, plan
from umbel_proto.privacy.rotate import rotate, unrotate
from umbel_proto.privacy.slots import pack

DELTA = 1e-6
DIM = 256
DEVICES = 2
CLIP = 1.5


def planned(
    epsilon: float, *, participations: int = 1, auxiliary: int = 0, honest: int = DEVICES
) -> Encoding:
    made = plan(
        dim=DIM,
        clip=CLIP,
        devices=max(DEVICES, honest),
        honest=honest,
        participations=participations,
        delta=DELTA,
        epsilon=epsilon,
        auxiliary=auxiliary,
        auxiliary_share=1.0,
    )
    assert made.epsilon_server <= epsilon
    return made.encoding


def coarse(level: float, epsilon: float) -> Encoding:
    """Steps so large that an update of the clip's length rotates to coordinates of ``level`` steps."""
    scale = level * DIM**0.5 / (CLIP * SHRINK)
    bound_sq = int(rounded_l2_bound_sq(scale * CLIP, DIM))
    noise = Fraction(variance_for(epsilon, bound_sq, DIM, DELTA, 1) / DEVICES).limit_denominator(1 << 20)
    return Encoding(DIM, DIM, 16, CLIP, scale, bound_sq, noise)


def flat(session: Session, number: int) -> Contribution:
    """The canary whose coordinates, once rotated, are all alike: what careless rounding makes most of."""
    return Contribution(unrotate(np.ones(DIM, np.float32), session.rotation_seed))


def real(mine: Contribution, session: Session, device: int) -> Words:
    return encode(
        mine.update, session.encoding, rotation_seed=session.rotation_seed, auxiliary=mine.quantities
    ).words


LOUD = Direction(DIM, 3 * CLIP)
FAINT = Direction(DIM, CLIP)
BOTH = Direction(DIM, CLIP, (1.0,) * 8)


def only_quantities(session: Session, number: int) -> Contribution:
    return replace(BOTH(session, number), update=np.zeros(DIM, np.float32))


def sound(finding: Finding, epsilon: float) -> None:
    """Assert that a finding speaks for the noise: no leak, none too much, and sharp enough to have seen one."""
    assert not finding.leaks_more_than(epsilon, DELTA)
    assert not finding.hides_more_than_planned
    # The audit finds at least half of what a perfect test of the planned noise would.
    assert finding.epsilon(DELTA) >= 0.5 * gaussian_epsilon(finding.planned, DELTA)


# The real encoder.


@pytest.mark.parametrize("canary", [FAINT, LOUD], ids=["at the clip", "beyond the clip"])
def test_the_server_learns_what_the_accountant_says_and_no_more(canary: Direction) -> None:
    sound(audit(real, Setting(planned(8.0), DEVICES, canary, trials=3000)), 8.0)


def test_a_small_epsilon_is_kept_as_well() -> None:
    sound(audit(real, Setting(planned(4.0), DEVICES, LOUD, trials=4000)), 4.0)


@pytest.mark.parametrize("canary", [BOTH, only_quantities])
def test_quantities_beside_the_update_are_within_the_same_epsilon(canary: Canary) -> None:
    sound(audit(real, Setting(planned(8.0, auxiliary=8), DEVICES, canary, trials=3000)), 8.0)


def test_a_canary_made_for_the_rounding_gains_nothing() -> None:
    encoding = coarse(1.05, 8.0)
    sound(audit(real, Setting(encoding, DEVICES, flat)), 8.0)
    assert largest_norm_sq(real, encoding, flat, trials=500) <= encoding.bound_sq


def test_privacy_does_not_rest_on_the_rotation() -> None:
    # The canary is chosen with the rotation in hand, so that all of it falls on one coordinate.
    def one_coordinate(session: Session, number: int) -> Contribution:
        axis = np.zeros(DIM, np.float32)
        axis[7] = CLIP
        return Contribution(unrotate(axis, session.rotation_seed))

    sound(audit(real, Setting(planned(8.0), DEVICES, one_coordinate)), 8.0)


def test_rounds_cost_together_what_the_ledger_says() -> None:
    rounds = 4
    encoding = planned(8.0, participations=rounds)
    charges = [
        Charge(
            RunId("r"),
            number,
            0,
            bytes(32),
            encoding.bound_sq,
            encoding.padded,
            DEVICES * encoding.noise,
            0.0,
        )
        for number in range(rounds)
    ]
    finding = audit(real, Setting(encoding, DEVICES, LOUD, rounds=rounds, trials=1200))
    sound(finding, spent(charges, DELTA))


def test_rounds_do_not_share_noise() -> None:
    encoding = planned(8.0, participations=2)
    sound(audit(real, Setting(encoding, DEVICES, LOUD, rounds=2, trials=2500), attack=difference), 8.0)


def test_noise_does_not_follow_from_what_is_public() -> None:
    sound(audit(real, Setting(planned(8.0), DEVICES, LOUD, trials=2500), attack=rehearsal), 8.0)


def test_corrupt_devices_that_leave_their_noise_out_are_accounted_for() -> None:
    cohort = 6
    honest = honest_devices(cohort, corrupt_fraction=0.2, server_malicious=True)
    # One of six adds no noise, and the auditor takes what it sent away: five devices' noise is left.
    finding = audit(real, Setting(planned(8.0, honest=honest), cohort - 1, LOUD))
    sound(finding, 8.0)


# Broken encoders. Each must be seen through.


@functools.cache
def with_noise(encoding: Encoding, factor: Fraction) -> Encoding:
    return replace(encoding, noise=(factor * encoding.noise).limit_denominator(1 << 20))


def noise_times(factor: Fraction) -> Release:
    def release(mine: Contribution, session: Session, device: int) -> Words:
        return real(mine, replace(session, encoding=with_noise(session.encoding, factor)), device)

    return release


no_noise = noise_times(Fraction(0))


def one_device_without_noise(mine: Contribution, session: Session, device: int) -> Words:
    return (no_noise if device == 0 else real)(mine, session, device)


def keyed(mine: Contribution, session: Session, key: bytes) -> Words:
    stream = Keystream(hashlib.sha256(key).digest())
    return encode(
        mine.update,
        session.encoding,
        rotation_seed=session.rotation_seed,
        auxiliary=mine.quantities,
        randomness=stream,
    ).words


def noise_of_the_device(mine: Contribution, session: Session, device: int) -> Words:
    """Drawn once for a device, and used in each round."""
    return keyed(mine, session, b"device %d" % device)


def noise_of_the_session(mine: Contribution, session: Session, device: int) -> Words:
    """Fresh for each round, of a key that everybody can derive."""
    return keyed(mine, session, session.rotation_seed + b"%d" % device)


def noise_of_the_update(mine: Contribution, session: Session, device: int) -> Words:
    return keyed(mine, session, session.rotation_seed + mine.update.tobytes())


def same_noise_on_all_devices(mine: Contribution, session: Session, device: int) -> Words:
    return keyed(mine, session, session.rotation_seed)


def no_clip(mine: Contribution, session: Session, device: int) -> Words:
    norm = float(np.linalg.norm(mine.update))
    wide = replace(session.encoding, clip=max(norm, 1e-9) * 2, bound_sq=1 << 59)
    return real(mine, replace(session, encoding=wide), device)


def no_bound(mine: Contribution, session: Session, device: int) -> Words:
    """Clipped and rounded at random, but never redrawn."""
    return real(mine, replace(session, encoding=replace(session.encoding, bound_sq=1 << 59)), device)


def rounded_outward(mine: Contribution, session: Session, device: int) -> Words:
    encoding, norm = session.encoding, float(np.linalg.norm(mine.update))
    factor = encoding.scale * SHRINK * (min(1.0, encoding.clip / norm) if norm else 1.0)
    turned = rotate((factor * mine.update).astype(np.float32), session.rotation_seed)
    values = np.copysign(np.ceil(np.abs(turned)), turned).astype(np.int32)
    nothing = Contribution(np.zeros(DIM, np.float32))
    return pack(values, encoding.bits) + real(nothing, session, device)


def rotated_by_nobodys_seed(mine: Contribution, session: Session, device: int) -> Words:
    return real(mine, replace(session, rotation_seed=bytes(32)), device)


def quantities_without_noise(mine: Contribution, session: Session, device: int) -> Words:
    words = real(mine, session, device)
    words[session.encoding.packed :] = no_noise(mine, session, device)[session.encoding.packed :]
    return words


def half_the_coordinates_noised(mine: Contribution, session: Session, device: int) -> Words:
    words = real(mine, session, device)
    words[::2] = no_noise(mine, session, device)[::2]
    return words


def test_forgotten_noise_is_seen_whatever_the_law_of_scores() -> None:
    finding = audit(no_noise, Setting(planned(2.0), DEVICES, LOUD, trials=500))
    assert finding.epsilon_of_any(DELTA) > 2.0
    assert finding.epsilon(DELTA) > 8.0


@pytest.mark.parametrize(("factor", "trials"), [(Fraction(1, 4), 1000), (Fraction(1, 2), 3000)])
def test_too_little_noise_is_seen(factor: Fraction, trials: int) -> None:
    finding = audit(noise_times(factor), Setting(planned(8.0), DEVICES, LOUD, trials=trials))
    assert finding.leaks_more_than(8.0, DELTA)


def test_noise_added_twice_is_seen() -> None:
    finding = audit(noise_times(Fraction(2)), Setting(planned(8.0), DEVICES, LOUD, trials=3000))
    assert finding.hides_more_than_planned
    assert not finding.leaks_more_than(8.0, DELTA)


def test_a_device_that_forgets_its_noise_is_seen_when_it_is_one_of_two() -> None:
    finding = audit(one_device_without_noise, Setting(planned(8.0), 2, LOUD, trials=3000))
    assert finding.leaks_more_than(8.0, DELTA)


def test_noise_used_in_two_rounds_is_seen_by_subtracting_them() -> None:
    setting = Setting(planned(2.0, participations=2), DEVICES, LOUD, rounds=2, trials=500)
    finding = audit(noise_of_the_device, setting, attack=difference)
    assert finding.epsilon_of_any(DELTA) > 2.0


@pytest.mark.parametrize("release", [noise_of_the_device, noise_of_the_session, same_noise_on_all_devices])
def test_noise_from_a_key_that_can_be_derived_is_seen_by_deriving_it(release: Release) -> None:
    finding = audit(release, Setting(planned(2.0), DEVICES, LOUD, trials=500), attack=rehearsal)
    assert finding.epsilon_of_any(DELTA) > 2.0


def test_noise_from_the_update_itself_is_seen_by_guessing_the_update() -> None:
    # Without the canary the rehearsal cancels everything; with it, only the others' noise.
    finding = audit(noise_of_the_update, Setting(planned(8.0), DEVICES, LOUD, trials=800), attack=rehearsal)
    assert finding.leaks_more_than(8.0, DELTA)


def test_the_same_noise_on_all_devices_is_seen_as_too_much() -> None:
    finding = audit(same_noise_on_all_devices, Setting(planned(8.0), DEVICES, LOUD, trials=3000))
    assert finding.hides_more_than_planned


def test_a_missing_clip_is_seen() -> None:
    assert audit(no_clip, Setting(planned(8.0), DEVICES, LOUD)).leaks_more_than(8.0, DELTA)


def test_a_missing_bound_is_seen_in_the_integers() -> None:
    encoding = coarse(0.5, 8.0)  # Halves are where a rounding varies most.
    assert largest_norm_sq(real, encoding, flat, trials=1500) <= encoding.bound_sq
    # One rounding in sixty is too long: that none of 1500 is has probability 1e-11.
    assert largest_norm_sq(no_bound, encoding, flat, trials=1500) > encoding.bound_sq


def test_rounding_that_lengthens_is_seen() -> None:
    encoding = coarse(1.05, 8.0)
    assert audit(rounded_outward, Setting(encoding, DEVICES, flat)).leaks_more_than(8.0, DELTA)
    assert largest_norm_sq(rounded_outward, encoding, flat, trials=5) > encoding.bound_sq


def test_another_rotation_than_the_sessions_is_seen_as_a_lost_update() -> None:
    assert audit(rotated_by_nobodys_seed, Setting(planned(8.0), DEVICES, LOUD)).hides_more_than_planned


def test_quantities_without_noise_are_seen() -> None:
    setting = Setting(planned(2.0, auxiliary=8), DEVICES, only_quantities, trials=500)
    assert audit(quantities_without_noise, setting).epsilon_of_any(DELTA) > 2.0


def test_noise_on_half_of_the_coordinates_is_seen() -> None:
    finding = audit(half_the_coordinates_noised, Setting(planned(8.0), DEVICES, LOUD, trials=3000))
    assert finding.leaks_more_than(8.0, DELTA)

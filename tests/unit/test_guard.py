"""The guard: sums of honest devices pass, sums beyond them do not, and a group with a liar stands out.

Laws: the gate's estimate is unbiased and varies as the formula of docs/explanation/poisoning.md says; a sum that
passes is bounded. Sums are of real encodings, without masks. Where chance decides, the seed is fixed and the rate
of false alarms is that of ``guard.limit``: below 2e-6 a sum for the 300 dimensions and more that are used here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2, norm

from umbel_proto.credentials import FleetPolicy
from umbel_proto.encoding import digest
from umbel_proto.errors import UsageError
from umbel_proto.ids import DeviceId, FleetId, ModelName, RunId
from umbel_proto.prg import Keystream
from umbel_proto.privacy.auxiliary import Quantity
from umbel_proto.privacy.encode import Encoding, decode, encode
from umbel_proto.privacy.plan import plan
from umbel_proto.secagg.session import rotation_seed
from umbel_server.learning import groups, guard
from umbel_server.learning.measure import measure
from umbel_server.learning.plan import Guard, Privacy, RunPlan, Training
from umbel_server.learning.round import RoundOutcome
from umbel_server.store.runs import Participation, RoundRecord

Vector = NDArray[np.float32]
LOSS = Quantity("loss", 0, 4)
SID = digest("umbel/1/sid", b"a session")
POLICY = FleetPolicy(FleetId("f"), 0.1, 0.2, True, 3, 0.0, 8.0, 1e-5)


def encoding(dim: int, *, devices: int = 8, noise: float = 0.3, clip: float = 2.0) -> Encoding:
    return plan(
        dim=dim,
        clip=clip,
        devices=devices,
        honest=2,
        participations=5,
        delta=1e-5,
        noise_multiplier=noise,
        auxiliary=1,
    ).encoding


def direction(dim: int, seed: int) -> Vector:
    drawn = np.random.default_rng(seed).standard_normal(dim)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def summed(updates: Sequence[Vector], code: Encoding, seed: int, *, sid: bytes = SID) -> NDArray[np.uint64]:
    """What the server holds after unmasking honest encodings."""
    words = [
        encode(
            update,
            code,
            rotation_seed=rotation_seed(sid),
            auxiliary=(0.5,),
            randomness=Keystream(digest("test", seed, place)),
        ).words
        for place, update in enumerate(updates)
    ]
    return reduce(np.add, words)


def average(total: NDArray[np.uint64], code: Encoding, count: int, *, sid: bytes = SID) -> Vector:
    return decode(total, code, count=count, rotation_seed=rotation_seed(sid))


def read(total: NDArray[np.uint64], code: Encoding, count: int, norms: Sequence[float] = ()) -> guard.Reading:
    return guard.read(
        average(total, code, count),
        measure(total, code, (LOSS,), count=count),
        encoding=code,
        asked=(LOSS,),
        count=count,
        norms=norms,
        factor=3.0,
    )


@settings(deadline=None, max_examples=60)
@given(
    dim=st.integers(300, 4000),
    count=st.integers(3, 8),
    noise=st.sampled_from([0.0, 0.05, 0.5, 2.0]),
    length=st.sampled_from([0.0, 0.5, 1.0, 50.0]),
    seed=st.integers(0, 2**32),
)
def test_no_sum_of_honest_devices_is_refused_even_if_all_are_clipped_and_agree(
    dim: int, count: int, noise: float, length: float, seed: int
) -> None:
    code = encoding(dim, noise=noise)
    update = direction(dim, seed) * np.float32(length * code.clip)
    assert read(summed([update] * count, code, seed), code, count).reason == ""


def test_the_estimate_varies_as_the_formula_says() -> None:
    """Mean and spread of est^2 over 600 sums at the bound; each check fails by chance once in 1e6 seeds or less."""
    count, dim, draws = 5, 600, 600
    code = encoding(dim, noise=0.1)  # Little enough that no square is negative.
    update = direction(dim, 1) * np.float32(code.clip)
    deviation = guard.noise_deviation(code, count=count)
    squares = [
        guard.estimate(average(summed([update] * count, code, seed), code, count), deviation) ** 2
        for seed in range(draws)
    ]
    spread = math.sqrt((2 * code.clip * deviation) ** 2 + 2 * dim * deviation**4)
    assert np.mean(squares) == pytest.approx(code.clip**2, abs=5 * spread / math.sqrt(draws))
    assert np.std(squares) == pytest.approx(spread, rel=5 / math.sqrt(2 * draws))


def test_the_stated_false_alarm_rate_is_that_of_the_formula() -> None:
    for dim, rate in ((1_000, 4.2e-9), (10_000, 6.1e-10), (10**6, 2.4e-10)):
        tail = chi2.sf(dim + guard.SLACK**2 * math.sqrt(2 * dim), dim)
        assert tail + norm.sf(guard.SLACK * (2 * dim) ** 0.25) <= rate


@settings(deadline=None, max_examples=60)
@given(
    dim=st.integers(300, 4000),
    count=st.integers(3, 8),
    noise=st.sampled_from([0.0, 0.05, 0.5, 2.0]),
    times=st.floats(1, 4),
    seed=st.integers(0, 2**32),
)
def test_a_sum_farther_out_than_twice_the_slack_is_refused(
    dim: int, count: int, noise: float, times: float, seed: int
) -> None:
    """Missed with probability below 2e-9: the estimate would have to be 6 of its deviations too low."""
    code = encoding(dim, noise=noise)
    limit = guard.limit(code, count=count)
    length = times * (2 * limit - code.clip)
    wide = replace(code, clip=code.clip * 100, scale=code.scale, bound_sq=2**58)
    updates = [direction(dim, seed) * np.float32(length)] * count
    reading = read(summed(updates, wide, seed), code, count)
    assert "modified code" in reading.reason
    assert reading.norm > reading.limit == limit


@pytest.mark.parametrize("bits", [16, 21, 32])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_words_at_random_such_as_wraps_leave_are_refused_in_every_layout(bits: int, noise: float) -> None:
    code = encoding(3000, noise=noise)
    code = replace(code, bits=bits, auxiliary=())
    total = np.random.default_rng(3).integers(0, 2**64, code.words, np.uint64)
    found = guard.read(average(total, code, 8), {}, encoding=code, asked=(), count=8, norms=(), factor=3.0)
    assert found.reason


def test_recent_rounds_tighten_the_limit_once_there_are_three() -> None:
    code = encoding(500)
    loose = guard.limit(code, count=8)
    assert guard.limit(code, count=8, norms=(0.1, 0.1), factor=3.0) == loose
    tight = guard.limit(code, count=8, norms=(0.1, 0.2, 9.0), factor=3.0)
    assert tight == pytest.approx(loose - code.clip + 0.6)
    assert guard.limit(code, count=8, norms=(9.0, 9.0, 9.0), factor=3.0) == loose


def test_a_vector_of_nothing_but_noise_is_estimated_near_nothing() -> None:
    assert guard.estimate(np.zeros(10, np.float32), 1.0) == 0.0
    assert guard.estimate(np.full(70_000, 2, np.float32), 1.0) == pytest.approx(math.sqrt(3 * 70_000))


@pytest.mark.parametrize("shift", [-3, 3])
def test_a_quantity_beyond_what_honest_devices_report_is_refused(shift: int) -> None:
    code = encoding(500)
    total = summed([direction(500, place) for place in range(5)], code, 1)
    assert read(total, code, 5).reason == ""
    room = guard.DEVIATIONS * math.sqrt(5 * (float(code.noise) + 0.25))
    total[-1:] += np.array([shift * (room + 5 * code.auxiliary[0])], np.int64).view(np.uint64)
    assert "the mean loss is" in read(total, code, 5).reason


def record(attempt: int, state: str = "opened", *, number: int = 1, **figures: object) -> RoundRecord:
    return RoundRecord(RunId("r"), number, attempt, state, 0.0, 1.0, "", figures)  # type: ignore[arg-type]


def test_the_past_is_the_last_ten_rounds_that_were_used() -> None:
    records = [
        record(1, number=n, guard={"norm": float(n), "limit": 9.0}, accuracy=n / 100) for n in range(1, 13)
    ]
    records.insert(5, record(2, "aborted", number=5, guard={"norm": 1e9, "refused": "gate"}, accuracy=1.0))
    past = guard.past(records)
    assert past.norms == tuple(float(n) for n in range(3, 13))
    assert past.scores == tuple(n / 100 for n in range(3, 13))


def test_rounds_without_figures_leave_no_past() -> None:
    assert guard.past([record(1), record(1, number=2, guard={})]) == guard.Past()


def test_a_fall_of_accuracy_counts_from_max_drop_on_and_not_at_all_without_it() -> None:
    assert guard.dropped(0.66, 0.9, Guard(max_drop=0.25)) == ""
    assert "from 0.900 to 0.640" in guard.dropped(0.64, 0.9, Guard(max_drop=0.25))
    assert guard.dropped(0.0, 0.9, Guard(max_drop=0)) == ""


def test_two_refusals_in_a_row_make_suspects_and_a_diagnostic_round_ends_the_row() -> None:
    refused = {"guard": {"norm": 9.0, "refused": "gate"}}
    failed = record(1, "aborted", **refused)
    again = record(2, "aborted", **refused)
    assert not guard.suspects([failed])
    assert guard.suspects([failed, again])
    assert guard.suspects([failed, again, record(3, "aborted", **refused)])
    assert not guard.suspects([failed, record(2, "aborted", guard={})])
    assert guard.suspects([failed, record(2, "aborted"), record(3, "aborted", **refused)])
    grouped = record(3, "aborted", guard={"refused": "accuracy", "groups": []})
    assert not guard.suspects([failed, again, grouped])
    assert not guard.suspects([grouped, record(4, "aborted", **refused)])


@given(devices=st.integers(3, 200), count=st.integers(3, 20))
def test_every_device_is_in_one_group_and_no_group_is_too_small(devices: int, count: int) -> None:
    rules = Guard(groups=count)
    members = {1000 + n: DeviceId(f"d{n}") for n in range(devices)}
    if groups.obstacle(devices, rules=rules, policy=POLICY, epsilon=1.0):
        assert devices < count * groups.least_size(POLICY)
        return
    dealt = groups.deal(members, count)
    assert sorted(node for group in dealt for node in group) == sorted(members)
    assert all(group.items() <= members.items() for group in dealt)
    assert min(map(len, dealt)) >= groups.least_size(POLICY)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_groups_are_dealt_anew_each_time() -> None:
    """Equal by chance once in 5e39 runs: 40! / ((4!)^10) ways to deal."""
    members = {n: DeviceId(f"d{n}") for n in range(40)}
    assert groups.deal(members, 10) != groups.deal(members, 10)


def test_a_group_outlives_the_planned_dropouts() -> None:
    assert groups.least_size(POLICY) == 4
    assert groups.least_size(replace(POLICY, min_cohort=8)) == 10


def test_a_diagnostic_round_is_not_held_without_devices_budget_or_leave() -> None:
    def obstacle(devices: int = 40, epsilon: float = 8.0, **rules: int) -> str:
        return groups.obstacle(devices, rules=Guard(**rules), policy=POLICY, epsilon=epsilon)

    assert obstacle() == ""
    assert obstacle(devices=39) == "39 devices do not make 10 groups of at least 4"
    assert "epsilon 8.1, and its budget is 8" in obstacle(epsilon=8.1)
    assert "no groups" in obstacle(groups=0)


def group(number: int, code: Encoding, updates: Mapping[str, Vector] | None) -> RoundOutcome:
    """How a group's session ended: with a sum of these updates, or aborted."""
    sid = digest("umbel/1/sid", number)
    devices = tuple(map(DeviceId, updates or (f"lost-{number}",)))
    total = None
    if updates is not None:
        wide = replace(code, clip=code.clip * 1000, scale=code.scale, bound_sq=2**58)
        total = summed(list(updates.values()), wide, number, sid=sid)
    return RoundOutcome(
        sid=sid,
        total=total,
        survivors=devices if updates is not None else (),
        reason="" if updates is not None else "too few joined",
        participations=tuple(
            Participation(d, "summed" if updates is not None else "dropped") for d in devices
        ),
        silent=frozenset(),
        seconds={"train": 1.0},
        bytes_up=10,
        bytes_down=20,
    )


def honest(number: int) -> dict[str, Vector]:
    return {f"g{number}d{i}": direction(500, 10 * number + i) for i in range(4)}


def sift(outcomes: Sequence[RoundOutcome], code: Encoding) -> groups.Sifted:
    return groups.sift(outcomes, encoding=code, asked=(LOSS,), rules=Guard())


def test_the_group_with_a_liar_is_left_out_and_named_and_the_rest_is_used() -> None:
    code = encoding(500, noise=0.1, devices=40)
    poisoned = {**honest(3), "liar": direction(500, 7) * np.float32(40.0)}
    outcomes = [group(n, code, poisoned if n == 3 else honest(n)) for n in range(10)]
    sifted = sift(outcomes, code)
    assert sifted.reason == ""
    assert sifted.kept == tuple(outcomes[:3] + outcomes[4:])
    left_out = [each for each in sifted.groups if each.reason]
    assert [set(each.devices) for each in left_out] == [set(poisoned)]
    parts = {part.device: part for part in sifted.outcome.participations}
    assert parts[DeviceId("liar")].outcome == "charged"
    assert "its group was left out" in parts[DeviceId("g3d0")].reason
    assert [part.outcome for part in parts.values()].count("summed") == 36
    assert len(sifted.outcome.survivors) == 36


def test_groups_that_differ_from_the_past_but_not_from_each_other_are_all_used() -> None:
    code = encoding(500, noise=0.1, devices=40)
    sifted = sift([group(n, code, honest(n)) for n in range(10)], code)
    assert (sifted.reason, len(sifted.kept)) == ("", 10)


def test_a_liar_within_the_clip_stands_out_against_the_other_groups() -> None:
    """Its group's average stays below the clip, and only the median of the groups gives it away."""
    code = encoding(500, noise=0.02, devices=40)
    small = [{name: update * np.float32(0.2) for name, update in honest(n).items()} for n in range(10)]
    small[0]["liar"] = direction(500, 3) * np.float32(6.0)
    sifted = sift([group(n, code, updates) for n, updates in enumerate(small)], code)
    (found,) = [each for each in sifted.groups if each.reason]
    assert "liar" in found.devices
    assert found.norm is not None
    assert found.norm < code.clip


def test_a_diagnostic_round_without_a_majority_of_groups_is_not_used() -> None:
    code = encoding(500, noise=0.1, devices=40)
    outcomes = [group(n, code, None if n < 5 else honest(n)) for n in range(10)]
    sifted = sift(outcomes, code)
    assert "5 of 10 groups" in sifted.reason
    assert sifted.groups[0] == groups.Group((DeviceId("lost-0"),), "too few joined")


def test_the_record_of_groups_adds_up_what_they_cost() -> None:
    code = encoding(500, devices=40)
    outcome = sift([group(n, code, honest(n)) for n in range(3)], code).outcome
    assert (outcome.bytes_up, outcome.bytes_down, outcome.seconds) == (30, 60, {"train": 3.0})
    assert outcome.total is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"factor": 1.0},
        {"factor": math.inf},
        {"max_drop": -0.1},
        {"max_drop": math.nan},
        {"groups": 2},
        {"groups": 21},
        {"groups": -1},
    ],
)
def test_a_guard_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Guard(**wrong)  # type: ignore[arg-type]


def test_a_run_plan_carries_the_guard_and_has_one_by_default() -> None:
    made = RunPlan(
        model=ModelName("m"),
        version=1,
        package_sha256="0" * 64,
        rounds=1,
        devices=3,
        training=Training(),
        privacy=Privacy(clip=1.0, noise_multiplier=0.0),
    )
    assert made.guard == Guard(gate=True, factor=3.0, max_drop=0.25, groups=10)
    changed = replace(made, guard=Guard(groups=5, max_drop=0))
    assert RunPlan.from_json(changed.to_json()) == changed

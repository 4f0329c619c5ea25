"""Laws: what is signed is what is read; nothing else is; an answer is never longer than the query's bound, whatever a
device holds; and it is the count of its examples.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from query_world import FLEET, KEY, a_query
from umbel_proto.analytics.query import (
    FAIRNESS,
    HISTOGRAM,
    MAX_QUERY_BYTES,
    MEAN,
    QUANTILE,
    open_query,
    query_hash,
    sign_query,
)
from umbel_proto.analytics.tally import Rows, tally
from umbel_proto.errors import CertificateError, RemoteProtocolError, UsageError
from umbel_proto.ids import FleetId
from umbel_proto.keys import SigningKey
from umbel_proto.privacy.accounting import epsilon
from umbel_proto.privacy.counts import plan_counts
from umbel_proto.wire import identity_pb2, queries_pb2


@pytest.mark.parametrize("kind", [HISTOGRAM, MEAN, QUANTILE, FAIRNESS])
def test_what_is_signed_is_what_a_device_reads(kind: str) -> None:
    query = a_query(kind)
    signed = sign_query(KEY, query)
    assert open_query(signed, authority=KEY.public, fleet=FLEET, now_s=999) == query
    assert sign_query(KEY, query) == signed
    assert query_hash(signed) != query_hash(sign_query(KEY, replace(query, why="to know more")))


def test_a_query_that_another_key_signed_is_refused() -> None:
    signed = sign_query(SigningKey.generate(), a_query())
    with pytest.raises(CertificateError, match="not signed by this fleet's authority"):
        open_query(signed, authority=KEY.public, fleet=FLEET, now_s=0)


@given(st.data())
def test_a_query_that_was_changed_anywhere_is_refused(data: st.DataObject) -> None:
    signed = bytearray(sign_query(KEY, a_query()))
    place = data.draw(st.integers(0, len(signed) - 1))
    signed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises((CertificateError, RemoteProtocolError)):
        open_query(bytes(signed), authority=KEY.public, fleet=FLEET, now_s=0)


def test_another_fleets_query_and_one_that_is_too_old_are_refused() -> None:
    signed = sign_query(KEY, a_query())
    with pytest.raises(CertificateError, match="of fleet north, not south"):
        open_query(signed, authority=KEY.public, fleet=FleetId("south"), now_s=0)
    with pytest.raises(CertificateError, match="too old"):
        open_query(signed, authority=KEY.public, fleet=FLEET, now_s=1000)


def test_a_credential_is_no_query_though_the_same_key_signed_it() -> None:
    body = queries_pb2.Query(fleet_id=FLEET).SerializeToString()
    other = identity_pb2.Signed(body=body, signature=KEY.sign("umbel/1/credential", body)).SerializeToString()
    with pytest.raises(CertificateError):
        open_query(other, authority=KEY.public, fleet=FLEET, now_s=0)


def test_a_signed_query_that_makes_no_sense_is_refused_as_the_servers_fault() -> None:
    body = queries_pb2.Query(fleet_id=FLEET, query_id="q", kind="dump").SerializeToString()
    signed = identity_pb2.Signed(body=body, signature=KEY.sign("umbel/1/query", body)).SerializeToString()
    with pytest.raises(RemoteProtocolError, match="cannot be answered"):
        open_query(signed, authority=KEY.public, fleet=FLEET, now_s=0)


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        (HISTOGRAM, {"edges": ()}, "give one of the two"),
        (HISTOGRAM, {"edges": (2.0, 1.0)}, "do not ascend"),
        (HISTOGRAM, {"edges": (1.0, math.nan)}, "do not ascend"),
        (HISTOGRAM, {"edges": tuple(map(float, range(128)))}, "give up to 127"),
        (HISTOGRAM, {"categories": 3}, "give one of the two"),
        (HISTOGRAM, {"quantiles": (0.5,)}, "no other"),
        (HISTOGRAM, {"low": 1.0, "high": 2.0}, "no other"),
        (HISTOGRAM, {"cohort": "group"}, "Only a fairness query"),
        (MEAN, {"high": -3.0}, "low < high"),
        (MEAN, {"high": math.inf}, "low < high"),
        (MEAN, {"edges": (1.0,)}, "has no edges"),
        (QUANTILE, {"quantiles": (0.0,)}, "between 0 and 1"),
        (QUANTILE, {"edges": (1.0,)}, "two edges or more"),
        (FAIRNESS, {"positive": 3}, "name it"),
        (FAIRNESS, {"cohort_edges": ()}, "compares 2 to 16"),
        (HISTOGRAM, {"per_device": 0}, "choose 1 to"),
        (HISTOGRAM, {"min_cohort": 2}, "choose 3 to"),
        (HISTOGRAM, {"why": " "}, "what it is for"),
        (HISTOGRAM, {"why": "a\nb"}, "what it is for"),
        (HISTOGRAM, {"noise_multiplier": math.nan}, "a number >= 0"),
    ],
)
def test_a_question_that_cannot_be_answered_is_none(kind: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        a_query(kind, **changes)


def test_a_query_that_no_invitation_holds_is_not_signed() -> None:
    long = a_query(edges=tuple(map(float, range(127))), why="x" * 200)
    assert len(sign_query(KEY, long)) <= MAX_QUERY_BYTES
    with pytest.raises(UsageError, match="fewer edges"):
        sign_query(KEY, a_query(QUANTILE, edges=long.edges, why="\N{SNOWMAN}" * 200))


VALUES = st.lists(
    st.one_of(st.floats(-100, 100), st.just(math.nan), st.sampled_from([10.0, 20.0])), max_size=40
)


@given(VALUES, st.integers(1, 50))
def test_a_histogram_counts_every_value_once_and_a_device_as_much_as_it_may(
    values: list[float], most: int
) -> None:
    query = a_query(per_device=most)
    answer = tally(query, Rows(np.array(values, np.float64)))
    known = [value for value in values if not math.isnan(value)]
    counts = [
        sum(value < 10 for value in known),
        sum(10 <= value < 20 for value in known),
        sum(value >= 20 for value in known),
        len(values) - len(known),
    ]
    share = min(1.0, most / len(values)) if values else 0.0
    assert answer.tolist() == pytest.approx([share * count for count in counts], rel=1e-6)
    assert np.linalg.norm(answer.astype(np.float64)) <= query.bound * (1 + 1e-6)


@given(VALUES, st.integers(1, 50))
def test_a_mean_is_of_clamped_values_and_its_answer_within_the_bound(values: list[float], most: int) -> None:
    query = a_query(MEAN, per_device=most)
    answer = tally(query, Rows(np.array(values, np.float64))).astype(np.float64)
    known = np.clip([value for value in values if not math.isnan(value)], -3, 5)
    unit = (known - 1) / 4
    share = min(1.0, most / unit.size) if unit.size else 0.0
    assert answer == pytest.approx(share * np.array([unit.size, unit.sum(), (unit**2).sum()]), abs=1e-4)
    assert np.linalg.norm(answer) <= query.bound * (1 + 1e-6)


@given(
    st.lists(st.tuples(*(st.sampled_from([0.0, 1.0, 2.0, math.nan]) for _ in range(3))), max_size=40),
    st.integers(1, 50),
)
def test_outcomes_are_counted_by_cohort_and_within_the_bound(
    rows: list[tuple[float, float, float]], most: int
) -> None:
    query = a_query(FAIRNESS, per_device=most)
    given_, right, cohort = np.array(rows, np.float64).reshape(-1, 3).T
    answer = tally(query, Rows(given_, right, cohort)).astype(np.float64)
    expected = np.zeros(12)
    known = [row for row in rows if not any(map(math.isnan, row))]
    for said, label, group in known:
        expected[4 * int(group) + 2 * (label == 1) + (said == 1)] += 1
    share = min(1.0, most / len(known)) if known else 0.0
    assert answer == pytest.approx(share * expected, rel=1e-6)
    assert np.linalg.norm(answer) <= query.bound * (1 + 1e-6)


@given(
    dim=st.integers(1, 129),
    bound=st.floats(0.5, 2e4),
    devices=st.integers(3, 1 << 14),
    target=st.sampled_from([0.1, 1.0, 8.0, math.inf]),
    floor=st.sampled_from([0.0, 0.5, 3.0]),
)
def test_counts_are_encoded_finely_and_cost_what_was_asked_at_most(
    dim: int, bound: float, devices: int, target: float, floor: float
) -> None:
    honest = max(1, devices // 2)
    made = plan_counts(
        dim=dim, bound=bound, devices=devices, honest=honest, delta=1e-6, epsilon=target, noise_floor=floor
    )
    encoding = made.encoding
    assert made.epsilon <= target
    assert made.noise_multiplier >= floor * (1 - 1e-12)
    total = float(honest * encoding.noise)
    if total:
        assert epsilon(encoding.bound_sq, encoding.padded, total, 1e-6, 1) == pytest.approx(made.epsilon)
        # Rounding, and the bound that allows for it, add little to what the noise must be.
        assert made.error(devices) <= 1.25 * bound * made.noise_multiplier * math.sqrt(devices / honest)
    wide = devices * math.sqrt(encoding.bound_sq) + 8 * math.sqrt(devices * (float(encoding.noise) + 0.25))
    assert wide < 2**31

"""Reviews on the wire: their bytes are fixed, and who does not know of them reads the rest as before."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from umbel_proto.credentials import FleetPolicy, open_policy, sign_policy
from umbel_proto.errors import CertificateError
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.keys import SigningKey
from umbel_proto.reviews import EndedReview, ReviewAnswer, WaitingReview, open_answer, sign_answer
from umbel_proto.wire import delivery_pb2, identity_pb2, reviews_pb2
from umbel_proto.wire import telemetry_pb2 as pb

ID = bytes(range(16))
WAITING = "0a10000102030405060708090a0b0c0d0e0f12066469676974731802208087a70e2807303d3801"
ENDED = "0a10000102030405060708090a0b0c0d0e0f1004"
ANSWER = "0a066d6561646f771204726f73651a10000102030405060708090a0b0c0d0e0f20092a0361646132056120776179"
NAMED = ANSWER + "3a046e696e65"
"""An answer says what the class is called since 2026-11; before it had the first bytes alone."""
POLICY = FleetPolicy(
    FleetId("meadow"), 0.1, 0.2, True, 16, 0.5, 8.0, 1e-6, version=3, example_budget_epsilon=math.inf
)


def told() -> WaitingReview:
    return WaitingReview.of(
        ID, model="digits", version=2, at_s=1.8e9 + 59, label=7, confidence=0.619, unsure=True, flagged=False
    )


def test_the_bytes_of_reviews_stay_as_they_are() -> None:
    assert told().to_wire().SerializeToString().hex() == WAITING
    assert EndedReview(ID, "withdrawn").to_wire().SerializeToString().hex() == ENDED
    key = SigningKey.generate()
    answer = ReviewAnswer(FleetId("meadow"), DeviceId("rose"), ID, 9, "ada", "a way")
    for each, body in ((answer, ANSWER), (replace(answer, name="nine"), NAMED)):
        signed = sign_answer(key, each)
        assert identity_pb2.Signed.FromString(signed).body.hex() == body
        opened = open_answer(signed, authority=key.public, fleet=FleetId("meadow"), device=DeviceId("rose"))
        assert opened == each


def test_who_does_not_know_of_reviews_reads_the_rest_as_before() -> None:
    window = pb.Window(model="digits", version=1, counters={"predictions": 3})
    new = pb.Batch(windows=[window], waiting_reviews=[told().to_wire()])
    # Fields that an older one does not know, whatever they hold, are skipped: windows keep number and type.
    assert new.SerializeToString().startswith(pb.Batch(windows=[window]).SerializeToString())
    fields = {each.name: each.number for each in pb.Batch.DESCRIPTOR.fields}
    assert fields == {"windows": 1, "waiting_reviews": 2, "ended_reviews": 3}
    reply = delivery_pb2.CheckReply.DESCRIPTOR.fields_by_name
    assert {name: reply[name].number for name in reply} == {"releases": 1, "shadows": 2, "answers": 3}


def test_a_policy_that_asks_for_no_reviews_has_the_bytes_it_always_had() -> None:
    key = SigningKey.generate()
    body = identity_pb2.Signed.FromString(sign_policy(key, POLICY)).body
    assert not identity_pb2.Policy.FromString(body).HasField("training")
    assert identity_pb2.Policy.FromString(body).announce_reviews is False
    asking = identity_pb2.Signed.FromString(sign_policy(key, replace(POLICY, announce_reviews=True))).body
    assert asking == body + bytes([12 << 3, 1])
    assert open_policy(sign_policy(key, POLICY), authority=key.public, fleet=FleetId("meadow")) == POLICY


@pytest.mark.parametrize("place", range(0, 140, 3))
def test_no_changed_byte_of_an_answer_is_taken(place: int) -> None:
    key = SigningKey.generate()
    signed = bytearray(
        sign_answer(key, ReviewAnswer(FleetId("meadow"), DeviceId("rose"), ID, 9, "ada", "a way"))
    )
    signed[place % len(signed)] ^= 1
    with pytest.raises(CertificateError):
        open_answer(bytes(signed), authority=key.public, fleet=FleetId("meadow"), device=DeviceId("rose"))


def test_every_end_has_its_number() -> None:
    for end in ("answered", "here", "gone", "withdrawn", "refused"):
        ended = EndedReview(ID, end)  # type: ignore[arg-type]
        assert EndedReview.from_wire(ended.to_wire()) == ended
    assert len(reviews_pb2.ReviewEnd.values()) == 6

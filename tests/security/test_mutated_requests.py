"""Law: whatever bytes a server sends, a real device answers as the protocol says or refuses with one of our errors.

It never fails in any other way, never sends its update otherwise than masked, and never twice.
"""

from __future__ import annotations

import os
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from simulation.liar import Alone, Device, Liar, Stage
from umbel_proto.errors import UmbelError
from umbel_proto.privacy.encode import Encoding
from umbel_proto.secagg import device as protocol
from umbel_proto.secagg.engine import TRAIN
from umbel_proto.secagg.masks import add_masks
from umbel_proto.secagg.messages import Confirmation, RevealedShares
from umbel_proto.secagg.pairwise import CONFIRM, MASK, SHARE, UNMASK
from umbel_proto.secagg.saved import restore
from umbel_proto.secagg.session import model_hash, plan_hash
from umbel_proto.wire import rounds_pb2 as pb
from umbel_server.learning.link import Payload

INTEGERS = [0, 1, 2, 3, 4, 5, 2**16, 2**31, 2**32 - 1]
NUMBERS = [
    0.0,
    -0.0,
    -1.0,
    5e-324,
    1e-300,
    0.1,
    0.2,
    0.49,
    0.5,
    1.0,
    3.4e38,
    1.7e308,
    np.inf,
    -np.inf,
    np.nan,
]
NAMES = ["", "digits", "r1", "simulated", "../x", "A", "a" * 63, "a" * 64, "\x00", "d\u00e9"]


@pytest.fixture(scope="module")
def liar(tmp_path_factory: pytest.TempPathFactory) -> Liar:
    return Liar(tmp_path_factory.mktemp("liar"))


@st.composite
def mutations(draw: st.DrawFn, honest: bytes, other: bytes) -> bytes:
    """The honest bytes with some cut, changed, doubled, or taken from another session's message."""
    data = bytearray(honest)
    for _ in range(draw(st.integers(1, 3))):
        low, high = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
        match draw(st.sampled_from(["flip", "cut", "end", "double", "insert", "other"])):
            case "flip" if low < len(data):
                data[low] ^= draw(st.integers(1, 255))
            case "cut":
                del data[low:high]
            case "end":
                del data[high:]
            case "double":
                data[low:low] = data[low:high]
            case "insert":
                data[low:low] = draw(st.binary(max_size=40))
            case _:
                data[low:high] = other[low:high]
    return bytes(data)


def asked(device: Device, kind: str, request: Payload) -> Payload | None:
    """The answer, or None if the device refused; then it is as it was. Any other error is a defect."""
    saved, charges = device.saved, device.charges()
    try:
        return device.ask(kind, request)
    except UmbelError:
        assert device.saved == saved
        assert device.charges() == charges
        return None


@given(data=st.data())
@settings(max_examples=80)
def test_mutated_invitations(liar: Liar, data: st.DataObject) -> None:
    stage = liar.stage(TRAIN)
    body = data.draw(mutations(stage.request.body, stage.other.request.body))
    vector = stage.model
    if data.draw(st.booleans()):
        vector = data.draw(mutations(stage.model, stage.other.model))
    device = stage.device()
    asked(device, TRAIN, Payload(body, vector))
    assert (device.charges(), device.vectors) == ((), [])
    device.go_on(TRAIN)


@given(data=st.data())
@settings(max_examples=80)
def test_mutated_rosters(liar: Liar, data: st.DataObject) -> None:
    stage = liar.stage(SHARE)
    body = data.draw(mutations(stage.request.body, stage.other.request.body))
    device = stage.device()
    assert (asked(device, SHARE, Payload(body)) is None) is (body != stage.request.body)
    device.go_on(SHARE)
    assert len(device.charges()) == len(device.vectors) == 1


def test_mutated_shares_get_the_honest_update_or_nothing(liar: Liar, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same noise drawn each time, what is under the masks is the same to the bit."""
    draw = os.urandom
    monkeypatch.setattr(os, "urandom", lambda size: bytes(32) if size == 32 else draw(size))
    stage = liar.stage(MASK)
    honest = unmasked(stage, stage.device().ask(MASK, stage.request), stage.request)
    answered = []

    @given(data=st.data())
    @settings(max_examples=100)
    def mutated(data: st.DataObject) -> None:
        body = data.draw(mutations(stage.request.body, stage.other.request.body))
        device = stage.device()
        answer = asked(device, MASK, Payload(body))
        assert len(device.charges()) == len(device.vectors) == (answer is not None)
        if answer is None:
            device.go_on(MASK)
        else:
            answered.append(body)
            assert (unmasked(stage, answer, Payload(body)) == honest).all()
            again = asked(device, MASK, stage.request)
            assert again is None or body == stage.request.body
        assert len(device.charges()) == len(device.vectors) - (body == stage.request.body) == 1

    mutated()
    assert set(answered) - {stage.request.body}, "no mutation was answered: this test has not tested anything"


def unmasked(stage: Stage, answer: Payload, request: Payload) -> NDArray[np.uint64]:
    """What is under the masks that a request asked for; at least four devices' with its own."""
    device = stage.device()
    assert device.saved is not None
    state = restore(device.saved.state, device.participant._member())
    assert isinstance(state, protocol.Shared)
    accepted = protocol.accept(state, request.body)
    assert len(accepted.held) + 1 >= state.neighborhood.parameters.threshold
    words = np.frombuffer(answer.vector, "<u8").astype(np.uint64)
    add_masks(words, plus=accepted.minus, minus=accepted.plus)
    return words


@given(data=st.data())
@settings(max_examples=80)
def test_mutated_survivors(liar: Liar, data: st.DataObject) -> None:
    stage = liar.stage(CONFIRM)
    body = data.draw(mutations(stage.request.body, stage.other.request.body))
    device = stage.device()
    answer = asked(device, CONFIRM, Payload(body))
    if answer is None:
        device.go_on(CONFIRM)
        return
    Confirmation.from_bytes(answer.body, "dev-0")
    bitmap = pb.Survivors.FromString(body).bitmap
    assert bitmap[0] & 1
    assert bitmap[0].bit_count() >= 4
    assert (asked(device, CONFIRM, stage.request) is None) is (body != stage.request.body)


@given(data=st.data())
@settings(max_examples=80)
def test_mutated_confirmations(liar: Liar, data: st.DataObject) -> None:
    stage = liar.stage(UNMASK)
    honest = RevealedShares.from_bytes(stage.moments[UNMASK].answer.body, "dev-0")
    body = data.draw(mutations(stage.request.body, stage.other.request.body))
    device = stage.device()
    answer = asked(device, UNMASK, Payload(body))
    if answer is None:
        device.go_on(UNMASK)
    else:
        assert RevealedShares.from_bytes(answer.body, "dev-0") == honest


@st.composite
def invitations(draw: st.DrawFn, stage: Stage) -> Payload:
    """An invitation with wild numbers in descriptor, encoding and plan, and hashes that are right for it."""
    plan = pb.TrainPlan.FromString(stage.invitation.plan)
    message = pb.SessionDescriptor.FromString(stage.invitation.descriptor)
    plan.epochs = 1
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from([plan, message, message.encoding]))
        field = draw(st.sampled_from(list(part.DESCRIPTOR.fields)))
        if field.is_repeated or field.message_type or field.name in ("model_hash", "plan_hash"):
            continue
        match field.type:
            case field.TYPE_DOUBLE:
                value: object = draw(st.sampled_from(NUMBERS) | st.floats())
            case field.TYPE_STRING:
                value = draw(st.sampled_from(NAMES))
            case field.TYPE_BYTES:
                value = draw(st.binary(max_size=40))
            case field.TYPE_BOOL:
                value = draw(st.booleans())
            case field.TYPE_UINT64:
                value = draw(st.sampled_from([*INTEGERS, 2**53, 2**63, 2**64 - 1]))
            case _:
                value = draw(st.sampled_from(INTEGERS))
        setattr(part, field.name, value)
    if draw(st.booleans()):
        bounds = draw(st.lists(st.sampled_from(NUMBERS), min_size=4, max_size=4))
        for quantity, (low, high) in zip(plan.auxiliary, pairwise(bounds), strict=False):
            quantity.low, quantity.high = low, high
    raw = plan.SerializeToString(deterministic=True)
    message.model_hash, message.plan_hash = model_hash(stage.model), plan_hash(raw)
    return stage.raw_invitation(message.SerializeToString(deterministic=True), raw)


@given(data=st.data())
@settings(max_examples=150)
def test_invitations_with_wild_numbers(liar: Liar, data: st.DataObject) -> None:
    stage = liar.stage(TRAIN)
    device = stage.device()
    asked(device, TRAIN, data.draw(invitations(stage)))
    assert (device.charges(), device.vectors) == ((), [])


ENCODINGS = st.builds(
    dict,
    clip=st.sampled_from([1e-300, 1e-30, 1e-3, 2.0, 1e6, 1e30, 1e300]),
    length=st.sampled_from([1e-6, 0.5, 1.0, 2000.0, 1e6, 1e9]),
    noise=st.sampled_from([Fraction(2**28), Fraction(2**28 - 1, 7), Fraction(10**6)]),
    amplitude=st.sampled_from([1, 213, 10**6]),
    bits=st.sampled_from([16, 21, 32]),
)


def test_what_an_invitation_was_accepted_for_is_sent_once_it_is_charged(liar: Liar) -> None:
    """No encoding that a device accepts fails it after the charge: it would pay and send nothing."""
    stage = liar.stage(TRAIN)
    sent = []

    @given(wild=ENCODINGS)
    @settings(max_examples=30)
    def masked(wild: dict[str, float]) -> None:
        try:
            encoding = wild_encoding(stage, **wild)  # type: ignore[arg-type]
        except UmbelError:
            return
        device = stage.device()
        try:
            session = Alone(stage, device, stage.invite(encoding=encoding))
        except UmbelError:
            assert device.charges() == ()
            return
        device.ask(MASK, session.shares())
        assert len(device.charges()) == len(device.vectors) == 1
        sent.append(wild)

    masked()
    assert len(sent) > 10


def wild_encoding(
    stage: Stage, *, clip: float, length: float, noise: Fraction, amplitude: int, bits: int
) -> Encoding:
    honest = stage.descriptor.encoding
    bound = int((length + 1) ** 2) + 2 * amplitude**2 + honest.padded
    return Encoding(
        honest.dim,
        honest.padded,
        bits,
        clip,
        length / clip,
        bound,
        noise,
        (amplitude,) * len(honest.auxiliary),
    )

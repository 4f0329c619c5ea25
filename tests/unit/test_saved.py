"""A session that is put into bytes between two messages goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from simulation.fleet import PHASES, Fleet
from umbel_proto.errors import LocalProtocolError, RemoteProtocolError
from umbel_proto.ids import DeviceId
from umbel_proto.secagg import device, server
from umbel_proto.secagg.saved import restore, save
from umbel_proto.wire import saved_pb2 as pb

STATES = {
    "share": device.Joined,
    "mask": device.Shared,
    "confirm": device.Masked,
    "unmask": device.Confirmed,
}
"""In which state a device waits for a phase's request."""
D0 = DeviceId("d0")


def put_away(fleet: Fleet, name: DeviceId) -> None:
    """Replace a device's session by what its bytes give."""
    kept = save(fleet.devices[name])
    assert kept is not None
    fleet.devices[name] = restore(kept, fleet.members[name])


def kept_before(phase: str) -> tuple[Fleet, bytes]:
    """A fleet before a phase, and the first device's session in bytes."""
    fleet = Fleet(5)
    fleet.run_to(phase)
    kept = save(fleet.devices[D0])
    assert kept is not None
    return fleet, kept


@pytest.mark.parametrize("phase", STATES)
def test_a_restored_session_is_of_the_same_kind_and_gives_the_same_bytes_again(phase: str) -> None:
    fleet, kept = kept_before(phase)
    state = restore(kept, fleet.members[D0])
    assert type(state) is type(fleet.devices[D0]) is STATES[phase]
    assert save(state) == kept


@pytest.mark.parametrize("phase", STATES)
def test_a_round_opens_to_the_plain_sum_when_every_session_was_put_away_before_a_phase(phase: str) -> None:
    fleet = Fleet(6, seed=2)
    fleet.run_to(phase)
    for name in fleet.ids:
        put_away(fleet, name)
    end = fleet.run_round()
    assert isinstance(end, server.Opened)
    assert (end.total == fleet.plain_sum(fleet.ids)).all()


@pytest.mark.parametrize("lost_in", ["share", "mask", "confirm", "unmask"])
def test_sessions_put_away_before_every_phase_still_make_up_for_a_lost_device(lost_in: str) -> None:
    fleet = Fleet(6, seed=3)
    fleet.vanish("d4", lost_in)
    for phase in PHASES[1:]:
        fleet.run_to(phase)
        for name in fleet.ids:
            if save(fleet.devices[name]) is not None:
                put_away(fleet, name)
    end = fleet.run_round()
    assert isinstance(end, server.Opened)
    summed = [n for n in fleet.ids if n != "d4" or lost_in in ("confirm", "unmask")]
    assert list(end.survivors) == summed
    assert (end.total == fleet.plain_sum(summed)).all()


@pytest.mark.parametrize("phase", STATES)
def test_a_restored_session_answers_a_repeated_request_with_the_same_bytes(phase: str) -> None:
    fleet = Fleet(5)
    fleet.run_to(phase)
    before = PHASES[PHASES.index(phase) - 1]
    twin = Fleet(5)
    twin.run_to(before)
    request = twin.requests[D0]
    reply = twin.ask("d0")
    put_away(twin, D0)
    again = twin.ask("d0", request)
    assert again.message == reply.message
    if reply.words is None:
        assert again.words is None
    else:
        assert again.words is not None
        assert np.array_equal(again.words, reply.words)


@pytest.mark.parametrize("phase", [phase for phase in STATES if phase != "share"])
def test_a_restored_session_refuses_another_request_of_the_phase_it_has_answered(phase: str) -> None:
    before = PHASES[PHASES.index(phase) - 1]
    fleet = Fleet(5)
    fleet.run_to(before)
    request = fleet.requests[D0]
    fleet.ask("d0")
    put_away(fleet, D0)
    with pytest.raises(RemoteProtocolError):
        fleet.ask("d0", request + b"\x00")


def test_nothing_is_kept_of_a_session_that_has_not_begun_or_is_over() -> None:
    fleet = Fleet(4)
    assert save(fleet.devices[D0]) is None
    fleet.run_round()
    assert isinstance(fleet.devices[D0], device.Done)
    assert save(fleet.devices[D0]) is None


def damaged(kept: bytes) -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "cut", kept[: len(kept) // 2]
    yield "other bytes", b"\xff" * 40
    for name, value in (
        ("phase", 9),
        ("phase", 0),
        ("descriptor", b"\x01\x02"),
        ("device_id", "No Such Name!"),
        ("reply_words", b"\x01\x02\x03"),
    ):
        message = pb.SavedSession.FromString(kept)
        setattr(message, name, value)
        yield f"{name} {value!r}", message.SerializeToString()


@pytest.mark.parametrize("phase", STATES)
def test_damaged_bytes_are_no_session(phase: str) -> None:
    fleet, kept = kept_before(phase)
    for what, data in damaged(kept):
        try:
            restored = restore(data, fleet.members[D0])
        except LocalProtocolError:
            continue
        pytest.fail(f"{what}: restored as {type(restored).__name__}")


@pytest.mark.parametrize("field", ["mask_private", "share_private", "seed"])
def test_a_secret_of_the_wrong_length_is_no_session(field: str) -> None:
    fleet, kept = kept_before("share")
    message = pb.SavedSession.FromString(kept)
    setattr(message, field, b"short")
    with pytest.raises(LocalProtocolError):
        restore(message.SerializeToString(), fleet.members[D0])


@pytest.mark.parametrize("change", ["position", "ids", "peer", "identity"])
def test_a_neighborhood_that_does_not_fit_is_no_session(change: str) -> None:
    fleet, kept = kept_before("mask")
    message = pb.SavedSession.FromString(kept)
    if change == "position":
        message.neighborhood.position = 99
    elif change == "ids":
        del message.neighborhood.ids[:]
    elif change == "peer":
        message.neighborhood.peers[0].position = 99
    else:
        message.neighborhood.peers[0].identity = b"short"
    with pytest.raises(LocalProtocolError):
        restore(message.SerializeToString(), fleet.members[D0])


@pytest.mark.parametrize("phase", STATES)
def test_a_restored_session_shows_no_secret(phase: str) -> None:
    fleet, kept = kept_before(phase)
    shown = repr(restore(kept, fleet.members[D0]))
    message = pb.SavedSession.FromString(kept)
    secrets = [message.mask_private, message.share_private, message.seed, message.own_share]
    secrets += [part for held in message.held for part in (held.seed, held.key)]
    known = [secret for secret in secrets if secret]
    assert known
    for secret in known:
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown

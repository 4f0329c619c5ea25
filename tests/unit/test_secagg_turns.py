"""Every state against every event: the legal ones advance, all others raise and change nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulation.fleet import MODEL_HASH, NOW_S, PHASES, PLAN_HASH, Fleet, descriptor, policy
from simulation.freeze import freeze
from umbel_proto.errors import LocalProtocolError, RemoteProtocolError, UsageError
from umbel_proto.ids import DeviceId
from umbel_proto.secagg import device, server
from umbel_proto.secagg.messages import SealedShares

D0 = DeviceId("d0")
DEVICE_STATES = ("Idle", "Joined", "Shared", "Masked", "Confirmed", "Done")
DEVICE_EVENTS = ("Invited", "RosterReceived", "SharesReceived", "SurvivorsReceived", "SignaturesReceived")
SERVER_STATES = ("Joining", "Sharing", "Masking", "Confirming", "Unmasking", "Opened", "Aborted")
SERVER_EVENTS = ("Joined", "SharesSent", "MaskedSent", "ConfirmedSent", "Revealed", "Lost", "Closed")


class Tape:
    """One round, with every state and event of d0 and of the server kept."""

    def __init__(self) -> None:
        self.fleet = Fleet(4)
        self.device_states: dict[str, device.State] = {"Idle": self.fleet.devices[D0]}
        self.device_events: dict[str, device.Event] = {}
        self.replies: dict[str, device.Reply] = {}
        self.server_states: dict[str, server.State] = {}
        self.server_events: dict[str, server.Event] = {
            "Lost": server.Lost(D0, "gone"),
            "Closed": server.Closed(),
        }
        for _ in PHASES:
            self.server_states[type(self.fleet.server).__name__] = self.fleet.server
            event = self.fleet.event(D0, self.fleet.requests[D0])
            reply = self.fleet.ask(D0)
            answer = self.fleet.reply_event(D0, reply)
            self.device_events[type(event).__name__] = event
            self.replies[type(event).__name__] = reply
            self.device_states[type(self.fleet.devices[D0]).__name__] = self.fleet.devices[D0]
            self.server_events[type(answer).__name__] = answer
            self.fleet.tell(answer)
            self.fleet.run_phase(without=[D0])
        self.server_states["Opened"] = self.fleet.server
        self.server_states["Aborted"] = server.Aborted("enough", ())


@pytest.fixture(scope="module")
def tape() -> Tape:
    return Tape()


def test_the_tape_holds_every_state_and_event(tape: Tape) -> None:
    assert tuple(tape.device_states) == DEVICE_STATES
    assert tuple(tape.device_events) == DEVICE_EVENTS
    assert tuple(tape.server_states) == SERVER_STATES
    assert set(tape.server_events) == set(SERVER_EVENTS)


@pytest.mark.parametrize("event_name", DEVICE_EVENTS)
@pytest.mark.parametrize("state_name", DEVICE_STATES)
def test_a_device_answers_in_turn_repeats_itself_and_refuses_all_else(
    tape: Tape, state_name: str, event_name: str
) -> None:
    state, event = tape.device_states[state_name], tape.device_events[event_name]
    before = freeze(state)
    turn, asked = DEVICE_STATES.index(state_name), DEVICE_EVENTS.index(event_name)
    if asked == turn:
        after, _ = device.step(state, event)
        assert type(after).__name__ == DEVICE_STATES[turn + 1]
    elif asked == turn - 1:
        after, reply = device.step(state, event)
        assert after is state
        assert freeze(reply) == freeze(tape.replies[event_name])
    else:
        with pytest.raises(RemoteProtocolError, match=f"{event_name} out of turn") as caught:
            device.step(state, event)
        assert caught.value.peer == "server"
    assert freeze(state) == before


@pytest.mark.parametrize("event_name", SERVER_EVENTS)
@pytest.mark.parametrize("state_name", SERVER_STATES)
def test_the_server_takes_answers_in_turn_and_refuses_all_else(
    tape: Tape, state_name: str, event_name: str
) -> None:
    state, event = tape.server_states[state_name], tape.server_events[event_name]
    before = freeze(state)
    if state_name in ("Opened", "Aborted"):
        with pytest.raises(LocalProtocolError):
            server.step(state, event)
    elif event_name in ("Lost", "Closed") or SERVER_EVENTS.index(event_name) == SERVER_STATES.index(
        state_name
    ):
        after, outgoing = server.step(state, event)
        assert freeze(after) != before
        if event_name == "Lost":
            assert D0 in state.waiting - after.waiting
            assert after.lost[-1] == server.Loss(D0, "gone")
        assert event_name == "Closed" or outgoing == ()
        if event_name == "MaskedSent":  # The one thing that is not a value: see the module's docstring.
            assert after.total is state.total
            state.total[:] -= event.words
    else:
        with pytest.raises(RemoteProtocolError, match=f"{event_name} out of turn") as caught:
            server.step(state, event)
        assert caught.value.peer == "d0"
    assert freeze(state) == before


@pytest.mark.parametrize("phase", PHASES)
def test_a_device_that_has_answered_owes_nothing_more(phase: str) -> None:
    fleet = Fleet(4)
    fleet.run_to(phase)
    reply = fleet.ask(D0)
    fleet.tell(fleet.reply_event(D0, reply))
    before = freeze(fleet.server)
    with pytest.raises(
        RemoteProtocolError, match=r"d0: it (owes no answer|was not invited, or has answered)"
    ):
        fleet.tell(fleet.reply_event(D0, reply))
    assert freeze(fleet.server) == before


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_waits_for_exactly_those_it_asked(phase: str) -> None:
    fleet = Fleet(4)
    fleet.run_to(phase)
    assert fleet.server.waiting == fleet.requests.keys()  # type: ignore[union-attr]
    for name in list(fleet.requests):
        fleet.ask_and_answer(name)
    assert fleet.server.waiting == frozenset()  # type: ignore[union-attr]


def test_a_lost_device_that_had_answered_stays_in() -> None:
    fleet = Fleet(4)
    fleet.ask_and_answer("d0")
    fleet.tell(server.Lost(D0, "it sent noise afterwards"))
    end = fleet.run_round()
    assert isinstance(end, server.Opened)
    assert D0 in end.survivors


def test_the_secrets_of_a_device_are_gone_once_it_has_masked(tape: Tape) -> None:
    joined = tape.device_states["Joined"]
    assert isinstance(joined, device.Joined)
    own = joined.secrets
    secrets = (own.seed, own.mask_private.private_bytes_raw(), own.share_private.private_bytes_raw())
    for name, has in (("Shared", True), ("Masked", False), ("Confirmed", False), ("Done", False)):
        for secret in secrets:
            assert (repr(secret)[2:-1] in repr(freeze(tape.device_states[name]))) is has, name


def test_no_repr_shows_a_secret_or_a_vector(tape: Tape) -> None:
    joined, masked = tape.device_states["Joined"], tape.device_states["Masked"]
    assert isinstance(joined, device.Joined)
    assert isinstance(masked, device.Masked)
    own = joined.secrets
    hidden = [own.seed, own.mask_private.private_bytes_raw(), own.share_private.private_bytes_raw()]
    hidden += [secret for held in masked.held.values() for secret in (held.seed, held.key)]
    shown = [*tape.device_states.values(), *tape.device_events.values()]
    shown += [*tape.server_states.values(), *tape.server_events.values()]
    shared, event = tape.device_states["Shared"], tape.device_events["SharesReceived"]
    assert isinstance(shared, device.Shared)
    assert isinstance(event, device.SharesReceived)
    accepted = device.accept(shared, event.shares)
    hidden += [*accepted.plus, *accepted.minus]
    shown.append(accepted)
    text = "".join(map(repr, shown))
    assert not any(repr(secret)[2:-1] in text or secret.hex() in text for secret in hidden)
    assert "array(" not in text


def test_the_words_of_the_caller_are_left_as_they_are(tape: Tape) -> None:
    event = tape.device_events["SharesReceived"]
    assert isinstance(event, device.SharesReceived)
    before = event.words.copy()
    _, reply = device.step(tape.device_states["Shared"], event)
    assert (event.words == before).all()
    assert reply.words is not None
    assert (reply.words != before).all()


def test_an_update_that_is_not_the_session_s_is_the_caller_s_mistake(tape: Tape) -> None:
    event = tape.device_events["SharesReceived"]
    assert isinstance(event, device.SharesReceived)
    for words in (event.words[:-1], event.words.astype(np.int64), event.words.reshape(1, -1)):
        with pytest.raises(UsageError, match="An encoded update has shape"):
            device.step(tape.device_states["Shared"], replace(event, words=words))


def test_a_request_for_the_update_is_checked_apart_from_being_answered(tape: Tape) -> None:
    """So that the ledger can be charged in between, and only for a request that is right."""
    state, event = tape.device_states["Shared"], tape.device_events["SharesReceived"]
    assert isinstance(state, device.Shared)
    assert isinstance(event, device.SharesReceived)
    before = freeze(state)
    accepted = device.accept(state, event.shares)
    at_once, later = device.step(state, event), device.step(accepted, event)
    assert freeze(at_once) == freeze(later)
    assert freeze(state) == before
    with pytest.raises(RemoteProtocolError, match="SealedShares is malformed"):
        device.accept(state, event.shares[:-1])


def test_what_was_accepted_stands_for_that_request_only(tape: Tape) -> None:
    state, event = tape.device_states["Shared"], tape.device_events["SharesReceived"]
    assert isinstance(state, device.Shared)
    assert isinstance(event, device.SharesReceived)
    accepted = device.accept(state, event.shares)
    fewer = SealedShares.from_bytes(event.shares, "server")
    other = replace(event, shares=replace(fewer, boxes=fewer.boxes[:2]).to_bytes())
    with pytest.raises(LocalProtocolError, match="not those that were accepted"):
        device.step(accepted, other)
    for name in ("Invited", "RosterReceived", "SurvivorsReceived", "SignaturesReceived"):
        with pytest.raises(RemoteProtocolError, match="out of turn, the device is Accepted"):
            device.step(accepted, tape.device_events[name])


def test_a_session_needs_as_many_invited_as_its_smallest_cohort() -> None:
    session = descriptor(min_cohort=5)
    with pytest.raises(UsageError, match="4 devices are invited"):
        Fleet(4, session=session, rules=policy())


def test_a_full_cohort_takes_nobody_else() -> None:
    fleet = Fleet(4, session=descriptor(max_cohort=3))
    end = fleet.run_round()
    assert isinstance(end, server.Opened)
    assert end.survivors == ("d0", "d1", "d2")
    assert server.Loss(DeviceId("d3"), "the cohort is full with 3 devices") in end.lost


def test_a_session_whose_cohort_has_no_safe_graph_is_aborted() -> None:
    fleet = Fleet(20, session=descriptor(corrupt_fraction=0.45, dropout_fraction=0.45))
    end = fleet.run_round()
    assert isinstance(end, server.Aborted)
    assert "No threshold withstands" in end.reason


def test_an_invitation_is_answered_once() -> None:
    fleet = Fleet(3)
    first = fleet.ask("d0")
    assert fleet.ask("d0").message == first.message
    later = device.Invited(fleet.requests[D0], MODEL_HASH, PLAN_HASH, NOW_S + 1)
    _, reply = device.step(fleet.devices[D0], later)
    assert reply.message == first.message

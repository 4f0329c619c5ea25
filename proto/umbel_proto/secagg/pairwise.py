"""The pairwise engine: neighbors' masks that cancel, and shares that make up for who vanished.

It puts `device.py` and `server.py` behind the seam of `engine.py`.

Source: docs/spec/secure-aggregation.md, "Phases".
"""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from umbel_proto.errors import LocalProtocolError, RemoteProtocolError
from umbel_proto.ids import DeviceId
from umbel_proto.keys import VerifyKey
from umbel_proto.secagg import device, server
from umbel_proto.secagg.engine import (
    TRAIN,
    Aborted,
    Admission,
    Engine,
    Invited,
    Opened,
    Outgoing,
    Phase,
    Step,
    Turn,
)
from umbel_proto.secagg.masks import WORD_BYTES, Words
from umbel_proto.secagg.neighborhood import require
from umbel_proto.secagg.saved import restore, save
from umbel_proto.secagg.session import SERVER, Descriptor, Member, Session, session_id

SHARE = "query.share"
MASK = "query.mask"
CONFIRM = "query.confirm"
UNMASK = "query.unmask"

_PHASES: Mapping[type[server.Open], tuple[str, str]] = {
    server.Joining: ("train", TRAIN),
    server.Sharing: ("share", SHARE),
    server.Masking: ("mask", MASK),
    server.Confirming: ("confirm", CONFIRM),
    server.Unmasking: ("unmask", UNMASK),
}
"""What a phase is called, and its message type."""

_REQUESTS: Mapping[str, Callable[[bytes, float], device.Event]] = {
    SHARE: device.RosterReceived,
    # Answered already, or out of turn: neither looks at the words.
    MASK: lambda body, _: device.SharesReceived(body, np.empty(0, np.uint64)),
    CONFIRM: lambda body, _: device.SurvivorsReceived(body),
    UNMASK: lambda body, _: device.SignaturesReceived(body),
}


@dataclass(frozen=True, slots=True, eq=False)
class _Due:
    """A request for the masked update, accepted."""

    accepted: device.Accepted
    shares: bytes = field(repr=False)

    @property
    def session(self) -> Session:
        return self.accepted.state.session

    def give(self, words: Words) -> Turn:
        return _turn(*device.step(self.accepted, device.SharesReceived(self.shares, words)))


@dataclass(frozen=True, slots=True)
class _Running:
    """A session on the server."""

    state: server.Open

    @property
    def phase(self) -> Phase:
        state = self.state
        name, kind = _PHASES[type(state)]
        if isinstance(state, server.Joining):
            least, members = state.descriptor.min_cohort, frozenset[DeviceId]()
        else:
            shape = state.cohort.graph.parameters
            least = max(state.cohort.descriptor.min_cohort, shape.min_survivors)
            members = frozenset(state.cohort.ids)
        return Phase(name, kind, least, members, isinstance(state, server.Masking))

    @property
    def waiting(self) -> frozenset[DeviceId]:
        return self.state.waiting

    def take(self, device: DeviceId, body: bytes, vector: bytes) -> _Running:
        return self._after(self._event(device, body, vector))

    def lose(self, device: DeviceId, reason: str) -> _Running:
        return self._after(server.Lost(device, reason))

    def close(self) -> tuple[_Running | Opened | Aborted, tuple[Outgoing, ...]]:
        state, outgoing = server.step(self.state, server.Closed())
        return (state if isinstance(state, Opened | Aborted) else _Running(state)), outgoing

    def _after(self, event: server.Event) -> _Running:
        state, _ = server.step(self.state, event)
        # Only the end of a phase ends a session.
        assert not isinstance(state, Opened | Aborted)
        return _Running(state)

    def _event(self, device: DeviceId, body: bytes, vector: bytes) -> server.Event:
        match self.state:
            case server.Joining():
                return server.Joined(device, body)
            case server.Sharing():
                return server.SharesSent(device, body)
            case server.Masking():
                if len(vector) % WORD_BYTES:
                    raise RemoteProtocolError(device, "its update is not made of 64-bit words")
                words = np.frombuffer(vector, "<u8").astype(np.uint64, copy=False)
                return server.MaskedSent(device, body, words)
            case server.Confirming():
                return server.ConfirmedSent(device, body)
            case server.Unmasking():
                return server.Revealed(device, body)


class _Pairwise:
    """See `engine.Engine`."""

    kinds = (SHARE, MASK, CONFIRM, UNMASK)

    def join(self, member: Member, kept: bytes | None, invited: Invited) -> Admission:
        before = _before(member, kept, session_id(invited.descriptor))
        state, reply = device.step(before, invited)
        assert not isinstance(state, device.Idle | device.Done)
        return Admission(state.session, _turn(state, reply), state is before)

    def answer(self, member: Member, kept: bytes | None, kind: str, body: bytes, *, now_s: float) -> Step:
        state = _restored(member, kept)
        if kind == MASK and isinstance(state, device.Shared):
            require(now_s < state.session.descriptor.closes_at_s, "the session is already over")
            return _Due(device.accept(state, body), body)
        if kind not in _REQUESTS:
            raise RemoteProtocolError(SERVER, f"{kind!r} is no message of a round")
        return _turn(*device.step(state, _REQUESTS[kind](body, now_s)))

    def open(
        self, descriptor: Descriptor, *, authority: VerifyKey, invited: Iterable[DeviceId], now_s: float
    ) -> _Running:
        return _Running(server.open_session(descriptor, authority=authority, invited=invited, now_s=now_s))


PAIRWISE: Engine = _Pairwise()
"""The engine of protocol version 1."""


def _turn(state: device.State, reply: device.Reply) -> Turn:
    return Turn(reply.message, reply.words, save(state))


def _restored(member: Member, kept: bytes | None) -> device.State:
    return device.Idle(member) if kept is None else restore(kept, member)


def _before(member: Member, kept: bytes | None, sid: bytes) -> device.State:
    """Return the state that an invitation meets: one to another session ends the one before."""
    with contextlib.suppress(LocalProtocolError):
        state = _restored(member, kept)
        if not isinstance(state, device.Idle | device.Done) and hmac.compare_digest(state.session.sid, sid):
            return state
    return device.Idle(member)

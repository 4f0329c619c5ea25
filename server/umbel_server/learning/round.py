"""One round: the five phases of secure aggregation over a link, until the sum is open or the round is given up.

Every device that fails, refuses or stays silent is out of the round and on its record, with the reason.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import RemoteProtocolError
from umbel_proto.ids import DeviceId
from umbel_proto.keys import VerifyKey
from umbel_proto.secagg.server import (
    Aborted,
    Closed,
    ConfirmedSent,
    Confirming,
    Event,
    Joined,
    Joining,
    Lost,
    MaskedSent,
    Masking,
    Open,
    Opened,
    Outgoing,
    Revealed,
    SharesSent,
    Sharing,
    State,
    Unmasking,
    open_session,
    step,
)
from umbel_proto.secagg.session import session_id
from umbel_proto.wire import rounds_pb2 as pb
from umbel_server.clock import Clock
from umbel_server.learning.invitation import Invitation
from umbel_server.learning.link import Answer, Link, NodeId, Payload
from umbel_server.learning.plan import Timing
from umbel_server.store.runs import Outcome, Participation, Phase

log = logging.getLogger(__name__)

POLL_S = 0.1
"""How often to look for answers."""

PHASES: Mapping[type[Open], tuple[Phase, str]] = {
    Joining: ("train", "train"),
    Sharing: ("share", "query.share"),
    Masking: ("mask", "query.mask"),
    Confirming: ("confirm", "query.confirm"),
    Unmasking: ("unmask", "query.unmask"),
}
"""What a phase is called, and its message type."""


class Progress(Protocol):
    """Is told what happens, for those who watch."""

    def __call__(self, event: str, **facts: Any) -> None:
        """Note an event: names and numbers only."""


class Journal(Protocol):
    """Keeps, on disk, how far the round is: what is left of it if the server is killed."""

    def __call__(self, phase: Phase, charged: Collection[DeviceId]) -> None:
        """Note that a phase begins; returns when that is on disk.

        Args:
            phase: Whose requests are sent next.
            charged: The devices that these ask for their updates: their ledgers may be charged from now on.
        """


@dataclass(frozen=True, slots=True, eq=False)
class RoundOutcome:
    """How a round ended.

    Args:
        sid: The session.
        total: The sum, shape (encoding.words,); None if the round was aborted.
        survivors: Whose updates are in it.
        reason: Why it was aborted; empty if it was not.
        participations: Everyone invited who joined or was lost, and how it went.
        silent: Devices that were asked something and never answered.
        seconds: How long each phase took, by name.
        bytes_up: Of all answers, as serialized for the wire.
        bytes_down: Of all requests, as serialized for the wire.
    """

    sid: bytes
    total: NDArray[np.uint64] | None = field(repr=False)
    survivors: tuple[DeviceId, ...]
    reason: str
    participations: tuple[Participation, ...]
    silent: frozenset[DeviceId]
    seconds: Mapping[str, float]
    bytes_up: int
    bytes_down: int


def run_round(
    link: Link,
    invitation: Invitation,
    *,
    members: Mapping[NodeId, DeviceId],
    authority: VerifyKey,
    timing: Timing,
    journal: Journal,
    progress: Progress,
    clock: Clock,
    silent: Collection[DeviceId] = (),
    pause: Callable[[float], None] = time.sleep,
) -> RoundOutcome:
    """Drive one round.

    Args:
        link: Carries the messages.
        invitation: What to train, and the session.
        members: The devices to invite, by node; at least the smallest cohort.
        authority: Signs the fleet's credentials.
        timing: How long to wait.
        journal: Keeps how far the round is.
        progress: Is told what happens.
        clock: Unix seconds.
        silent: Devices that vanished from the round before: they are invited, but nobody waits for them.
        pause: Waits between two looks for answers.
    """
    return _Round(
        link, invitation, members, authority, timing, journal, progress, clock, frozenset(silent), pause
    ).run()


class _Round:
    """A round at work."""

    def __init__(
        self,
        link: Link,
        invitation: Invitation,
        members: Mapping[NodeId, DeviceId],
        authority: VerifyKey,
        timing: Timing,
        journal: Journal,
        progress: Progress,
        clock: Clock,
        silent: frozenset[DeviceId],
        pause: Callable[[float], None],
    ) -> None:
        self._link, self._invitation, self._members = link, invitation, members
        self._nodes = {device: node for node, device in members.items()}
        self._timing, self._progress, self._clock, self._pause = timing, progress, clock, pause
        self._silent, self._journal = silent, journal
        self._state: State = open_session(
            invitation.descriptor, authority=authority, invited=members.values(), now_s=clock()
        )
        self._seconds: dict[str, float] = {}
        self._up = self._down = 0
        self._joined: frozenset[DeviceId] = frozenset()
        self._unanswered: set[DeviceId] = set()
        self._asked_to_mask: frozenset[DeviceId] = frozenset()

    def run(self) -> RoundOutcome:
        descriptor = self._invitation.descriptor
        request = pb.TrainRequest(descriptor=descriptor.to_bytes(), plan=self._invitation.plan)
        invite = Payload(request.SerializeToString(deterministic=True), self._invitation.model)
        payloads = dict.fromkeys(self._members, invite)
        while not isinstance(self._state, Opened | Aborted):
            outgoing = self._phase(self._state, payloads)
            payloads = {self._nodes[out.device]: Payload(out.message) for out in outgoing}
        return self._outcome(self._state)

    def _phase(self, state: Open, payloads: Mapping[NodeId, Payload]) -> tuple[Outgoing, ...]:
        """Send a phase's requests, collect the answers, and close it."""
        name, kind = PHASES[type(state)]
        if isinstance(state, Sharing):
            self._joined = frozenset(state.cohort.ids)
        if isinstance(state, Masking):
            self._asked_to_mask = state.waiting
        # Before the first request is out: whoever is killed from here on leaves behind who was charged.
        self._journal(name, self._asked_to_mask if isinstance(state, Masking) else frozenset())
        self._progress("phase", phase=name, devices=len(payloads))
        begin = self._clock()
        timeout_s = (
            self._timing.train_timeout_s if isinstance(state, Joining) else self._timing.phase_timeout_s
        )
        group = str(self._invitation.descriptor.round)
        self._down += self._link.send(kind, group, payloads, ttl_s=timeout_s)
        self._collect(begin, begin + timeout_s)
        self._unanswered |= self._waiting()
        self._state, outgoing = step(self._state, Closed())
        self._seconds[name] = self._clock() - begin
        return outgoing

    def _collect(self, begin: float, deadline: float) -> None:
        """Take answers until all are in, the deadline has passed, or enough are in and the rest are late."""
        answered, late = 0, deadline
        while self._waiting() and self._clock() < late:
            answers = self._link.receive()
            for answer in answers:
                self._take(answer)
                answered += answer.payload is not None
            if answered >= self._enough() and self._waiting() <= self._silent:
                return
            if late == deadline and answered >= self._enough():
                now = self._clock()
                late = min(deadline, now + max(self._timing.grace_s, (now - begin) / 2))
            if not answers and self._waiting():
                self._pause(POLL_S)

    def _waiting(self) -> frozenset[DeviceId]:
        state = self._state
        return frozenset() if isinstance(state, Opened | Aborted) else state.waiting

    def _enough(self) -> int:
        """With how many answers the round can go on."""
        least = self._invitation.descriptor.min_cohort
        if isinstance(self._state, Sharing | Masking | Confirming | Unmasking):
            least = max(least, self._state.cohort.graph.parameters.min_survivors)
        return least

    def _take(self, answer: Answer) -> None:
        device = self._members.get(answer.node)
        if device is None or device not in self._waiting():
            return  # Nobody asked it, or it has answered: late and repeated answers change nothing.
        if answer.payload is None:
            self._lose(device, answer.reason)
            return
        self._up += answer.size_up
        try:
            self._state, _ = step(self._state, self._event(device, answer.payload))
        except RemoteProtocolError as exc:
            self._lose(device, exc.reason)

    def _lose(self, device: DeviceId, reason: str) -> None:
        log.warning("%s is out of the round: %s", device, reason)
        self._progress("lost", device=device, reason=reason)
        self._state, _ = step(self._state, Lost(device, reason))

    def _event(self, device: DeviceId, payload: Payload) -> Event:
        match self._state:
            case Joining():
                return Joined(device, payload.body)
            case Sharing():
                return SharesSent(device, payload.body)
            case Masking():
                if len(payload.vector) % 8:
                    raise RemoteProtocolError(device, "its update is not made of 64-bit words")
                words = np.frombuffer(payload.vector, "<u8").astype(np.uint64, copy=False)
                return MaskedSent(device, payload.body, words)
            case Confirming():
                return ConfirmedSent(device, payload.body)
            case _:
                return Revealed(device, payload.body)

    def _outcome(self, state: Opened | Aborted) -> RoundOutcome:
        opened = isinstance(state, Opened)
        survivors = frozenset(state.survivors) if isinstance(state, Opened) else frozenset()
        reasons: dict[DeviceId, str] = {}
        for loss in state.lost:
            reasons.setdefault(loss.device, loss.reason)
        parts = []
        for device in sorted(self._joined | self._asked_to_mask | survivors | reasons.keys()):
            outcome: Outcome = "dropped"
            if device in survivors:
                outcome = "summed"
            elif device in self._asked_to_mask:
                outcome = "charged"
            reason = "" if device in survivors else reasons.get(device, "the round was aborted")
            parts.append(Participation(device, outcome, reason))
        self._progress("opened" if opened else "aborted", devices=len(survivors))
        return RoundOutcome(
            sid=session_id(self._invitation.descriptor.to_bytes()),
            total=state.total if isinstance(state, Opened) else None,
            survivors=state.survivors if isinstance(state, Opened) else (),
            reason="" if isinstance(state, Opened) else state.reason,
            participations=tuple(parts),
            silent=frozenset(self._unanswered),
            seconds=self._seconds,
            bytes_up=self._up,
            bytes_down=self._down,
        )

"""One round: the phases of secure aggregation over a link, until the sum is open or the round is given up.

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
from umbel_proto.secagg.engine import TRAIN, Aborted, Opened, Outgoing, Running
from umbel_proto.secagg.pairwise import PAIRWISE
from umbel_proto.secagg.session import session_id
from umbel_proto.wire import rounds_pb2 as pb
from umbel_server.clock import Clock
from umbel_server.learning.invitation import Invitation
from umbel_server.learning.link import Answer, Link, NodeId, Payload
from umbel_server.learning.plan import Timing
from umbel_server.store.runs import Outcome, Participation, Phase

log = logging.getLogger(__name__)

REASON_CHARACTERS = 300
"""Of a device's reason to refuse, in the log and on record."""

POLL_S = 0.1
LOOK_S = 5.0
"""How often a phase asks who was shut out of the fleet since."""
"""How often to look for answers."""


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
    shut_out: Callable[[], Collection[DeviceId]] = tuple,
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
        shut_out: Returns the devices that are revoked or quarantined by now: they are asked nothing more.
    """
    return _Round(
        link,
        invitation,
        members,
        authority,
        timing,
        journal,
        progress,
        clock,
        frozenset(silent),
        pause,
        shut_out,
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
        shut_out: Callable[[], Collection[DeviceId]],
    ) -> None:
        self._shut_out, self._looked = shut_out, clock()
        self._link, self._invitation, self._members = link, invitation, members
        self._nodes = {device: node for node, device in members.items()}
        self._timing, self._progress, self._clock, self._pause = timing, progress, clock, pause
        self._silent, self._journal = silent, journal
        self._state: Running | Opened | Aborted = PAIRWISE.open(
            invitation.descriptor, authority=authority, invited=members.values(), now_s=clock()
        )
        self._seconds: dict[str, float] = {}
        self._up = self._down = 0
        self._joined: frozenset[DeviceId] = frozenset()
        self._unanswered: set[DeviceId] = set()
        self._charged: frozenset[DeviceId] = frozenset()

    def run(self) -> RoundOutcome:
        descriptor = self._invitation.descriptor
        invitation = self._invitation
        request = pb.TrainRequest(
            descriptor=descriptor.to_bytes(), plan=invitation.plan, query=invitation.query
        )
        invite = Payload(request.SerializeToString(deterministic=True), self._invitation.model)
        payloads = dict.fromkeys(self._members, invite)
        while not isinstance(self._state, Opened | Aborted):
            outgoing = self._phase(self._state, payloads)
            payloads = {self._nodes[out.device]: Payload(out.message) for out in outgoing}
        return self._outcome(self._state)

    def _phase(self, state: Running, payloads: Mapping[NodeId, Payload]) -> tuple[Outgoing, ...]:
        """Send a phase's requests, collect the answers, and close it."""
        asked = state.waiting
        state = self._without_shut_out(state)
        gone = asked - state.waiting
        payloads = {node: payload for node, payload in payloads.items() if self._members[node] not in gone}
        phase = state.phase
        charged = state.waiting if phase.takes_updates else frozenset()
        self._joined |= phase.members
        self._charged |= charged
        # Before the first request is out: whoever is killed from here on leaves behind who was charged.
        self._journal(phase.name, charged)
        self._progress("phase", phase=phase.name, devices=len(payloads))
        begin = self._clock()
        timeout_s = self._timing.train_timeout_s if phase.kind == TRAIN else self._timing.phase_timeout_s
        group = str(self._invitation.descriptor.round)
        self._down += self._link.send(phase.kind, group, payloads, ttl_s=timeout_s)
        state = self._collect(state, phase.least, begin, begin + timeout_s)
        self._unanswered |= state.waiting
        self._state, outgoing = state.close()
        self._seconds[phase.name] = self._clock() - begin
        return outgoing

    def _collect(self, state: Running, least: int, begin: float, deadline: float) -> Running:
        """Take answers until all are in, the deadline has passed, or enough are in and the rest are late."""
        answered, late = 0, deadline
        while state.waiting:
            if self._clock() - self._looked >= LOOK_S:
                state = self._without_shut_out(state)
            answers = self._link.receive()
            for answer in answers:
                state = self._take(state, answer)
                answered += answer.payload is not None
            # What has come counts, however late it is looked at.
            if self._clock() >= late or (answered >= least and state.waiting <= self._silent):
                break
            if late == deadline and answered >= least:
                now = self._clock()
                late = min(deadline, now + max(self._timing.grace_s, (now - begin) / 2))
            if not answers and state.waiting:
                self._pause(POLL_S)
        return state

    def _without_shut_out(self, state: Running) -> Running:
        """Await nothing from devices that have been shut out of the fleet since they were invited."""
        self._looked = self._clock()
        for device in sorted(state.waiting & frozenset(self._shut_out())):
            state = self._lose(state, device, "it was shut out of the fleet")
        return state

    def _take(self, state: Running, answer: Answer) -> Running:
        device = self._members.get(answer.node)
        if device is None or device not in state.waiting:
            return state  # Nobody asked it, or it has answered: late and repeated answers change nothing.
        if answer.payload is None:
            return self._lose(state, device, _sentence(answer.reason))
        self._up += answer.size_up
        try:
            return state.take(device, answer.payload.body, answer.payload.vector)
        except RemoteProtocolError as exc:
            return self._lose(state, device, exc.reason)

    def _lose(self, state: Running, device: DeviceId, reason: str) -> Running:
        log.warning("%s is out of the round: %s", device, reason)
        self._progress("lost", device=device, reason=reason)
        return state.lose(device, reason)

    def _outcome(self, state: Opened | Aborted) -> RoundOutcome:
        opened = isinstance(state, Opened)
        survivors = frozenset(state.survivors) if isinstance(state, Opened) else frozenset()
        reasons: dict[DeviceId, str] = {}
        for loss in state.lost:
            reasons.setdefault(loss.device, loss.reason)
        parts = []
        for device in sorted(self._joined | self._charged | survivors | reasons.keys()):
            outcome: Outcome = "dropped"
            if device in survivors:
                outcome = "summed"
            elif device in self._charged:
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


def _sentence(reason: str) -> str:
    """Return what a device said, fit for a line of a log: it may have said anything."""
    line = "".join(character if character.isprintable() else " " for character in reason)
    return line if len(line) <= REASON_CHARACTERS else line[: REASON_CHARACTERS - 3] + "..."

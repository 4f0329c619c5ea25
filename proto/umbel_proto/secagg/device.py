"""A device's side of a session, as a value: ``state, reply = step(state, event)``.

The caller keeps only the newest state, in memory, and never begins a second session from a
descriptor it has answered. A refusal raises RemoteProtocolError("server", reason) and changes
nothing: the state it had still answers the request it answered before, with the same bytes.

Source: docs/spec/secure-aggregation.md, "Phases" and "Device refusals".
"""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from umbel_proto.credentials import open_credential
from umbel_proto.encoding import digest, enc
from umbel_proto.errors import LocalProtocolError, RemoteProtocolError, UsageError, VerificationError
from umbel_proto.secagg.boxes import Held, open_shares, seal_shares
from umbel_proto.secagg.engine import Invited
from umbel_proto.secagg.entries import Secrets, make_entry
from umbel_proto.secagg.masks import Words, add_masks, zeros
from umbel_proto.secagg.messages import (
    Confirmation,
    Confirmations,
    RevealedShares,
    SealedShares,
    Survivors,
    from_bitmap,
)
from umbel_proto.secagg.messages import Masked as MaskedMessage
from umbel_proto.secagg.neighborhood import Neighborhood, read_roster, require
from umbel_proto.secagg.session import SERVER, Descriptor, Member, Session, objection, session_id
from umbel_proto.secagg.shamir import deal

__all__ = [
    "CONFIRM_LABEL",
    "SERVER",
    "Accepted",
    "Answer",
    "Confirmed",
    "Done",
    "Event",
    "Idle",
    "Invited",
    "Joined",
    "Masked",
    "Member",
    "Neighborhood",
    "Reply",
    "RosterReceived",
    "Session",
    "Shared",
    "SharesReceived",
    "SignaturesReceived",
    "State",
    "SurvivorsReceived",
    "accept",
    "step",
]

CONFIRM_LABEL = "umbel/1/confirm"
REQUEST_LABEL = "umbel/1/request"


# Events: what the server asked, as the bytes received.


@dataclass(frozen=True, slots=True)
class RosterReceived:
    """Phase 2: who else is in.

    Args:
        roster: Serialized Roster.
        now_s: Unix seconds.
    """

    roster: bytes
    now_s: float


@dataclass(frozen=True, slots=True, eq=False)
class SharesReceived:
    """Phase 3: the neighbors' shares. The caller has charged its ledger before, and after `accept`.

    Args:
        shares: Serialized SealedShares.
        words: The encoded and noised update, shape (encoding.words,); left as it is.
    """

    shares: bytes
    words: Words = field(repr=False)


@dataclass(frozen=True, slots=True)
class SurvivorsReceived:
    """Phase 4: whose updates are in the sum.

    Args:
        survivors: Serialized Survivors.
    """

    survivors: bytes


@dataclass(frozen=True, slots=True)
class SignaturesReceived:
    """Phase 5: what the neighbors confirmed.

    Args:
        signatures: Serialized Confirmations.
    """

    signatures: bytes


Event: TypeAlias = Invited | RosterReceived | SharesReceived | SurvivorsReceived | SignaturesReceived


# States: exactly what is legal in each.


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """What to send back.

    Args:
        message: Serialized answer.
        words: In phase 3 the masked update, shape (encoding.words,); else None.
    """

    message: bytes = field(repr=False)
    words: Words | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The last request and its reply, so that a repeated request gets the same bytes.

    Args:
        request: Digest of the request.
        reply: What it was answered.
    """

    request: bytes
    reply: Reply


@dataclass(frozen=True, slots=True)
class Idle:
    """Ready to join one session."""

    member: Member


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """Phase 1 answered."""

    member: Member
    session: Session
    secrets: Secrets
    answer: Answer


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """Phase 2 answered; ``own_share`` is of its own seed, in a complete graph."""

    member: Member
    session: Session
    neighborhood: Neighborhood
    secrets: Secrets
    own_share: bytes | None = field(repr=False)
    answer: Answer


@dataclass(frozen=True, slots=True, eq=False)
class Masked:
    """Phase 3 answered. The device's own secrets are gone; it holds its neighbors' shares.

    Args:
        member: Its standing.
        session: The session.
        neighborhood: Its neighbors.
        masked_with: Positions of the neighbors whose masks are in the update.
        held: Shares by position; of a neighbor whose box did not open there are none.
        own_share: Of its own seed, in a complete graph.
        answer: The masked update, for a repeated request.
    """

    member: Member
    session: Session
    neighborhood: Neighborhood
    masked_with: frozenset[int]
    held: Mapping[int, Held] = field(repr=False)
    own_share: bytes | None = field(repr=False)
    answer: Answer


@dataclass(frozen=True, slots=True, eq=False)
class Confirmed:
    """Phase 4 answered: bound to one set of survivors.

    Args:
        session: The session.
        neighborhood: Its neighbors.
        masked_with: Positions of the neighbors whose masks are in the update.
        held: Shares by position.
        own_share: Of its own seed, in a complete graph.
        survivors: The positions it confirmed.
        bitmap: The same, as it signed them and its neighbors must have.
        answer: Its confirmation, for a repeated request.
    """

    session: Session
    neighborhood: Neighborhood
    masked_with: frozenset[int]
    held: Mapping[int, Held] = field(repr=False)
    own_share: bytes | None = field(repr=False)
    survivors: frozenset[int]
    bitmap: bytes
    answer: Answer


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """Phase 5 answered. Nothing secret is left but what was revealed."""

    answer: Answer


State: TypeAlias = Idle | Joined | Shared | Masked | Confirmed | Done


@dataclass(frozen=True, slots=True, eq=False)
class Accepted:
    """A request for the masked update that is right in everything: what is missing is the update.

    No host keeps it. Between it and ``step`` the caller charges its ledger, so that a request it
    must refuse costs it nothing.

    Args:
        state: The state it was accepted in.
        request: Digest of the request.
        held: The shares that opened, by position.
        masked_with: Positions of the neighbors to mask with.
        plus: Keys of the masks to add.
        minus: Keys of the masks to subtract.
    """

    state: Shared
    request: bytes
    held: Mapping[int, Held] = field(repr=False)
    masked_with: frozenset[int]
    plus: Sequence[bytes] = field(repr=False)
    minus: Sequence[bytes] = field(repr=False)


def accept(state: Shared, shares: bytes) -> Accepted:
    """Check a request for the masked update, phase 3, step 5.3.2.

    Args:
        state: The newest state.
        shares: Serialized SealedShares.

    Raises:
        RemoteProtocolError: The device refuses; the reason says why. The state still holds.
    """
    session, around, secrets = state.session, state.neighborhood, state.secrets
    message = SealedShares.from_bytes(shares, SERVER)
    _require_bound(message, session, around)
    boxes = dict(message.boxes)
    strangers = boxes.keys() - around.peers.keys()
    require(not strangers, f"shares from position {min(strangers, default=0)}, which is no neighbor")
    held = {}
    for position, box in boxes.items():
        lane = around.lane_from(position, session.sid)
        key = around.lane_key(lane, secrets, position)
        with contextlib.suppress(VerificationError):
            # A box its sender or the server spoiled: the device just holds no share of that peer.
            held[position] = open_shares(box, key, lane)
    threshold = around.parameters.threshold
    require(
        around.enough(held), f"shares of {len(held)} neighbors open, too few for the threshold {threshold}"
    )
    plus, minus = around.mask_keys(session, secrets, boxes)
    return Accepted(state, digest(REQUEST_LABEL, shares), held, frozenset(boxes), plus, minus)


def step(state: State | Accepted, event: Event) -> tuple[State, Reply]:
    """Answer the server's request.

    Args:
        state: The newest state; in phase 3, rather what `accept` made of it.
        event: The request.

    Returns:
        The next state and the reply. A request repeated in its phase changes nothing and gets
        the reply it got.

    Raises:
        RemoteProtocolError: The device refuses; the reason says why. The state still holds.
        CertificateError: The device's own credential has expired or is not its fleet's.
        LocalProtocolError: The shares are not those that were accepted.
        UsageError: The words are not shaped as the session's encoding says.
    """
    request = _digest(event)
    if isinstance(state, Accepted):
        if not isinstance(event, SharesReceived):
            raise _out_of_turn(state, event)
        return _mask(state, event, request)
    match state, event:
        case Idle(), Invited():
            return _join(state, event, request)
        case Joined(), RosterReceived():
            return _share(state, event, request)
        case Shared(), SharesReceived():
            return _mask(accept(state, event.shares), event, request)
        case Masked(), SurvivorsReceived():
            return _confirm(state, event, request)
        case Confirmed(), SignaturesReceived():
            return _reveal(state, event, request)
        case (
            (Joined(answer=answer), Invited())
            | (Shared(answer=answer), RosterReceived())
            | (Masked(answer=answer), SharesReceived())
            | (Confirmed(answer=answer), SurvivorsReceived())
            | (Done(answer=answer), SignaturesReceived())
        ):
            same = hmac.compare_digest(request, answer.request)
            require(same, f"a second, different request in one phase ({type(event).__name__})")
            return state, answer.reply
        case _:
            raise _out_of_turn(state, event)


def _out_of_turn(state: State | Accepted, event: Event) -> RemoteProtocolError:
    what = f"{type(event).__name__} out of turn, the device is {type(state).__name__}"
    return RemoteProtocolError(SERVER, what)


def _join(state: Idle, event: Invited, request: bytes) -> tuple[State, Reply]:
    """Phase 1, steps 5.1.1 to 5.1.4."""
    member = state.member
    descriptor = Descriptor.from_bytes(event.descriptor, SERVER)
    against = objection(descriptor, member.policy)
    require(against is None, against or "")
    require(event.now_s < descriptor.closes_at_s, "the session is already over")
    require(hmac.compare_digest(event.model_hash, descriptor.model_hash), "the model is not the session's")
    require(hmac.compare_digest(event.plan_hash, descriptor.plan_hash), "the plan is not the session's")
    own = open_credential(
        member.credential, authority=member.authority, fleet=member.policy.fleet, now_s=event.now_s
    )
    session = Session(session_id(event.descriptor), descriptor, own.device, event.model_hash)
    secrets = Secrets.draw()
    entry = make_entry(
        secrets, sid=session.sid, device=own.device, credential=member.credential, identity=member.identity
    )
    answer = Answer(request, Reply(entry))
    return Joined(member, session, secrets, answer), answer.reply


def _share(state: Joined, event: RosterReceived, request: bytes) -> tuple[State, Reply]:
    """Phase 2, steps 5.2.2 to 5.2.4."""
    session, secrets = state.session, state.secrets
    around = read_roster(
        session,
        event.roster,
        entry=state.answer.reply.message,
        authority=state.member.authority,
        now_s=event.now_s,
    )
    points = [position + 1 for position in around.holders]
    threshold = around.parameters.threshold
    seeds = deal(secrets.seed, points=points, threshold=threshold)
    keys = deal(secrets.mask_private.private_bytes_raw(), points=points, threshold=threshold)
    boxes = []
    for position in around.peers:
        lane = around.lane_to(position, session.sid)
        held = Held(seeds[position + 1], keys[position + 1])
        boxes.append((position, seal_shares(held, around.lane_key(lane, secrets, position), lane)))
    reply = Reply(SealedShares(session.sid, around.roster_hash, tuple(boxes)).to_bytes())
    own_share = seeds[around.position + 1] if around.own else None
    return Shared(state.member, session, around, secrets, own_share, Answer(request, reply)), reply


def _mask(accepted: Accepted, event: SharesReceived, request: bytes) -> tuple[State, Reply]:
    """Phase 3, steps 5.3.3 and 5.3.4."""
    if not hmac.compare_digest(request, accepted.request):
        raise LocalProtocolError(
            "The shares are not those that were accepted: the ledger is charged for others."
        )
    state = accepted.state
    session, around = state.session, state.neighborhood
    words = _own_words(event.words, session.descriptor.encoding.words)
    add_masks(words, plus=accepted.plus, minus=accepted.minus)
    reply = Reply(MaskedMessage(session.sid, around.roster_hash).to_bytes(), words)
    answer = Answer(request, reply)
    masked = Masked(
        state.member, session, around, accepted.masked_with, accepted.held, state.own_share, answer
    )
    return masked, reply


def _confirm(state: Masked, event: SurvivorsReceived, request: bytes) -> tuple[State, Reply]:
    """Phase 4, steps 5.4.2 and 5.4.3."""
    session, around = state.session, state.neighborhood
    message = Survivors.from_bytes(event.survivors, SERVER)
    _require_bound(message, session, around)
    survivors = from_bitmap(message.bitmap, len(around.ids), SERVER)
    require(around.position in survivors, "the survivors leave this device out")
    least = max(session.descriptor.min_cohort, around.parameters.min_survivors)
    require(len(survivors) >= least, f"{len(survivors)} survivors, fewer than {least}")
    near = survivors & around.peers.keys()
    require(near <= state.masked_with, "a neighbor survived that never shared with this device")
    threshold = around.parameters.threshold
    require(around.enough(near), f"{len(near)} neighbors survived, too few for the threshold {threshold}")
    body = enc(session.sid, around.roster_hash, message.bitmap)
    signature = state.member.identity.sign(CONFIRM_LABEL, body)
    reply = Reply(Confirmation(session.sid, around.roster_hash, signature).to_bytes())
    answer = Answer(request, reply)
    confirmed = Confirmed(
        session,
        around,
        state.masked_with,
        state.held,
        state.own_share,
        survivors,
        message.bitmap,
        answer,
    )
    return confirmed, reply


def _reveal(state: Confirmed, event: SignaturesReceived, request: bytes) -> tuple[State, Reply]:
    """Phase 5, steps 5.5.2 and 5.5.3: of each peer one share, chosen by the confirmed survivors."""
    session, around, survivors = state.session, state.neighborhood, state.survivors
    message = Confirmations.from_bytes(event.signatures, SERVER)
    _require_bound(message, session, around)
    near = survivors & around.peers.keys()
    body = enc(session.sid, around.roster_hash, state.bitmap)
    for position, signature in message.signatures:
        require(position in near, f"a signature of position {position}, which is no surviving neighbor")
        peer = around.peers[position]
        try:
            peer.identity.verify(CONFIRM_LABEL, body, signature)
        except VerificationError as exc:
            raise RemoteProtocolError(SERVER, f"{peer.device} did not sign these survivors") from exc
    count, threshold = len(message.signatures), around.parameters.threshold
    enough = around.enough(dict(message.signatures))
    require(enough, f"{count} neighbors confirmed, too few for the threshold {threshold}")
    seeds = {position: held.seed for position, held in state.held.items() if position in survivors}
    keys = {position: held.key for position, held in state.held.items() if position not in survivors}
    if state.own_share is not None:
        seeds[around.position] = state.own_share
    revealed = RevealedShares(
        session.sid, around.roster_hash, tuple(sorted(seeds.items())), tuple(sorted(keys.items()))
    )
    reply = Reply(revealed.to_bytes())
    return Done(Answer(request, reply)), reply


def _digest(event: Event) -> bytes:
    """Return what tells one request from another; words and clocks are not the server's."""
    match event:
        case Invited(descriptor, model_hash, plan_hash):
            return digest(REQUEST_LABEL, descriptor, model_hash, plan_hash)
        case RosterReceived(data) | SharesReceived(data) | SurvivorsReceived(data) | SignaturesReceived(data):
            return digest(REQUEST_LABEL, data)


def _require_bound(
    message: SealedShares | Survivors | Confirmations, session: Session, around: Neighborhood
) -> None:
    require(hmac.compare_digest(message.sid, session.sid), "the message is of another session")
    require(hmac.compare_digest(message.roster_hash, around.roster_hash), "the message is of another roster")


def _own_words(words: Words, count: int) -> Words:
    """Return a copy to mask."""
    if words.dtype != np.uint64 or words.shape != (count,):
        raise UsageError(
            f"An encoded update has shape ({count},) and type uint64, not {words.shape} and {words.dtype}."
        )
    own = zeros(count)
    np.copyto(own, words)
    return own

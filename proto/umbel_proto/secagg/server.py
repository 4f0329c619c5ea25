"""The server's side of a session, as a value: ``state, outgoing = step(state, event)``.

A phase ends when the caller says Closed: at its deadline, or as soon as ``state.waiting`` is
empty. Bad input raises RemoteProtocolError naming the device and changes nothing; the caller
then reports the device Lost, and the round goes on without it.

A state is a value, but for one thing: the running sum of Masking is added to in place, for a copy
of a large model at each update would cost more than the addition. An update that was taken is in
the sum of every state before it too, so only the newest state may be stepped, as ``step`` says.

Source: docs/spec/secure-aggregation.md, "Phases" and "Server rules".
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

import numpy as np

from umbel_proto.encoding import enc
from umbel_proto.errors import LocalProtocolError, RemoteProtocolError, UsageError, VerificationError
from umbel_proto.ids import DeviceId
from umbel_proto.keys import VerifyKey
from umbel_proto.secagg.cohort import Cohort
from umbel_proto.secagg.device import CONFIRM_LABEL
from umbel_proto.secagg.engine import Aborted, Loss, Opened, Outgoing
from umbel_proto.secagg.entries import Peer, check_agreement_keys, verify_entry
from umbel_proto.secagg.masks import Words, zeros
from umbel_proto.secagg.messages import (
    Confirmation,
    Confirmations,
    Masked,
    RevealedShares,
    SealedShares,
    Survivors,
    to_bitmap,
)
from umbel_proto.secagg.session import Descriptor, session_id
from umbel_proto.secagg.unmask import unmask

# Events.


@dataclass(frozen=True, slots=True)
class Joined:
    """Phase 1: a device sent its serialized JoinEntry."""

    device: DeviceId
    entry: bytes


@dataclass(frozen=True, slots=True)
class SharesSent:
    """Phase 2: a device sent its serialized SealedShares."""

    device: DeviceId
    shares: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class MaskedSent:
    """Phase 3: a device sent its serialized Masked, and its words, shape (encoding.words,)."""

    device: DeviceId
    message: bytes
    words: Words = field(repr=False)


@dataclass(frozen=True, slots=True)
class ConfirmedSent:
    """Phase 4: a device sent its serialized Confirmation."""

    device: DeviceId
    confirmation: bytes


@dataclass(frozen=True, slots=True)
class Revealed:
    """Phase 5: a device sent its serialized RevealedShares."""

    device: DeviceId
    shares: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Lost:
    """A device vanished, refused, or broke a rule: nothing more is awaited from it in this phase."""

    device: DeviceId
    reason: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The phase is over: its deadline has passed or everyone has answered."""


Event: TypeAlias = Joined | SharesSent | MaskedSent | ConfirmedSent | Revealed | Lost | Closed


# States. ``waiting`` holds the devices that still owe an answer in the phase.


@dataclass(frozen=True, slots=True)
class Joining:
    """Phase 1.

    Args:
        descriptor: The session's.
        sid: Its id.
        authority: Signs the fleet's credentials.
        now_s: When the session was opened, Unix seconds; credentials must be valid then.
        waiting: Invited devices without an answer.
        joined: Verified entries, with their bytes.
        lost: Who is out.
    """

    descriptor: Descriptor
    sid: bytes
    authority: VerifyKey
    now_s: float
    waiting: frozenset[DeviceId]
    joined: Mapping[DeviceId, tuple[Peer, bytes]]
    lost: tuple[Loss, ...]


@dataclass(frozen=True, slots=True)
class Sharing:
    """Phase 2.

    Args:
        cohort: The roster and its graph.
        waiting: Devices that have not shared.
        boxes: Sealed shares by sender, then receiver.
        lost: Who is out.
    """

    cohort: Cohort
    waiting: frozenset[DeviceId]
    boxes: Mapping[int, Mapping[int, bytes]] = field(repr=False)
    lost: tuple[Loss, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Masking:
    """Phase 3.

    Args:
        cohort: The roster and its graph.
        sharers: Positions whose shares were handed on: the devices whose masks are in use.
        waiting: Sharers that have not sent their update.
        masked: Positions whose words are in the total.
        total: Sum of the masked words so far, shape (encoding.words,); this session's own, added to in place.
        lost: Who is out.
    """

    cohort: Cohort
    sharers: frozenset[int]
    waiting: frozenset[DeviceId]
    masked: frozenset[int]
    total: Words = field(repr=False)
    lost: tuple[Loss, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Confirming:
    """Phase 4.

    Args:
        cohort: The roster and its graph.
        sharers: Positions whose masks are in use.
        survivors: Positions whose words are in the total.
        waiting: Survivors that have not confirmed.
        signatures: Confirmations by position.
        total: Sum of the masked words, shape (encoding.words,).
        lost: Who is out.
    """

    cohort: Cohort
    sharers: frozenset[int]
    survivors: frozenset[int]
    waiting: frozenset[DeviceId]
    signatures: Mapping[int, bytes]
    total: Words = field(repr=False)
    lost: tuple[Loss, ...]

    @property
    def confirmed(self) -> bytes:
        """What the survivors sign."""
        bitmap = to_bitmap(self.survivors, len(self.cohort.peers))
        return enc(self.cohort.sid, self.cohort.roster_hash, bitmap)


@dataclass(frozen=True, slots=True, eq=False)
class Unmasking:
    """Phase 5.

    Args:
        cohort: The roster and its graph.
        sharers: Positions whose masks are in use.
        survivors: Positions whose words are in the total.
        waiting: Devices that were asked and have not revealed.
        revealed: Shares by who revealed them.
        total: Sum of the masked words, shape (encoding.words,).
        lost: Who is out.
    """

    cohort: Cohort
    sharers: frozenset[int]
    survivors: frozenset[int]
    waiting: frozenset[DeviceId]
    revealed: Mapping[int, RevealedShares] = field(repr=False)
    total: Words = field(repr=False)
    lost: tuple[Loss, ...]


Open: TypeAlias = Joining | Sharing | Masking | Confirming | Unmasking
State: TypeAlias = Open | Opened | Aborted
Step: TypeAlias = tuple[State, tuple[Outgoing, ...]]
S = TypeVar("S", Sharing, Masking, Confirming, Unmasking)


def open_session(
    descriptor: Descriptor, *, authority: VerifyKey, invited: Iterable[DeviceId], now_s: float
) -> Joining:
    """Begin a session; the caller sends descriptor, model and plan to the invited.

    Args:
        descriptor: What they must agree to.
        authority: Signs the fleet's credentials.
        invited: Who may join.
        now_s: Unix seconds.

    Raises:
        UsageError: Fewer are invited than the smallest cohort.
    """
    waiting = frozenset(invited)
    if len(waiting) < descriptor.min_cohort:
        raise UsageError(
            f"{len(waiting)} devices are invited, fewer than the smallest cohort, {descriptor.min_cohort}."
        )
    return Joining(descriptor, session_id(descriptor.to_bytes()), authority, now_s, waiting, {}, ())


def step(state: State, event: Event) -> Step:
    """Move the session on.

    Args:
        state: The newest state.
        event: What happened.

    Returns:
        The next state, and the requests to send: none within a phase, one for each device asked
        when a phase begins.

    Raises:
        RemoteProtocolError: The device broke a rule. The state still holds; report it Lost.
        LocalProtocolError: The session is over.
    """
    if isinstance(state, Opened | Aborted):
        raise LocalProtocolError(f"The session is over ({type(state).__name__}): open another one.")
    if isinstance(event, Closed):
        return _close(state)
    if isinstance(event, Lost):
        lost = (*state.lost, Loss(event.device, event.reason))
        return replace(state, waiting=state.waiting - {event.device}, lost=lost), ()
    match state, event:
        case Joining(), Joined():
            return _add_entry(state, event), ()
        case Sharing(), SharesSent():
            return _add_shares(state, event), ()
        case Masking(), MaskedSent():
            return _add_words(state, event), ()
        case Confirming(), ConfirmedSent():
            return _add_confirmation(state, event), ()
        case Unmasking(), Revealed():
            return _add_revealed(state, event), ()
        case _:
            what = f"{type(event).__name__} out of turn, the session is {type(state).__name__}"
            raise RemoteProtocolError(event.device, what)


def _close(state: Open) -> Step:
    match state:
        case Joining():
            return _close_joining(state)
        case Sharing():
            return _close_sharing(state)
        case Masking():
            return _close_masking(state)
        case Confirming():
            return _close_confirming(state)
        case Unmasking():
            return _close_unmasking(state)


def _add_entry(state: Joining, event: Joined) -> Joining:
    """Step 5.1.5."""
    device, descriptor = event.device, state.descriptor
    _require(device in state.waiting, device, "it was not invited, or has answered")
    full = f"the cohort is full with {descriptor.max_cohort} devices"
    _require(len(state.joined) < descriptor.max_cohort, device, full)
    peer = verify_entry(
        event.entry,
        sid=state.sid,
        device=device,
        fleet=descriptor.fleet,
        authority=state.authority,
        now_s=state.now_s,
        peer=device,
    )
    check_agreement_keys(peer)
    joined = {**state.joined, device: (peer, event.entry)}
    return replace(state, waiting=state.waiting - {device}, joined=joined)


def _close_joining(state: Joining) -> Step:
    """Step 5.2.1."""
    lost = _silent(state)
    n, least = len(state.joined), state.descriptor.min_cohort
    if n < least:
        return _abort(f"{n} devices joined, fewer than the smallest cohort, {least}", lost)
    try:
        cohort = Cohort.of(state.descriptor, state.sid, state.joined)
    except UsageError as exc:
        return _abort(str(exc), lost)
    outgoing = tuple(Outgoing(peer.device, cohort.roster_for(i)) for i, peer in enumerate(cohort.peers))
    return Sharing(cohort, frozenset(cohort.ids), {}, lost), outgoing


def _add_shares(state: Sharing, event: SharesSent) -> Sharing:
    """Step 5.2.5."""
    device, cohort = event.device, state.cohort
    position = _position(state, device)
    message = SealedShares.from_bytes(event.shares, device)
    _require_bound(message, cohort, device)
    boxes = dict(message.boxes)
    meant = set(cohort.graph.neighbors(position))
    _require(boxes.keys() == meant, device, "its shares are not for exactly its neighbors")
    return replace(state, waiting=state.waiting - {device}, boxes={**state.boxes, position: boxes})


def _close_sharing(state: Sharing) -> Step:
    """Step 5.3.1."""
    lost, cohort = _silent(state), state.cohort
    # A device with too few neighbors left would refuse to mask. Leaving it out may cost others
    # their neighbors, so look again until nothing changes.
    sharers = frozenset(state.boxes)
    while lonely := frozenset(i for i in sharers if not cohort.enough(i, sharers)):
        sharers -= lonely
        lost += tuple(Loss(cohort.ids[i], "too few of its neighbors shared") for i in sorted(lonely))
    if shortage := _shortage(cohort, sharers, "shared"):
        return _abort(shortage, lost)
    outgoing = []
    for receiver in sorted(sharers):
        senders = sorted(sharers.intersection(cohort.graph.neighbors(receiver)))
        boxes = tuple((sender, state.boxes[sender][receiver]) for sender in senders)
        message = SealedShares(cohort.sid, cohort.roster_hash, boxes)
        outgoing.append(Outgoing(cohort.ids[receiver], message.to_bytes()))
    total = zeros(cohort.descriptor.encoding.words)
    return Masking(cohort, sharers, cohort.names(sharers), frozenset(), total, lost), tuple(outgoing)


def _add_words(state: Masking, event: MaskedSent) -> Masking:
    """Step 5.3.5."""
    device, position = event.device, _position(state, event.device)
    _require_bound(Masked.from_bytes(event.message, device), state.cohort, device)
    words = event.words
    fits = words.dtype == np.uint64 and words.shape == state.total.shape
    _require(fits, device, f"its update is not {state.total.size} words of 64 bits")
    # Nothing is refused from here on. The update itself is dropped.
    np.add(state.total, words, out=state.total)
    return replace(state, waiting=state.waiting - {device}, masked=state.masked | {position})


def _close_masking(state: Masking) -> Step:
    """Step 5.4.1."""
    lost, cohort, survivors = _silent(state), state.cohort, state.masked
    if shortage := _shortage(cohort, survivors, "sent an update"):
        return _abort(shortage, lost)
    if stuck := cohort.cannot_open(sharers=state.sharers, survivors=survivors, revealing=survivors):
        return _abort(stuck, lost)
    message = Survivors(cohort.sid, cohort.roster_hash, to_bitmap(survivors, len(cohort.peers))).to_bytes()
    outgoing = tuple(Outgoing(cohort.ids[i], message) for i in sorted(survivors))
    names = cohort.names(survivors)
    return Confirming(cohort, state.sharers, survivors, names, {}, state.total, lost), outgoing


def _add_confirmation(state: Confirming, event: ConfirmedSent) -> Confirming:
    """Step 5.4.4."""
    device, position = event.device, _position(state, event.device)
    message = Confirmation.from_bytes(event.confirmation, device)
    _require_bound(message, state.cohort, device)
    try:
        state.cohort.peers[position].identity.verify(CONFIRM_LABEL, state.confirmed, message.signature)
    except VerificationError as exc:
        raise RemoteProtocolError(device, "it did not sign these survivors") from exc
    signatures = {**state.signatures, position: message.signature}
    return replace(state, waiting=state.waiting - {device}, signatures=signatures)


def _close_confirming(state: Confirming) -> Step:
    """Step 5.5.1."""
    lost, cohort, signatures = _silent(state), state.cohort, state.signatures
    asked = frozenset(i for i in signatures if cohort.enough(i, signatures.keys()))
    if stuck := cohort.cannot_open(sharers=state.sharers, survivors=state.survivors, revealing=asked):
        return _abort(stuck, lost)
    outgoing = []
    # The threshold's worth and no more: each costs its receiver a verification.
    most = cohort.graph.parameters.threshold - cohort.graph.parameters.complete
    for receiver in sorted(asked):
        near = [i for i in cohort.graph.neighbors(receiver) if i in signatures][:most]
        message = Confirmations(cohort.sid, cohort.roster_hash, tuple((i, signatures[i]) for i in near))
        outgoing.append(Outgoing(cohort.ids[receiver], message.to_bytes()))
    unmasking = Unmasking(cohort, state.sharers, state.survivors, cohort.names(asked), {}, state.total, lost)
    return unmasking, tuple(outgoing)


def _add_revealed(state: Unmasking, event: Revealed) -> Unmasking:
    """Step 5.5.4."""
    device, position, cohort = event.device, _position(state, event.device), state.cohort
    message = RevealedShares.from_bytes(event.shares, device)
    _require_bound(message, cohort, device)
    holds = state.sharers.intersection(cohort.graph.holders(position))  # Holding goes both ways.
    seeds, keys = {i for i, _ in message.seeds}, {i for i, _ in message.keys}
    _require(seeds <= holds & state.survivors, device, "it revealed a seed's share that was not asked for")
    _require(keys <= holds - state.survivors, device, "it revealed a key's share that was not asked for")
    return replace(state, waiting=state.waiting - {device}, revealed={**state.revealed, position: message})


def _close_unmasking(state: Unmasking) -> Step:
    """Step 10.5."""
    lost, cohort = _silent(state), state.cohort
    try:
        total, liars = unmask(
            cohort,
            state.total,
            sharers=state.sharers,
            survivors=state.survivors,
            revealed=state.revealed,
        )
    except VerificationError as exc:
        return _abort(str(exc), lost)
    lost += tuple(Loss(cohort.ids[i], "it revealed a wrong share") for i in sorted(liars))
    return Opened(total, tuple(cohort.ids[i] for i in sorted(state.survivors)), lost), ()


def _silent(state: Open) -> tuple[Loss, ...]:
    """Return the losses, with those who owe an answer at the end of the phase."""
    phase = type(state).__name__.lower()
    return state.lost + tuple(Loss(device, f"no answer while {phase}") for device in sorted(state.waiting))


def _abort(reason: str, lost: tuple[Loss, ...]) -> Step:
    return Aborted(reason, lost), ()


def _shortage(cohort: Cohort, left: Collection[int], did: str) -> str | None:
    least = max(cohort.descriptor.min_cohort, cohort.graph.parameters.min_survivors)
    return None if len(left) >= least else f"{len(left)} devices {did}, and {least} are needed"


def _position(state: S, device: DeviceId) -> int:
    _require(device in state.waiting, device, "it owes no answer in this phase")
    return state.cohort.places[device]


def _require(holds: bool, device: DeviceId, reason: str) -> None:
    if not holds:
        raise RemoteProtocolError(device, reason)


def _require_bound(
    message: SealedShares | Masked | Confirmation | RevealedShares, cohort: Cohort, device: DeviceId
) -> None:
    _require(hmac.compare_digest(message.sid, cohort.sid), device, "its message is of another session")
    same = hmac.compare_digest(message.roster_hash, cohort.roster_hash)
    _require(same, device, "its message is of another roster")

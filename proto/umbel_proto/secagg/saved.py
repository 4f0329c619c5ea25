"""A device's session as bytes, for hosts that keep it between two messages.

The bytes hold the session's secrets: they belong into memory, and are dropped with the session.

Source: docs/adr/0006-state-between-messages.md
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf.message import DecodeError

from umbel_proto.errors import LocalProtocolError, RemoteProtocolError, UsageError
from umbel_proto.ids import DeviceId, check_name
from umbel_proto.keys import VerifyKey
from umbel_proto.secagg.boxes import Held
from umbel_proto.secagg.device import (
    SERVER,
    Answer,
    Confirmed,
    Done,
    Idle,
    Joined,
    Masked,
    Member,
    Neighborhood,
    Reply,
    Session,
    Shared,
    State,
)
from umbel_proto.secagg.entries import Peer, Secrets
from umbel_proto.secagg.messages import from_bitmap
from umbel_proto.secagg.session import Descriptor, session_id
from umbel_proto.secagg.shamir import SHARE_BYTES
from umbel_proto.wire import saved_pb2 as pb

_JOINED, _SHARED, _MASKED, _CONFIRMED = 1, 2, 3, 4


def save(state: State) -> bytes | None:
    """Return a session as bytes; None if there is nothing left to keep."""
    match state:
        case Idle() | Done():
            return None
        case Joined():
            message = _begin(state.session, state.answer, _JOINED)
            _put_secrets(message, state.secrets)
        case Shared():
            message = _begin(state.session, state.answer, _SHARED)
            _put_secrets(message, state.secrets)
            _put_around(message, state.neighborhood)
            message.own_share = state.own_share or b""
        case Masked() | Confirmed():
            confirmed = isinstance(state, Confirmed)
            message = _begin(state.session, state.answer, _CONFIRMED if confirmed else _MASKED)
            _put_around(message, state.neighborhood)
            message.own_share = state.own_share or b""
            message.masked_with.extend(sorted(state.masked_with))
            for position, held in state.held.items():
                message.held.add(position=position, seed=held.seed, key=held.key)
            if isinstance(state, Confirmed):
                message.bitmap = state.bitmap
    return message.SerializeToString()


def restore(data: bytes, member: Member) -> State:
    """Return the session that ``save`` wrote.

    Args:
        data: The bytes.
        member: The device's standing, which is not in them.

    Raises:
        LocalProtocolError: They are something else.
    """
    try:
        return _restored(pb.SavedSession.FromString(data), member)
    except (DecodeError, RemoteProtocolError, UsageError, ValueError, IndexError) as exc:
        raise LocalProtocolError(
            "The kept session is damaged: the round goes on without this device."
        ) from exc


def _restored(message: pb.SavedSession, member: Member) -> State:
    session = Session(
        session_id(message.descriptor),
        Descriptor.from_bytes(message.descriptor),
        DeviceId(check_name(message.device_id, "device")),
        message.model_hash,
    )
    words = np.frombuffer(message.reply_words, "<u8").astype(np.uint64) if message.reply_words else None
    answer = Answer(message.request, Reply(message.reply, words))
    own_share = message.own_share or None
    if message.phase == _JOINED:
        return Joined(member, session, _secrets(message), answer)
    around = _around(message.neighborhood, session)
    if message.phase == _SHARED:
        return Shared(member, session, around, _secrets(message), own_share, answer)
    masked_with = frozenset(message.masked_with)
    held = {item.position: Held(item.seed, item.key) for item in message.held}
    if message.phase == _MASKED:
        return Masked(member, session, around, masked_with, held, own_share, answer)
    if message.phase == _CONFIRMED:
        survivors = from_bitmap(message.bitmap, len(around.ids), SERVER)
        return Confirmed(session, around, masked_with, held, own_share, survivors, message.bitmap, answer)
    raise ValueError(f"phase {message.phase}")


def _begin(session: Session, answer: Answer, phase: int) -> pb.SavedSession:
    words = answer.reply.words
    return pb.SavedSession(
        descriptor=session.descriptor.to_bytes(),
        device_id=session.device,
        model_hash=session.model_hash,
        phase=phase,
        request=answer.request,
        reply=answer.reply.message,
        reply_words=b"" if words is None else words.astype("<u8", copy=False).tobytes(),
    )


def _put_secrets(message: pb.SavedSession, secrets: Secrets) -> None:
    message.mask_private = secrets.mask_private.private_bytes_raw()
    message.share_private = secrets.share_private.private_bytes_raw()
    message.seed = secrets.seed


def _secrets(message: pb.SavedSession) -> Secrets:
    if len(message.seed) != SHARE_BYTES:
        raise ValueError("a seed of another length")
    return Secrets(
        X25519PrivateKey.from_private_bytes(message.mask_private),
        X25519PrivateKey.from_private_bytes(message.share_private),
        message.seed,
    )


def _put_around(message: pb.SavedSession, around: Neighborhood) -> None:
    kept = message.neighborhood
    kept.ids.extend(around.ids)
    kept.roster_hash = around.roster_hash
    kept.position = around.position
    for position, peer in around.peers.items():
        kept.peers.add(
            position=position,
            identity=peer.identity.raw,
            mask_key=peer.mask_key,
            share_key=peer.share_key,
            seed_commitment=peer.seed_commitment,
        )


def _around(kept: pb.SavedNeighborhood, session: Session) -> Neighborhood:
    ids = tuple(DeviceId(device) for device in kept.ids)
    if kept.position >= len(ids):
        raise ValueError("a position beyond the roster")
    peers = {
        peer.position: Peer(
            ids[peer.position], VerifyKey(peer.identity), peer.mask_key, peer.share_key, peer.seed_commitment
        )
        for peer in kept.peers
    }
    shape = session.descriptor.graph_parameters(len(ids))
    return Neighborhood(ids, kept.roster_hash, kept.position, shape, peers)

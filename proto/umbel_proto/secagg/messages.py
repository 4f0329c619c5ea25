"""The messages of the five phases: frozen values, and their canonical bytes.

``from_bytes(data, peer)`` checks all that can be known without the session: sizes, order,
lengths. It raises RemoteProtocolError naming ``peer``.

Source: docs/spec/secure-aggregation.md, "Phases".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeVar

from umbel_proto.credentials import MAX_SIGNED_BYTES
from umbel_proto.errors import RemoteProtocolError, UsageError
from umbel_proto.ids import DeviceId, check_name
from umbel_proto.keys import SIGNATURE_BYTES
from umbel_proto.secagg.canonical import parse, serialize
from umbel_proto.secagg.graph import MAX_COHORT
from umbel_proto.secagg.session import HASH_BYTES
from umbel_proto.secagg.shamir import SHARE_BYTES, is_element
from umbel_proto.wire import rounds_pb2 as pb

AGREEMENT_KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
BOX_BYTES = NONCE_BYTES + 2 * SHARE_BYTES + TAG_BYTES
MAX_ENTRY_BYTES = MAX_SIGNED_BYTES + 256
MAX_ROSTER_BYTES = 8 << 20
MAX_LIST_BYTES = 4 << 20
MAX_SMALL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class JoinEntry:
    """A device's public part in a session, signed by its identity.

    Args:
        credential: As the fleet's authority signed it.
        mask_key: X25519 public key, 32 bytes.
        share_key: X25519 public key, 32 bytes.
        seed_commitment: Hash of the self-mask seed, 32 bytes.
        signature: 64 bytes.
    """

    credential: bytes
    mask_key: bytes
    share_key: bytes
    seed_commitment: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return serialize(
            pb.JoinEntry(
                credential=self.credential,
                mask_key=self.mask_key,
                share_key=self.share_key,
                seed_commitment=self.seed_commitment,
                signature=self.signature,
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes, peer: str) -> Self:
        """Read what ``peer`` sent."""
        m = parse(pb.JoinEntry, data, limit=MAX_ENTRY_BYTES, peer=peer)
        _sized(m.mask_key, AGREEMENT_KEY_BYTES, "the mask key", peer)
        _sized(m.share_key, AGREEMENT_KEY_BYTES, "the share key", peer)
        _sized(m.seed_commitment, HASH_BYTES, "the seed commitment", peer)
        _sized(m.signature, SIGNATURE_BYTES, "the signature", peer)
        return cls(m.credential, m.mask_key, m.share_key, m.seed_commitment, m.signature)


@dataclass(frozen=True, slots=True)
class Roster:
    """Who is in the session, with the full entries of the receiver's neighbors.

    Args:
        sid: The session.
        rows: (id, hash of the entry), ascending by id.
        entries: Serialized entries of the neighbors, in the roster's order.
    """

    sid: bytes
    rows: tuple[tuple[DeviceId, bytes], ...]
    entries: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        rows = [pb.RosterRow(device_id=device, entry_hash=hash_) for device, hash_ in self.rows]
        return serialize(pb.Roster(sid=self.sid, rows=rows, entries=self.entries))

    @classmethod
    def from_bytes(cls, data: bytes, peer: str) -> Self:
        """Read what ``peer`` sent."""
        m = parse(pb.Roster, data, limit=MAX_ROSTER_BYTES, peer=peer)
        _sized(m.sid, HASH_BYTES, "the session id", peer)
        _ascending([row.device_id for row in m.rows], "the roster", peer)
        rows = []
        for row in m.rows:
            try:
                device = DeviceId(check_name(row.device_id, "device"))
            except UsageError as exc:
                raise RemoteProtocolError(peer, "the roster holds an id that is no name") from exc
            rows.append((device, _sized(row.entry_hash, HASH_BYTES, "an entry's hash", peer)))
        return cls(m.sid, tuple(rows), tuple(m.entries))


@dataclass(frozen=True, slots=True)
class SealedShares:
    """Sealed shares, to each neighbor (up) or from each (down).

    Args:
        sid: The session.
        roster_hash: The roster.
        boxes: (position of the peer, box of 92 bytes), ascending.
    """

    sid: bytes
    roster_hash: bytes
    boxes: tuple[tuple[int, bytes], ...]

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        shares = [pb.SealedShare(peer=peer, box=box) for peer, box in self.boxes]
        return serialize(pb.SealedShares(sid=self.sid, roster_hash=self.roster_hash, shares=shares))

    @classmethod
    def from_bytes(cls, data: bytes, peer: str) -> Self:
        """Read what ``peer`` sent."""
        m = parse(pb.SealedShares, data, limit=MAX_LIST_BYTES, peer=peer)
        _bound(m, peer)
        boxes = [(share.peer, _sized(share.box, BOX_BYTES, "a sealed share", peer)) for share in m.shares]
        return cls(m.sid, m.roster_hash, _positions(boxes, "the sealed shares", peer))


@dataclass(frozen=True, slots=True)
class Masked:
    """What goes beside the words of a masked update.

    Args:
        sid: The session.
        roster_hash: The roster.
    """

    sid: bytes
    roster_hash: bytes

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return serialize(pb.Masked(sid=self.sid, roster_hash=self.roster_hash))

    @classmethod
    def from_bytes(cls, data: bytes, peer: str) -> Self:
        """Read what ``peer`` sent."""
        m = parse(pb.Masked, data, limit=MAX_SMALL_BYTES, peer=peer)
        _bound(m, peer)
        return cls(m.sid, m.roster_hash)


@dataclass(frozen=True, slots=True)
class Survivors:
    """Whose masked updates are in the sum.

    Args:
        sid: The session.
        roster_hash: The roster.
        bitmap: One bit for each position; see :func:`to_bitmap`.
    """

    sid: bytes
    roster_hash: bytes
    bitmap: bytes

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return serialize(pb.Survivors(sid=self.sid, roster_hash=self.roster_hash, bitmap=self.bitmap))

    @classmethod
    def from_bytes(cls, data: bytes, peer: str) -> Self:
        """Read what ``peer`` sent."""
        m = parse(pb.Survivors, data, limit=MAX_SMALL_BYTES, peer=peer)
        _bound(m, peer)
        return cls(m.sid, m.roster_hash, m.bitmap)


@dataclass(frozen=True, slots=True)
class Confirmation:
    """A device's word that it was shown these survivors.

    Args:
        sid: The session.
        roster_hash: The roster.
        signature: 64 bytes.
    """

    sid: bytes
    roster_hash: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return serialize(
            pb.Confirmation(sid=self.sid, roster_hash=self.roster_hash, signature=self.signature)
        )

    @classmethod
    def from_bytes(cls, data: bytes, peer: str) -> Self:
        """Read what ``peer`` sent."""
        m = parse(pb.Confirmation, data, limit=MAX_SMALL_BYTES, peer=peer)
        _bound(m, peer)
        return cls(m.sid, m.roster_hash, _sized(m.signature, SIGNATURE_BYTES, "the signature", peer))


@dataclass(frozen=True, slots=True)
class Confirmations:
    """The confirmations of the receiver's neighbors.

    Args:
        sid: The session.
        roster_hash: The roster.
        signatures: (position, 64 bytes), ascending.
    """

    sid: bytes
    roster_hash: bytes
    signatures: tuple[tuple[int, bytes], ...]

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        signatures = [pb.PeerSignature(peer=peer, signature=raw) for peer, raw in self.signatures]
        return serialize(pb.Confirmations(sid=self.sid, roster_hash=self.roster_hash, signatures=signatures))

    @classmethod
    def from_bytes(cls, data: bytes, peer: str) -> Self:
        """Read what ``peer`` sent."""
        m = parse(pb.Confirmations, data, limit=MAX_LIST_BYTES, peer=peer)
        _bound(m, peer)
        signatures = [
            (s.peer, _sized(s.signature, SIGNATURE_BYTES, "a signature", peer)) for s in m.signatures
        ]
        return cls(m.sid, m.roster_hash, _positions(signatures, "the signatures", peer))


@dataclass(frozen=True, slots=True)
class RevealedShares:
    """The shares that open the sum: of each peer one secret, never both.

    Args:
        sid: The session.
        roster_hash: The roster.
        seeds: (position of a survivor, share of its seed), ascending.
        keys: (position of a lost device, share of its mask key), ascending.
    """

    sid: bytes
    roster_hash: bytes
    seeds: tuple[tuple[int, bytes], ...] = field(repr=False)
    keys: tuple[tuple[int, bytes], ...] = field(repr=False)

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return serialize(
            pb.RevealedShares(
                sid=self.sid,
                roster_hash=self.roster_hash,
                seed_shares=[pb.PlainShare(peer=peer, share=share) for peer, share in self.seeds],
                key_shares=[pb.PlainShare(peer=peer, share=share) for peer, share in self.keys],
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes, peer: str) -> Self:
        """Read what ``peer`` sent."""
        m = parse(pb.RevealedShares, data, limit=MAX_LIST_BYTES, peer=peer)
        _bound(m, peer)
        return cls(m.sid, m.roster_hash, _shares(m.seed_shares, peer), _shares(m.key_shares, peer))


def to_bitmap(positions: Iterable[int], devices: int) -> bytes:
    """Return a set of positions as ``ceil(devices / 8)`` bytes: position i is bit i % 8 of byte i // 8."""
    bitmap = bytearray(-(-devices // 8))
    for position in positions:
        bitmap[position // 8] |= 1 << position % 8
    return bytes(bitmap)


def from_bitmap(bitmap: bytes, devices: int, peer: str) -> frozenset[int]:
    """Return the positions in a bitmap that ``peer`` sent.

    Raises:
        RemoteProtocolError: It has another length, or a bit beyond the last device.
    """
    positions = frozenset(i for i in range(8 * len(bitmap)) if bitmap[i // 8] >> i % 8 & 1)
    if len(bitmap) != -(-devices // 8) or any(position >= devices for position in positions):
        raise RemoteProtocolError(peer, f"the bitmap is not one of {devices} devices")
    return positions


K = TypeVar("K", str, int)


class _Bound(Protocol):
    """What every message after the roster carries."""

    sid: bytes
    roster_hash: bytes


def _bound(message: _Bound, peer: str) -> None:
    _sized(message.sid, HASH_BYTES, "the session id", peer)
    _sized(message.roster_hash, HASH_BYTES, "the roster's hash", peer)


def _sized(value: bytes, size: int, what: str, peer: str) -> bytes:
    if len(value) != size:
        raise RemoteProtocolError(peer, f"{what} has {len(value)} bytes, not {size}")
    return value


def _ascending(keys: Sequence[K], what: str, peer: str) -> None:
    """Refuse duplicates and any order but one."""
    if any(not low < high for low, high in itertools.pairwise(keys)):
        raise RemoteProtocolError(peer, f"{what} repeats a device or is out of order")


def _positions(pairs: list[tuple[int, bytes]], what: str, peer: str) -> tuple[tuple[int, bytes], ...]:
    positions = [position for position, _ in pairs]
    _ascending(positions, what, peer)
    if positions and positions[-1] >= MAX_COHORT:
        raise RemoteProtocolError(peer, f"{what} name position {positions[-1]}, beyond any roster")
    return tuple(pairs)


def _shares(shares: Iterable[pb.PlainShare], peer: str) -> tuple[tuple[int, bytes], ...]:
    pairs = [(share.peer, share.share) for share in shares]
    if not all(is_element(share) for _, share in pairs):
        raise RemoteProtocolError(peer, "a share is no field element")
    return _positions(pairs, "the revealed shares", peer)

"""Shares on their way from one device to another, through a server that must not read them.

Source: docs/spec/secure-aggregation.md, "Shares".
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from umbel_proto.encoding import enc
from umbel_proto.errors import VerificationError
from umbel_proto.ids import DeviceId
from umbel_proto.secagg.masks import agree
from umbel_proto.secagg.messages import BOX_BYTES, NONCE_BYTES
from umbel_proto.secagg.shamir import SHARE_BYTES, is_element

SHARE_LABEL = "umbel/1/share"


@dataclass(frozen=True, slots=True)
class Held:
    """The shares one device holds of another's secrets; one of the two leaves it, never both.

    Args:
        seed: Of its self-mask seed, 32 bytes.
        key: Of its mask key, 32 bytes.
    """

    seed: bytes = field(repr=False)
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Lane:
    """One direction between two devices of one roster.

    Args:
        sid: The session.
        roster_hash: The roster.
        sender: Who seals.
        receiver: Who opens.
    """

    sid: bytes
    roster_hash: bytes
    sender: DeviceId
    receiver: DeviceId

    def key(self, private: X25519PrivateKey, public: bytes) -> bytes:
        """Return the lane's AES-256 key, from one end's private key and the other's public one.

        Raises:
            VerificationError: The public key has small order.
        """
        return agree(
            private, public, enc(SHARE_LABEL, self.sid, self.roster_hash, self.sender, self.receiver)
        )

    @property
    def associated(self) -> bytes:
        """What a box is bound to besides its key."""
        return enc(self.sid, self.sender, self.receiver)


def seal_shares(held: Held, key: bytes, lane: Lane) -> bytes:
    """Return a box of 92 bytes: nonce, ciphertext, tag.

    A lane's key seals one box, so any nonce would do. It is drawn at random all the same: a
    caller who steps twice from one state deals anew, and must not use a nonce twice.
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, held.seed + held.key, lane.associated)


def open_shares(box: bytes, key: bytes, lane: Lane) -> Held:
    """Return the shares in a box.

    Raises:
        VerificationError: It was not sealed on this lane, or holds no field elements.
    """
    if len(box) != BOX_BYTES:
        raise VerificationError(f"A box has {BOX_BYTES} bytes, this one {len(box)}.")
    try:
        plain = AESGCM(key).decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], lane.associated)
    except InvalidTag as exc:
        raise VerificationError(f"The shares from {lane.sender} do not open.") from exc
    held = Held(plain[:SHARE_BYTES], plain[SHARE_BYTES:])
    if not (is_element(held.seed) and is_element(held.key)):
        raise VerificationError(f"The shares from {lane.sender} are no field elements.")
    return held

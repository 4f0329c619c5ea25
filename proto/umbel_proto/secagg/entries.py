"""How a device joins a session: fresh secrets, and an entry that binds their public side to it.

Source: docs/spec/secure-aggregation.md, "Phase 1: train".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from umbel_proto.credentials import open_credential
from umbel_proto.encoding import digest, enc
from umbel_proto.errors import CertificateError, RemoteProtocolError, VerificationError
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.keys import SigningKey, VerifyKey
from umbel_proto.secagg.masks import agree
from umbel_proto.secagg.messages import JoinEntry
from umbel_proto.secagg.shamir import draw_element, is_element

JOIN_LABEL = "umbel/1/join"
SEED_LABEL = "umbel/1/seed"
# Every clamped scalar is a multiple of 8, so any of them takes a point of small order to zero.
_PROBE = X25519PrivateKey.from_private_bytes(bytes(32))


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a device draws anew for each session. Its repr shows nothing of it.

    Args:
        mask_private: Its pairwise masks come from this key; shared out, so a field element too.
        share_private: The boxes to and from its neighbors are sealed with this key.
        seed: Of its self mask, a field element of 32 bytes.
    """

    mask_private: X25519PrivateKey = field(repr=False)
    share_private: X25519PrivateKey = field(repr=False)
    seed: bytes = field(repr=False)

    @classmethod
    def draw(cls) -> Secrets:
        """Draw them from the operating system's randomness."""
        mask_private = X25519PrivateKey.generate()
        while not is_element(mask_private.private_bytes_raw()):  # Never seen: one key in 2**248.
            mask_private = X25519PrivateKey.generate()
        return cls(mask_private, X25519PrivateKey.generate(), draw_element())


@dataclass(frozen=True, slots=True)
class Peer:
    """A device of the session, as its verified entry shows it.

    Args:
        device: Its id.
        identity: Its Ed25519 key, by the fleet's word.
        mask_key: X25519 public key.
        share_key: X25519 public key.
        seed_commitment: Hash of its self-mask seed.
    """

    device: DeviceId
    identity: VerifyKey
    mask_key: bytes
    share_key: bytes
    seed_commitment: bytes


def commit_to_seed(seed: bytes, *, sid: bytes, device: DeviceId) -> bytes:
    """Return the commitment that tells a recovered seed from a wrong one.

    A hash hides 256 uniform bits.
    """
    return digest(SEED_LABEL, sid, device, seed)


def make_entry(
    secrets: Secrets, *, sid: bytes, device: DeviceId, credential: bytes, identity: SigningKey
) -> bytes:
    """Return a device's serialized join entry."""
    mask_key = secrets.mask_private.public_key().public_bytes_raw()
    share_key = secrets.share_private.public_key().public_bytes_raw()
    commitment = commit_to_seed(secrets.seed, sid=sid, device=device)
    signature = identity.sign(JOIN_LABEL, enc(sid, device, mask_key, share_key, commitment))
    return JoinEntry(credential, mask_key, share_key, commitment, signature).to_bytes()


def verify_entry(
    data: bytes,
    *,
    sid: bytes,
    device: DeviceId,
    fleet: FleetId,
    authority: VerifyKey,
    now_s: float,
    peer: str,
) -> Peer:
    """Return the device behind a join entry.

    Args:
        data: The entry as received.
        sid: The session it must be for.
        device: Whose it must be.
        fleet: The fleet.
        authority: The key that signs its credentials.
        now_s: Unix seconds.
        peer: Who is to blame: the device at the server, the server at a device.

    Raises:
        RemoteProtocolError: It is malformed, its credential is not this device's, foreign or
            expired, or it is not signed for this session by the device.
    """
    entry = JoinEntry.from_bytes(data, peer)
    try:
        credential = open_credential(entry.credential, authority=authority, fleet=fleet, now_s=now_s)
    except CertificateError as exc:
        raise RemoteProtocolError(peer, f"the entry of {device} has no valid credential: {exc}") from exc
    if credential.device != device:
        raise RemoteProtocolError(peer, f"the entry of {device} has the credential of {credential.device}")
    body = enc(sid, device, entry.mask_key, entry.share_key, entry.seed_commitment)
    try:
        credential.identity_key.verify(JOIN_LABEL, body, entry.signature)
    except VerificationError as exc:
        reason = f"the entry of {device} is not signed by it for this session"
        raise RemoteProtocolError(peer, reason) from exc
    return Peer(device, credential.identity_key, entry.mask_key, entry.share_key, entry.seed_commitment)


def check_agreement_keys(peer: Peer) -> None:
    """Check that nobody knows beforehand what these keys agree on.

    The server does this at the door: a device that found such a key could only leave.

    Raises:
        RemoteProtocolError: A key has small order.
    """
    for key in (peer.mask_key, peer.share_key):
        try:
            agree(_PROBE, key, b"")
        except VerificationError as exc:
            raise RemoteProtocolError(peer.device, "an X25519 key in its entry has small order") from exc

"""Known answers of secure aggregation, and the same answers from the specification alone.

The second half computes the file's values without a line of umbel's code, as another
implementation would, from docs/spec/secure-aggregation.md.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from umbel_proto.keys import VerifyKey
from umbel_proto.prg import Keystream
from umbel_proto.secagg import messages
from umbel_proto.secagg.entries import verify_entry
from umbel_proto.secagg.graph import parameters
from umbel_proto.secagg.session import Descriptor, session_id
from umbel_proto.wire import identity_pb2
from umbel_proto.wire import rounds_pb2 as pb

HERE = Path(__file__).resolve().parent
KNOWN: dict[str, Any] = json.loads((HERE / "secagg.json").read_text())
KINDS = [
    "Roster",
    "SealedShares",
    "Masked",
    "Survivors",
    "Confirmation",
    "Confirmations",
    "RevealedShares",
]


def known(*path: str) -> bytes:
    value: Any = KNOWN
    for key in path:
        value = value[key]
    return bytes.fromhex(value)


def test_the_code_gives_every_value_in_the_file() -> None:
    made = subprocess.run([sys.executable, HERE / "make_secagg.py"], capture_output=True, check=True)
    assert made.stdout == (HERE / "secagg.json").read_bytes()


@pytest.mark.parametrize("mode", ["gcm", "ctr"])
def test_both_ways_to_compute_the_keystream_give_the_known_bytes(mode: Any) -> None:
    assert Keystream(known("prg", "key"), mode=mode).read(32).tobytes() == known("prg", "first")


@pytest.mark.parametrize(
    ("devices", "malicious", "expected"),
    [(1000, True, (52, 37)), (10_000, True, (62, 44)), (1000, False, (30, 17))],
)
def test_degree_and_threshold_have_their_known_values(
    devices: int, malicious: bool, expected: tuple[int, int]
) -> None:
    found = parameters(devices, corrupt_fraction=0.05, dropout_fraction=0.05, server_malicious=malicious)
    assert (found.degree, found.threshold) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_messages_read_and_write_as_they_did(kind: str) -> None:
    frozen = known("messages", kind)
    message = getattr(messages, kind).from_bytes(frozen, "server")
    assert message.to_bytes() == frozen


def test_the_frozen_descriptor_reads_and_writes_as_it_did() -> None:
    frozen = known("descriptor")
    session = Descriptor.from_bytes(frozen)
    assert session.to_bytes() == frozen
    assert session_id(frozen) == known("sid")
    assert (session.run, session.round, session.attempt) == ("run-7", 3, 1)
    assert str(session.encoding.noise) == "1001/8"


@pytest.mark.parametrize("device", ["anna", "bert"])
def test_a_frozen_entry_still_verifies(device: Any) -> None:
    peer = verify_entry(
        known("entries", device),
        sid=known("sid"),
        device=device,
        fleet=Descriptor.from_bytes(known("descriptor")).fleet,
        authority=VerifyKey(known("authority")),
        now_s=1_800_000_000,
        peer="server",
    )
    assert peer.device == device


# From here on: the specification, not the code.


def enc(*fields: bytes) -> bytes:
    return b"".join(len(field).to_bytes(8, "big") + field for field in fields)


def h(label: bytes, *fields: bytes) -> bytes:
    return hashlib.sha256(enc(label, *fields)).digest()


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869, SHA-256, no salt, 32 bytes."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def agree(private: int, public: int, info: bytes) -> bytes:
    ours = X25519PrivateKey.from_private_bytes(bytes([private]) * 32)
    theirs = X25519PrivateKey.from_private_bytes(bytes([public]) * 32).public_key()
    return hkdf(ours.exchange(X25519PublicKey.from_public_bytes(theirs.public_bytes_raw())), info)


def stream(key: bytes, size: int) -> bytes:
    """AES-256-CTR, initial counter block 0^120 || 2."""
    return Cipher(algorithms.AES(key), modes.CTR(bytes(15) + b"\x02")).encryptor().update(bytes(size))


def sid() -> bytes:
    return h(b"umbel/1/sid", known("descriptor"))


def roster() -> bytes:
    rows = [(name, h(b"umbel/1/entry", known("entries", name.decode()))) for name in (b"anna", b"bert")]
    return h(b"umbel/1/roster", sid(), *(field for row in rows for field in row))


def pair() -> bytes:
    info = enc(b"umbel/1/mask", sid(), roster(), b"\x11" * 32, b"anna", b"bert")
    return agree(0x41, 0x51, info)


def own() -> bytes:
    return h(b"umbel/1/self", sid(), roster(), b"\x43" * 32)


@pytest.mark.parametrize(
    ("name", "compute"),
    [
        ("sid", sid),
        ("seed_commitment", lambda: h(b"umbel/1/seed", sid(), b"anna", b"\x43" * 32)),
        ("roster_hash", roster),
        ("pair_key", pair),
        ("self_key", own),
        ("lane_key", lambda: agree(0x42, 0x52, enc(b"umbel/1/share", sid(), roster(), b"anna", b"bert"))),
    ],
)
def test_the_specification_alone_gives_the_hash_or_key(name: str, compute: Callable[[], bytes]) -> None:
    assert compute() == known(name)


def test_the_specification_alone_gives_the_masked_words() -> None:
    masks = [stream(own(), 48), stream(pair(), 48)]
    for i, word in enumerate(KNOWN["masked_0_to_5"]):
        parts = [int.from_bytes(mask[8 * i : 8 * i + 8], "little") for mask in masks]
        assert word == (i + sum(parts)) % 2**64


def test_the_specification_alone_gives_the_circulant_order() -> None:
    def rank(i: int) -> bytes:
        return h(b"umbel/1/graph", sid(), roster(), f"d{i:02}".encode())

    assert KNOWN["graph"]["order"] == sorted(range(24), key=rank)


def test_the_specification_alone_verifies_a_join_entry() -> None:
    entry = pb.JoinEntry.FromString(known("entries", "anna"))
    signed = identity_pb2.Signed.FromString(entry.credential)
    authority = Ed25519PublicKey.from_public_bytes(known("authority"))
    authority.verify(signed.signature, enc(b"umbel/1/credential", signed.body))
    identity = Ed25519PublicKey.from_public_bytes(
        identity_pb2.Credential.FromString(signed.body).identity_key
    )
    body = enc(sid(), b"anna", entry.mask_key, entry.share_key, entry.seed_commitment)
    identity.verify(entry.signature, enc(b"umbel/1/join", body))


def test_the_specification_alone_combines_shares() -> None:
    prime = 2**256 - 189
    shares = {int(x): int(share, 16) for x, share in KNOWN["shares"].items()}
    secret = 0
    for x, share in shares.items():
        weight = 1
        for y in shares.keys() - {x}:
            weight = weight * y * pow(y - x, -1, prime) % prime
        secret += weight * share
    assert (secret % prime).to_bytes(32, "big") == known("combined")


def test_the_specification_alone_opens_a_box() -> None:
    message = pb.SealedShares.FromString(known("messages", "SealedShares"))
    box = message.shares[0].box
    plain = AESGCM(known("lane_key")).decrypt(box[:12], box[12:], enc(sid(), b"anna", b"bert"))
    assert plain == b"\x71" * 32 + b"\x72" * 32


def test_the_bitmap_counts_bits_from_the_lowest() -> None:
    assert pb.Survivors.FromString(known("messages", "Survivors")).bitmap == bytes([0b101, 0b10])

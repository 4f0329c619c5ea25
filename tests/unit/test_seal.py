"""Sealed envelopes open only with the right key beside the right header."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel_proto.encoding import enc
from umbel_proto.errors import UsageError, VerificationError
from umbel_proto.seal import (
    ENCAPSULATED_BYTES,
    OVERHEAD_BYTES,
    SealPrivateKey,
    SealPublicKey,
    generate_keypair,
    open_sealed,
    seal,
)

KEY = SealPrivateKey(bytes(range(32)))
HEADER = b"fleet, device, sequence"


def hpke_open_by_hand(seed: bytes, info: bytes, sealed: bytes) -> bytes:
    """Open with X-Wing (draft-connolly-cfrg-xwing-kem) and RFC 9180's key schedule, written out."""
    expanded = hashlib.shake_256(seed).digest(96)
    x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
    ct_m, ct_x, box = sealed[:1088], sealed[1088:1120], sealed[1120:]
    ss_m = MLKEM768PrivateKey.from_seed_bytes(expanded[:64]).decapsulate(ct_m)
    ss_x = x25519.exchange(X25519PublicKey.from_public_bytes(ct_x))
    pk_x = x25519.public_key().public_bytes_raw()
    shared = hashlib.sha3_256(ss_m + ss_x + ct_x + pk_x + rb"\.//^" + b"\\").digest()

    suite = b"HPKE" + (0x647A).to_bytes(2, "big") + (1).to_bytes(2, "big") + (2).to_bytes(2, "big")

    def extract(salt: bytes, label: bytes, ikm: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256")

    def expand(prk: bytes, label: bytes, context: bytes, length: int) -> bytes:
        block = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context
        return hmac.digest(prk, block + b"\x01", "sha256")[:length]

    context = b"\x00" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared, b"secret", b"")
    key = expand(secret, b"key", context, 32)
    nonce = expand(secret, b"base_nonce", context, 12)
    return AESGCM(key).decrypt(nonce, box, b"")


def test_what_is_sealed_opens_with_the_private_key_and_the_same_header() -> None:
    private, public = generate_keypair()
    assert open_sealed(private, HEADER, seal(public, HEADER, b"a secret")) == b"a secret"


def test_an_envelope_is_x_wing_and_rfc_9180_as_written_out_by_hand() -> None:
    sealed = seal(KEY.public, HEADER, b"a secret")
    assert hpke_open_by_hand(KEY.raw, enc("umbel/1/telemetry", HEADER), sealed) == b"a secret"


def test_the_public_key_of_a_seed_is_that_of_the_x_wing_draft() -> None:
    # draft-connolly-cfrg-xwing-kem-09, appendix C, first vector: seed and start of the public key.
    seed = bytes.fromhex("7f9c2ba4e88f827d616045507605853ed73b8093f6efbc88eb1a6eacfa66ef26")
    assert (
        SealPrivateKey(seed).public.raw.hex().startswith("e2236b35a8c24b39b10aa1323a96a919a2ced88400633a7b07")
    )


def test_an_envelope_is_1136_bytes_longer_than_what_is_in_it() -> None:
    assert (ENCAPSULATED_BYTES, OVERHEAD_BYTES) == (1120, 1136)
    assert len(seal(KEY.public, HEADER, bytes(1000))) == 1000 + OVERHEAD_BYTES


def test_sealing_the_same_twice_gives_different_bytes() -> None:
    assert seal(KEY.public, HEADER, b"same") != seal(KEY.public, HEADER, b"same")


@settings(max_examples=60, deadline=None)
@given(data=st.data(), plaintext=st.binary(max_size=40))
def test_an_envelope_with_any_byte_flipped_does_not_open(data: st.DataObject, plaintext: bytes) -> None:
    sealed = bytearray(seal(KEY.public, HEADER, plaintext))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(VerificationError):
        open_sealed(KEY, HEADER, bytes(sealed))


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_an_envelope_beside_any_other_header_does_not_open(data: st.DataObject) -> None:
    sealed = seal(KEY.public, HEADER, b"a secret")
    header = bytearray(HEADER)
    header[data.draw(st.integers(0, len(header) - 1))] ^= data.draw(st.integers(1, 255))
    for other in (bytes(header), HEADER[:-1], HEADER + b"\x00", b""):
        with pytest.raises(VerificationError):
            open_sealed(KEY, other, sealed)


@pytest.mark.parametrize("length", [0, 1, 31, 1088, 1119, 1120, 1135, 1136, 1143])
def test_a_truncated_envelope_does_not_open(length: int) -> None:
    with pytest.raises(VerificationError):
        open_sealed(KEY, HEADER, seal(KEY.public, HEADER, b"a secret")[:length])


def test_another_private_key_does_not_open_it() -> None:
    other, _ = generate_keypair()
    with pytest.raises(VerificationError):
        open_sealed(other, HEADER, seal(KEY.public, HEADER, b"a secret"))


def test_keys_survive_the_way_through_their_bytes() -> None:
    private = SealPrivateKey(KEY.raw)
    public = SealPublicKey(KEY.public.raw)
    assert open_sealed(private, HEADER, seal(public, HEADER, b"a secret")) == b"a secret"
    assert public.key_id == KEY.public.key_id


def test_different_keys_have_different_names() -> None:
    assert generate_keypair()[1].key_id != generate_keypair()[1].key_id


def test_no_key_shows_itself_in_its_repr() -> None:
    assert repr(KEY) == "SealPrivateKey(suite=1, public=SealPublicKey(suite=1))"


@pytest.mark.parametrize("raw", [b"", bytes(1215), bytes(1217)])
def test_a_public_key_of_another_length_is_refused(raw: bytes) -> None:
    with pytest.raises(UsageError, match="1216 bytes"):
        SealPublicKey(raw)


def test_a_public_key_that_is_no_ml_kem_key_is_refused() -> None:
    with pytest.raises(UsageError, match="not an X-Wing"):
        SealPublicKey(b"\xff" * 1216)


@pytest.mark.parametrize("suite", [0, 2])
def test_an_unknown_suite_is_refused(suite: int) -> None:
    with pytest.raises(UsageError, match=f"suite {suite}"):
        SealPublicKey(KEY.public.raw, suite)
    with pytest.raises(UsageError, match=f"suite {suite}"):
        SealPrivateKey(KEY.raw, suite)


def test_a_seed_of_another_length_is_refused() -> None:
    with pytest.raises(UsageError, match="32 bytes"):
        SealPrivateKey(bytes(31))

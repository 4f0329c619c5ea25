"""Write secagg.json: every hash, key and message of secure aggregation for fixed inputs.

Run once for each version of the protocol. The tests hold the code to the file, and never
rewrite it: a change on the wire gets a new version and a new file beside the old one.

Usage: python tests/vectors/make_secagg.py > tests/vectors/secagg.json
"""

from __future__ import annotations

import json
import sys
from fractions import Fraction

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from umbel_proto.credentials import Credential, sign_credential
from umbel_proto.ids import DeviceId, FleetId, RunId
from umbel_proto.keys import SigningKey
from umbel_proto.prg import Keystream
from umbel_proto.privacy.encode import Encoding
from umbel_proto.privacy.rotate import smooth_length
from umbel_proto.secagg import messages as m
from umbel_proto.secagg.boxes import Lane
from umbel_proto.secagg.entries import Secrets, commit_to_seed, make_entry
from umbel_proto.secagg.graph import Graph, parameters
from umbel_proto.secagg.masks import add_masks, pair_key, self_key
from umbel_proto.secagg.session import Descriptor, entry_hash, roster_hash, session_id
from umbel_proto.secagg.shamir import combine

A, B = DeviceId("anna"), DeviceId("bert")


def fixed(byte: int) -> bytes:
    """32 bytes that tell which value they stand for."""
    return bytes([byte]) * 32


def secrets(byte: int) -> Secrets:
    """The secrets of a device, not so secret."""
    private = X25519PrivateKey.from_private_bytes
    return Secrets(private(fixed(byte)), private(fixed(byte + 1)), fixed(byte + 2))


def main() -> None:
    """Print the vectors."""
    session = Descriptor(
        fleet=FleetId("meadow"),
        run=RunId("run-7"),
        round=3,
        attempt=1,
        task="digits",
        model_hash=fixed(0x11),
        plan_hash=fixed(0x22),
        encoding=Encoding(
            dim=1000,
            padded=smooth_length(1000),
            bits=21,
            clip=0.5,
            scale=256.0,
            bound_sq=20_000,
            noise=Fraction(1001, 8),
        ),
        min_cohort=3,
        max_cohort=64,
        corrupt_fraction=0.1,
        dropout_fraction=0.2,
        server_malicious=True,
        closes_at_s=1_800_000_060,
    ).to_bytes()
    sid = session_id(session)
    authority = SigningKey(Ed25519PrivateKey.from_private_bytes(fixed(0x31)))
    entries = {}
    for device, byte in ((A, 0x41), (B, 0x51)):
        identity = SigningKey(Ed25519PrivateKey.from_private_bytes(fixed(byte + 9)))
        credential = Credential(FleetId("meadow"), device, identity.public, 1_800_003_600)
        entries[device] = make_entry(
            secrets(byte),
            sid=sid,
            device=device,
            credential=sign_credential(authority, credential),
            identity=identity,
        )
    rows = tuple((device, entry_hash(entry)) for device, entry in entries.items())
    hash_ = roster_hash(sid, rows)
    ids = [DeviceId(f"d{i:02}") for i in range(24)]
    shape = parameters(24, corrupt_fraction=0.1, dropout_fraction=0.2, server_malicious=True)
    graph = Graph.of(ids, shape, sid=sid, roster_hash=hash_)
    theirs = secrets(0x51)
    pair = pair_key(
        secrets(0x41).mask_private,
        theirs.mask_private.public_key().public_bytes_raw(),
        pair=(A, B),
        sid=sid,
        roster_hash=hash_,
        model_hash=fixed(0x11),
    )
    own = self_key(secrets(0x41).seed, sid=sid, roster_hash=hash_)
    words = np.arange(6, dtype=np.uint64)
    add_masks(words, plus=[own, pair])
    lane = Lane(sid, hash_, A, B)
    lane_key = lane.key(secrets(0x41).share_private, theirs.share_private.public_key().public_bytes_raw())
    nonce = fixed(0x61)[:12]
    box = nonce + AESGCM(lane_key).encrypt(nonce, fixed(0x71) + fixed(0x72), lane.associated)
    sealed = m.SealedShares(sid, hash_, ((0, box), (300, box)))
    revealed = m.RevealedShares(sid, hash_, ((0, fixed(0x73)), (2, fixed(0x74))), ((1, fixed(0x75)),))
    survivors = m.Survivors(sid, hash_, m.to_bitmap([0, 2, 9], 10))
    vectors = {
        "prg": {"key": bytes(range(32)).hex(), "first": Keystream(bytes(range(32))).read(32).tobytes().hex()},
        "descriptor": session.hex(),
        "sid": sid.hex(),
        "seed_commitment": commit_to_seed(secrets(0x41).seed, sid=sid, device=A).hex(),
        "authority": authority.public.raw.hex(),
        "entries": {device: entry.hex() for device, entry in entries.items()},
        "entry_hashes": {device: value.hex() for device, value in rows},
        "roster_hash": hash_.hex(),
        "graph": {"degree": shape.degree, "threshold": shape.threshold, "order": graph.order},
        "pair_key": pair.hex(),
        "self_key": own.hex(),
        "masked_0_to_5": words.tolist(),
        "lane_key": lane_key.hex(),
        "shares": {"7": fixed(0x01).hex(), "9": fixed(0x02).hex(), "12": fixed(0x03).hex()},
        "combined": combine({7: fixed(1), 9: fixed(2), 12: fixed(3)}).hex(),
        "messages": {
            "Roster": m.Roster(sid, rows, (entries[B],)).to_bytes().hex(),
            "SealedShares": sealed.to_bytes().hex(),
            "Masked": m.Masked(sid, hash_).to_bytes().hex(),
            "Survivors": survivors.to_bytes().hex(),
            "Confirmation": m.Confirmation(sid, hash_, fixed(0x76) * 2).to_bytes().hex(),
            "Confirmations": m.Confirmations(sid, hash_, ((1, fixed(0x76) * 2),)).to_bytes().hex(),
            "RevealedShares": revealed.to_bytes().hex(),
        },
    }
    json.dump(vectors, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()

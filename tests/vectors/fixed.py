"""Inputs that are the same every time: what should be random and secret is neither here."""

from __future__ import annotations

import hashlib
from fractions import Fraction

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from umbel_proto.credentials import Credential, FleetPolicy, sign_credential
from umbel_proto.ids import DeviceId, FleetId, RunId
from umbel_proto.keys import SigningKey
from umbel_proto.privacy.encode import Encoding
from umbel_proto.secagg.entries import Secrets
from umbel_proto.secagg.session import Descriptor

FLEET = FleetId("meadow")
NOW_S = 1_800_000_000
PRIME = 2**256 - 189


def fixed(name: str, size: int = 32) -> bytes:
    """Bytes that only a name decides; 32 of them are a field element as good as surely."""
    return hashlib.shake_256(b"umbel vector " + name.encode()).digest(size)


def signing_key(name: str) -> SigningKey:
    return SigningKey(Ed25519PrivateKey.from_private_bytes(fixed(f"ed25519 {name}")))


def agreement_key(name: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(fixed(f"x25519 {name}"))


AUTHORITY = signing_key("authority")


def secrets_of(device: str) -> Secrets:
    return Secrets(agreement_key(f"mask {device}"), agreement_key(f"share {device}"), fixed(f"seed {device}"))


def credential_of(device: str, *, not_after_s: int = NOW_S + 3600, fleet: str = FLEET) -> bytes:
    public = signing_key(device).public
    return sign_credential(AUTHORITY, Credential(FleetId(fleet), DeviceId(device), public, not_after_s))


def policy() -> FleetPolicy:
    return FleetPolicy(
        fleet=FLEET,
        corrupt_fraction=0.1,
        dropout_fraction=0.2,
        server_malicious=True,
        min_cohort=3,
        noise_floor=0.05,
        budget_epsilon=8.0,
        budget_delta=1e-6,
        version=4,
    )


def encoding(**changes: object) -> Encoding:
    plain: dict[str, object] = {
        "dim": 10,
        "padded": 10,
        "bits": 21,
        "clip": 0.5,
        "scale": 64.0,
        "bound_sq": 1500,
        "noise": Fraction(1001, 8),
    }
    return Encoding(**{**plain, **changes})  # type: ignore[arg-type]


def descriptor(**changes: object) -> Descriptor:
    plain: dict[str, object] = {
        "fleet": FLEET,
        "run": RunId("run-7"),
        "round": 3,
        "attempt": 1,
        "task": "digits",
        "model_hash": fixed("model"),
        "plan_hash": fixed("plan"),
        "encoding": encoding(),
        "min_cohort": 3,
        "max_cohort": 64,
        "corrupt_fraction": 0.1,
        "dropout_fraction": 0.2,
        "server_malicious": True,
        "closes_at_s": NOW_S + 60,
    }
    return Descriptor(**{**plain, **changes})  # type: ignore[arg-type]

"""Law: a credential that verified once is remembered, and yet expires, and counts for one authority only."""

from __future__ import annotations

import pytest

from umbel_proto.credentials import Credential, open_credential, sign_credential
from umbel_proto.errors import CertificateError
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.keys import SigningKey, VerifyKey

FLEET = FleetId("meadow")
AUTHORITY = SigningKey.generate()
SIGNED = sign_credential(
    AUTHORITY, Credential(FLEET, DeviceId("rose"), SigningKey.generate().public, not_after_s=1000)
)


def opened(
    signed: bytes = SIGNED,
    *,
    now_s: float = 999,
    authority: VerifyKey = AUTHORITY.public,
    fleet: FleetId = FLEET,
) -> Credential:
    return open_credential(signed, authority=authority, fleet=fleet, now_s=now_s)


def test_a_remembered_credential_is_the_same_one() -> None:
    assert opened() == opened()


def test_a_remembered_credential_expires() -> None:
    opened()
    with pytest.raises(CertificateError, match="has expired"):
        opened(now_s=1000)


def test_a_remembered_credential_counts_for_its_authority_and_fleet_only() -> None:
    opened()
    with pytest.raises(CertificateError, match="not signed by this fleet's authority"):
        opened(authority=SigningKey.generate().public)
    with pytest.raises(CertificateError, match="is of fleet meadow"):
        opened(fleet=FleetId("heath"))


def test_no_changed_byte_is_taken_for_what_is_remembered() -> None:
    opened()
    for place in range(len(SIGNED)):
        changed = bytearray(SIGNED)
        changed[place] ^= 1
        with pytest.raises(CertificateError):
            opened(bytes(changed))

"""Tokens survive copying, and nothing else passes for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel_proto.enrollment import Token, check_address, check_identity, prove_identity
from umbel_proto.errors import TokenError, UsageError, VerificationError
from umbel_proto.keys import SigningKey

TOKEN = Token(bytes(range(32)), "fleet.example:8443", b"certificate")


@given(secret=st.binary(min_size=32, max_size=32), certificate=st.binary(max_size=100))
def test_a_token_survives_its_text(secret: bytes, certificate: bytes) -> None:
    token = Token(secret, "[::1]:8443", certificate)
    assert Token.from_text(f"  {token.to_text()}\n") == token


@given(cut=st.integers(1, len(TOKEN.to_text()) - 7))
def test_a_token_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(TokenError):
        Token.from_text(TOKEN.to_text()[:-cut])


@pytest.mark.parametrize("text", ["", "umbel1.", "umbel2." + "A" * 80, "umbel1.%%%", "umbel1." + "A" * 9000])
def test_what_is_no_token_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(TokenError) as caught:
        Token.from_text(text)
    assert len(text) < 10 or text not in str(caught.value)


def test_a_token_hides_its_secret_in_its_repr() -> None:
    assert repr(TOKEN) == "Token(enrollment='fleet.example:8443')"


@pytest.mark.parametrize("address", ["", "host", "host:", "host:0", "host:65536", "ho st:1", "http://host:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="host:port"):
        check_address(address, "gateway")


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:65535", "[::1]:80", "a-b.example:8443"])
def test_an_address_is_taken_as_it_is(address: str) -> None:
    assert check_address(address, "gateway") == address


def test_a_proof_of_identity_holds_for_exactly_these_keys() -> None:
    key = SigningKey.generate()
    proof = prove_identity(key, csr=b"csr", node_key=b"node")
    check_identity(key.public, proof, csr=b"csr", node_key=b"node")
    for csr, node_key in ((b"other", b"node"), (b"csr", b"other"), (b"csrn", b"ode")):
        with pytest.raises(VerificationError, match="does not hold"):
            check_identity(key.public, proof, csr=csr, node_key=node_key)

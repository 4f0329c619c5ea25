"""The kinds of failure that vectors name, and how umbel's errors say them.

A vector that must fail names a kind, one of docs/spec/secure-aggregation.md, "Kinds of failure", so that
an implementation in any language can be held to it. Ours raises an error of a class, with a sentence for
people: this table is where the two meet, and a failure must be of one kind only.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping

import pytest

from umbel_proto.errors import (
    BudgetError,
    CertificateError,
    RemoteProtocolError,
    UmbelError,
    UsageError,
    VerificationError,
)

Classes = type[Exception] | tuple[type[Exception], ...]
PEER = (RemoteProtocolError, CertificateError)
ANY = (RemoteProtocolError, UsageError, OverflowError)

KINDS: Mapping[str, tuple[Classes, tuple[str, ...]]] = {
    "oversized": (PEER, (r"has \d+ bytes, more than \d+",)),
    "malformed": (PEER, (r"is malformed",)),
    "not_canonical": (RemoteProtocolError, (r"is not in canonical form",)),
    "wrong_length": (
        (RemoteProtocolError, VerificationError, UsageError, ValueError),
        (
            r"has \d+ bytes, (not|this one) \d+",
            r"key has 32 bytes",
            r"is not one of \d+ devices",
            r"is not \d+ words of 64 bits",
            r" of shape \(",
            r"quantities: this encoding takes",
            r"quantities, and the session sums",
        ),
    ),
    "not_ascending": (RemoteProtocolError, (r"repeats a device or is out of order",)),
    "duplicate": (RemoteProtocolError, (r"asks for a quantity twice",)),
    "bad_name": (RemoteProtocolError, (r"is no name",)),
    "out_of_range": (
        ANY,
        (
            r"out of range",
            r"beyond any roster",
            r"has denominator 0",
            r"choose",
            r"for dim \d+ it is",
            r"an update has 1 to",
            r"a slot has",
            r"noise has denominator",
            r"is not in \[",
            r"bound it by",
            r"0 holds the secret",
            r"cannot be met",
            r"A cohort has",
            r"at least one device",
            r"int too big",
            r"negative int",
        ),
    ),
    "not_lowest_terms": (RemoteProtocolError, (r"not in lowest terms",)),
    "not_finite": (UsageError, (r"not finite", r"is not a number")),
    "not_an_element": (
        (RemoteProtocolError, VerificationError, UsageError),
        (r"is no field element", r"are no field elements", r"is no element of the field"),
    ),
    "wrong_session": (RemoteProtocolError, (r"of another session",)),
    "wrong_roster": (RemoteProtocolError, (r"of another roster",)),
    "wrong_model": (RemoteProtocolError, (r"the model is not the session's",)),
    "wrong_plan": (RemoteProtocolError, (r"the plan is not the session's",)),
    "against_policy": (
        RemoteProtocolError,
        (r"session is of fleet", r"below the policy's", r"trusts its server", r"session assumes"),
    ),
    "over": (RemoteProtocolError, (r"session is already over",)),
    "bad_signature": (
        (RemoteProtocolError, VerificationError),
        (
            r"does not verify",
            r"entry of \S+ is not signed by it",
            r"^The .* is not signed by",
            r"did not sign",
        ),
    ),
    "bad_credential": (RemoteProtocolError, (r"has no valid credential", r"has the credential of")),
    "expired": (CertificateError, (r"has expired",)),
    "foreign": (CertificateError, (r"is of fleet",)),
    "small_order": ((RemoteProtocolError, VerificationError), (r"has small order", r"key is not usable")),
    "does_not_open": (VerificationError, (r"do not open",)),
    "changed_entry": (RemoteProtocolError, (r"changed this device's entry", r"is not the roster's")),
    "left_out": (RemoteProtocolError, (r"leaves? this device out",)),
    "no_safe_graph": ((RemoteProtocolError, UsageError), (r"No threshold withstands",)),
    "too_few": (
        (RemoteProtocolError, VerificationError),
        (
            r"too few for the threshold",
            r"shares are fewer than the threshold",
            r"below the smallest cohort",
            r"survivors, fewer than \d+",
            r"\d+ entries for \d+ neighbors",
        ),
    ),
    "too_many": (RemoteProtocolError, (r"above the largest cohort", r"cohort is full")),
    "not_a_neighbor": (
        RemoteProtocolError,
        (r"no (surviving )?neighbor", r"not for exactly its neighbors", r"never shared with this device"),
    ),
    "not_asked": (
        RemoteProtocolError,
        (r"that was not asked for", r"owes no answer", r"was not invited, or has answered"),
    ),
    "wrong_secret": (VerificationError, (r"give what their owner committed to",)),
    "second_request": (RemoteProtocolError, (r"a second, different request",)),
    "out_of_turn": (RemoteProtocolError, (r"out of turn",)),
    "over_budget": (BudgetError, (r"budget",)),
}


@contextlib.contextmanager
def fails_as(kind: str) -> Iterator[None]:
    """Expect a failure of one kind: an error of its class, whose sentence says this kind and no other."""
    with pytest.raises((UmbelError, ValueError, OverflowError)) as caught:
        yield
    error = caught.value
    found = {
        name
        for name, (classes, sentences) in KINDS.items()
        if isinstance(error, classes) and any(re.search(each, str(error)) for each in sentences)
    }
    assert found == {kind}, f"{type(error).__name__}: {error}"

"""Every error umbel raises on purpose.

The tree, with the exit code the command line gives each branch::

    UmbelError                      1   something is wrong that no other branch names
    ├── UsageError                  2   what the caller gave cannot be used
    │   ├── ContractError           2   an input breaks a model's data contract
    │   └── MissingExtraError       2   an optional dependency is not installed
    ├── RefusedError                3   a rule says no: policy, budget, token
    │   ├── BudgetError             3   the privacy budget does not cover it
    │   └── TokenError              3   the enrollment token is unknown, used or expired
    ├── VerificationError           4   bytes are not what a signature, hash or golden vector says
    │   ├── PackageError            4   a model package
    │   └── CertificateError        4   a certificate or credential
    ├── UnavailableError            5   a peer cannot be reached or does not answer
    ├── StorageError                6   the disk is full, or a file of ours is damaged
    └── ProtocolError               7   the conversation went wrong
        ├── LocalProtocolError      7   by our own doing: a bug here
        └── RemoteProtocolError     7   by the peer's doing: it broke a rule

A message is one sentence that says what is wrong and what to do next. It carries names and
numbers, never a key, an update or a user's value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class UmbelError(Exception):
    """The root of umbel's errors."""

    exit_code: ClassVar[int] = 1


class UsageError(UmbelError):
    """What the caller gave cannot be used: an argument, a file, a setting, an array."""

    exit_code = 2


class ContractError(UsageError):
    """An input breaks the data contract of a model.

    Args:
        sentence: What is wrong with it.
        counts: How many values broke which rule, by ``FIELD.KIND``; never which values.
    """

    def __init__(self, sentence: str, counts: Mapping[str, int]) -> None:
        super().__init__(sentence)
        self.counts = counts


class MissingExtraError(UsageError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, what: str = "This") -> None:
        super().__init__(f"{what} needs an optional part of umbel: run  pip install 'umbel[{extra}]'.")
        self.extra = extra


class RefusedError(UmbelError):
    """A rule says no, and says which."""

    exit_code = 3


class BudgetError(RefusedError):
    """The privacy budget does not cover what was asked."""


class TokenError(RefusedError):
    """An enrollment token is unknown, already used, or expired."""


class VerificationError(UmbelError):
    """Bytes are not what a signature, a hash or a golden vector says they must be."""

    exit_code = 4


class PackageError(VerificationError):
    """A model package is malformed, altered, or not signed by the fleet."""


class CertificateError(VerificationError):
    """A certificate or credential is expired, foreign, or does not match."""


class UnavailableError(UmbelError):
    """A peer cannot be reached, or does not answer in time."""

    exit_code = 5


class StorageError(UmbelError):
    """The disk is full, or a file of ours is damaged."""

    exit_code = 6


class ProtocolError(UmbelError):
    """A conversation between device and server went wrong."""

    exit_code = 7


class LocalProtocolError(ProtocolError):
    """We called our own protocol code out of turn: a bug on this side."""


class RemoteProtocolError(ProtocolError):
    """The peer broke a rule of the protocol.

    Args:
        peer: Who broke it, as an id; ``"server"`` on a device.
        reason: Which rule, in a few words.
    """

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"{peer}: {reason}")
        self.peer = peer
        self.reason = reason

"""The seam between rounds and masking: what an engine that sums hidden vectors offers to device and server.

Above it stand encodings, noise and ledgers; below it, whatever carries bytes. Neither knows how many
messages an engine needs, in which order, or who helps whom to open the sum.

Source: docs/adr/0008-masking-engine.md; docs/spec/secure-aggregation.md, "Overview".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from umbel_proto.ids import DeviceId
from umbel_proto.keys import VerifyKey
from umbel_proto.secagg.masks import Words
from umbel_proto.secagg.session import Descriptor, Member, Session

TRAIN = "train"
"""The message type of an invitation, whatever the engine."""


# A device's side. Between two messages it is bytes, in memory only.


@dataclass(frozen=True, slots=True)
class Invited:
    """An invitation, as a device received it.

    Args:
        descriptor: Serialized SessionDescriptor.
        model_hash: Digest of the model bytes received, computed here.
        plan_hash: Digest of the plan bytes received, computed here.
        now_s: Unix seconds.
    """

    descriptor: bytes
    model_hash: bytes
    plan_hash: bytes
    now_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """An answer.

    Args:
        message: Its bytes.
        words: The masked update, shape (encoding.words,), if this answer carries it; else None.
        kept: What the next request is answered from; None if nothing of the session is left.
    """

    message: bytes = field(repr=False)
    words: Words | None = field(repr=False)
    kept: bytes | None = field(repr=False)


class Due(Protocol):
    """A request that is right in everything: what is missing is the update.

    Nothing keeps it. The caller charges its ledger, and only then encodes: a request that is
    refused costs nothing.
    """

    @property
    def session(self) -> Session:
        """The session that the update goes into."""
        ...

    def give(self, words: Words) -> Turn:
        """Answer the request.

        Args:
            words: The encoded and noised update, shape (encoding.words,); left as it is.

        Raises:
            UsageError: The words are not shaped as the session's encoding says.
        """
        ...


Step: TypeAlias = Turn | Due


@dataclass(frozen=True, slots=True, eq=False)
class Admission:
    """What an invitation led to.

    Args:
        session: The session.
        step: The answer, or that the engine wants the update for it.
        repeated: Whether the invitation had been answered before, and this is the same answer.
    """

    session: Session
    step: Step
    repeated: bool


class DeviceEngine(Protocol):
    """A device's side of any session."""

    @property
    def kinds(self) -> Sequence[str]:
        """The types of the messages that follow the invitation, in order."""
        ...

    def join(self, member: Member, kept: bytes | None, invited: Invited) -> Admission:
        """Answer an invitation. One to another session ends the session before.

        Args:
            member: The device's standing in its fleet.
            kept: What the last answer left, or None.
            invited: The invitation.

        Raises:
            RemoteProtocolError: The device refuses; what was kept still holds.
            CertificateError: The device's own credential has expired or is not its fleet's.
        """
        ...

    def answer(self, member: Member, kept: bytes | None, kind: str, body: bytes, *, now_s: float) -> Step:
        """Answer a request. A repeated one gets the bytes of its first answer.

        Args:
            member: The device's standing in its fleet.
            kept: What the last answer left, or None.
            kind: The message type.
            body: The message.
            now_s: Unix seconds.

        Raises:
            RemoteProtocolError: The device refuses; what was kept still holds.
            LocalProtocolError: What was kept is damaged.
        """
        ...


# The server's side.


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request to send.

    Args:
        device: To whom.
        message: Its bytes, of the next phase.
    """

    device: DeviceId
    message: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Loss:
    """A device that is out, and why."""

    device: DeviceId
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """The end: the sum over the survivors, shape (encoding.words,), and who is not in it."""

    total: Words = field(repr=False)
    survivors: tuple[DeviceId, ...]
    lost: tuple[Loss, ...]


@dataclass(frozen=True, slots=True)
class Aborted:
    """The end: no sum, and the reason."""

    reason: str
    lost: tuple[Loss, ...]


@dataclass(frozen=True, slots=True)
class Phase:
    """What a session asks for, the same from the phase's beginning to its end.

    Args:
        name: What it is called.
        kind: The type of its requests.
        least: Fewest answers with which the session can go on.
        members: Who is in the session; empty until that is settled.
        takes_updates: Whether answers carry updates: from here on the devices asked may be charged.
    """

    name: str
    kind: str
    least: int
    members: frozenset[DeviceId]
    takes_updates: bool


class Running(Protocol):
    """A session that is not over, as a value. Only the newest may be used."""

    @property
    def phase(self) -> Phase:
        """What it asks for."""
        ...

    @property
    def waiting(self) -> frozenset[DeviceId]:
        """The devices that owe an answer in this phase."""
        ...

    def take(self, device: DeviceId, body: bytes, vector: bytes) -> Running:
        """Return the session with a device's answer in it.

        Args:
            device: Whose answer it is.
            body: Its message.
            vector: The long vector beside it, raw bytes, or empty.

        Raises:
            RemoteProtocolError: The device broke a rule. The session still holds; report it lost.
        """
        ...

    def lose(self, device: DeviceId, reason: str) -> Running:
        """Return the session with nothing more awaited from a device in this phase."""
        ...

    def close(self) -> tuple[Running | Opened | Aborted, tuple[Outgoing, ...]]:
        """End the phase: return what follows it, and the requests to send."""
        ...


class ServerEngine(Protocol):
    """The server's side of any session."""

    def open(
        self, descriptor: Descriptor, *, authority: VerifyKey, invited: Iterable[DeviceId], now_s: float
    ) -> Running:
        """Begin a session; the caller sends descriptor, plan and model to the invited.

        Args:
            descriptor: What they must agree to.
            authority: Signs the fleet's credentials.
            invited: Who may join.
            now_s: Unix seconds.

        Raises:
            UsageError: Fewer are invited than the smallest cohort.
        """
        ...


class Engine(DeviceEngine, ServerEngine, Protocol):
    """Both sides."""

"""What names a session: the descriptor everyone hashes, and the roster that fixes who is in it.

Source: docs/spec/secure-aggregation.md, "Session".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Self

from umbel_proto.credentials import FleetPolicy, corrupt_devices
from umbel_proto.encoding import digest
from umbel_proto.errors import RemoteProtocolError, UsageError
from umbel_proto.ids import DeviceId, FleetId, RunId, check_name
from umbel_proto.keys import SigningKey, VerifyKey
from umbel_proto.privacy.encode import Encoding
from umbel_proto.secagg import graph
from umbel_proto.secagg.canonical import parse, serialize
from umbel_proto.wire import rounds_pb2 as pb

PROTOCOL = 1
HASH_BYTES = 32
MAX_DESCRIPTOR_BYTES = 2048
SID_LABEL = "umbel/1/sid"
ENTRY_LABEL = "umbel/1/entry"
ROSTER_LABEL = "umbel/1/roster"
MODEL_LABEL = "umbel/1/model"
PLAN_LABEL = "umbel/1/plan"
ROTATION_LABEL = "umbel/1/rotation"
SERVER = "server"
"""Who is to blame, on a device."""

_UINT32 = 1 << 32
_UINT64 = 1 << 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """All that the devices of a session must agree on before it begins.

    Degree and threshold are not in it: every party computes them from the roster's size.

    Args:
        fleet: The fleet.
        run: The training run.
        round: Which of its rounds, from 0.
        attempt: Which attempt at the round, from 0.
        task: What the sum is for, as a name.
        model_hash: Digest of the parameters sent, 32 bytes.
        plan_hash: Digest of the training plan sent, 32 bytes.
        encoding: How updates become integers.
        min_cohort: u_min, the fewest survivors a sum may have, >= 3.
        max_cohort: n_max, the largest roster.
        corrupt_fraction: gamma, in [0, 0.5).
        dropout_fraction: delta, in [0, 0.5).
        server_malicious: Whether the graph withstands a lying server.
        closes_at_s: When the session is over, Unix seconds.
        protocol: The version, 1.

    Raises:
        UsageError: A value is out of its range.
    """

    fleet: FleetId
    run: RunId
    round: int
    attempt: int
    task: str
    model_hash: bytes
    plan_hash: bytes
    encoding: Encoding
    min_cohort: int
    max_cohort: int
    corrupt_fraction: float
    dropout_fraction: float
    server_malicious: bool
    closes_at_s: int
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        if self.protocol != PROTOCOL:
            raise UsageError(
                f"The protocol version is {self.protocol}, and this side speaks {PROTOCOL}: update."
            )
        for name, what in ((self.fleet, "fleet"), (self.run, "run"), (self.task, "task")):
            check_name(name, what)
        if not (0 <= self.round < _UINT32 and 0 <= self.attempt < _UINT32):
            raise UsageError(f"Round {self.round}, attempt {self.attempt}: both count from 0 to 2**32 - 1.")
        if len(self.model_hash) != HASH_BYTES or len(self.plan_hash) != HASH_BYTES:
            raise UsageError(f"The model's and the plan's hash have {HASH_BYTES} bytes each.")
        if not graph.MIN_COHORT <= self.min_cohort <= self.max_cohort <= graph.MAX_COHORT:
            raise UsageError(
                f"A cohort of {self.min_cohort} to {self.max_cohort}: choose "
                f"{graph.MIN_COHORT} <= min_cohort <= max_cohort <= {graph.MAX_COHORT}."
            )
        for fraction in (self.corrupt_fraction, self.dropout_fraction):
            if not 0 <= fraction < 0.5:
                raise UsageError(f"A corrupt or dropout fraction is {fraction}: choose one in [0, 0.5).")
        if not 0 <= self.closes_at_s < _UINT64:
            raise UsageError(f"closes_at_s is {self.closes_at_s}: give Unix seconds.")

    def to_bytes(self) -> bytes:
        """Return the canonical bytes; their hash is the session id."""
        e = self.encoding
        return serialize(
            pb.SessionDescriptor(
                protocol=self.protocol,
                fleet_id=self.fleet,
                run_id=self.run,
                round=self.round,
                attempt=self.attempt,
                task=self.task,
                model_hash=self.model_hash,
                plan_hash=self.plan_hash,
                encoding=pb.SumEncoding(
                    dim=e.dim,
                    padded=e.padded,
                    bits=e.bits,
                    clip=e.clip,
                    scale=e.scale,
                    bound_sq=e.bound_sq,
                    noise_numerator=e.noise.numerator,
                    noise_denominator=e.noise.denominator,
                    auxiliary=e.auxiliary,
                ),
                min_cohort=self.min_cohort,
                max_cohort=self.max_cohort,
                corrupt_fraction=self.corrupt_fraction,
                dropout_fraction=self.dropout_fraction,
                server_malicious=self.server_malicious,
                closes_at_s=self.closes_at_s,
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes, peer: str = "server") -> Self:
        """Read a descriptor that ``peer`` sent.

        Raises:
            RemoteProtocolError: It is malformed, or a value is out of its range.
        """
        m = parse(pb.SessionDescriptor, data, limit=MAX_DESCRIPTOR_BYTES, peer=peer)
        e = m.encoding
        if e.noise_denominator == 0:
            raise RemoteProtocolError(peer, "the noise variance has denominator 0")
        noise = Fraction(e.noise_numerator, e.noise_denominator)
        if noise.denominator != e.noise_denominator:
            raise RemoteProtocolError(peer, "the noise variance is not in lowest terms")
        try:
            return cls(
                protocol=m.protocol,
                fleet=FleetId(m.fleet_id),
                run=RunId(m.run_id),
                round=m.round,
                attempt=m.attempt,
                task=m.task,
                model_hash=m.model_hash,
                plan_hash=m.plan_hash,
                encoding=Encoding(
                    dim=e.dim,
                    padded=e.padded,
                    bits=e.bits,
                    clip=e.clip,
                    scale=e.scale,
                    bound_sq=e.bound_sq,
                    noise=noise,
                    auxiliary=tuple(e.auxiliary),
                ),
                min_cohort=m.min_cohort,
                max_cohort=m.max_cohort,
                corrupt_fraction=m.corrupt_fraction,
                dropout_fraction=m.dropout_fraction,
                server_malicious=m.server_malicious,
                closes_at_s=m.closes_at_s,
            )
        except UsageError as exc:
            raise RemoteProtocolError(peer, f"the session descriptor is out of range: {exc}") from exc

    def graph_parameters(self, devices: int) -> graph.Parameters:
        """Return degree, threshold and the fewest survivors for a roster of ``devices``.

        Raises:
            UsageError: No threshold withstands the fractions at this size.
        """
        found = graph.parameters(
            devices,
            corrupt_fraction=self.corrupt_fraction,
            dropout_fraction=self.dropout_fraction,
            server_malicious=self.server_malicious,
        )
        least = self.min_cohort
        if self.server_malicious:
            # A lying server keeps every corrupt device of the roster among the survivors: so many
            # more it takes that as many honest ones add their noise as are counted on.
            least += corrupt_devices(devices, self.corrupt_fraction)
            least -= corrupt_devices(self.min_cohort, self.corrupt_fraction)
        return replace(found, min_survivors=max(found.min_survivors, least))


@dataclass(frozen=True, slots=True)
class Member:
    """A device's standing in its fleet.

    Args:
        credential: As the authority signed it.
        identity: The key the credential certifies.
        policy: The pinned fleet policy.
        authority: The pinned key of the fleet's authority.
    """

    credential: bytes
    identity: SigningKey = field(repr=False)
    policy: FleetPolicy
    authority: VerifyKey


@dataclass(frozen=True, slots=True)
class Session:
    """What a device knows of its session from the start.

    Args:
        sid: The session.
        descriptor: What it agreed to.
        device: Its own id.
        model_hash: Of the model bytes it received.
    """

    sid: bytes
    descriptor: Descriptor
    device: DeviceId
    model_hash: bytes


def objection(descriptor: Descriptor, policy: FleetPolicy) -> str | None:
    """Return why a fleet's policy forbids a session, or None.

    The noise is counted over the honest part of the smallest cohort: integers and exact
    fractions only, so a rounding never lets a session pass.

    Source: docs/spec/secure-aggregation.md, "Credentials and policy".
    """
    d, encoding = descriptor, descriptor.encoding
    if d.fleet != policy.fleet:
        return f"the session is of fleet {d.fleet}, not {policy.fleet}"
    if d.min_cohort < policy.min_cohort:
        return f"a sum over {d.min_cohort} devices is below the policy's smallest cohort, {policy.min_cohort}"
    if policy.server_malicious and not d.server_malicious:
        return "the session trusts its server, and the policy does not"
    if d.corrupt_fraction < policy.corrupt_fraction:
        return f"the session assumes {d.corrupt_fraction:g} corrupt, the policy {policy.corrupt_fraction:g}"
    if d.dropout_fraction < policy.dropout_fraction:
        return f"the session assumes {d.dropout_fraction:g} lost, the policy {policy.dropout_fraction:g}"
    variance = policy.honest(d.min_cohort) * encoding.noise
    if variance < Fraction(policy.noise_floor) ** 2 * encoding.bound_sq:
        return f"the noise is below the policy's floor of {policy.noise_floor:g} times the bound"
    return None


def session_id(descriptor: bytes) -> bytes:
    """Return the sid of the session with these descriptor bytes, 32 bytes."""
    return digest(SID_LABEL, descriptor)


def entry_hash(entry: bytes) -> bytes:
    """Return the hash of a join entry's bytes that stands in the roster, 32 bytes."""
    return digest(ENTRY_LABEL, entry)


def roster_hash(sid: bytes, rows: Sequence[tuple[DeviceId, bytes]]) -> bytes:
    """Return the hash of a roster's rows (id, entry hash), which all later keys are bound to."""
    return digest(ROSTER_LABEL, sid, *(field for row in rows for field in row))


def model_hash(parameters: bytes) -> bytes:
    """Return the hash of a model's parameters as sent: float32, little-endian, 32 bytes."""
    return digest(MODEL_LABEL, parameters)


def plan_hash(plan: bytes) -> bytes:
    """Return the hash of a training plan's bytes as sent, 32 bytes."""
    return digest(PLAN_LABEL, plan)


def rotation_seed(sid: bytes) -> bytes:
    """Return the seed of the rotation that all devices of a session apply, 32 bytes."""
    return digest(ROTATION_LABEL, sid)

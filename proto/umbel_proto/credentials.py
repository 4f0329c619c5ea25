"""What the fleet's authority signs: who a device is in rounds, and what every device insists on."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from umbel_proto.conditions import Rules
from umbel_proto.errors import CertificateError, UsageError, VerificationError
from umbel_proto.ids import DeviceId, FleetId, check_name
from umbel_proto.keys import SigningKey, VerifyKey
from umbel_proto.wire import identity_pb2 as pb

CREDENTIAL_LABEL = "umbel/1/credential"
POLICY_LABEL = "umbel/1/policy"
MAX_SIGNED_BYTES = 4096
REMEMBERED = 2048
"""Signed messages, of a few hundred bytes each, that a process need not verify again."""


@dataclass(frozen=True, slots=True)
class Credential:
    """The fleet's word that a key speaks for a device in rounds.

    Args:
        fleet: The fleet.
        device: The device.
        identity_key: The device's Ed25519 public key.
        not_after_s: End of validity, Unix seconds.
    """

    fleet: FleetId
    device: DeviceId
    identity_key: VerifyKey
    not_after_s: int


@dataclass(frozen=True, slots=True)
class FleetPolicy:
    """What every device of a fleet insists on, whatever a server says.

    Args:
        fleet: The fleet.
        corrupt_fraction: gamma, the share of devices assumed to collude with the server, in [0, 1/2).
        dropout_fraction: delta, the share of devices that may vanish in a round, in [0, 1/2).
        server_malicious: Whether the server may lie; if not, it is honest but curious.
        min_cohort: Fewest survivors a sum may have, >= 3.
        noise_floor: Least noise multiplier ``sqrt(mu) / B``, counted over the honest part of the
            smallest cohort; 0 gives no privacy from the sum itself.
        budget_epsilon: What one device may spend over its life.
        budget_delta: The delta that goes with it.
        version: Grows with every change; a device never goes back.
        example_budget_epsilon: What may be spent on one example of a device over the device's life, at
            ``budget_delta``; infinite to only keep count.
        training: When a device may train. What its owner demands holds as well: of both the stricter.
        announce_reviews: Whether the fleet asks devices to announce which predictions wait for a person, without
            their inputs. Only a device whose user allows that does so.
    """

    fleet: FleetId
    corrupt_fraction: float
    dropout_fraction: float
    server_malicious: bool
    min_cohort: int
    noise_floor: float
    budget_epsilon: float
    budget_delta: float
    version: int = 1
    example_budget_epsilon: float = math.inf
    training: Rules = field(default_factory=Rules)
    announce_reviews: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.corrupt_fraction < 0.5:
            raise UsageError(f"corrupt_fraction is {self.corrupt_fraction}: choose one in [0, 0.5).")
        if not 0 <= self.dropout_fraction < 0.5:
            raise UsageError(f"dropout_fraction is {self.dropout_fraction}: choose one in [0, 0.5).")
        if self.min_cohort < 3:
            raise UsageError(f"min_cohort is {self.min_cohort}: a sum over fewer than 3 hides nobody.")
        if not (math.isfinite(self.noise_floor) and self.noise_floor >= 0):
            raise UsageError(f"noise_floor is {self.noise_floor}: choose a number >= 0.")
        if not self.budget_epsilon > 0:
            raise UsageError(f"budget_epsilon is {self.budget_epsilon}: choose a number > 0.")
        if not 0 < self.budget_delta < 1:
            raise UsageError(f"budget_delta is {self.budget_delta}: choose a number in (0, 1).")
        if not self.example_budget_epsilon > 0:
            raise UsageError(
                f"example_budget_epsilon is {self.example_budget_epsilon}: choose a number > 0, or leave it out."
            )

    def honest(self, cohort: int) -> int:
        """How many of ``cohort`` devices' noise may be counted on (n_eff).

        Against a malicious server, the corrupt ones and the one under attack add none.

        Source: docs/spec/privacy.md, "Whose noise counts".
        """
        if not self.server_malicious:
            return cohort
        return cohort - corrupt_devices(cohort, self.corrupt_fraction) - 1


def corrupt_devices(cohort: int, corrupt_fraction: float) -> int:
    """Return how many of ``cohort`` devices may be corrupt: a product that should be whole counts as whole.

    Source: docs/spec/secure-aggregation.md, 6.1.
    """
    return math.floor((corrupt_fraction + 1e-14) * cohort)


def sign_credential(key: SigningKey, credential: Credential) -> bytes:
    """Return the credential as a serialized ``Signed`` message."""
    body = pb.Credential(
        fleet_id=credential.fleet,
        device_id=credential.device,
        identity_key=credential.identity_key.raw,
        not_after_s=credential.not_after_s,
    ).SerializeToString(deterministic=True)
    return pb.Signed(body=body, signature=key.sign(CREDENTIAL_LABEL, body)).SerializeToString()


def open_credential(signed: bytes, *, authority: VerifyKey, fleet: FleetId, now_s: float) -> Credential:
    """Return the credential inside ``signed``, if it is this fleet's and still valid.

    Raises:
        CertificateError: Malformed, not signed by ``authority``, another fleet's, or expired.
    """
    body = _open(signed, CREDENTIAL_LABEL, authority, "credential")
    try:
        message = pb.Credential.FromString(body)
        credential = Credential(
            FleetId(check_name(message.fleet_id, "fleet")),
            DeviceId(check_name(message.device_id, "device")),
            VerifyKey(message.identity_key),
            message.not_after_s,
        )
    except (DecodeError, UsageError) as exc:
        raise CertificateError("The credential is malformed.") from exc
    if credential.fleet != fleet:
        raise CertificateError(f"The credential is of fleet {credential.fleet}, not {fleet}.")
    if now_s >= credential.not_after_s:
        raise CertificateError(f"The credential of {credential.device} has expired: renew it.")
    return credential


def sign_policy(key: SigningKey, policy: FleetPolicy) -> bytes:
    """Return the policy as a serialized ``Signed`` message."""
    body = pb.Policy(
        fleet_id=policy.fleet,
        corrupt_fraction=policy.corrupt_fraction,
        dropout_fraction=policy.dropout_fraction,
        server_malicious=policy.server_malicious,
        min_cohort=policy.min_cohort,
        noise_floor=policy.noise_floor,
        budget_epsilon=policy.budget_epsilon,
        budget_delta=policy.budget_delta,
        version=policy.version,
        example_budget_epsilon=0.0
        if math.isinf(policy.example_budget_epsilon)
        else policy.example_budget_epsilon,
        training=None if policy.training == Rules() else rules_message(policy.training),
        announce_reviews=policy.announce_reviews,
    ).SerializeToString(deterministic=True)
    return pb.Signed(body=body, signature=key.sign(POLICY_LABEL, body)).SerializeToString()


def open_policy(signed: bytes, *, authority: VerifyKey, fleet: FleetId) -> FleetPolicy:
    """Return the policy inside ``signed``, if it is this fleet's.

    Raises:
        CertificateError: Malformed, not signed by ``authority``, or another fleet's.
    """
    body = _open(signed, POLICY_LABEL, authority, "fleet policy")
    try:
        message = pb.Policy.FromString(body)
        policy = FleetPolicy(
            fleet=FleetId(message.fleet_id),
            corrupt_fraction=message.corrupt_fraction,
            dropout_fraction=message.dropout_fraction,
            server_malicious=message.server_malicious,
            min_cohort=message.min_cohort,
            noise_floor=message.noise_floor,
            budget_epsilon=message.budget_epsilon,
            budget_delta=message.budget_delta,
            version=message.version,
            example_budget_epsilon=message.example_budget_epsilon or math.inf,
            training=rules_of(message.training),
            announce_reviews=message.announce_reviews,
        )
    except (DecodeError, UsageError) as exc:
        raise CertificateError("The fleet policy is malformed.") from exc
    if policy.fleet != fleet:
        raise CertificateError(f"The policy is of fleet {policy.fleet}, not {fleet}.")
    return policy


def rules_message(rules: Rules) -> pb.TrainingRules:
    """Return rules as they travel."""
    return pb.TrainingRules(
        idle=rules.idle,
        charging=rules.charging,
        unmetered=rules.unmetered,
        min_battery=rules.min_battery,
        consent=rules.consent,
        refuse_unknown=rules.unknown == "refuse",
    )


def rules_of(message: pb.TrainingRules) -> Rules:
    """Return rules that came.

    Raises:
        UsageError: They cannot be.
    """
    return Rules(
        idle=message.idle,
        charging=message.charging,
        unmetered=message.unmetered,
        min_battery=message.min_battery,
        consent=message.consent,
        unknown="refuse" if message.refuse_unknown else "allow",
    )


@functools.lru_cache(maxsize=REMEMBERED)
def _open(signed: bytes, label: str, authority: VerifyKey, what: str) -> bytes:
    """Return the body of a signed message. The same bytes under the same key are verified once.

    A device meets its peers' credentials in every round of a day. Only what verified is remembered,
    and when it expires is looked at each time.
    """
    if len(signed) > MAX_SIGNED_BYTES:
        raise CertificateError(f"The {what} has {len(signed)} bytes, more than {MAX_SIGNED_BYTES}.")
    try:
        message = pb.Signed.FromString(signed)
    except DecodeError as exc:
        raise CertificateError(f"The {what} is malformed.") from exc
    try:
        authority.verify(label, message.body, message.signature)
    except VerificationError as exc:
        raise CertificateError(f"The {what} is not signed by this fleet's authority.") from exc
    return bytes(message.body)

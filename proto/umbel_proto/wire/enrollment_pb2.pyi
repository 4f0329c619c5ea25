from umbel_proto.wire import identity_pb2 as _identity_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrollRequest(_message.Message):
    __slots__ = ("token", "csr", "identity_key", "identity_proof", "node_key", "name", "facts")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_KEY_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_PROOF_FIELD_NUMBER: _ClassVar[int]
    NODE_KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    csr: bytes
    identity_key: bytes
    identity_proof: bytes
    node_key: bytes
    name: str
    facts: DeviceFacts
    def __init__(self, token: _Optional[bytes] = ..., csr: _Optional[bytes] = ..., identity_key: _Optional[bytes] = ..., identity_proof: _Optional[bytes] = ..., node_key: _Optional[bytes] = ..., name: _Optional[str] = ..., facts: _Optional[_Union[DeviceFacts, _Mapping]] = ...) -> None: ...

class DeviceFacts(_message.Message):
    __slots__ = ("arch", "os", "memory_mib", "engine")
    ARCH_FIELD_NUMBER: _ClassVar[int]
    OS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    arch: str
    os: str
    memory_mib: int
    engine: str
    def __init__(self, arch: _Optional[str] = ..., os: _Optional[str] = ..., memory_mib: _Optional[int] = ..., engine: _Optional[str] = ...) -> None: ...

class TelemetryKey(_message.Message):
    __slots__ = ("key_id", "suite", "public_key")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    SUITE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    suite: int
    public_key: bytes
    def __init__(self, key_id: _Optional[str] = ..., suite: _Optional[int] = ..., public_key: _Optional[bytes] = ...) -> None: ...

class EnrollReply(_message.Message):
    __slots__ = ("fleet_id", "device_id", "certificate", "credential", "policy", "authority_key", "release_key", "telemetry_key", "gateway", "superlink", "root", "charges")
    FLEET_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_KEY_FIELD_NUMBER: _ClassVar[int]
    RELEASE_KEY_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_KEY_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    SUPERLINK_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    CHARGES_FIELD_NUMBER: _ClassVar[int]
    fleet_id: str
    device_id: str
    certificate: bytes
    credential: _identity_pb2.Signed
    policy: _identity_pb2.Signed
    authority_key: bytes
    release_key: bytes
    telemetry_key: TelemetryKey
    gateway: str
    superlink: str
    root: bytes
    charges: _containers.RepeatedCompositeFieldContainer[PastCharge]
    def __init__(self, fleet_id: _Optional[str] = ..., device_id: _Optional[str] = ..., certificate: _Optional[bytes] = ..., credential: _Optional[_Union[_identity_pb2.Signed, _Mapping]] = ..., policy: _Optional[_Union[_identity_pb2.Signed, _Mapping]] = ..., authority_key: _Optional[bytes] = ..., release_key: _Optional[bytes] = ..., telemetry_key: _Optional[_Union[TelemetryKey, _Mapping]] = ..., gateway: _Optional[str] = ..., superlink: _Optional[str] = ..., root: _Optional[bytes] = ..., charges: _Optional[_Iterable[_Union[PastCharge, _Mapping]]] = ...) -> None: ...

class PastCharge(_message.Message):
    __slots__ = ("run", "round", "attempt", "bound_sq", "coordinates", "variance")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    BOUND_SQ_FIELD_NUMBER: _ClassVar[int]
    COORDINATES_FIELD_NUMBER: _ClassVar[int]
    VARIANCE_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    attempt: int
    bound_sq: str
    coordinates: int
    variance: str
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., bound_sq: _Optional[str] = ..., coordinates: _Optional[int] = ..., variance: _Optional[str] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("csr",)
    CSR_FIELD_NUMBER: _ClassVar[int]
    csr: bytes
    def __init__(self, csr: _Optional[bytes] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("certificate", "credential", "policy", "telemetry_key", "enrollment", "root")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_KEY_FIELD_NUMBER: _ClassVar[int]
    ENROLLMENT_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    credential: _identity_pb2.Signed
    policy: _identity_pb2.Signed
    telemetry_key: TelemetryKey
    enrollment: str
    root: bytes
    def __init__(self, certificate: _Optional[bytes] = ..., credential: _Optional[_Union[_identity_pb2.Signed, _Mapping]] = ..., policy: _Optional[_Union[_identity_pb2.Signed, _Mapping]] = ..., telemetry_key: _Optional[_Union[TelemetryKey, _Mapping]] = ..., enrollment: _Optional[str] = ..., root: _Optional[bytes] = ...) -> None: ...

class ChallengeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ChallengeReply(_message.Message):
    __slots__ = ("challenge",)
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    challenge: bytes
    def __init__(self, challenge: _Optional[bytes] = ...) -> None: ...

class ReadmitRequest(_message.Message):
    __slots__ = ("device_id", "challenge", "csr", "proof")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    challenge: bytes
    csr: bytes
    proof: bytes
    def __init__(self, device_id: _Optional[str] = ..., challenge: _Optional[bytes] = ..., csr: _Optional[bytes] = ..., proof: _Optional[bytes] = ...) -> None: ...

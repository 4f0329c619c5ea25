from umbel_proto.wire import identity_pb2 as _identity_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrollRequest(_message.Message):
    __slots__ = ("token", "csr", "identity_key", "identity_proof", "node_key", "name")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_KEY_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_PROOF_FIELD_NUMBER: _ClassVar[int]
    NODE_KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    csr: bytes
    identity_key: bytes
    identity_proof: bytes
    node_key: bytes
    name: str
    def __init__(self, token: _Optional[bytes] = ..., csr: _Optional[bytes] = ..., identity_key: _Optional[bytes] = ..., identity_proof: _Optional[bytes] = ..., node_key: _Optional[bytes] = ..., name: _Optional[str] = ...) -> None: ...

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
    __slots__ = ("fleet_id", "device_id", "certificate", "credential", "policy", "authority_key", "release_key", "telemetry_key", "gateway", "superlink")
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
    def __init__(self, fleet_id: _Optional[str] = ..., device_id: _Optional[str] = ..., certificate: _Optional[bytes] = ..., credential: _Optional[_Union[_identity_pb2.Signed, _Mapping]] = ..., policy: _Optional[_Union[_identity_pb2.Signed, _Mapping]] = ..., authority_key: _Optional[bytes] = ..., release_key: _Optional[bytes] = ..., telemetry_key: _Optional[_Union[TelemetryKey, _Mapping]] = ..., gateway: _Optional[str] = ..., superlink: _Optional[str] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("csr",)
    CSR_FIELD_NUMBER: _ClassVar[int]
    csr: bytes
    def __init__(self, csr: _Optional[bytes] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("certificate", "credential", "policy", "telemetry_key")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_KEY_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    credential: _identity_pb2.Signed
    policy: _identity_pb2.Signed
    telemetry_key: TelemetryKey
    def __init__(self, certificate: _Optional[bytes] = ..., credential: _Optional[_Union[_identity_pb2.Signed, _Mapping]] = ..., policy: _Optional[_Union[_identity_pb2.Signed, _Mapping]] = ..., telemetry_key: _Optional[_Union[TelemetryKey, _Mapping]] = ...) -> None: ...

from umbel_proto.wire import enrollment_pb2 as _enrollment_pb2
from umbel_proto.wire import identity_pb2 as _identity_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AuthorityRequest(_message.Message):
    __slots__ = ("enroll", "renew", "readmit", "service_csr", "policy", "query", "review")
    ENROLL_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    READMIT_FIELD_NUMBER: _ClassVar[int]
    SERVICE_CSR_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    REVIEW_FIELD_NUMBER: _ClassVar[int]
    enroll: _enrollment_pb2.EnrollRequest
    renew: Renewal
    readmit: _enrollment_pb2.ReadmitRequest
    service_csr: bytes
    policy: PolicyChange
    query: QueryAsk
    review: ReviewAsk
    def __init__(self, enroll: _Optional[_Union[_enrollment_pb2.EnrollRequest, _Mapping]] = ..., renew: _Optional[_Union[Renewal, _Mapping]] = ..., readmit: _Optional[_Union[_enrollment_pb2.ReadmitRequest, _Mapping]] = ..., service_csr: _Optional[bytes] = ..., policy: _Optional[_Union[PolicyChange, _Mapping]] = ..., query: _Optional[_Union[QueryAsk, _Mapping]] = ..., review: _Optional[_Union[ReviewAsk, _Mapping]] = ...) -> None: ...

class Renewal(_message.Message):
    __slots__ = ("certificate", "csr")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    csr: bytes
    def __init__(self, certificate: _Optional[bytes] = ..., csr: _Optional[bytes] = ...) -> None: ...

class PolicyChange(_message.Message):
    __slots__ = ("token", "version", "training", "reason", "announce_reviews")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ANNOUNCE_REVIEWS_FIELD_NUMBER: _ClassVar[int]
    token: str
    version: int
    training: _identity_pb2.TrainingRules
    reason: str
    announce_reviews: bool
    def __init__(self, token: _Optional[str] = ..., version: _Optional[int] = ..., training: _Optional[_Union[_identity_pb2.TrainingRules, _Mapping]] = ..., reason: _Optional[str] = ..., announce_reviews: bool = ...) -> None: ...

class QueryAsk(_message.Message):
    __slots__ = ("token", "session", "query")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    token: str
    session: str
    query: bytes
    def __init__(self, token: _Optional[str] = ..., session: _Optional[str] = ..., query: _Optional[bytes] = ...) -> None: ...

class ReviewAsk(_message.Message):
    __slots__ = ("token", "session", "review", "label", "why")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REVIEW_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    token: str
    session: str
    review: int
    label: int
    why: str
    def __init__(self, token: _Optional[str] = ..., session: _Optional[str] = ..., review: _Optional[int] = ..., label: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class AuthorityReply(_message.Message):
    __slots__ = ("issued", "service_certificate", "refusal", "policy", "query", "review")
    ISSUED_FIELD_NUMBER: _ClassVar[int]
    SERVICE_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    REVIEW_FIELD_NUMBER: _ClassVar[int]
    issued: Issued
    service_certificate: bytes
    refusal: Refusal
    policy: _identity_pb2.Signed
    query: _identity_pb2.Signed
    review: _identity_pb2.Signed
    def __init__(self, issued: _Optional[_Union[Issued, _Mapping]] = ..., service_certificate: _Optional[bytes] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., policy: _Optional[_Union[_identity_pb2.Signed, _Mapping]] = ..., query: _Optional[_Union[_identity_pb2.Signed, _Mapping]] = ..., review: _Optional[_Union[_identity_pb2.Signed, _Mapping]] = ...) -> None: ...

class Issued(_message.Message):
    __slots__ = ("device_id", "certificate", "credential", "not_after_s")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    certificate: bytes
    credential: _identity_pb2.Signed
    not_after_s: int
    def __init__(self, device_id: _Optional[str] = ..., certificate: _Optional[bytes] = ..., credential: _Optional[_Union[_identity_pb2.Signed, _Mapping]] = ..., not_after_s: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("kind", "sentence", "application")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    APPLICATION_FIELD_NUMBER: _ClassVar[int]
    kind: str
    sentence: str
    application: str
    def __init__(self, kind: _Optional[str] = ..., sentence: _Optional[str] = ..., application: _Optional[str] = ...) -> None: ...

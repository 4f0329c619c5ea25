from umbel_proto.wire import enrollment_pb2 as _enrollment_pb2
from umbel_proto.wire import identity_pb2 as _identity_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CheckRequest(_message.Message):
    __slots__ = ("installed", "failed", "shadows", "may_shadow", "facts")
    INSTALLED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    SHADOWS_FIELD_NUMBER: _ClassVar[int]
    MAY_SHADOW_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    installed: _containers.RepeatedCompositeFieldContainer[Release]
    failed: _containers.RepeatedScalarFieldContainer[bytes]
    shadows: _containers.RepeatedCompositeFieldContainer[Shadowing]
    may_shadow: bool
    facts: _enrollment_pb2.DeviceFacts
    def __init__(self, installed: _Optional[_Iterable[_Union[Release, _Mapping]]] = ..., failed: _Optional[_Iterable[bytes]] = ..., shadows: _Optional[_Iterable[_Union[Shadowing, _Mapping]]] = ..., may_shadow: bool = ..., facts: _Optional[_Union[_enrollment_pb2.DeviceFacts, _Mapping]] = ...) -> None: ...

class Shadowing(_message.Message):
    __slots__ = ("model", "version", "sha256", "why")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    sha256: bytes
    why: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., sha256: _Optional[bytes] = ..., why: _Optional[str] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("model", "version", "sha256", "size", "delta", "back", "active")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    BACK_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    sha256: bytes
    size: int
    delta: Delta
    back: bool
    active: bool
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., sha256: _Optional[bytes] = ..., size: _Optional[int] = ..., delta: _Optional[_Union[Delta, _Mapping]] = ..., back: bool = ..., active: bool = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("base_sha256", "sha256", "size")
    BASE_SHA256_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    base_sha256: bytes
    sha256: bytes
    size: int
    def __init__(self, base_sha256: _Optional[bytes] = ..., sha256: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class CheckReply(_message.Message):
    __slots__ = ("releases", "shadows", "answers")
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    SHADOWS_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    releases: _containers.RepeatedCompositeFieldContainer[Release]
    shadows: _containers.RepeatedCompositeFieldContainer[Shadow]
    answers: _containers.RepeatedCompositeFieldContainer[_identity_pb2.Signed]
    def __init__(self, releases: _Optional[_Iterable[_Union[Release, _Mapping]]] = ..., shadows: _Optional[_Iterable[_Union[Shadow, _Mapping]]] = ..., answers: _Optional[_Iterable[_Union[_identity_pb2.Signed, _Mapping]]] = ...) -> None: ...

class Shadow(_message.Message):
    __slots__ = ("release", "one_in", "within")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ONE_IN_FIELD_NUMBER: _ClassVar[int]
    WITHIN_FIELD_NUMBER: _ClassVar[int]
    release: Release
    one_in: int
    within: float
    def __init__(self, release: _Optional[_Union[Release, _Mapping]] = ..., one_in: _Optional[int] = ..., within: _Optional[float] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("sha256", "offset")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    offset: int
    def __init__(self, sha256: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class MetadataRequest(_message.Message):
    __slots__ = ("role", "version")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    role: str
    version: int
    def __init__(self, role: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class MetadataReply(_message.Message):
    __slots__ = ("metadata",)
    METADATA_FIELD_NUMBER: _ClassVar[int]
    metadata: bytes
    def __init__(self, metadata: _Optional[bytes] = ...) -> None: ...

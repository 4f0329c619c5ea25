from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReviewEnd(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REVIEW_END_UNKNOWN: _ClassVar[ReviewEnd]
    REVIEW_END_ANSWERED: _ClassVar[ReviewEnd]
    REVIEW_END_HERE: _ClassVar[ReviewEnd]
    REVIEW_END_GONE: _ClassVar[ReviewEnd]
    REVIEW_END_WITHDRAWN: _ClassVar[ReviewEnd]
    REVIEW_END_REFUSED: _ClassVar[ReviewEnd]
REVIEW_END_UNKNOWN: ReviewEnd
REVIEW_END_ANSWERED: ReviewEnd
REVIEW_END_HERE: ReviewEnd
REVIEW_END_GONE: ReviewEnd
REVIEW_END_WITHDRAWN: ReviewEnd
REVIEW_END_REFUSED: ReviewEnd

class WaitingReview(_message.Message):
    __slots__ = ("id", "model", "version", "minute", "label", "percent", "unsure", "flagged")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MINUTE_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    UNSURE_FIELD_NUMBER: _ClassVar[int]
    FLAGGED_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    model: str
    version: int
    minute: int
    label: int
    percent: int
    unsure: bool
    flagged: bool
    def __init__(self, id: _Optional[bytes] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., minute: _Optional[int] = ..., label: _Optional[int] = ..., percent: _Optional[int] = ..., unsure: bool = ..., flagged: bool = ...) -> None: ...

class EndedReview(_message.Message):
    __slots__ = ("id", "end")
    ID_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    end: ReviewEnd
    def __init__(self, id: _Optional[bytes] = ..., end: _Optional[_Union[ReviewEnd, str]] = ...) -> None: ...

class ReviewAnswer(_message.Message):
    __slots__ = ("fleet_id", "device_id", "id", "label", "by", "why", "name")
    FLEET_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    fleet_id: str
    device_id: str
    id: bytes
    label: int
    by: str
    why: str
    name: str
    def __init__(self, fleet_id: _Optional[str] = ..., device_id: _Optional[str] = ..., id: _Optional[bytes] = ..., label: _Optional[int] = ..., by: _Optional[str] = ..., why: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

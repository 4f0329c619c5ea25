from umbel_proto.wire import reviews_pb2 as _reviews_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UploadRequest(_message.Message):
    __slots__ = ("batches",)
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    batches: _containers.RepeatedCompositeFieldContainer[SealedBatch]
    def __init__(self, batches: _Optional[_Iterable[_Union[SealedBatch, _Mapping]]] = ...) -> None: ...

class SealedBatch(_message.Message):
    __slots__ = ("header", "ciphertext")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    ciphertext: bytes
    def __init__(self, header: _Optional[bytes] = ..., ciphertext: _Optional[bytes] = ...) -> None: ...

class BatchHeader(_message.Message):
    __slots__ = ("schema", "suite", "key_id", "fleet_id", "device_id", "batch_id", "sequence", "created_s")
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    SUITE_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    FLEET_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CREATED_S_FIELD_NUMBER: _ClassVar[int]
    schema: int
    suite: int
    key_id: str
    fleet_id: str
    device_id: str
    batch_id: bytes
    sequence: int
    created_s: int
    def __init__(self, schema: _Optional[int] = ..., suite: _Optional[int] = ..., key_id: _Optional[str] = ..., fleet_id: _Optional[str] = ..., device_id: _Optional[str] = ..., batch_id: _Optional[bytes] = ..., sequence: _Optional[int] = ..., created_s: _Optional[int] = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ("acknowledged", "retry_after_s")
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    acknowledged: _containers.RepeatedScalarFieldContainer[bytes]
    retry_after_s: int
    def __init__(self, acknowledged: _Optional[_Iterable[bytes]] = ..., retry_after_s: _Optional[int] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("windows", "waiting_reviews", "ended_reviews")
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    WAITING_REVIEWS_FIELD_NUMBER: _ClassVar[int]
    ENDED_REVIEWS_FIELD_NUMBER: _ClassVar[int]
    windows: _containers.RepeatedCompositeFieldContainer[Window]
    waiting_reviews: _containers.RepeatedCompositeFieldContainer[_reviews_pb2.WaitingReview]
    ended_reviews: _containers.RepeatedCompositeFieldContainer[_reviews_pb2.EndedReview]
    def __init__(self, windows: _Optional[_Iterable[_Union[Window, _Mapping]]] = ..., waiting_reviews: _Optional[_Iterable[_Union[_reviews_pb2.WaitingReview, _Mapping]]] = ..., ended_reviews: _Optional[_Iterable[_Union[_reviews_pb2.EndedReview, _Mapping]]] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("model", "version", "variant", "engine", "start_s", "end_s", "counters", "histograms", "known", "labels", "columns", "missing", "below", "above", "unknown")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    START_S_FIELD_NUMBER: _ClassVar[int]
    END_S_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAMS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    BELOW_FIELD_NUMBER: _ClassVar[int]
    ABOVE_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    variant: str
    engine: str
    start_s: int
    end_s: int
    counters: _containers.ScalarMap[str, int]
    histograms: _containers.RepeatedCompositeFieldContainer[Histogram]
    known: _containers.RepeatedScalarFieldContainer[int]
    labels: _containers.RepeatedScalarFieldContainer[int]
    columns: _containers.RepeatedScalarFieldContainer[str]
    missing: _containers.RepeatedScalarFieldContainer[int]
    below: _containers.RepeatedScalarFieldContainer[int]
    above: _containers.RepeatedScalarFieldContainer[int]
    unknown: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., variant: _Optional[str] = ..., engine: _Optional[str] = ..., start_s: _Optional[int] = ..., end_s: _Optional[int] = ..., counters: _Optional[_Mapping[str, int]] = ..., histograms: _Optional[_Iterable[_Union[Histogram, _Mapping]]] = ..., known: _Optional[_Iterable[int]] = ..., labels: _Optional[_Iterable[int]] = ..., columns: _Optional[_Iterable[str]] = ..., missing: _Optional[_Iterable[int]] = ..., below: _Optional[_Iterable[int]] = ..., above: _Optional[_Iterable[int]] = ..., unknown: _Optional[_Iterable[int]] = ...) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("name", "edges", "counts", "sum", "scale", "epsilon", "short_edges", "known", "short_sum")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    SHORT_EDGES_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    SHORT_SUM_FIELD_NUMBER: _ClassVar[int]
    name: str
    edges: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    sum: float
    scale: int
    epsilon: float
    short_edges: _containers.RepeatedScalarFieldContainer[float]
    known: int
    short_sum: float
    def __init__(self, name: _Optional[str] = ..., edges: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ..., sum: _Optional[float] = ..., scale: _Optional[int] = ..., epsilon: _Optional[float] = ..., short_edges: _Optional[_Iterable[float]] = ..., known: _Optional[int] = ..., short_sum: _Optional[float] = ...) -> None: ...

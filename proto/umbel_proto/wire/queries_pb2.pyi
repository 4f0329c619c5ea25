from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Query(_message.Message):
    __slots__ = ("fleet_id", "query_id", "kind", "model", "package_version", "package_sha256", "field", "categories", "edges", "low", "high", "quantiles", "cohort", "cohort_edges", "positive", "per_device", "min_cohort", "noise_multiplier", "not_after_s", "asked_by", "why")
    FLEET_ID_FIELD_NUMBER: _ClassVar[int]
    QUERY_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    QUANTILES_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    COHORT_EDGES_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_FIELD_NUMBER: _ClassVar[int]
    PER_DEVICE_FIELD_NUMBER: _ClassVar[int]
    MIN_COHORT_FIELD_NUMBER: _ClassVar[int]
    NOISE_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    ASKED_BY_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    fleet_id: str
    query_id: str
    kind: str
    model: str
    package_version: int
    package_sha256: bytes
    field: str
    categories: int
    edges: _containers.RepeatedScalarFieldContainer[float]
    low: float
    high: float
    quantiles: _containers.RepeatedScalarFieldContainer[float]
    cohort: str
    cohort_edges: _containers.RepeatedScalarFieldContainer[float]
    positive: int
    per_device: int
    min_cohort: int
    noise_multiplier: float
    not_after_s: int
    asked_by: str
    why: str
    def __init__(self, fleet_id: _Optional[str] = ..., query_id: _Optional[str] = ..., kind: _Optional[str] = ..., model: _Optional[str] = ..., package_version: _Optional[int] = ..., package_sha256: _Optional[bytes] = ..., field: _Optional[str] = ..., categories: _Optional[int] = ..., edges: _Optional[_Iterable[float]] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., quantiles: _Optional[_Iterable[float]] = ..., cohort: _Optional[str] = ..., cohort_edges: _Optional[_Iterable[float]] = ..., positive: _Optional[int] = ..., per_device: _Optional[int] = ..., min_cohort: _Optional[int] = ..., noise_multiplier: _Optional[float] = ..., not_after_s: _Optional[int] = ..., asked_by: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Signed(_message.Message):
    __slots__ = ("body", "signature")
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    signature: bytes
    def __init__(self, body: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Credential(_message.Message):
    __slots__ = ("fleet_id", "device_id", "identity_key", "not_after_s")
    FLEET_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_KEY_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    fleet_id: str
    device_id: str
    identity_key: bytes
    not_after_s: int
    def __init__(self, fleet_id: _Optional[str] = ..., device_id: _Optional[str] = ..., identity_key: _Optional[bytes] = ..., not_after_s: _Optional[int] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("fleet_id", "corrupt_fraction", "dropout_fraction", "server_malicious", "min_cohort", "noise_floor", "budget_epsilon", "budget_delta", "version", "example_budget_epsilon", "training", "announce_reviews")
    FLEET_ID_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FRACTION_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FRACTION_FIELD_NUMBER: _ClassVar[int]
    SERVER_MALICIOUS_FIELD_NUMBER: _ClassVar[int]
    MIN_COHORT_FIELD_NUMBER: _ClassVar[int]
    NOISE_FLOOR_FIELD_NUMBER: _ClassVar[int]
    BUDGET_EPSILON_FIELD_NUMBER: _ClassVar[int]
    BUDGET_DELTA_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_BUDGET_EPSILON_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    ANNOUNCE_REVIEWS_FIELD_NUMBER: _ClassVar[int]
    fleet_id: str
    corrupt_fraction: float
    dropout_fraction: float
    server_malicious: bool
    min_cohort: int
    noise_floor: float
    budget_epsilon: float
    budget_delta: float
    version: int
    example_budget_epsilon: float
    training: TrainingRules
    announce_reviews: bool
    def __init__(self, fleet_id: _Optional[str] = ..., corrupt_fraction: _Optional[float] = ..., dropout_fraction: _Optional[float] = ..., server_malicious: bool = ..., min_cohort: _Optional[int] = ..., noise_floor: _Optional[float] = ..., budget_epsilon: _Optional[float] = ..., budget_delta: _Optional[float] = ..., version: _Optional[int] = ..., example_budget_epsilon: _Optional[float] = ..., training: _Optional[_Union[TrainingRules, _Mapping]] = ..., announce_reviews: bool = ...) -> None: ...

class TrainingRules(_message.Message):
    __slots__ = ("idle", "charging", "unmetered", "min_battery", "consent", "refuse_unknown")
    IDLE_FIELD_NUMBER: _ClassVar[int]
    CHARGING_FIELD_NUMBER: _ClassVar[int]
    UNMETERED_FIELD_NUMBER: _ClassVar[int]
    MIN_BATTERY_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    REFUSE_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    idle: bool
    charging: bool
    unmetered: bool
    min_battery: float
    consent: bool
    refuse_unknown: bool
    def __init__(self, idle: bool = ..., charging: bool = ..., unmetered: bool = ..., min_battery: _Optional[float] = ..., consent: bool = ..., refuse_unknown: bool = ...) -> None: ...

from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TrainRequest(_message.Message):
    __slots__ = ("descriptor", "plan", "query")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    descriptor: bytes
    plan: bytes
    query: bytes
    def __init__(self, descriptor: _Optional[bytes] = ..., plan: _Optional[bytes] = ..., query: _Optional[bytes] = ...) -> None: ...

class TrainPlan(_message.Message):
    __slots__ = ("epochs", "batch_size", "learning_rate", "momentum", "seed", "package_sha256", "model", "package_version", "auxiliary", "holdback", "optimizer", "nesterov", "second_momentum", "adaptivity", "weight_decay", "gradient_clip", "fedprox_mu", "patience", "time_limit_s", "example_clip", "example_noise")
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_VERSION_FIELD_NUMBER: _ClassVar[int]
    AUXILIARY_FIELD_NUMBER: _ClassVar[int]
    HOLDBACK_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    NESTEROV_FIELD_NUMBER: _ClassVar[int]
    SECOND_MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    ADAPTIVITY_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_CLIP_FIELD_NUMBER: _ClassVar[int]
    FEDPROX_MU_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_LIMIT_S_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_CLIP_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_NOISE_FIELD_NUMBER: _ClassVar[int]
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    seed: int
    package_sha256: bytes
    model: str
    package_version: int
    auxiliary: _containers.RepeatedCompositeFieldContainer[Quantity]
    holdback: float
    optimizer: str
    nesterov: bool
    second_momentum: float
    adaptivity: float
    weight_decay: float
    gradient_clip: float
    fedprox_mu: float
    patience: int
    time_limit_s: float
    example_clip: float
    example_noise: float
    def __init__(self, epochs: _Optional[int] = ..., batch_size: _Optional[int] = ..., learning_rate: _Optional[float] = ..., momentum: _Optional[float] = ..., seed: _Optional[int] = ..., package_sha256: _Optional[bytes] = ..., model: _Optional[str] = ..., package_version: _Optional[int] = ..., auxiliary: _Optional[_Iterable[_Union[Quantity, _Mapping]]] = ..., holdback: _Optional[float] = ..., optimizer: _Optional[str] = ..., nesterov: bool = ..., second_momentum: _Optional[float] = ..., adaptivity: _Optional[float] = ..., weight_decay: _Optional[float] = ..., gradient_clip: _Optional[float] = ..., fedprox_mu: _Optional[float] = ..., patience: _Optional[int] = ..., time_limit_s: _Optional[float] = ..., example_clip: _Optional[float] = ..., example_noise: _Optional[float] = ...) -> None: ...

class Quantity(_message.Message):
    __slots__ = ("name", "low", "high")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    name: str
    low: float
    high: float
    def __init__(self, name: _Optional[str] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class SessionDescriptor(_message.Message):
    __slots__ = ("protocol", "fleet_id", "run_id", "round", "attempt", "task", "model_hash", "plan_hash", "encoding", "min_cohort", "max_cohort", "corrupt_fraction", "dropout_fraction", "server_malicious", "closes_at_s")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FLEET_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    PLAN_HASH_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    MIN_COHORT_FIELD_NUMBER: _ClassVar[int]
    MAX_COHORT_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FRACTION_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FRACTION_FIELD_NUMBER: _ClassVar[int]
    SERVER_MALICIOUS_FIELD_NUMBER: _ClassVar[int]
    CLOSES_AT_S_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    fleet_id: str
    run_id: str
    round: int
    attempt: int
    task: str
    model_hash: bytes
    plan_hash: bytes
    encoding: SumEncoding
    min_cohort: int
    max_cohort: int
    corrupt_fraction: float
    dropout_fraction: float
    server_malicious: bool
    closes_at_s: int
    def __init__(self, protocol: _Optional[int] = ..., fleet_id: _Optional[str] = ..., run_id: _Optional[str] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., task: _Optional[str] = ..., model_hash: _Optional[bytes] = ..., plan_hash: _Optional[bytes] = ..., encoding: _Optional[_Union[SumEncoding, _Mapping]] = ..., min_cohort: _Optional[int] = ..., max_cohort: _Optional[int] = ..., corrupt_fraction: _Optional[float] = ..., dropout_fraction: _Optional[float] = ..., server_malicious: bool = ..., closes_at_s: _Optional[int] = ...) -> None: ...

class SumEncoding(_message.Message):
    __slots__ = ("dim", "padded", "bits", "clip", "scale", "bound_sq", "noise_numerator", "noise_denominator", "auxiliary")
    DIM_FIELD_NUMBER: _ClassVar[int]
    PADDED_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    BOUND_SQ_FIELD_NUMBER: _ClassVar[int]
    NOISE_NUMERATOR_FIELD_NUMBER: _ClassVar[int]
    NOISE_DENOMINATOR_FIELD_NUMBER: _ClassVar[int]
    AUXILIARY_FIELD_NUMBER: _ClassVar[int]
    dim: int
    padded: int
    bits: int
    clip: float
    scale: float
    bound_sq: int
    noise_numerator: int
    noise_denominator: int
    auxiliary: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, dim: _Optional[int] = ..., padded: _Optional[int] = ..., bits: _Optional[int] = ..., clip: _Optional[float] = ..., scale: _Optional[float] = ..., bound_sq: _Optional[int] = ..., noise_numerator: _Optional[int] = ..., noise_denominator: _Optional[int] = ..., auxiliary: _Optional[_Iterable[int]] = ...) -> None: ...

class JoinEntry(_message.Message):
    __slots__ = ("credential", "mask_key", "share_key", "seed_commitment", "signature")
    CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
    MASK_KEY_FIELD_NUMBER: _ClassVar[int]
    SHARE_KEY_FIELD_NUMBER: _ClassVar[int]
    SEED_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    credential: bytes
    mask_key: bytes
    share_key: bytes
    seed_commitment: bytes
    signature: bytes
    def __init__(self, credential: _Optional[bytes] = ..., mask_key: _Optional[bytes] = ..., share_key: _Optional[bytes] = ..., seed_commitment: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Roster(_message.Message):
    __slots__ = ("sid", "rows", "entries")
    SID_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    sid: bytes
    rows: _containers.RepeatedCompositeFieldContainer[RosterRow]
    entries: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, sid: _Optional[bytes] = ..., rows: _Optional[_Iterable[_Union[RosterRow, _Mapping]]] = ..., entries: _Optional[_Iterable[bytes]] = ...) -> None: ...

class RosterRow(_message.Message):
    __slots__ = ("device_id", "entry_hash")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    ENTRY_HASH_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    entry_hash: bytes
    def __init__(self, device_id: _Optional[str] = ..., entry_hash: _Optional[bytes] = ...) -> None: ...

class SealedShares(_message.Message):
    __slots__ = ("sid", "roster_hash", "shares")
    SID_FIELD_NUMBER: _ClassVar[int]
    ROSTER_HASH_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    sid: bytes
    roster_hash: bytes
    shares: _containers.RepeatedCompositeFieldContainer[SealedShare]
    def __init__(self, sid: _Optional[bytes] = ..., roster_hash: _Optional[bytes] = ..., shares: _Optional[_Iterable[_Union[SealedShare, _Mapping]]] = ...) -> None: ...

class SealedShare(_message.Message):
    __slots__ = ("peer", "box")
    PEER_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    peer: int
    box: bytes
    def __init__(self, peer: _Optional[int] = ..., box: _Optional[bytes] = ...) -> None: ...

class Masked(_message.Message):
    __slots__ = ("sid", "roster_hash")
    SID_FIELD_NUMBER: _ClassVar[int]
    ROSTER_HASH_FIELD_NUMBER: _ClassVar[int]
    sid: bytes
    roster_hash: bytes
    def __init__(self, sid: _Optional[bytes] = ..., roster_hash: _Optional[bytes] = ...) -> None: ...

class Survivors(_message.Message):
    __slots__ = ("sid", "roster_hash", "bitmap")
    SID_FIELD_NUMBER: _ClassVar[int]
    ROSTER_HASH_FIELD_NUMBER: _ClassVar[int]
    BITMAP_FIELD_NUMBER: _ClassVar[int]
    sid: bytes
    roster_hash: bytes
    bitmap: bytes
    def __init__(self, sid: _Optional[bytes] = ..., roster_hash: _Optional[bytes] = ..., bitmap: _Optional[bytes] = ...) -> None: ...

class Confirmation(_message.Message):
    __slots__ = ("sid", "roster_hash", "signature")
    SID_FIELD_NUMBER: _ClassVar[int]
    ROSTER_HASH_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    sid: bytes
    roster_hash: bytes
    signature: bytes
    def __init__(self, sid: _Optional[bytes] = ..., roster_hash: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Confirmations(_message.Message):
    __slots__ = ("sid", "roster_hash", "signatures")
    SID_FIELD_NUMBER: _ClassVar[int]
    ROSTER_HASH_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    sid: bytes
    roster_hash: bytes
    signatures: _containers.RepeatedCompositeFieldContainer[PeerSignature]
    def __init__(self, sid: _Optional[bytes] = ..., roster_hash: _Optional[bytes] = ..., signatures: _Optional[_Iterable[_Union[PeerSignature, _Mapping]]] = ...) -> None: ...

class PeerSignature(_message.Message):
    __slots__ = ("peer", "signature")
    PEER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    peer: int
    signature: bytes
    def __init__(self, peer: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class RevealedShares(_message.Message):
    __slots__ = ("sid", "roster_hash", "seed_shares", "key_shares")
    SID_FIELD_NUMBER: _ClassVar[int]
    ROSTER_HASH_FIELD_NUMBER: _ClassVar[int]
    SEED_SHARES_FIELD_NUMBER: _ClassVar[int]
    KEY_SHARES_FIELD_NUMBER: _ClassVar[int]
    sid: bytes
    roster_hash: bytes
    seed_shares: _containers.RepeatedCompositeFieldContainer[PlainShare]
    key_shares: _containers.RepeatedCompositeFieldContainer[PlainShare]
    def __init__(self, sid: _Optional[bytes] = ..., roster_hash: _Optional[bytes] = ..., seed_shares: _Optional[_Iterable[_Union[PlainShare, _Mapping]]] = ..., key_shares: _Optional[_Iterable[_Union[PlainShare, _Mapping]]] = ...) -> None: ...

class PlainShare(_message.Message):
    __slots__ = ("peer", "share")
    PEER_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    peer: int
    share: bytes
    def __init__(self, peer: _Optional[int] = ..., share: _Optional[bytes] = ...) -> None: ...

from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SavedSession(_message.Message):
    __slots__ = ("descriptor", "device_id", "model_hash", "mask_private", "share_private", "seed", "phase", "request", "reply", "reply_words", "neighborhood", "own_share", "masked_with", "held", "bitmap")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    MASK_PRIVATE_FIELD_NUMBER: _ClassVar[int]
    SHARE_PRIVATE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    REPLY_WORDS_FIELD_NUMBER: _ClassVar[int]
    NEIGHBORHOOD_FIELD_NUMBER: _ClassVar[int]
    OWN_SHARE_FIELD_NUMBER: _ClassVar[int]
    MASKED_WITH_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    BITMAP_FIELD_NUMBER: _ClassVar[int]
    descriptor: bytes
    device_id: str
    model_hash: bytes
    mask_private: bytes
    share_private: bytes
    seed: bytes
    phase: int
    request: bytes
    reply: bytes
    reply_words: bytes
    neighborhood: SavedNeighborhood
    own_share: bytes
    masked_with: _containers.RepeatedScalarFieldContainer[int]
    held: _containers.RepeatedCompositeFieldContainer[SavedHeld]
    bitmap: bytes
    def __init__(self, descriptor: _Optional[bytes] = ..., device_id: _Optional[str] = ..., model_hash: _Optional[bytes] = ..., mask_private: _Optional[bytes] = ..., share_private: _Optional[bytes] = ..., seed: _Optional[bytes] = ..., phase: _Optional[int] = ..., request: _Optional[bytes] = ..., reply: _Optional[bytes] = ..., reply_words: _Optional[bytes] = ..., neighborhood: _Optional[_Union[SavedNeighborhood, _Mapping]] = ..., own_share: _Optional[bytes] = ..., masked_with: _Optional[_Iterable[int]] = ..., held: _Optional[_Iterable[_Union[SavedHeld, _Mapping]]] = ..., bitmap: _Optional[bytes] = ...) -> None: ...

class SavedNeighborhood(_message.Message):
    __slots__ = ("ids", "roster_hash", "position", "peers")
    IDS_FIELD_NUMBER: _ClassVar[int]
    ROSTER_HASH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    roster_hash: bytes
    position: int
    peers: _containers.RepeatedCompositeFieldContainer[SavedPeer]
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., roster_hash: _Optional[bytes] = ..., position: _Optional[int] = ..., peers: _Optional[_Iterable[_Union[SavedPeer, _Mapping]]] = ...) -> None: ...

class SavedPeer(_message.Message):
    __slots__ = ("position", "identity", "mask_key", "share_key", "seed_commitment")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    MASK_KEY_FIELD_NUMBER: _ClassVar[int]
    SHARE_KEY_FIELD_NUMBER: _ClassVar[int]
    SEED_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    position: int
    identity: bytes
    mask_key: bytes
    share_key: bytes
    seed_commitment: bytes
    def __init__(self, position: _Optional[int] = ..., identity: _Optional[bytes] = ..., mask_key: _Optional[bytes] = ..., share_key: _Optional[bytes] = ..., seed_commitment: _Optional[bytes] = ...) -> None: ...

class SavedHeld(_message.Message):
    __slots__ = ("position", "seed", "key")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    position: int
    seed: bytes
    key: bytes
    def __init__(self, position: _Optional[int] = ..., seed: _Optional[bytes] = ..., key: _Optional[bytes] = ...) -> None: ...

class Contribution(_message.Message):
    __slots__ = ("update", "auxiliary", "weight", "query")
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    AUXILIARY_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    update: bytes
    auxiliary: _containers.RepeatedScalarFieldContainer[float]
    weight: float
    query: bool
    def __init__(self, update: _Optional[bytes] = ..., auxiliary: _Optional[_Iterable[float]] = ..., weight: _Optional[float] = ..., query: bool = ...) -> None: ...

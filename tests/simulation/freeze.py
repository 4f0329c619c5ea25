"""A state as plain nested tuples, so that a test can see whether anything in it changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from umbel_proto.keys import SigningKey


def freeze(value: object) -> object:
    """Return ``value`` and all it holds, secrets included, as something ``==`` can compare."""
    match value:
        case X25519PrivateKey():
            return value.private_bytes_raw()
        case SigningKey():
            return value.to_pem()
        case np.ndarray():
            return (value.dtype.str, value.shape, value.tobytes())
        case Mapping():
            return tuple(sorted((freeze(key), freeze(item)) for key, item in value.items()))
        case frozenset():
            return tuple(sorted(value))
        case tuple() | list():
            return tuple(freeze(item) for item in value)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = dataclasses.fields(value)
            return (type(value).__name__, *(freeze(getattr(value, field.name)) for field in fields))
        case _:
            return value

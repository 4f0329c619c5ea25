"""Arrays in the safetensors format, read without holding Python's lock for long.

The format's own library copies all arrays of a file in one step in which no other thread runs: 2.5 ms of a network
of 26 MB, while predictions wait. numpy lets go of the lock for a copy.

Source: https://github.com/huggingface/safetensors, README.md, "Format".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import PackageError

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_TYPES: Mapping[str, str] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip


def load_tensors(raw: bytes | memoryview, what: str, *, copied: bool = True) -> dict[str, NDArray[Any]]:
    """Read the bytes of a ``.safetensors`` file.

    Args:
        raw: The bytes.
        what: The file's name, for the error's sentence.
        copied: Whether the arrays are the caller's own. If not they are the bytes themselves, and may lie at any address:
            for who copies them on.

    Raises:
        PackageError: They are something else.
    """
    try:
        return _load(memoryview(raw), copied)
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise PackageError(f"{what} does not hold arrays in the safetensors format.") from exc


def _load(raw: memoryview, copied: bool) -> dict[str, NDArray[Any]]:
    begin = _LENGTH_BYTES + int.from_bytes(raw[:_LENGTH_BYTES], "little")
    head = str(raw[_LENGTH_BYTES:begin], "utf-8")
    _require(begin <= len(raw) and head.startswith("{"))
    header = json.loads(head, object_pairs_hook=_once)
    _check_metadata(header.pop(_METADATA, {}))
    content = np.frombuffer(raw[begin:], np.uint8)
    arrays, position = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        name.encode()  # No half of a surrogate pair.
        _require(entry.keys() == {"dtype", "shape", "data_offsets"})
        dtype, shape = np.dtype(_TYPES[entry["dtype"]]), entry["shape"]
        first, last = entry["data_offsets"]
        _require(all(type(number) is int for number in (*shape, first, last)))  # True is none.
        # The arrays lie one after the other, and leave out nothing.
        _require(first == position and last - first == math.prod(shape) * dtype.itemsize)
        _require(last <= len(content))
        array = content[first:last].view(dtype).reshape(shape)
        arrays[name], position = array.copy() if copied else array, last
    _require(position == len(content))
    return arrays


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    _require(len(entries) == len(pairs))
    return entries


def _check_metadata(metadata: Any) -> None:
    _require(isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values()))


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError("this is not in the safetensors format")

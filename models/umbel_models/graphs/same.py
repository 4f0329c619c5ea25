"""Do two files hold the same graph or the same parameters? For checking what is committed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import safetensors.numpy
from numpy.typing import NDArray
from onnx import TensorProto

from umbel_models.runtime import Session
from umbel_proto.errors import VerificationError

RELATIVE = 1e-4


def require_same(name: str, made: bytes, committed: bytes) -> None:
    """Compare two files of different bytes by what they say.

    Raises:
        VerificationError: Names, shapes or results differ.
    """
    left, right = (_results(name, data) for data in (made, committed))
    if {key: value.shape for key, value in left.items()} != {
        key: value.shape for key, value in right.items()
    }:
        raise VerificationError(f"{name} does not have the tensors it should: export it again.")
    for key, value in left.items():
        if not np.abs(value - right[key]).max() <= RELATIVE * np.abs(value).max() + 1e-7:
            raise VerificationError(f"{name} computes another {key}: export it again.")


def _results(name: str, data: bytes) -> dict[str, NDArray[np.float32]]:
    if name.endswith(".safetensors"):
        return dict(safetensors.numpy.load(data))
    graph = onnx.load_from_string(data).graph
    external = {
        tensor.name: tuple(tensor.dims)
        for tensor in graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    }
    inputs = {
        value.name: tuple(dim.dim_value or 5 for dim in value.type.tensor_type.shape.dim)
        for value in graph.input
    }
    integers = {value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.INT64}
    arrays = {
        key: _array(shape, place, whole=key in integers)
        for place, (key, shape) in enumerate(sorted((external | inputs).items()))
    }
    opened = Session(data, {key: arrays[key] for key in external})
    names = [value.name for value in graph.output]
    return dict(zip(names, opened.run(names, {key: arrays[key] for key in inputs}), strict=True))


def _array(shape: tuple[int, ...], place: int, *, whole: bool) -> NDArray[Any]:
    # Any values do, as long as both files get the same, and no two inputs: fixed, irregular sequences of both signs.
    values = np.sin(np.arange(1, np.prod(shape, dtype=int) + 1) * 1.7 + place).reshape(shape)
    # As arrays: arithmetic makes a number of an array without dimensions.
    if whole:
        return np.asarray(np.abs(values) * 2, np.int64)
    return np.asarray(values * 0.2, np.float32)

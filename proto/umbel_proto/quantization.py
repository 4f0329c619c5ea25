"""A model's int8 tensors, from its parameters and the ranges of its activations, with numpy alone.

A package of a quantizable model holds two graphs without values, and a mapping that says how to fill them:

==============  ==========================================================================
``calib.onnx``  parameters (external), x -> ``minima`` and ``maxima`` of every activation that int8.onnx
                quantizes, shape (activations,), and tensors that are made from parameters alone
``int8.onnx``   x -> the model's outputs; scales, zero points, weights and biases are external, by name
``int8.json``   the mapping, JSON of the dictionary described below
==============  ==========================================================================

So whoever has new parameters and some inputs, a device after training or the server after a round, has the
int8 model in milliseconds, without onnx or torch: ``quantize``. The mapping is

- ``format``: 1.
- ``activations``: ``scale`` and ``zero_point`` to fill, in the order of ``minima`` and ``maxima``. Int8, asymmetric.
- ``weights``: ``source``, the ``quantized`` tensor and ``scale`` to fill, and ``axis``, which counts channels, each
  with its own scale; null where the tensor has one scale. Symmetric, in [-64, 64].
- ``biases``: ``source``, ``quantized`` and ``scale`` to fill, and the two scales whose product that is:
  ``input_scale``, ``weight_scale``. Int32.
- ``floats``: tensors that int8.onnx takes as they are.
- ``derived``: outputs of calib.onnx that stand beside the parameters as a ``source`` or among ``floats``.

Source:
    onnxruntime 1.31, ``onnxruntime.quantization`` with per_channel, reduce_range, int8 activations and weights,
    in QDQ form: equal to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import PackageError, UsageError

CALIBRATION_GRAPH = "calib.onnx"
INT8_GRAPH = "int8.onnx"
INT8_TENSORS = "int8.safetensors"
INT8_MAPPING = "int8.json"

MIN_CALIBRATION = 16
BATCH = 16
# Seven of the eight bits: sums of two products fit 16 bits on processors without VNNI instructions.
_WEIGHT_LIMIT = 64
_SMALLEST = np.finfo(np.float32).tiny
_FIELDS = {
    "activations": {"scale", "zero_point"},
    "weights": {"source", "quantized", "scale", "axis"},
    "biases": {"source", "quantized", "scale", "input_scale", "weight_scale"},
}

FloatArrays = Mapping[str, NDArray[np.float32]]
Ranges = NDArray[np.float32]


class Run(Protocol):
    """How calib.onnx is run: as a session of onnxruntime runs it, opened without graph optimizations."""

    def __call__(
        self, output_names: Sequence[str], input_feed: dict[str, NDArray[Any]], /
    ) -> Sequence[NDArray[Any]]:
        """Return the outputs asked for."""


def quantize(
    run: Run, mapping: Mapping[str, Any], parameters: FloatArrays, inputs: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """Return the tensors of int8.onnx, by name.

    Args:
        run: Runs calib.onnx with ``parameters``.
        mapping: How to fill int8.onnx.
        parameters: The model's parameters, by name.
        inputs: Inputs like those the model will meet, shape (n, *example), n >= 16.

    Raises:
        UsageError: There are too few inputs, or the parameters or activations are not finite.
        PackageError: The mapping does not fit the graph or the parameters.
    """
    ranges, derived = calibrate(run, mapping, inputs)
    return fill(mapping, {**parameters, **derived}, ranges)


def calibrate(
    run: Run, mapping: Mapping[str, Any], inputs: NDArray[np.float32]
) -> tuple[Ranges, dict[str, NDArray[np.float32]]]:
    """Return the range of every activation over all inputs, shape (activations, 2), and the derived tensors.

    Raises:
        UsageError: There are too few inputs.
    """
    check_mapping(mapping)
    if len(inputs) < MIN_CALIBRATION:
        raise UsageError(f"Calibration has {len(inputs)} inputs: give at least {MIN_CALIBRATION}.")
    derived = list(mapping["derived"])
    lows, highs, values = [], [], []
    for batch in np.array_split(inputs, -(-len(inputs) // BATCH)):
        low, high, *values = run(["minima", "maxima", *derived], {"x": batch})
        lows.append(low)
        highs.append(high)
    ranges = np.stack([np.min(lows, axis=0), np.max(highs, axis=0)], axis=1)
    return ranges, dict(zip(derived, values, strict=True))


def fill(mapping: Mapping[str, Any], parameters: FloatArrays, ranges: Ranges) -> dict[str, NDArray[Any]]:
    """Return the tensors of int8.onnx, by name.

    Args:
        mapping: How to fill it.
        parameters: The model's parameters and the derived tensors, by name.
        ranges: Least and greatest value of every activation, shape (activations, 2).

    Raises:
        UsageError: A parameter or a range is not finite.
        PackageError: The mapping does not fit the parameters or the ranges.
    """
    check_mapping(mapping)
    activations, weights, biases = (mapping[key] for key in ("activations", "weights", "biases"))
    sources = [*(entry["source"] for entry in (*weights, *biases)), *mapping["floats"]]
    missing = sorted(set(sources) - set(parameters))
    if missing or ranges.shape != (len(activations), 2):
        raise _misfit(f"it speaks of {missing[0]!r}" if missing else f"ranges have shape {ranges.shape}")
    if not np.isfinite(ranges).all() or not all(np.isfinite(parameters[name]).all() for name in sources):
        raise UsageError(
            "The parameters, or what they make of the calibration inputs, are not finite: train anew."
        )
    tensors: dict[str, NDArray[Any]] = {name: parameters[name] for name in mapping["floats"]}
    for entry, (low, high) in zip(activations, ranges, strict=True):
        tensors[entry["scale"]], tensors[entry["zero_point"]] = _activation(low, high)
    for entry in weights:
        tensors[entry["scale"]] = _weight_scale(parameters[entry["source"]], entry["axis"])
    try:
        for entry in biases:
            tensors[entry["weight_scale"]] = _wide_enough(
                tensors[entry["weight_scale"]], tensors[entry["input_scale"]], parameters[entry["source"]]
            )
        for entry in biases:
            scale = tensors[entry["input_scale"]] * tensors[entry["weight_scale"]]
            tensors[entry["scale"]] = scale
            tensors[entry["quantized"]] = _bias(parameters[entry["source"]], scale)
    except KeyError as exc:
        raise _misfit(f"a bias has no such scale: {exc}") from exc
    for entry in weights:
        tensors[entry["quantized"]] = _weight(
            parameters[entry["source"]], tensors[entry["scale"]], entry["axis"]
        )
    return tensors


def parse_mapping(raw: bytes) -> dict[str, Any]:
    """Read the mapping of a package.

    Raises:
        PackageError: It is not of the form above.
    """
    try:
        mapping = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise _misfit("it is not JSON") from exc
    check_mapping(mapping)
    return dict(mapping)


def check_mapping(mapping: Mapping[str, Any]) -> None:
    """Refuse a mapping that is not of the form above.

    Raises:
        PackageError: It is not.
    """
    keys = {"format", "floats", "derived", *_FIELDS}
    if not isinstance(mapping, Mapping) or set(mapping) != keys or mapping["format"] != 1:
        raise _misfit("its keys or its format are not known here")
    lists = [mapping[key] for key in keys - {"format"}]
    if not all(isinstance(entries, list | tuple) for entries in lists):
        raise _misfit("it holds something other than lists")
    names = [*mapping["floats"], *mapping["derived"]]
    for key, fields in _FIELDS.items():
        for entry in mapping[key]:
            if not isinstance(entry, Mapping) or set(entry) != fields:
                raise _misfit(f"an entry of {key} is not known here")
            axis = entry.get("axis")
            if axis is not None and (type(axis) is not int or not 0 <= axis < 8):
                raise _misfit(f"an entry of {key} has no such axis")
            names += [entry[name] for name in fields - {"axis"}]
    if not all(isinstance(name, str) for name in names):
        raise _misfit("a name is not text")


def _activation(low: np.float32, high: np.float32) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    # Zero must have a level of its own: padding and Relu make it often.
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    scale = (np.float64(high) - np.float64(low)) / 255
    if scale < _SMALLEST:
        return np.array(1, np.float32), np.array(0, np.int8)
    return np.array(scale, np.float32), np.array(np.round(-128 - low / scale), np.int8)


def _weight_scale(weight: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
    if axis is not None and axis >= weight.ndim:
        raise _misfit(f"a weight of shape {weight.shape} has no axis {axis}")
    others = tuple(i for i in range(weight.ndim) if i != axis)
    greatest = np.maximum(weight.max(axis=others), -weight.min(axis=others))
    scale = np.asarray(greatest, np.float64) / _WEIGHT_LIMIT
    return np.where(scale < _SMALLEST, 1, scale).astype(np.float32)


def _wide_enough(
    weight_scale: NDArray[np.float32], input_scale: NDArray[np.float32], bias: NDArray[np.float32]
) -> NDArray[np.float32]:
    if bias.shape != weight_scale.shape:
        raise _misfit(f"a bias of shape {bias.shape} belongs to {weight_scale.shape} channels")
    # A bias is an integer of input_scale * weight_scale. Where that is so small that the integer would leave
    # 32 bits, the weights get coarser.
    smallest = np.float32(1.0001) * (2 * np.abs(bias)) / np.float64(2**32 - 2)
    wide = weight_scale.astype(np.float64)
    candidate = input_scale.astype(np.float64) * wide
    ratio = smallest / np.where(candidate > 0, candidate, 1)
    return np.where((candidate > 0) & (candidate < smallest), wide * ratio, wide).astype(np.float32)


def _bias(bias: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.int32]:
    levels = np.round(bias.astype(np.float64) / scale.astype(np.float64))
    return np.clip(levels, -(2.0**31), 2.0**31 - 1).astype(np.int32)


def _weight(weight: NDArray[np.float32], scale: NDArray[np.float32], axis: int | None) -> NDArray[np.int8]:
    if axis is not None:
        scale = scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    levels = weight / scale
    np.rint(levels, out=levels)
    np.clip(levels, -128, 127, out=levels)
    return levels.astype(np.int8)


def _misfit(what: str) -> PackageError:
    return PackageError(f"{INT8_MAPPING} does not fit the model ({what}): build the package anew.")

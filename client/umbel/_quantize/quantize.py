"""Quantize a model on the device, after it has learned here: onnxruntime and numpy, no onnx, no torch."""

from __future__ import annotations

import time
from typing import Any

from numpy.typing import NDArray

from umbel._data.examples import Examples
from umbel._releases.choice import Choice, Clock, choose
from umbel.engines.onnx import OnnxEngine, open_session
from umbel_proto import quantization
from umbel_proto.answers import checked_answers
from umbel_proto.errors import UsageError
from umbel_proto.manifest import CALIBRATION, QUANTIZATION, FloatVector
from umbel_proto.package import Package
from umbel_proto.quantization import INT8_TENSORS, Ranges, parse_mapping

MIN_HELD_BACK = 16


def quantize(package: Package, parameters: FloatVector, inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the int8 tensors of new parameters, by name: what ``int8.safetensors`` holds of the package's.

    It takes milliseconds: a few runs of the calibration graph, and rounding.

    Args:
        package: The model.
        parameters: Its new parameters, shape (dim,).
        inputs: Inputs of this device to calibrate with, shape (n, *example), n >= 16, in the contract's unit.

    Raises:
        UsageError: The package has no int8 form, the inputs are too few or break the contract, or the
            parameters are not finite.
        PackageError: The package's parts do not fit together.
    """
    return calibrated(package, parameters, inputs)[0]


def calibrated(
    package: Package, parameters: FloatVector, inputs: NDArray[Any]
) -> tuple[dict[str, NDArray[Any]], Ranges]:
    """Return the int8 tensors as ``quantize`` does, and the ranges they were made from, (activations, 2)."""
    manifest = package.manifest
    if CALIBRATION not in manifest.graphs:
        raise UsageError(
            f"Model {manifest.model} {manifest.version} has no calibration graph: it cannot be quantized here."
        )
    file = manifest.graphs[CALIBRATION]
    arrays = package.split(parameters)
    x, _ = manifest.contract.check(inputs)
    session = open_session(package.file(file), file, arrays, optimized=False)
    mapping = parse_mapping(package.file(manifest.documents[QUANTIZATION]))
    ranges, derived = quantization.calibrate(session.run, mapping, x)
    return quantization.fill(mapping, {**arrays, **derived}, ranges), ranges


def choose_quantized(
    package: Package,
    parameters: FloatVector,
    tensors: dict[str, NDArray[Any]],
    held_back: Examples,
    *,
    clock: Clock = time.perf_counter,
) -> Choice:
    """Time the float and the int8 form of new parameters here, compare what they say, and name the one to run.

    Args:
        package: The model.
        parameters: Its new parameters, shape (dim,).
        tensors: What ``quantize`` made of them.
        held_back: At least 16 samples of this device that were neither trained nor calibrated on.
        clock: What they are timed with, seconds.

    Raises:
        UsageError: The package has no int8 form, or the samples are too few or break the contract.
        PackageError: onnxruntime cannot run a graph.
    """
    manifest = package.manifest
    quantized = int8_variant(package)
    if len(held_back) < MIN_HELD_BACK:
        raise UsageError(
            f"{len(held_back)} samples are too few to judge int8 by: hold back at least {MIN_HELD_BACK}."
        )
    x, _ = manifest.contract.check(held_back.x)
    reference = manifest.default_variant
    engines = {
        reference: OnnxEngine(package, reference, package.split(parameters)),
        quantized: OnnxEngine(package, quantized, tensors),
    }
    y = None if held_back.y is None else checked_answers(manifest, held_back.y, len(x))
    return choose(engines, x, y, reference=reference, kind=manifest.kind, clock=clock)


def int8_variant(package: Package) -> str:
    """Return the variant that int8 tensors go into.

    Raises:
        UsageError: The package has none.
    """
    manifest = package.manifest
    for name, form in manifest.variants.items():
        if form.weights == INT8_TENSORS:
            return name
    raise UsageError(f"Model {manifest.model} {manifest.version} has no int8 variant to choose.")

"""Quantize a model on the device, after it has learned here: onnxruntime and numpy, no onnx, no torch."""

from __future__ import annotations

import time
from typing import Any

from numpy.typing import NDArray

from umbel._choice import Choice, Clock, choose
from umbel._data import Examples
from umbel.engines.onnx import OnnxEngine, open_session
from umbel_proto import quantization
from umbel_proto.errors import UsageError
from umbel_proto.manifest import CALIBRATION, QUANTIZATION, FloatVector
from umbel_proto.package import Package
from umbel_proto.quantization import INT8_TENSORS, parse_mapping

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
    return quantization.quantize(session.run, mapping, arrays, x)


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
    quantized = [name for name, form in manifest.variants.items() if form.weights == INT8_TENSORS]
    if not quantized:
        raise UsageError(f"Model {manifest.model} {manifest.version} has no int8 variant to choose.")
    if len(held_back) < MIN_HELD_BACK:
        raise UsageError(
            f"{len(held_back)} samples are too few to judge int8 by: hold back at least {MIN_HELD_BACK}."
        )
    x, _ = manifest.contract.check(held_back.x)
    reference = manifest.default_variant
    engines = {
        reference: OnnxEngine(package, reference, package.split(parameters)),
        quantized[0]: OnnxEngine(package, quantized[0], tensors),
    }
    return choose(engines, x, held_back.y, reference=reference, clock=clock)

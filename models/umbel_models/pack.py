"""Make signed model packages: the first of a task, and the next version from new parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from umbel_models.quantize import quantize
from umbel_models.runtime import Session
from umbel_models.task import Task
from umbel_proto.errors import UsageError
from umbel_proto.keys import SigningKey
from umbel_proto.manifest import (
    BATCH,
    CLIPPED_GRADIENT,
    EXPLAIN,
    GRADIENT,
    INSIDE,
    FloatVector,
    Manifest,
    Parameter,
    Scalar,
    TensorSpec,
    Variant,
)
from umbel_proto.package import GOLDEN, PARAMETERS, Package, load_tensors, write_package

GOLDEN_INPUTS = 16
# Other processors round differently, in the last bits of a float.
FP32_TOLERANCE = 1e-4
# A float that rounds to the neighbouring int8 level moves what follows by a level: 1/127 of its range a
# layer. A wrong kernel or a damaged weight moves it by much more.
INT8_TOLERANCE = 0.1
OUTPUTS = ("probabilities", "logits")
GRAPH_FILES = {GRADIENT: "grad.onnx", CLIPPED_GRADIENT: "dpgrad.onnx", EXPLAIN: "explain.onnx"}


def build(
    task: Task,
    *,
    key: SigningKey,
    version: int = 1,
    calibration: NDArray[np.float32] | None = None,
    lineage: Mapping[str, Scalar] | None = None,
) -> bytes:
    """Return the first package of a task, with its initial parameters.

    Args:
        task: The task.
        key: The fleet's release key.
        version: The version to give it, >= 1.
        calibration: Inputs to quantize with and to take golden vectors from; by default the task's own.
        lineage: Facts about where it comes from.

    Raises:
        UsageError: The calibration inputs break the task's data contract, or are too few.
        PackageError: The parts do not fit together.
    """
    if task.committed is None:
        raise UsageError(f"Task {task.model} has no graphs yet: export it first.")
    files = task.committed()
    parameters = load_tensors(files[PARAMETERS], PARAMETERS)
    trainable = _order(files["grad.onnx"])
    frozen = sorted(parameters.keys() - set(trainable))
    inputs = tuple(TensorSpec(f.name, f.dtype, (BATCH, *f.shape)) for f in task.contract.fields)
    shape = (BATCH, len(task.labels))
    manifest = Manifest(
        model=task.model,
        version=version,
        parameters=tuple(Parameter(name, parameters[name].shape) for name in trainable),
        frozen=tuple(Parameter(name, parameters[name].shape) for name in frozen),
        inputs=inputs,
        outputs=tuple(TensorSpec(name, "float32", shape) for name in OUTPUTS),
        labels=task.labels,
        contract=task.contract,
        variants={
            "fp32": Variant("onnx", "infer.onnx", weights=PARAMETERS, tolerance=FP32_TOLERANCE),
            "int8": Variant("onnx", "int8.onnx", weights=INSIDE, tolerance=INT8_TOLERANCE),
        },
        default_variant="fp32",
        decision_threshold=task.decision_threshold,
        graphs={purpose: name for purpose, name in GRAPH_FILES.items() if name in files},
        lineage={"task": task.model, **(lineage or {})},
    )
    if calibration is None:
        calibration = task.data().calibration.x
    return _pack(manifest, files, parameters, calibration, key)


def repack(
    base: Package,
    parameters: FloatVector,
    *,
    calibration: NDArray[np.float32],
    version: int,
    key: SigningKey,
    lineage: Mapping[str, Scalar] | None = None,
) -> bytes:
    """Return the package of new parameters for the model of ``base``: quantized and with golden vectors anew.

    Args:
        base: The package whose graphs, labels and contract to keep.
        parameters: The new parameters, shape (dim,).
        calibration: Inputs to quantize with and to take golden vectors from, shape (n, *example), n >= 16.
        version: The new version, greater than the base's.
        key: The fleet's release key.
        lineage: Facts about where the parameters come from; the base's hash and version are added.

    Raises:
        UsageError: The parameters are not the model's, the version is not newer, or the calibration
            inputs break the contract or are too few.
        PackageError: The parts do not fit together.
    """
    manifest = base.manifest
    if version <= manifest.version:
        raise UsageError(f"Version {version} is not newer than {manifest.version}, which it is made from.")
    facts = {**(lineage or {}), "base_sha256": base.sha256, "base_version": manifest.version}
    files = {name: base.file(name) for name in manifest.files}
    manifest = replace(manifest, version=version, lineage=facts)
    return _pack(manifest, files, base.split(parameters), calibration, key)


def _pack(
    manifest: Manifest,
    files: Mapping[str, bytes],
    parameters: Mapping[str, NDArray[np.float32]],
    calibration: NDArray[np.float32],
    key: SigningKey,
) -> bytes:
    manifest.part(parameters)  # refuses values that are not finite
    calibration, _ = manifest.contract.check(calibration)
    contents = {
        **files,
        PARAMETERS: safetensors.numpy.save(dict(parameters)),
        "int8.onnx": quantize(files["infer.onnx"], parameters, calibration),
    }
    contents[GOLDEN] = golden(manifest, contents, calibration)
    return write_package(manifest, contents, key)


def golden(
    manifest: Manifest,
    files: Mapping[str, bytes],
    inputs: NDArray[np.float32],
) -> bytes:
    """Return golden vectors: some inputs, and what every variant makes of them here.

    The inputs are the ones every variant is surest of, in turn for each label, so that a device whose
    outputs lie within tolerance also gives the same labels.
    """
    outputs: dict[str, dict[str, NDArray[np.float32]]] = {}
    for name, variant in manifest.variants.items():
        opened = Session(files[variant.file], _weights(files, variant))
        outputs[name] = dict(zip(OUTPUTS, opened.run(list(OUTPUTS), {"x": inputs}), strict=True))
    rows = _surest([variant["probabilities"] for variant in outputs.values()])
    chosen = {
        f"{name}.{output}": values[output][rows] for name, values in outputs.items() for output in OUTPUTS
    }
    return bytes(safetensors.numpy.save({"x": inputs[rows], **chosen}))


def _weights(files: Mapping[str, bytes], variant: Variant) -> dict[str, NDArray[Any]]:
    return {} if variant.weights == INSIDE else load_tensors(files[variant.weights], variant.weights)


def _surest(probabilities: list[NDArray[np.float32]]) -> NDArray[np.int64]:
    margins = []
    for values in probabilities:
        best = np.sort(values, axis=1)
        margins.append(best[:, -1] - best[:, -2])
    order = np.argsort(-np.min(margins, axis=0), kind="stable")
    labels = probabilities[0].argmax(axis=1)
    # The place of each input among those of its label: all first ones come before any second one.
    place = np.empty(len(order), np.int64)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        place[rows] = np.arange(len(rows))
    return np.sort(order[np.argsort(place[order], kind="stable")][:GOLDEN_INPUTS])


def _order(gradient: bytes) -> list[str]:
    import onnx

    names = [value.name for value in onnx.load_from_string(gradient).graph.input]
    return [name for name in names if name not in {"x", "y", "w"}]

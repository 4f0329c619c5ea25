"""onnxruntime, set up for small models on shared processors: one thread that never spins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from umbel.engines import Outputs, Probabilities
from umbel_proto.errors import PackageError
from umbel_proto.package import Package


def open_session(
    graph: bytes,
    what: str,
    parameters: Mapping[str, NDArray[Any]] | None = None,
    *,
    optimized: bool = True,
) -> ort.InferenceSession:
    """Open a graph on one thread.

    Two threads make small models slower, and a spinning one takes a core from the application.

    Args:
        graph: A serialized ONNX model.
        what: Its name, for the error's sentence.
        parameters: Values of its external initializers, by name. onnxruntime copies them.
        optimized: Whether onnxruntime may rearrange the graph. Calibration forbids it: every activation then
            has the bits that onnxruntime's own quantizer sees.

    Raises:
        PackageError: onnxruntime cannot run it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if parameters:
        # np.ascontiguousarray would give a scalar a dimension.
        values = [
            ort.OrtValue.ortvalue_from_numpy(np.asarray(value, order="C")) for value in parameters.values()
        ]
        options.add_external_initializers(list(parameters), values)
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime's exceptions share no other base class
        raise PackageError(
            f"onnxruntime {ort.__version__} cannot run {what}: update umbel, or report the package."
        ) from exc


class OnnxEngine:
    """A variant of a package in onnxruntime.

    Args:
        package: The package.
        variant: One of its variants.
        weights: Arrays to run it with, by name, instead of the package's: what this device has learned.

    Raises:
        PackageError: onnxruntime cannot run its graph.
    """

    name = "onnx"

    def __init__(
        self, package: Package, variant: str, weights: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        form = package.manifest.variants[variant]
        arrays = package.weights(variant) if weights is None else weights
        self._session = open_session(package.file(form.file), form.file, arrays)
        self._input = package.manifest.inputs[0].name
        self._variant = variant

    @property
    def variant(self) -> str:
        """The variant it runs."""
        return self._variant

    def probabilities(self, x: NDArray[Any]) -> Probabilities:
        """Return class probabilities, shape (n, classes), of a batch, shape (n, *example)."""
        result: list[Probabilities] = self._session.run(["probabilities"], {self._input: x})
        return result[0]

    def outputs(self, x: NDArray[Any]) -> Outputs:
        """Return probabilities and logits of a batch, shape (n, *example)."""
        return Outputs(*self._session.run(["probabilities", "logits"], {self._input: x}))

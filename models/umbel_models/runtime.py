"""onnxruntime on the workbench: one thread, external parameters by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from umbel_proto.errors import PackageError


class Session:
    """An opened graph.

    Args:
        graph: A serialized ONNX model.
        parameters: Values of its external initializers, by name.
        optimized: Whether onnxruntime may rearrange the graph. Calibration forbids it: every activation then
            has the bits that onnxruntime's own quantizer sees.

    Raises:
        PackageError: onnxruntime cannot run it.
    """

    def __init__(
        self, graph: bytes, parameters: Mapping[str, NDArray[Any]] | None = None, *, optimized: bool = True
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if not optimized:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if parameters:
            values = [np.asarray(value, order="C") for value in parameters.values()]
            options.add_external_initializers(
                list(parameters), [ort.OrtValue.ortvalue_from_numpy(value) for value in values]
            )
        try:
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # onnxruntime's exceptions share no other base class
            raise PackageError(f"onnxruntime cannot open the graph: {exc}") from exc

    def run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        """Return the outputs asked for, in their order."""
        results: list[NDArray[Any]] = self._session.run(list(outputs), dict(inputs))
        return results

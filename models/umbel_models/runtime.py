"""onnxruntime on the workbench: one thread, external parameters by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from umbel_proto.errors import PackageError


def session(
    graph: bytes, parameters: Mapping[str, NDArray[np.float32]] | None = None
) -> ort.InferenceSession:
    """Open a graph, with its external parameters if it has any.

    Raises:
        PackageError: onnxruntime cannot run it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if parameters:
        values = [
            ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)) for value in parameters.values()
        ]
        options.add_external_initializers(list(parameters), values)
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime's exceptions share no other base class
        raise PackageError(f"onnxruntime cannot open the graph: {exc}") from exc

"""Quantize a model to int8 on the workbench: static, calibrated, QDQ form.

Weights and activations become int8, each output channel of a convolution with its own scale. Weights use
seven of the eight bits: products of pairs then fit 16 bits, so processors without VNNI instructions
compute the same integers as those with them, instead of saturating.

Source: onnxruntime documentation, "Quantize ONNX models", on reduce_range.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from umbel_models.graphs.model import finish
from umbel_proto.errors import UsageError

MIN_CALIBRATION = 16
_BATCH = 16


def quantize(
    infer: bytes, parameters: Mapping[str, NDArray[np.float32]], calibration: NDArray[np.float32]
) -> bytes:
    """Return the int8 graph of an inference graph, complete in itself: x -> probabilities, logits.

    Args:
        infer: The graph, its parameters external.
        parameters: Their values, by name.
        calibration: Inputs like those the model will meet, shape (n, *example), n >= 16.

    Raises:
        UsageError: There are too few inputs to calibrate with.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if len(calibration) < MIN_CALIBRATION:
        raise UsageError(f"Calibration has {len(calibration)} inputs: give at least {MIN_CALIBRATION}.")

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """The calibration inputs, a few at a time."""

        def __init__(self) -> None:
            self._batches: Iterator[NDArray[np.float32]] = iter(
                np.array_split(calibration, -(-len(calibration) // _BATCH))
            )

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"x": batch}

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantizer logs advice to the root logger
    try:
        with tempfile.TemporaryDirectory() as folder:
            whole, ready, out = (
                str(Path(folder, name)) for name in ("whole.onnx", "ready.onnx", "int8.onnx")
            )
            onnx.save(embed(infer, parameters), whole)
            quant_pre_process(whole, ready, skip_symbolic_shape=True)
            quantize_static(
                ready,
                out,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Gemm", "MatMul", "MaxPool", "Relu", "Reshape", "Flatten"],
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
            model = onnx.load(out)
    finally:
        root.setLevel(level)
    return bytes(finish(model).SerializeToString(deterministic=True))


def embed(infer: bytes, parameters: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """Return an inference graph with its parameters inside."""
    model = onnx.load_from_string(infer)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(parameters[tensor.name], tensor.name))
    return model

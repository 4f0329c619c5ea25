"""onnxruntime's own quantizer for a bare .onnx file. It needs onnx.

The form is that of umbel's packages: QDQ, static, every channel of a weight with its own scale, seven bits of weights,
so that processors without VNNI compute the same.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

_OPERATORS = ["Conv", "Gemm", "MatMul", "MaxPool", "Relu", "Reshape", "Flatten"]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """The samples, a few at a time."""

    def __init__(self, name: str, blocks: list[NDArray[Any]]) -> None:
        self._feeds: Iterator[dict[str, NDArray[Any]]] = ({name: block} for block in blocks)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._feeds, None)


def quantized(file: Path, name: str, blocks: list[NDArray[Any]]) -> bytes:
    """Return the int8 form of a file.

    Args:
        file: The float one.
        name: Its input.
        blocks: Samples to calibrate with, each as the graph takes a batch.
    """
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantizer logs advice to the root logger
    try:
        with tempfile.TemporaryDirectory() as folder:
            named, ready, out = (
                str(Path(folder, stage)) for stage in ("named.onnx", "ready.onnx", "int8.onnx")
            )
            model = onnx.load(file)
            for number, node in enumerate(model.graph.node):
                node.name = f"n{number}"  # without names the quantizer gives operators each other's biases
            onnx.save(model, named)
            quant_pre_process(named, ready, skip_symbolic_shape=True)
            quantize_static(
                ready,
                out,
                _Reader(name, blocks),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_OPERATORS,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
            return Path(out).read_bytes()
    finally:
        root.setLevel(level)

"""Make the int8 tensors of a package anew from new parameters, after a round: onnxruntime and numpy, no onnx."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_models.runtime import Session
from umbel_proto.quantization import CALIBRATION_GRAPH, INT8_MAPPING, FloatArrays, parse_mapping, quantize


def requantize(
    files: Mapping[str, bytes], parameters: FloatArrays, calibration: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """Return the tensors of ``int8.safetensors``, by name, for new parameters.

    ``int8.onnx`` itself stays as it is: a repacked version differs in this one file.

    Args:
        files: A package's files; ``calib.onnx`` and ``int8.json`` are read.
        parameters: All parameters, by name, the frozen ones too.
        calibration: Inputs like those the model will meet, shape (n, *example), n >= 16.

    Raises:
        UsageError: There are too few inputs, or the parameters are not finite.
        PackageError: The files do not fit each other or the parameters.
    """
    run = Session(files[CALIBRATION_GRAPH], parameters, optimized=False).run
    return quantize(run, parse_mapping(files[INT8_MAPPING]), parameters, calibration)

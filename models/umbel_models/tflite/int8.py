"""int8 TFLite files: calibrated, static, float at both ends.

The ranges of activations are the least and greatest value met in calibration. The quantizer's default, a
moving average of them, clips: it takes a digits network from .977 to .717.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import numpy as np
from ai_edge_quantizer.calibrator import Calibrator
from ai_edge_quantizer.qtyping import TFLOperationName
from ai_edge_quantizer.quantizer import Quantizer
from ai_edge_quantizer.recipe_manager import RecipeManager
from ai_edge_quantizer.utils.qsv_utils import min_max_update
from numpy.typing import NDArray

from umbel_models.tflite.errors import UnsupportedOperatorError
from umbel_models.tflite.flatbuffer import ATTENTION, EXACT, RECURRENT, SIGNATURE, mended, scopes
from umbel_models.tflite.interpret import ends
from umbel_proto.errors import UsageError

MIN_CALIBRATION = 16
_BLOCK = 16
_FLOAT = "no_quantize"  # ai-edge-quantizer's name of it
# Int8 in and out would make callers scale. A probability in 1/256 is no answer to "how sure", and XNNPACK
# overruns its memory where an int8 softmax stands between two outputs and the batch is resized.
_KEPT_FLOAT = (
    TFLOperationName.INPUT,
    TFLOperationName.OUTPUT,
    TFLOperationName.SOFTMAX,
    TFLOperationName.RSQRT,
    TFLOperationName.SQRT,
    TFLOperationName.DIV,
)


def quantized(file: bytes, calibration: NDArray[Any]) -> bytes:
    """Return the int8 form of a file; see ``umbel_models.tflite.quantize``."""
    if len(calibration) < MIN_CALIBRATION:
        raise UsageError(f"Calibration has {len(calibration)} inputs: give at least {MIN_CALIBRATION}.")
    _refuse_what_loses(file)
    recipe = _recipe()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # a bar of progress per second
        warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors.*")
        calibrator = Calibrator(file, num_threads=1, qsv_update_func=min_max_update)
        calibrator.calibrate({SIGNATURE: _blocks(file, calibration)}, recipe)
        made = Quantizer(file, recipe.get_quantization_recipe()).quantize(
            calibrator.get_model_qsvs(), enable_progress_bar=False, enable_progress_report=False
        )
    return mended(bytes(made.quantized_model))


def _refuse_what_loses(file: bytes) -> None:
    found = scopes(file)
    if RECURRENT in found:
        raise UnsupportedOperatorError(
            "int8",
            "the recurrent layers",
            "would make the file larger, for each step has scales of its own",
            "ship this model in float32",
        )
    if ATTENTION in found:
        raise UnsupportedOperatorError(
            "int8",
            "the attention",
            "would make the model about five times slower",
            "ship this model in float32, or quantize it for onnxruntime",
        )


def _recipe() -> RecipeManager:
    recipe = RecipeManager()
    recipe.add_static_config(".*", TFLOperationName.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    for operator in _KEPT_FLOAT:
        recipe.add_quantization_config(".*", operator, algorithm_key=_FLOAT)
    recipe.add_quantization_config(f"^{EXACT}", TFLOperationName.ALL_SUPPORTED, algorithm_key=_FLOAT)
    return recipe


def _blocks(file: bytes, calibration: NDArray[Any]) -> list[dict[str, NDArray[Any]]]:
    """Return the calibration inputs in batches that the file takes. A list: the quantizer reads it twice."""
    at = ends(file)
    size = at.batch or _BLOCK
    padding = np.repeat(calibration[-1:], -len(calibration) % size, axis=0)
    whole = np.concatenate([calibration, padding])
    return [{at.name: whole[begin : begin + size]} for begin in range(0, len(whole), size)]

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
from umbel_models.tflite.interpret import ends, run
from umbel_proto.errors import UsageError

MIN_CALIBRATION = 16
_BLOCK = 16
_FLOAT = "no_quantize"  # ai-edge-quantizer's name of it
_MOST_LOST = 0.2  # of the size of the outputs, on calibration inputs; good models lose 0.01 to 0.05
_KEPT_FLOAT = (
    # Int8 in and out would make callers scale.
    TFLOperationName.INPUT,
    TFLOperationName.OUTPUT,
    # A probability in 1/256 is no answer to "how sure", and XNNPACK overruns its memory where an int8 softmax
    # stands between two outputs and the batch is resized.
    TFLOperationName.SOFTMAX,
    # Eight bits are too few for what these make of small numbers.
    TFLOperationName.RSQRT,
    TFLOperationName.SQRT,
    TFLOperationName.DIV,
    # The quantizer gives their constants the output's scale and fails where the ranks differ.
    TFLOperationName.MAXIMUM,
    TFLOperationName.PADV2,
    TFLOperationName.SELECT_V2,
)


def quantized(file: bytes, calibration: NDArray[Any]) -> bytes:
    """Return the int8 form of a file; see ``umbel_models.tflite.quantize``."""
    if len(calibration) < MIN_CALIBRATION:
        raise UsageError(f"Calibration has {len(calibration)} inputs: give at least {MIN_CALIBRATION}.")
    _refuse_what_loses(file)
    try:
        made = _made(file, calibration)
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as exc:
        raise _refusal("the graph", f"is beyond ai-edge-quantizer ({exc})") from exc
    lost = _lost(file, made, calibration)
    if not lost <= _MOST_LOST:  # also where either is NaN
        raise _refusal("the graph", f"would change the outputs by {lost:.0%}")
    return made


def _made(file: bytes, calibration: NDArray[Any]) -> bytes:
    recipe = _recipe()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # a bar of progress per call
        warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors.*")
        calibrator = Calibrator(file, num_threads=1, qsv_update_func=min_max_update)
        calibrator.calibrate({SIGNATURE: _blocks(file, calibration)}, recipe)
        made = Quantizer(file, recipe.get_quantization_recipe()).quantize(
            calibrator.get_model_qsvs(), enable_progress_bar=False, enable_progress_report=False
        )
    return mended(bytes(made.quantized_model))


def _lost(file: bytes, made: bytes, calibration: NDArray[Any]) -> float:
    """Return how far outputs on the calibration inputs are off: the root mean square, as a share of theirs."""
    names = sorted(ends(file).outputs)
    shares = []
    for expected, actual in zip(run(file, calibration, names), run(made, calibration, names), strict=True):
        size = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
        error = float(np.sqrt(np.mean(np.square(actual - expected, dtype=np.float64))))
        shares.append(error / size if size else error)
    return float(np.max(shares))


def _refuse_what_loses(file: bytes) -> None:
    found = scopes(file)
    if RECURRENT in found:
        raise _refusal("the recurrent layers", "would make the file larger, for each step has its own scales")
    if ATTENTION in found:
        raise _refusal("the attention", "would make the model about five times slower")


def _refusal(what: str, problem: str) -> UnsupportedOperatorError:
    return UnsupportedOperatorError("int8", what, problem, "ship this model in float32")


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

"""ai-edge-quantizer for a bare .tflite file: calibrated, static, float at both ends.

The ranges of activations are the least and greatest value met in calibration: the quantizer's default, a moving
average of them, clips.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer.calibrator import Calibrator
from ai_edge_quantizer.qtyping import TFLOperationName
from ai_edge_quantizer.quantizer import Quantizer
from ai_edge_quantizer.recipe_manager import RecipeManager
from ai_edge_quantizer.utils.qsv_utils import min_max_update
from numpy.typing import NDArray

_SIGNATURE = "serving_default"
_TENSOR_INDEX = 6  # where a TensorMap of the schema keeps its number
_FLOAT = "no_quantize"  # ai-edge-quantizer's name of it
# Callers give and take floats, a probability in 1/256 is no answer to "how sure", and eight bits are too few for what
# the others make of small numbers.
_KEPT_FLOAT = (
    TFLOperationName.INPUT,
    TFLOperationName.OUTPUT,
    TFLOperationName.SOFTMAX,
    TFLOperationName.RSQRT,
    TFLOperationName.SQRT,
    TFLOperationName.DIV,
)


def quantized(file: Path, name: str, blocks: list[NDArray[Any]]) -> bytes:
    """Return the int8 form of a file that has the usual signature.

    Args:
        file: The float one.
        name: Its input.
        blocks: Samples to calibrate with, each as the file takes a batch.
    """
    content = file.read_bytes()
    recipe = RecipeManager()
    recipe.add_static_config(".*", TFLOperationName.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    for operator in _KEPT_FLOAT:
        recipe.add_quantization_config(".*", operator, algorithm_key=_FLOAT)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # a bar of progress per call
        warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors.*")
        calibrator = Calibrator(content, num_threads=1, qsv_update_func=min_max_update)
        # A list: the quantizer reads it twice.
        calibrator.calibrate({_SIGNATURE: [{name: block} for block in blocks]}, recipe)
        made = Quantizer(content, recipe.get_quantization_recipe()).quantize(
            calibrator.get_model_qsvs(), enable_progress_bar=False, enable_progress_report=False
        )
    return _mended(content, bytes(made.quantized_model))


def _mended(before: bytes, after: bytes) -> bytes:
    """Return a quantized file whose signature names its present inputs and outputs.

    The quantizer puts operators of its own between the graph and its ends, and leaves the signature's numbers as
    they were. They are numbers of four bytes: replaced in place, the rest of the file keeps its alignment.
    """
    old, new = schema.Model.GetRootAs(before, 0), schema.Model.GetRootAs(after, 0)
    file = bytearray(after)
    for number in range(new.SignatureDefsLength()):
        was, now = old.SignatureDefs(number), new.SignatureDefs(number)
        graphs = old.Subgraphs(was.SubgraphIndex()), new.Subgraphs(now.SubgraphIndex())
        for entries, ends in (("Inputs", "InputsAsNumpy"), ("Outputs", "OutputsAsNumpy")):
            before_ends, after_ends = (getattr(graph, ends)().tolist() for graph in graphs)
            for place in range(getattr(now, f"{entries}Length")()):
                given, entry = getattr(was, entries)(place), getattr(now, entries)(place)
                index = after_ends[before_ends.index(given.TensorIndex())]
                offset = entry._tab.Offset(_TENSOR_INDEX)
                if offset:
                    at = entry._tab.Pos + offset
                    file[at : at + 4] = index.to_bytes(4, "little")
                elif index:
                    raise ValueError("a number that was zero is not in the file")
    return bytes(file)

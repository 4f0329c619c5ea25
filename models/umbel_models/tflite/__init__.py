"""ONNX to TFLite without TensorFlow, JAX or torch, in float32 and in int8.

Importing this package imports none of its libraries: each function asks for what it needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import MissingExtraError, PackageError

__all__ = ["FLOAT_FILE", "INT8_FILE", "convert", "quantize", "run", "variants", "verify"]

FLOAT_FILE = "infer.tflite"
INT8_FILE = "int8.tflite"
_MOST_OFF = 2e-5  # of an output's greatest value
_COMPARED = 64


def convert(onnx_bytes: bytes, *, batch: int | None) -> bytes:
    """Return an inference graph as a TFLite file with one signature, ``serving_default``.

    The signature's inputs and outputs have the graph's names and shapes, channels first where they were.
    Equal graphs give equal bytes.

    Args:
        onnx_bytes: A serialized ONNX model of opset 13 to 22, float32, its parameters inside.
        batch: Size of the first dimension, where the graph leaves it open; None leaves it open in the file
            too, to be set by resizing the interpreter's input.

    Raises:
        UnsupportedOperatorError: An operator, or a use of one, cannot be written; the message names the
            operator, the node and the cure. It is a ``UsageError``.
        UsageError: The bytes are no such model.
        MissingExtraError: ai-edge-litert or onnx is not installed.
    """
    with _extra("Writing TFLite"):
        from umbel_models.tflite.conversion import write
    return write(onnx_bytes, batch)


def quantize(tflite_bytes: bytes, calibration: NDArray[Any]) -> bytes:
    """Return the int8 form of a file that ``convert`` wrote: float in, float out, the same signature.

    Args:
        tflite_bytes: The file.
        calibration: Inputs like those the model will meet, shape (n, *example), n >= 16.

    Raises:
        UnsupportedOperatorError: The model has recurrent layers or attention, which int8 makes larger or
            slower. It is a ``UsageError``.
        UsageError: There are too few inputs to calibrate with.
        MissingExtraError: ai-edge-quantizer is not installed.
    """
    with _extra("Quantizing TFLite"):
        from umbel_models.tflite.int8 import quantized
    return quantized(tflite_bytes, calibration)


def run(file: bytes, x: NDArray[Any], outputs: Sequence[str]) -> list[NDArray[Any]]:
    """Return outputs of a file in LiteRT, in the order asked for, of inputs of shape (n, *example).

    Raises:
        PackageError: LiteRT cannot run the file.
        MissingExtraError: ai-edge-litert is not installed.
    """
    with _extra("Running TFLite"):
        from umbel_models.tflite import interpret
    return interpret.run(file, x, outputs)


def variants(
    infer: bytes, parameters: Mapping[str, NDArray[Any]], calibration: NDArray[Any]
) -> dict[str, bytes]:
    """Return the TFLite files of a model for its package, weights inside, by file name.

    ``infer.tflite`` has an open batch, or a batch of one where that cannot be written: engines run both.
    ``int8.tflite`` is there unless int8 is refused for such a model.

    Args:
        infer: The inference graph, its parameters external.
        parameters: Their values, by name, frozen ones too.
        calibration: Inputs to quantize with, shape (n, *example), n >= 16.

    Raises:
        UnsupportedOperatorError: The graph cannot be written, not even with a batch of one.
        UsageError: There are too few inputs to calibrate with.
        PackageError: LiteRT computes something else of the file than onnxruntime of the graph.
        MissingExtraError: ai-edge-litert or ai-edge-quantizer is not installed.
    """
    from umbel_models.tflite.errors import UnsupportedOperatorError

    with _extra("Writing TFLite"):
        from umbel_models.quantize import embed
    whole = embed(infer, parameters).SerializeToString(deterministic=True)
    try:
        file = convert(whole, batch=None)
    except UnsupportedOperatorError:
        file = convert(whole, batch=1)
    verify(file, whole, calibration)
    try:
        return {FLOAT_FILE: file, INT8_FILE: quantize(file, calibration)}
    except UnsupportedOperatorError:
        return {FLOAT_FILE: file}


def verify(file: bytes, onnx_bytes: bytes, x: NDArray[Any]) -> None:
    """Compare a float32 file with the graph it was written from.

    Args:
        file: The file.
        onnx_bytes: The graph, its parameters inside, with one input.
        x: Inputs, shape (n, *example), n >= 1. The first 64 are tried, and 64 random ones, each number of which lies
            between the least and the greatest that these inputs have at its place.

    Raises:
        PackageError: An output differs by more than 2e-5 of its greatest value, or LiteRT cannot run the file.
        MissingExtraError: ai-edge-litert or onnx is not installed.
    """
    with _extra("Running TFLite"):
        import onnx

        from umbel_models.runtime import Session
    graph = onnx.load_from_string(onnx_bytes).graph
    names, session = [value.name for value in graph.output], Session(onnx_bytes)
    for what, inputs in (("calibration", x[:_COMPARED]), ("random", _random(x))):
        expected = session.run(names, {graph.input[0].name: inputs})
        for name, made, wanted in zip(names, run(file, inputs, names), expected, strict=True):
            error, scale = float(np.abs(made - wanted).max()), float(np.abs(wanted).max())
            if not error <= _MOST_OFF * scale + 1e-7:  # also where either is NaN
                raise PackageError(
                    f"LiteRT computes {name} of {what} inputs {error:.1e} away from onnxruntime's, of {scale:.1e}: leave "
                    "TFLite out, and report the model."
                )


def _random(x: NDArray[Any]) -> NDArray[Any]:
    """Return random inputs within the range that ``x``, shape (n, *example), has at each place."""
    low, high = x.min(0), x.max(0)
    share = np.random.default_rng(0).random((_COMPARED, *x.shape[1:]))
    return np.asarray(low + share * (high - low), x.dtype)


@contextmanager
def _extra(what: str) -> Iterator[None]:
    """Turn a missing library into a sentence that says what to install."""
    try:
        yield
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("umbel"):
            raise
        raise MissingExtraError("models", what) from exc

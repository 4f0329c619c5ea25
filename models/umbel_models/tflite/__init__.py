"""ONNX to TFLite without TensorFlow, JAX or torch."""

from __future__ import annotations

from umbel_proto.errors import MissingExtraError

__all__ = ["convert"]


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
    try:
        from umbel_models.tflite.conversion import write
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("umbel"):
            raise
        raise MissingExtraError("models", "Writing TFLite") from exc
    return write(onnx_bytes, batch)

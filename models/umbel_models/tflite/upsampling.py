"""What makes images larger: transposed convolutions and resizing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from umbel_models.tflite.flatbuffer import Tensor
from umbel_models.tflite.lowering import Handler, Lowering, last_shape
from umbel_models.tflite.source import FIXED_BATCH, Node

# ONNX coordinates -> (align corners, half pixel centers), by mode.
_COORDINATES: Mapping[tuple[str, str], tuple[bool, bool]] = {
    ("nearest", "asymmetric"): (False, False),
    ("linear", "asymmetric"): (False, False),
    ("linear", "half_pixel"): (False, True),
    ("linear", "pytorch_half_pixel"): (False, True),
    ("linear", "align_corners"): (True, False),
}


def _transposed_conv(ctx: Lowering, node: Node) -> None:
    weight = ctx.constant(node, 1, "weights")
    rank = weight.ndim - 2
    given: dict[str, Any] = dict(node.attributes)
    if rank not in (1, 2):
        raise node.refuse(f"has {rank} spatial dimensions", "use one or two")
    if int(given.get("group", 1)) != 1 or any(each != 1 for each in given.get("dilations", [])):
        raise node.refuse("has groups or dilation", "use groups=1 and dilation=1")
    if given.get("auto_pad", "NOTSET") != "NOTSET":
        raise node.refuse("pads by itself", "give the padding as numbers")
    x = ctx.read(node, 0, last=True)
    if ctx.writer.is_open(x.shape[0]):  # TFLite wants the output's whole shape as a constant
        raise node.refuse("leaves the batch open", FIXED_BATCH)
    if rank == 1:
        weight = weight[:, :, None, :]
    fill = [0] * (2 - rank)
    strides = [1] * (2 - rank) + list(given.get("strides", [1] * rank))
    begin = fill + list(given.get("pads", [0] * 2 * rank)[:rank])
    output = last_shape(ctx.shape(node.outputs[0]))
    channels, kernel = weight.shape[1], weight.shape[2:]
    whole = [(x.shape[1 + axis] - 1) * strides[axis] + kernel[axis] for axis in (0, 1)]
    if any(begin[axis] + output[1 + axis] > whole[axis] for axis in (0, 1)):
        raise node.refuse("pads its output by more than its padding takes", "use a smaller output_padding")
    bias = ctx.optional(node, 2, "biases")
    shape = (x.shape[0], *whole, channels)
    made = ctx.writer.emit(
        "TRANSPOSE_CONV",
        [
            ctx.indices(shape),
            ctx.writer.constant(weight.transpose(1, 2, 3, 0)),
            x,
            ctx.writer.constant(np.zeros(channels, np.float32) if bias is None else bias),
        ],
        shape,
        "float32",
        padding="VALID",
        strideH=strides[0],
        strideW=strides[1],
        fusedActivationFunction="NONE",
    )
    if shape != output:
        made = ctx.part(made, (0, *begin, 0), output)
    ctx.bind(node, made, last=True)


def _resize(ctx: Lowering, node: Node) -> None:
    before, after = ctx.shape(node.inputs[0]), ctx.shape(node.outputs[0])
    if len(before) not in (3, 4) or before[:2] != after[:2]:
        raise node.refuse("resizes other axes than one or two spatial ones", "resize images or sequences")
    mode = str(node.attributes.get("mode", "nearest"))
    coordinates = str(node.attributes.get("coordinate_transformation_mode", "half_pixel"))
    if (mode, coordinates) not in _COORDINATES or (
        mode == "nearest" and node.attributes.get("nearest_mode", "round_prefer_floor") != "floor"
    ):
        raise node.refuse(f"resizes by {mode!r} at {coordinates!r}", "use torch's nearest or bilinear")
    if node.attributes.get("antialias", 0):
        raise node.refuse("smooths before it shrinks", "use antialias=False")
    if len(before) == 3 and coordinates == "pytorch_half_pixel":
        coordinates = "half_pixel"  # they differ where one value is left
    align, half = _COORDINATES[mode, coordinates]
    x: Tensor = ctx.read(node, 0, last=True)
    target = last_shape(after)
    made = ctx.writer.emit(
        "RESIZE_NEAREST_NEIGHBOR" if mode == "nearest" else "RESIZE_BILINEAR",
        [x, ctx.indices(target[1:3])],
        target,
        alignCorners=align,
        halfPixelCenters=half,
    )
    ctx.bind(node, made, last=True)


OPERATORS: Mapping[str, Handler] = {"ConvTranspose": _transposed_conv, "Resize": _resize}

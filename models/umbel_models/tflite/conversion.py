"""From an ONNX graph to a TFLite file, node by node."""

from __future__ import annotations

from collections.abc import Mapping

from umbel_models.tflite import convolution, elementwise, linear, reduction, shaping, upsampling
from umbel_models.tflite.errors import UnsupportedOperatorError
from umbel_models.tflite.flatbuffer import EXACT, Tensor
from umbel_models.tflite.gelu import recognize_gelu
from umbel_models.tflite.lowering import Handler, Lowering
from umbel_models.tflite.masking import recognize_softmax
from umbel_models.tflite.source import Node, Source, check_types, read
from umbel_proto.errors import UsageError

OPERATORS: Mapping[str, Handler] = {
    **convolution.OPERATORS,
    **elementwise.OPERATORS,
    **linear.OPERATORS,
    **reduction.OPERATORS,
    **shaping.OPERATORS,
    **upsampling.OPERATORS,
}
_CURES: Mapping[str, str] = {
    "Einsum": "write it as matmul, transpose and sum",
}
_MIXING = frozenset({"Conv", "ConvTranspose", "Gather", "Gemm", "MatMul"})
_ANY_OTHER = "write the layer with supported operators (docs/reference/tflite.md), or keep this model in ONNX"


def write(onnx_bytes: bytes, batch: int | None) -> bytes:
    """Return the TFLite file of a model; see ``umbel_models.tflite.convert``."""
    source = recognize_softmax(recognize_gelu(read(onnx_bytes, batch)))
    _check_operators(source.nodes)
    check_types(source)
    ctx = Lowering(source)
    inputs = {name: ctx.input(name) for name in source.inputs}
    unscaled = _unscaled(source)
    for node in source.nodes:
        if not ctx.is_absorbed(node):
            with ctx.writer.scope(EXACT if node.outputs[0] in unscaled else node.scope):
                OPERATORS[node.operator](ctx, node)
    makers = {name: node for node in source.nodes for name in node.outputs}
    outputs: dict[str, Tensor] = {}
    for name in source.outputs:
        if name not in makers:
            raise UsageError(f"Output {name!r} is an input or a constant: leave it out of the graph.")
        tensor = ctx.value(makers[name], name)
        # Runtimes expect an output to be nothing else: not an input, not another output.
        taken = tensor in inputs.values() or tensor in outputs.values()
        outputs[name] = ctx.reshape(makers[name], tensor, tensor.shape) if taken else tensor
    return ctx.writer.finish(inputs, outputs)


def _unscaled(source: Source) -> set[str]:
    """Return the values that no weight has mixed yet.

    There a model scales its inputs, which come in units of their own: one range for all of them in int8 would
    leave nothing of the small ones.
    """
    found = set(source.inputs)
    for node in source.nodes:
        computed = [name for name in node.inputs if name and name not in source.constants]
        if node.operator not in _MIXING and found.issuperset(computed):
            found.update(node.outputs)
    return found


def _check_operators(nodes: tuple[Node, ...]) -> None:
    for node in nodes:
        if node.operator not in OPERATORS:
            raise UnsupportedOperatorError(
                node.operator, node.label, "has no TFLite form here", _CURES.get(node.operator, _ANY_OTHER)
            )

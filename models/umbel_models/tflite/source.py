"""An ONNX graph made ready to be written: every shape known, everything constant computed.

An open batch is a prime that stands in for it. The graph is read with two such primes: a size that is the
same multiple of both follows the batch, an equal size is fixed, and a constant that differs depends on the
batch and may only be used as a shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from umbel_models.tflite.errors import UnsupportedOperatorError
from umbel_models.tflite.flatbuffer import RECURRENT, TYPES, Shape
from umbel_models.tflite.recurrence import unroll
from umbel_proto.errors import UsageError

MIN_OPSET = 13  # where Softmax and Squeeze took their present meaning
MAX_OPSET = 22  # the newest whose operators were read for this writer
_STAND_INS = ((10007, 10009), (10037, 10039), (10061, 10067))
_SMALL = 1024  # elements; shape inference needs the values of shapes and axes, not of weights
FIXED_BATCH = "convert with a fixed batch, such as batch=1"


@dataclass(frozen=True, slots=True)
class Node:
    """One ONNX node, its attributes as Python values, and the scope that its tensors are named in."""

    operator: str
    label: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    scope: str = ""

    def refuse(self, problem: str, cure: str) -> UnsupportedOperatorError:
        """Return the error that names this node."""
        return UnsupportedOperatorError(self.operator, self.label, problem, cure)


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A graph whose shapes are known.

    Args:
        nodes: What is left to compute, in order.
        inputs: Names of the graph's inputs.
        outputs: Names of its outputs.
        shapes: Shape of every value, the stand-in where the batch is open.
        types: Type of every value, as numpy names it.
        constants: Values of everything that depends on no input.
        depends_on_batch: Names of the constants that an open batch changes.
        stand_in: The prime that stands for an open batch, or None.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Mapping[str, Shape]
    types: Mapping[str, str]
    constants: Mapping[str, NDArray[Any]]
    depends_on_batch: frozenset[str]
    stand_in: int | None


def read(data: bytes, batch: int | None) -> Source:
    """Read a serialized model; ``batch`` None leaves an open first dimension open.

    Raises:
        UsageError: It is no ONNX model, of an unsupported version, incomplete, or its shapes cannot be
            known.
        UnsupportedOperatorError: A shape depends on the batch in a way TFLite cannot say.
    """
    model = _parse(data)
    parameters = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    if batch is not None or not _open_inputs(model):
        _check_batch(model, batch)
        return _resolve(model, parameters, batch)
    for first, second in _STAND_INS:
        source, other = (_resolve(model, parameters, size) for size in (first, second))
        sizes = {size for shape in source.shapes.values() for size in shape if size % first == 0}
        if not any(size in shape for shape in other.shapes.values() for size in sizes if size):
            return _compare(source, other, first, second)
    raise UsageError("The graph's sizes leave no number to stand for the batch: " + FIXED_BATCH + ".")


def _parse(data: bytes) -> ModelProto:
    try:
        model = onnx.load_from_string(data)
    except Exception as exc:  # protobuf's error has no public base class
        raise UsageError("The bytes are no ONNX model: give a serialized ModelProto.") from exc
    versions = {opset.domain or "": opset.version for opset in model.opset_import}
    if not MIN_OPSET <= versions.get("", 0) <= MAX_OPSET:
        raise UsageError(
            f"The graph is of opset {versions.get('', 0)}: export it with {MIN_OPSET} to {MAX_OPSET}."
        )
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise UsageError(
                f"The values of {tensor.name!r} are outside the graph: embed the parameters first "
                "(umbel_models.quantize.embed)."
            )
    for index, proto in enumerate(model.graph.node):
        if proto.domain:
            raise _node(proto, index).refuse(
                f"is of domain {proto.domain!r}", "export with standard operators only"
            )
    return model


def _real_inputs(graph: GraphProto) -> list[onnx.ValueInfoProto]:
    values = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in values]


def _open_inputs(model: ModelProto) -> list[str]:
    """Return the inputs whose first dimension is open, after checking that no other dimension is."""
    found, symbols = [], set()
    for value in _real_inputs(model.graph):
        if not value.type.tensor_type.HasField("shape"):
            raise UsageError(f"Input {value.name!r} has no shape: export it with one.")
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            if axis:
                raise UsageError(
                    f"Dimension {axis} of input {value.name!r} is open, and only the first may be: "
                    "export it with a fixed size there."
                )
            found.append(value.name)
            symbols.add(dim.dim_param)
    if len(symbols) > 1:
        raise UsageError(
            "The first dimensions of the inputs are different symbols: export them with one batch dimension."
        )
    return found


def _check_batch(model: ModelProto, batch: int | None) -> None:
    if batch is not None and batch < 1:
        raise UsageError(f"A batch of {batch} holds no example: give 1 or more, or None.")
    opened = _open_inputs(model)
    for value in _real_inputs(model.graph):
        dims = value.type.tensor_type.shape.dim
        if batch is not None and not opened and dims and dims[0].dim_value != batch:
            raise UsageError(
                f"Input {value.name!r} was exported with a batch of {dims[0].dim_value}, not {batch}: "
                "export it with a dynamic batch, or give batch=None."
            )


def _resolve(model: ModelProto, parameters: Mapping[str, NDArray[Any]], batch: int | None) -> Source:
    graph, constants = model.graph, dict(parameters)
    inputs = _real_inputs(graph)
    protos = list(graph.node)
    while True:
        shapes, types = _infer(model, inputs, protos, constants, batch)
        left = [proto for proto in protos if not _fold(proto, model, constants, shapes)]
        cells = [unroll(proto, shapes, constants) for proto in left]
        done = len(left) == len(protos) and not any(cells)
        protos = [each for proto, cell in zip(left, cells, strict=True) for each in cell or [proto]]
        if done:
            break
    outputs = tuple(value.name for value in graph.output)
    nodes = prune([_node(proto, i) for i, proto in enumerate(protos)], outputs)
    for name, array in constants.items():
        shapes[name], types[name] = array.shape, array.dtype.name
    for node in nodes:
        for name in (*filter(None, node.inputs), *node.outputs[:1]):
            if name not in shapes:
                raise node.refuse(
                    f"has a value {name!r} of unknown shape", "export the model without data-dependent shapes"
                )
    names = tuple(value.name for value in inputs)
    return Source(tuple(nodes), names, outputs, shapes, types, constants, frozenset(), None)


def prune(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    """Return the nodes that an output depends on."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _infer(
    model: ModelProto,
    inputs: Sequence[onnx.ValueInfoProto],
    protos: Sequence[NodeProto],
    constants: Mapping[str, NDArray[Any]],
    batch: int | None,
) -> tuple[dict[str, Shape], dict[str, str]]:
    """Infer shapes on a copy that carries large constants by type only."""
    copies = []
    for value in inputs:
        copy = onnx.ValueInfoProto()
        copy.CopyFrom(value)
        for dim in copy.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value") or dim.dim_value <= 0:
                assert batch is not None
                dim.dim_value = batch
        copies.append(copy)
    small = []
    used = {name for proto in protos for name in proto.input}
    for name, array in constants.items():
        if name in used and array.size <= _SMALL:
            small.append(numpy_helper.from_array(array, name))
        elif name in used:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            copies.append(helper.make_tensor_value_info(name, kind, array.shape))
    produced = [name for proto in protos for name in proto.output if name]
    ends = [onnx.ValueInfoProto(name=name) for name in produced[-1:]]
    copy_graph = helper.make_graph(protos, "shapes", copies, ends, small)
    light = helper.make_model(copy_graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        inferred = onnx.shape_inference.infer_shapes(light, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as exc:
        raise UsageError(f"The shapes of the graph cannot be inferred: {exc}") from exc
    shapes: dict[str, Shape] = {}
    types: dict[str, str] = {}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type:
            types[value.name] = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return shapes, types


def _fold(
    proto: NodeProto,
    model: ModelProto,
    constants: dict[str, NDArray[Any]],
    shapes: Mapping[str, Shape],
) -> bool:
    """Compute a node whose inputs are constant, or that only asks for a known shape."""
    if proto.op_type == "Shape" and proto.input[0] in shapes:
        ends = {attribute.name: attribute.i for attribute in proto.attribute}
        sizes = shapes[proto.input[0]][ends.get("start", 0) : ends.get("end")]
        constants[proto.output[0]] = np.array(sizes, np.int64)
        return True
    names = [name for name in proto.input if name]
    if any(name not in constants for name in names) or (not names and proto.op_type != "Constant"):
        return False
    if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in proto.attribute):
        return False
    graph = helper.make_graph(
        [proto],
        "constant",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(constants[name].dtype), constants[name].shape
            )
            for name in dict.fromkeys(names)
        ],
        [onnx.ValueInfoProto(name=name) for name in proto.output if name],
    )
    single = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    values = ReferenceEvaluator(single).run(None, {name: constants[name] for name in names})
    constants.update(zip((name for name in proto.output if name), map(np.asarray, values), strict=True))
    return True


def _compare(source: Source, other: Source, first: int, second: int) -> Source:
    changed = frozenset(
        name
        for name, array in source.constants.items()
        if name not in other.constants
        or (array is not other.constants[name] and not np.array_equal(array, other.constants[name]))
    )
    for node in source.nodes:
        for name in (*filter(None, node.inputs), *node.outputs[:1]):
            for size, again in zip(source.shapes[name], other.shapes.get(name, ()), strict=True):
                if size != again and size * second != again * first:
                    raise node.refuse(f"has a size that depends on the batch in {name!r}", FIXED_BATCH)
    return replace(source, depends_on_batch=changed, stand_in=first)


def _node(proto: NodeProto, index: int) -> Node:
    attributes = {}
    for attribute in proto.attribute:
        value = helper.get_attribute_value(attribute)
        attributes[attribute.name] = value.decode() if isinstance(value, bytes) else value
    label = proto.name or next(filter(None, proto.output), f"#{index}")
    scope = RECURRENT if proto.doc_string == RECURRENT else ""
    return Node(proto.op_type, label, tuple(proto.input), tuple(proto.output), attributes, scope)


def check_types(source: Source) -> None:
    """Refuse values of types that are not written.

    Raises:
        UnsupportedOperatorError: A node reads or makes one.
    """
    for node in source.nodes:
        for name in (*filter(None, node.inputs), *node.outputs[:1]):
            if source.types.get(name, "float32") not in TYPES:
                raise node.refuse(
                    f"has a value {name!r} of type {source.types[name]}", "export the model in float32"
                )

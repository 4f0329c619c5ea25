"""A TFLite file under construction. The only importer of the schema that ai-edge-litert generates.

Shapes are concrete here. Where the batch is open, a prime stands in for it, and every multiple of that
prime is written as -1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

Shape = tuple[int, ...]

SIGNATURE = "serving_default"  # the key that TensorFlow's own converter gives the main signature
# Scopes: what names of tensors begin with where int8 must know what they are part of.
EXACT = "exact/"
"""What int8 would spoil: squares, roots, logarithms, and inputs in units of their own."""
RECURRENT = "recurrent/"
ATTENTION = "attention/"
_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16  # of constants, as the schema demands: kernels load them with vector instructions
_TYPES: Mapping[str, int] = {
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "bool": schema.TensorType.BOOL,
}
TYPES = frozenset(_TYPES)
_TYPE_NAMES = {**{number: name for name, number in _TYPES.items()}, schema.TensorType.INT8: "int8"}
_OPTIONS: Mapping[str, str] = {
    "ADD": "AddOptions",
    "ARG_MAX": "ArgMaxOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "CAST": "CastOptions",
    "CONCATENATION": "ConcatenationOptions",
    "CONV_2D": "Conv2DOptions",
    "CUMSUM": "CumsumOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DIV": "DivOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "GATHER": "GatherOptions",
    "GELU": "GeluOptions",
    "LEAKY_RELU": "LeakyReluOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "MIRROR_PAD": "MirrorPadOptions",
    "MUL": "MulOptions",
    "REDUCE_MAX": "ReducerOptions",
    "REDUCE_MIN": "ReducerOptions",
    "RESHAPE": "ReshapeOptions",
    "RESIZE_BILINEAR": "ResizeBilinearOptions",
    "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions",
    "SOFTMAX": "SoftmaxOptions",
    "STRIDED_SLICE": "StridedSliceOptions",
    "SUB": "SubOptions",
    "SUM": "ReducerOptions",
    "TRANSPOSE_CONV": "TransposeConvOptions",
}
# Version 1 of these reads int8 as it does float32.
_SAME_IN_INT8 = frozenset({
    "DIV", "HARD_SWISH", "LEAKY_RELU", "PRELU", "QUANTIZE", "RELU_N1_TO_1", "RESHAPE", "SELECT_V2", "SQRT",
    "SQUEEZE",
})  # fmt: skip
_ENUMS: Mapping[str, Any] = {
    "padding": schema.Padding,
    "fusedActivationFunction": schema.ActivationFunctionType,
    "mode": schema.MirrorPadMode,
    "inDataType": schema.TensorType,
    "outDataType": schema.TensorType,
    "outputType": schema.TensorType,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the file: its index, its shape and its numpy type's name."""

    index: int
    shape: Shape
    dtype: str


class _AlignedBuffer(schema.BufferT):  # type: ignore[misc]
    # The generated class forgets the alignment that the schema asks for.
    def Pack(self, builder: Any) -> int:  # noqa: N802
        data = np.asarray(self.data, np.uint8)
        builder.StartVector(1, len(data), _ALIGNMENT)
        builder.head = builder.head - len(data)
        builder.Bytes[builder.head : builder.head + len(data)] = data.tobytes()
        vector = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, vector)
        return int(schema.BufferEnd(builder))


class Writer:
    """Collects tensors and operators; ``finish`` returns the file.

    Args:
        stand_in: The number that stands for an open batch, or None where every shape is fixed.
    """

    def __init__(self, stand_in: int | None) -> None:
        self._stand_in = stand_in
        self._buffers = [schema.BufferT()]  # buffer 0 is empty: it means "no constant"
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: dict[tuple[str, int], int] = {}
        self._constants: dict[tuple[Shape, str, bytes], Tensor] = {}
        self._scope = ""

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Let the names of all tensors added in this context begin with ``name``; the outermost scope counts."""
        outer, self._scope = self._scope, self._scope or name
        try:
            yield
        finally:
            self._scope = outer

    def is_open(self, size: int) -> bool:
        """Return whether a dimension depends on an open batch."""
        return self._stand_in is not None and size > 0 and size % self._stand_in == 0

    def signature(self, shape: Sequence[int]) -> list[int]:
        """Return a shape as the file gives it: -1 where the batch is open."""
        return [-1 if self.is_open(size) else int(size) for size in shape]

    def tensor(self, shape: Sequence[int], dtype: str, *, name: str | None = None, buffer: int = 0) -> Tensor:
        """Add a tensor; unnamed ones get a number."""
        made = schema.TensorT()
        signature = self.signature(shape) if not buffer else [int(size) for size in shape]
        made.name = (name or f"{self._scope}t{len(self._tensors)}").encode()
        made.type = _TYPES[dtype]
        made.shape = [1 if size == -1 else size for size in signature]
        if -1 in signature:
            made.shapeSignature = signature
        made.buffer = buffer
        self._tensors.append(made)
        return Tensor(len(self._tensors) - 1, tuple(int(size) for size in shape), dtype)

    def constant(self, array: NDArray[Any]) -> Tensor:
        """Return the tensor of a constant; equal constants are stored once."""
        data = np.ascontiguousarray(array).tobytes()
        key = (tuple(array.shape), array.dtype.name, data)
        if key not in self._constants:
            buffer = _AlignedBuffer()
            buffer.data = np.frombuffer(data, np.uint8)
            self._buffers.append(buffer)
            self._constants[key] = self.tensor(array.shape, array.dtype.name, buffer=len(self._buffers) - 1)
        return self._constants[key]

    def emit(
        self,
        operator: str,
        inputs: Sequence[Tensor],
        shape: Sequence[int],
        dtype: str | None = None,
        **options: Any,
    ) -> Tensor:
        """Add an operator with one output and return that output.

        Args:
            operator: A name of the schema's ``BuiltinOperator``.
            inputs: Its inputs, in order.
            shape: The output's shape.
            dtype: The output's type; by default that of the first input.
            options: Fields of the operator's options table; enumerations by name.
        """
        output = self.tensor(shape, dtype or inputs[0].dtype)
        made = schema.OperatorT()
        made.opcodeIndex = self._code(operator, version(operator, inputs, options))
        made.inputs = [tensor.index for tensor in inputs]
        made.outputs = [output.index]
        if operator in _OPTIONS:
            kind = _OPTIONS[operator]
            made.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            made.builtinOptions = getattr(schema, f"{kind}T")()
            for field, value in options.items():
                known = getattr(_ENUMS[field], value) if field in _ENUMS else value
                assert hasattr(made.builtinOptions, field), (operator, field)
                setattr(made.builtinOptions, field, known)
        self._operators.append(made)
        return output

    def finish(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> bytes:
        """Return the file, with one signature that names its inputs and outputs."""
        graph = schema.SubGraphT()
        graph.name = b"main"
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs = [tensor.index for tensor in inputs.values()]
        graph.outputs = [tensor.index for tensor in outputs.values()]
        signature = schema.SignatureDefT()
        signature.signatureKey = SIGNATURE.encode()
        signature.subgraphIndex = 0
        signature.inputs, signature.outputs = _maps(inputs), _maps(outputs)
        model = schema.ModelT()
        model.version = 3  # of the schema
        model.description = b"umbel"
        model.operatorCodes = [_operator_code(*key) for key in self._codes]
        model.subgraphs, model.buffers, model.signatureDefs = [graph], self._buffers, [signature]
        return _serialized(model)

    def _code(self, operator: str, number: int) -> int:
        return self._codes.setdefault((operator, number), len(self._codes))


def mended(file: bytes) -> bytes:
    """Return a file of ours as it should be after ai-edge-quantizer has changed its operators and constants.

    Operators get the versions that their present types need, constants their alignment, and the signature
    the graph's present inputs and outputs, in whose order it was written.
    """
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(file, 0))
    [graph], [signature] = model.subgraphs, model.signatureDefs
    for entries, tensors in ((signature.inputs, graph.inputs), (signature.outputs, graph.outputs)):
        for entry, index in zip(entries, tensors, strict=True):
            entry.tensorIndex = index
    buffers = []
    for given in model.buffers:
        # Of a large file the quantizer puts constants behind the flatbuffer and says where.
        data = given.data if not given.offset else np.frombuffer(file, np.uint8, given.size, given.offset)
        buffer = schema.BufferT()
        if data is not None and len(data):
            buffer = _AlignedBuffer()
            buffer.data = data
        buffers.append(buffer)
    model.buffers = buffers
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()}
    codes: dict[tuple[str, int], int] = {}
    for graph in model.subgraphs:
        for operator in graph.operators:
            name = names[model.operatorCodes[operator.opcodeIndex].builtinCode]
            options = {} if operator.builtinOptions is None else vars(operator.builtinOptions)
            inputs = [
                Tensor(i, tuple(graph.tensors[i].shape), _TYPE_NAMES.get(graph.tensors[i].type, "other"))
                for i in operator.inputs
            ]
            number = version(name, inputs, options)
            if name == "MUL" and inputs[0].dtype == "int8":
                scales = [
                    graph.tensors[i].quantization.scale[0] for i in (*operator.inputs, *operator.outputs)
                ]
                number = 3 if scales[0] * scales[1] / scales[2] >= 1 else 2
            operator.opcodeIndex = codes.setdefault((name, number), len(codes))
    model.operatorCodes = [_operator_code(*key) for key in codes]
    return _serialized(model)


def scopes(file: bytes) -> frozenset[str]:
    """Return the scopes that a file was written with: ``EXACT``, ``RECURRENT``, ``ATTENTION``."""
    graph = schema.Model.GetRootAs(file, 0).Subgraphs(0)
    names = [graph.Tensors(i).Name().decode() for i in range(graph.TensorsLength())]
    known = (EXACT, RECURRENT, ATTENTION)
    return frozenset(scope for scope in known if any(name.startswith(scope) for name in names))


def _serialized(model: Any) -> bytes:
    size = sum(len(buffer.data) + _ALIGNMENT for buffer in model.buffers if buffer.data is not None)
    builder = flatbuffers.Builder(size + (1 << 16))
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def version(operator: str, inputs: Sequence[Tensor], options: Mapping[str, Any]) -> int:
    """Return the lowest version of an operator that has what this use of it needs, for our types.

    Source: TensorFlow 2, ``lite/tools/versioning/op_version.cc``, ``GetBuiltinOperatorVersion``.
    """
    rank = max((len(tensor.shape) for tensor in inputs), default=0)
    int8 = bool(inputs) and inputs[0].dtype == "int8"
    match operator:
        case "BROADCAST_TO":
            return 3 if int8 else 2
        case "CONV_2D" if inputs[0].shape[3] != inputs[1].shape[3]:
            return 6  # grouped
        case "CONV_2D" | "DEPTHWISE_CONV_2D" if int8:
            return 3
        case "DEPTHWISE_CONV_2D" if options["dilationHFactor"] != 1 or options["dilationWFactor"] != 1:
            return 2
        case "FULLY_CONNECTED" if options.get("keepNumDims"):
            return 5
        case "FULLY_CONNECTED" if int8:
            return 4
        case "TRANSPOSE_CONV" if len(inputs) == 4:
            return 3
        case "RESIZE_BILINEAR" | "RESIZE_NEAREST_NEIGHBOR" if options["halfPixelCenters"]:
            return 3
        case "RESIZE_NEAREST_NEIGHBOR" if options["alignCorners"]:
            return 3
        case "TRANSPOSE" if rank > 4:
            return 6 if rank > 5 else 4
        case "SLICE" if rank > 4:
            return 5
        case "STRIDED_SLICE" | "PAD" | "PADV2" if rank > 4:
            return 4
        case "TRANSPOSE" | "STRIDED_SLICE" | "GATHER" if inputs[0].dtype == "bool":
            return 3
        case "REVERSE_V2" | "TILE" if int8:
            return 3
        case _ if int8 and operator not in _SAME_IN_INT8:
            return 2
    return 1


def _operator_code(operator: str, number: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, operator)
    # Readers older than the 128th operator look here; 127 tells them to look at builtinCode.
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = number
    return code


def _maps(tensors: Mapping[str, Tensor]) -> list[Any]:
    made = []
    for name, tensor in tensors.items():
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name.encode(), tensor.index
        made.append(entry)
    return made

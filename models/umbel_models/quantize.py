"""Quantize a model to int8 on the workbench: static, calibrated, QDQ form.

Weights and activations become int8, each output channel of a convolution with its own scale. Weights use
seven of the eight bits: products of pairs then fit 16 bits, so processors without VNNI instructions
compute the same integers as those with them, instead of saturating.

``quantize`` returns one whole graph. ``skeletons`` returns graphs without values, which are filled again for
every new set of parameters with onnxruntime and numpy alone: ``umbel_proto.quantization`` on devices,
``umbel_models.requantize`` on the server.

Convolutions are never quantized dynamically: in onnxruntime that is 3 to 8 times slower than float.

Source: onnxruntime documentation, "Quantize ONNX models", on reduce_range.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from umbel_models.folding import fold
from umbel_models.graphs.model import finish, graphs
from umbel_models.runtime import Session
from umbel_proto.errors import UsageError
from umbel_proto.package import PARAMETERS
from umbel_proto.quantization import BATCH, INT8_TENSORS, MIN_CALIBRATION, FloatArrays, calibrate, fill

_DERIVED = "derived."
# What these make of several parameters has no name by which it could be made again from other values.
_MERGES = ["ConvMulFusion", "ConvAddFusion", "ConvBNFusion", "MatmulBNFusion"]
_OPERATORS = ["Conv", "Gemm", "MatMul", "MaxPool", "Relu", "Reshape", "Flatten"]


@dataclass(frozen=True, slots=True, eq=False)
class Skeletons:
    """The int8 form of a model without its values: see ``umbel_proto.quantization``.

    Args:
        calib: The graph of ranges, ``calib.onnx``; its parameters are those of ``params.safetensors``.
        int8: The quantized graph, ``int8.onnx``; its values come from ``int8.safetensors``.
        mapping: How these are made from parameters and ranges, ``int8.json``.
    """

    calib: bytes
    int8: bytes
    mapping: dict[str, Any]


def quantize(infer: bytes, parameters: FloatArrays, calibration: NDArray[np.float32]) -> bytes:
    """Return the int8 graph of an inference graph, complete in itself: x -> probabilities, logits.

    Args:
        infer: The graph, its parameters external.
        parameters: Their values, by name.
        calibration: Inputs like those the model will meet, shape (n, *example), n >= 16.

    Raises:
        UsageError: There are too few inputs to calibrate with.
    """
    _, model = _static(infer, parameters, calibration)
    return _bytes(finish(model))


def skeletons(infer: bytes, parameters: FloatArrays, calibration: NDArray[np.float32]) -> Skeletons:
    """Return the graphs from which anyone with new parameters makes the int8 model, checked before.

    Args:
        infer: The inference graph, its parameters external.
        parameters: Values for them, by name, of the size they will have; what is returned holds none of them.
        calibration: Inputs like those the model will meet, shape (n, *example), n >= 16.

    Raises:
        UsageError: There are too few inputs, or nothing in this model can be quantized, or the int8 graph
            holds values that cannot be followed when the parameters change.
    """
    # A bias of zeros or a gain of ones would be optimized away, and with it the place of later values. Two
    # sets of parameters tell what depends on them, and the second checks what was made from the first.
    ready, int8 = _static(infer, _near(parameters, seed=1), calibration)
    others = _near(parameters, seed=2)
    ready_again, int8_again = _static(infer, others, calibration)

    again = _values(ready_again)
    varying = {name for name, value in _values(ready).items() if not _equal(value, again[name])}
    derived = sorted(varying - set(parameters))
    source = fold(onnx.load_from_string(infer))
    _require_followed(source, derived, ready)
    for model in (source, ready, int8, int8_again):
        _rename(model, {name: f"{_DERIVED}{name}" for name in derived})

    mapping, tensors = _mapping(int8, varying, derived)
    calib = _calibration(ready, source, tensors, mapping["derived"], set(parameters))
    external = set(mapping["floats"])
    for entry in (*mapping["activations"], *mapping["weights"], *mapping["biases"]):
        external.update(entry[field] for field in ("scale", "zero_point", "quantized") if field in entry)
    whole = _values(int8_again)
    _externalize(int8.graph, external, INT8_TENSORS)
    made = Skeletons(_bytes(finish(calib)), _bytes(finish(int8)), mapping)
    verify(made, others, calibration, {name: whole[name] for name in external}, _bytes(finish(int8_again)))
    return made


def embed(infer: bytes, parameters: FloatArrays) -> ModelProto:
    """Return an inference graph with its parameters inside."""
    model = onnx.load_from_string(infer)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(parameters[tensor.name], tensor.name))
    return model


def _static(
    infer: bytes, parameters: FloatArrays, calibration: NDArray[np.float32]
) -> tuple[ModelProto, ModelProto]:
    """Return the graph as onnxruntime prepares it for quantization, and the quantized one."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    if len(calibration) < MIN_CALIBRATION:
        raise UsageError(f"Calibration has {len(calibration)} inputs: give at least {MIN_CALIBRATION}.")

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """The calibration inputs, a few at a time."""

        def __init__(self) -> None:
            self._batches: Iterator[NDArray[np.float32]] = iter(
                np.array_split(calibration, -(-len(calibration) // BATCH))
            )

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"x": batch}

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantizer logs advice to the root logger
    try:
        with tempfile.TemporaryDirectory() as folder:
            whole, ready, out = (
                str(Path(folder, name)) for name in ("whole.onnx", "ready.onnx", "int8.onnx")
            )
            onnx.save(fold(embed(infer, parameters)), whole)
            excluded = _prepare(whole, ready)
            quantize_static(
                ready,
                out,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_OPERATORS,
                nodes_to_exclude=excluded,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
            return onnx.load(ready), onnx.load(out)
    finally:
        root.setLevel(level)


def _prepare(whole: str, ready: str) -> list[str]:
    """Optimize a graph as ``quant_pre_process`` does, but for the merges; return the nodes to leave alone."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = ready
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    ort.InferenceSession(whole, options, providers=["CPUExecutionProvider"], disabled_optimizers=_MERGES)
    model = onnx.shape_inference.infer_shapes(onnx.load(ready))
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    excluded = []
    for i, node in enumerate(model.graph.node):
        node.name = f"n{i}"  # without names the quantizer gives operators each other's biases
        if node.op_type == "MatMul" and max(ranks.get(name, 0) for name in node.input) > 2:
            excluded.append(node.name)  # onnxruntime has no int8 kernel for a stack of matrices
    onnx.save(model, ready)
    return excluded


def _near(parameters: FloatArrays, *, seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {
        name: (value + 0.01 * rng.standard_normal(value.shape)).astype(np.float32)
        for name, value in parameters.items()
    }


def _require_followed(infer: ModelProto, derived: list[str], ready: ModelProto) -> None:
    computed = {name for node in infer.graph.node for name in node.output}
    for name in derived:
        if name not in computed:
            reader = next(node for node in ready.graph.node if name in node.input)
            raise UsageError(
                f"The int8 form of this model cannot follow new parameters: onnxruntime merges some of them into "
                f"one tensor of {reader.op_type} {reader.output[0]!r}. Leave int8 out of the package."
            )


def _rename(model: ModelProto, names: Mapping[str, str]) -> None:
    for graph in graphs(model.graph):
        for tensor in graph.initializer:
            tensor.name = names.get(tensor.name, tensor.name)
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]


def _mapping(int8: ModelProto, varying: set[str], derived: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the mapping, and the tensor that each of its activations' scales is named after."""
    values = _values(int8)
    makers = {name: node for node in int8.graph.node for name in node.output}
    activations: dict[str, str] = {}
    weights, biases = [], []

    def origin(quantized: str) -> str:
        name = quantized.removesuffix("_quantized")
        if name not in varying:
            # A bias that several operators share was copied for each: NAME1, NAME2.
            name = max((known for known in varying if name.startswith(known)), key=len, default=name)
        return f"{_DERIVED}{name}" if name in derived else name

    for node in int8.graph.node:
        if node.op_type == "QuantizeLinear":
            activations[node.input[1]] = node.input[2]
        if node.op_type != "DequantizeLinear" or node.input[0] not in values:
            continue
        quantized, scale = node.input[:2]
        if values[quantized].dtype == np.int8:
            if origin(quantized).removeprefix(_DERIVED) not in varying:
                continue  # a constant of the model's own, such as a basis of sines: it stays in the graph
            axis = next((a.i for a in node.attribute if a.name == "axis"), None)
            weights.append(
                {"source": origin(quantized), "quantized": quantized, "scale": scale, "axis": axis}
            )
        else:
            [reader] = [other for other in int8.graph.node if node.output[0] in other.input]
            input_scale, weight_scale = (makers[name].input[1] for name in reader.input[:2])
            biases.append(
                {
                    "source": origin(quantized),
                    "quantized": quantized,
                    "scale": scale,
                    "input_scale": input_scale,
                    "weight_scale": weight_scale,
                }
            )
    if not weights:
        raise UsageError(
            "Nothing in this model can be quantized: int8 needs a convolution, Gemm or MatMul with weights "
            "outside of loops. Leave int8 out of the package."
        )
    mapping = {
        "format": 1,
        "activations": [{"scale": scale, "zero_point": zero} for scale, zero in activations.items()],
        "weights": weights,
        "biases": biases,
        "floats": sorted(name for name in values if name.removeprefix(_DERIVED) in varying),
        "derived": [f"{_DERIVED}{name}" for name in derived],
    }
    return mapping, [scale.removesuffix("_scale") for scale in activations]


def _calibration(
    ready: ModelProto, infer: ModelProto, tensors: list[str], derived: list[str], parameters: set[str]
) -> ModelProto:
    """Return the graph of ranges of ``tensors``, and of the tensors derived from parameters alone."""
    known = {name for node in ready.graph.node for name in node.output}
    nodes = [node for node in _ancestors(infer.graph, derived) if not known & set(node.output)]
    needed = {name for node in nodes for name in node.input}
    held = {tensor.name: tensor for tensor in ready.graph.initializer}
    constants = [t for t in infer.graph.initializer if t.name in needed and t.name not in held]
    constants.append(numpy_helper.from_array(np.array([-1], np.int64), "flat"))
    nodes += ready.graph.node
    outputs = []
    for reduce, name in (("ReduceMin", "minima"), ("ReduceMax", "maxima")):
        parts = []
        for i, tensor in enumerate(tensors):
            nodes.append(helper.make_node(reduce, [tensor], [f"{name}.{i}"], keepdims=1))
            nodes.append(helper.make_node("Reshape", [f"{name}.{i}", "flat"], [f"{name}.{i}.flat"]))
            parts.append(f"{name}.{i}.flat")
        nodes.append(helper.make_node("Concat", parts, [name], axis=0))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [len(parts)]))
    outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, held[name].dims) for name in derived]
    values = [*(tensor for name, tensor in held.items() if name not in derived), *constants]
    model = ModelProto()
    model.CopyFrom(ready)
    model.graph.CopyFrom(helper.make_graph(nodes, "main", ready.graph.input, outputs, values))
    _externalize(model.graph, parameters, PARAMETERS)
    return model


def _ancestors(graph: GraphProto, names: list[str]) -> list[onnx.NodeProto]:
    """Return the nodes that compute some tensors, in the graph's order."""
    wanted, found = set(names), []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            found.append(node)
            wanted.update(node.input)
    return found[::-1]


def _externalize(graph: GraphProto, names: set[str], location: str) -> None:
    for tensor in graph.initializer:
        if tensor.name in names:
            empty = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            empty.data_location = TensorProto.EXTERNAL
            empty.external_data.add(key="location", value=location)
            tensor.CopyFrom(empty)


def verify(
    made: Skeletons,
    parameters: FloatArrays,
    calibration: NDArray[np.float32],
    expected: Mapping[str, NDArray[Any]],
    whole: bytes,
) -> None:
    """Fill skeletons and compare with onnxruntime's quantizer, bit by bit.

    Args:
        made: The skeletons.
        parameters: Values that they were not made from, by name.
        calibration: Inputs, shape (n, *example).
        expected: What the quantizer makes of these, by name.
        whole: Its int8 graph, complete in itself.

    Raises:
        UsageError: A value or an output differs, or the int8 graph cannot be run.
    """
    names = [value.name for value in onnx.load_from_string(whole).graph.output]
    feed = {"x": calibration[:BATCH]}
    try:
        run = Session(made.calib, parameters, optimized=False).run
        ranges, derived = calibrate(run, made.mapping, calibration)
        tensors = fill(made.mapping, {**parameters, **derived}, ranges)
        ours, theirs = Session(made.int8, tensors).run(names, feed), Session(whole).run(names, feed)
    except Exception as exc:  # onnxruntime's exceptions share no other base class
        raise UsageError(
            f"The int8 form of this model cannot be run ({exc}). Leave int8 out of the package."
        ) from exc
    different = [name for name, value in expected.items() if not _equal(tensors[name], value)]
    if different or not all(map(_equal, ours, theirs)):
        raise UsageError(
            f"The int8 form of this model is not what onnxruntime's quantizer makes of it, in "
            f"{(different or names)[0]!r}. Leave int8 out of the package, and report the model."
        )


def _values(model: ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _bytes(model: ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))

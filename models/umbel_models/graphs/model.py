"""ONNX models made fit to ship: external parameters, nothing that is not computed with, one legal form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, TensorShapeProto

from umbel_proto.errors import PackageError

IR_VERSION = 9  # read by every onnxruntime since 1.15
# Optional outputs whose mere presence keeps onnxruntime off its fast kernel.
_TRIMMED = frozenset({"MaxPool", "LayerNormalization", "BatchNormalization", "Dropout"})


def externalize(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """Turn the inputs ``names`` into initializers whose values come with the session.

    A device hands them over with ``SessionOptions.add_external_initializers``; onnxruntime then folds and
    packs them like constants. Parameters that stay inputs make inference 1.3 to 15 times slower.
    """
    graph = model.graph
    kept = [value for value in graph.input if value.name not in names]
    for value in graph.input:
        if value.name not in names:
            continue
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        tensor = graph.initializer.add(name=value.name, data_type=TensorProto.FLOAT, dims=dims)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="params.safetensors")
    del graph.input[:]
    graph.input.extend(kept)
    return model


def finish(model: ModelProto) -> ModelProto:
    """Strip a model to what is computed, fix its IR version, and check it.

    Raises:
        PackageError: The model is not valid ONNX, or uses an operator outside the default domain, which a
            stock runtime may lack.
    """
    for graph in graphs(model.graph):
        _strip(graph)
        _rank_loops(graph)
    used = {node.domain or "" for graph in graphs(model.graph) for node in graph.node}
    if used - {""} or model.functions:
        raise PackageError(
            f"The graph uses operators of other domains, which a device may lack: {', '.join(sorted(used))}."
        )
    kept = [opset for opset in model.opset_import if not opset.domain]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    del model.metadata_props[:]
    model.ir_version = IR_VERSION
    model.producer_name = "umbel"
    for name in ("producer_version", "doc_string", "domain"):
        model.ClearField(name)
    model.graph.name = "main"
    _rename(model.graph)
    try:
        onnx.checker.check_model(_with_values(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise PackageError(f"The graph is not valid ONNX: {exc}") from exc
    return model


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and every graph inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def _strip(graph: GraphProto) -> None:
    read = {value.name for value in graph.output}
    for inner in graphs(graph):
        read.update(name for node in inner.node for name in node.input)
        read.update(value.name for value in inner.output)
    for node in graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
        if node.op_type in _TRIMMED:
            while len(node.output) > 1 and node.output[-1] not in read:
                del node.output[-1]
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    del graph.metadata_props[:]
    del graph.value_info[:]
    graph.ClearField("doc_string")


def _rank_loops(graph: GraphProto) -> None:
    """Say how many dimensions the rows have that a loop of a recurrent layer returns: (batch, features).

    Onnxruntime refuses to run a loop of which it cannot find out. Version 1.17 cannot behind a gradient of ELU, within
    the loop over examples.
    """
    for node in graph.node:
        if node.op_type != "Scan":
            continue
        for output in onnx.helper.get_node_attr_value(node, "body").output:
            if not output.type.tensor_type.HasField("shape"):
                output.type.tensor_type.elem_type = TensorProto.FLOAT
                output.type.tensor_type.shape.dim.extend([TensorShapeProto.Dimension()] * 2)


def _rename(main: GraphProto) -> None:
    # Names that depend on the exporter's bookkeeping would make equal graphs differ in their bytes.
    order = {name: i for i, name in enumerate(name for node in main.node for name in node.input)}
    tensors = sorted(main.initializer, key=lambda tensor: (order.get(tensor.name, -1), tensor.name))
    kept = {value.name for value in (*main.input, *main.output)}
    kept |= {tensor.name for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL}
    names = {name: name for name in (*kept, "")}

    def short(name: str) -> str:
        return names.setdefault(name, f"t{len(names)}")

    for graph in graphs(main):
        for tensor in tensors if graph is main else graph.initializer:
            tensor.name = short(tensor.name)
        for node in graph.node:
            node.name = ""
            node.input[:] = [short(name) for name in node.input]
            node.output[:] = [short(name) for name in node.output]
        if graph is not main:
            for value in (*graph.input, *graph.output):
                value.name = short(value.name)
    copies = [TensorProto.FromString(tensor.SerializeToString()) for tensor in tensors]
    del main.initializer[:]
    main.initializer.extend(copies)


def _with_values(model: ModelProto) -> ModelProto:
    # The checker wants the file behind an external tensor; zeros of the same shape tell it as much.
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            count = 1
            for size in tensor.dims:
                count *= size
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            tensor.raw_data = bytes(4 * count)
    return copy

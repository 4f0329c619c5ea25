"""The int8 graph is smaller, nearly as right, and plain ONNX, and follows new parameters without onnx.

Law: what is filled into the skeletons equals, to the bit, what onnxruntime's own quantizer makes of a graph
that holds the same parameters, and both graphs compute the same.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from model_packages import digits, first, opened, release
from umbel_models.folding import fold
from umbel_models.graphs.model import externalize, finish
from umbel_models.quantize import MIN_CALIBRATION, Skeletons, embed, quantize, skeletons, verify
from umbel_models.requantize import requantize
from umbel_models.runtime import Session
from umbel_proto.errors import UsageError
from umbel_proto.quantization import CALIBRATION_GRAPH, INT8_MAPPING

Arrays = dict[str, NDArray[np.float32]]

# Graphs in onnx.parser's words. What is written in capitals is a parameter.
GRAPHS = {
    "cnn": """(float[batch,3,8,8] x, float[8,3,3,3] CW, float[8] CB, float[8,1,3,3] DW, float[8] DB,
        float[5,128] HW, float[5] HB) => (float[batch,5] probabilities, float[batch,5] logits)
        <int64[2] flat = {-1, 128}>
        { a = Conv<pads=[1,1,1,1]>(x, CW, CB)  b = Relu(a)  c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b)
          d = Conv<group=8, pads=[1,1,1,1]>(c, DW, DB)  e = Relu(d)  f = Reshape(e, flat)
          g = Transpose<perm=[1,0]>(HW)  logits = Gemm(f, g, HB)  probabilities = Softmax<axis=-1>(logits) }""",
    "shared": """(float[batch,6] x, float[6,6] W, float[6] B, float[4,6] HW, float[4] HB)
        => (float[batch,4] probabilities, float[batch,4] logits)
        { w = Transpose<perm=[1,0]>(W)  a = Gemm(x, w, B)  b = Tanh(a)  c = MatMul(b, w)  d = Add(c, B)
          e = Gemm(d, w, B)  f = Relu(e)  logits = Gemm<transB=1>(f, HW, HB)
          probabilities = Softmax<axis=-1>(logits) }""",
    "gain": """(float[batch,6] x, float[8,6] W, float[8] B, float[8] GAIN, float[8] SHIFT, float[6] V,
        float[4,8] HW, float[4] HB) => (float[batch,4] probabilities, float[batch,4] logits)
        <int64[1] last = {1}>
        { a = Gemm<transB=1>(x, W, B)  b = Mul(a, GAIN)  c = Add(b, SHIFT)  r = MatMul(x, V)
          s = Unsqueeze(r, last)  t = Add(c, s)  d = Sigmoid(t)  logits = Gemm<transB=1>(d, HW, HB)  probabilities = Softmax<axis=-1>(logits) }""",
    "norm": """(float[batch,3,8,8] x, float[8,3,3,3] CW, float[8] CB, float[8] GAIN, float[8] SHIFT, float[5,8] HW,
        float[5] HB) => (float[batch,5] probabilities, float[batch,5] logits)
        <float[8] mean = {0.1,-0.2,0.3,0,0,1,-1,0.5}, float[8] spread = {1,2,0.5,0.1,1,1,4,0.25}, int64[2] axes={2,3}>
        { a = Conv(x, CW, CB)  b = BatchNormalization<epsilon=0.001>(a, GAIN, SHIFT, mean, spread)  c = Relu(b)
          d = ReduceMean<keepdims=0>(c, axes)  logits = Gemm<transB=1>(d, HW, HB)
          probabilities = Softmax<axis=-1>(logits) }""",
    "sequence": """(float[batch,5,6] x, float[8,6] W, float[8] B, float[3,8,8] STACK, float[4,8] HW, float[4] HB)
        => (float[batch,4] probabilities, float[batch,4] logits)
        <int64[3] all = {5, 6, 8}, int64[1] second = {1}, int64[1] both = {0}>
        { t = Transpose<perm=[1,0,2]>(x)  w = Transpose<perm=[1,0]>(W)  r = Expand(w, all)  a = MatMul(t, r)
          b = Add(a, B)  c = Relu(b)  d = ReduceMean<keepdims=0>(c, both)  h = MatMul(d, STACK)
          k = ReduceMean<keepdims=0>(h, both)  logits = Gemm<transB=1>(k, HW, HB)
          probabilities = Softmax<axis=-1>(logits) }""",
    "pool": """(float[batch,3,16] x, float[8,3,3] CW, float[8] CB, float[4,4,5] DW, float[5,16] HW, float[5] HB)
        => (float[batch,5] probabilities, float[batch,5] logits)
        <int64[1] row = {-2}, int64[1] second = {2}, int64[2] flat = {-1, 16}>
        { a = Conv<pads=[1,1]>(x, CW, CB)  b = Relu(a)  c = Unsqueeze(b, row)
          d = MaxPool<kernel_shape=[1,3], strides=[1,2], pads=[0,1,0,0]>(c)  e = Squeeze(d, second)
          f = Conv<group=2, strides=[2], pads=[2,2]>(e, DW)
          g = Unsqueeze(f, row)  h = MaxPool<kernel_shape=[1,1], strides=[1,1]>(g)  i = Squeeze(h, second)
          j = Reshape(i, flat)  logits = Gemm<transB=1>(j, HW, HB)  probabilities = Softmax<axis=-1>(logits) }""",
    "narrow": """(float[batch,1500] x, float[4,1500] DOWN, float[10,4] UP)
        => (float[batch,10] probabilities, float[batch,10] logits)
        { d = Transpose<perm=[1,0]>(DOWN)  a = MatMul(x, d)  u = Transpose<perm=[1,0]>(UP)  logits = MatMul(a, u)
          probabilities = Softmax<axis=-1>(logits) }""",
    "basis": """(float[batch,4] x, float[8,4] W, float[8] B, float[4,8] HW, float[4] HB)
        => (float[batch,4] probabilities, float[batch,4] logits)
        <float[4,4] sines = {0.5,0.5,0.5,0.5, 0.65,0.27,-0.27,-0.65, 0.5,-0.5,-0.5,0.5, 0.27,-0.65,0.65,-0.27}>
        { s = MatMul(x, sines)  l = Mul(s, s)  a = Gemm<transB=1>(l, W, B)  b = Relu(a)
          logits = Gemm<transB=1>(b, HW, HB)  probabilities = Softmax<axis=-1>(logits) }""",
    "bare": """(float[batch,4] x, float[4] B) => (float[batch,4] probabilities, float[batch,4] logits)
        { logits = Add(x, B)  probabilities = Softmax<axis=-1>(logits) }""",
}


@functools.cache
def graph(name: str) -> bytes:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> g {GRAPHS[name]}')
    names = [value.name for value in model.graph.input if value.name != "x"]
    return bytes(finish(externalize(model, names)).SerializeToString(deterministic=True))


def shapes(infer: bytes) -> dict[str, tuple[int, ...]]:
    tensors = onnx.load_from_string(infer).graph.initializer
    return {t.name: tuple(t.dims) for t in tensors if t.data_location == TensorProto.EXTERNAL}


def parameters(name: str, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        key: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for key, shape in shapes(graph(name)).items()
    }


def inputs(name: str, count: int = 40) -> NDArray[np.float32]:
    [x] = [v for v in onnx.load_from_string(graph(name)).graph.input if v.name == "x"]
    shape = [dim.dim_value for dim in x.type.tensor_type.shape.dim[1:]]
    return np.random.default_rng(9).standard_normal((count, *shape)).astype(np.float32)


@functools.cache
def made(name: str) -> Skeletons:
    return skeletons(graph(name), parameters(name), inputs(name))


def filled(name: str, values: Arrays) -> dict[str, NDArray[Any]]:
    skeleton = made(name)
    files = {CALIBRATION_GRAPH: skeleton.calib, INT8_MAPPING: json.dumps(skeleton.mapping).encode()}
    return requantize(files, values, inputs(name))


class Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, x: NDArray[np.float32]) -> None:
        self._batches: Iterator[NDArray[np.float32]] = iter(np.array_split(x, -(-len(x) // 16)))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"x": batch}


def by_onnxruntime(infer: bytes, values: Arrays, x: NDArray[np.float32], folder: Path) -> onnx.ModelProto:
    """Quantize with onnxruntime's tools alone."""
    onnx.save(embed(infer, values), folder / "whole.onnx")
    logging.disable(logging.WARNING)  # its advice goes to the root logger
    try:
        quant_pre_process(folder / "whole.onnx", folder / "ready.onnx", skip_symbolic_shape=True)
        ready = onnx.load(folder / "ready.onnx")
        for i, node in enumerate(ready.graph.node):
            node.name = f"node{i}"  # without names it gives nodes each other's biases
        onnx.save(ready, folder / "ready.onnx")
        quantize_static(
            folder / "ready.onnx",
            folder / "int8.onnx",
            Batches(x),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "MaxPool", "Relu", "Reshape", "Flatten"],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(folder / "int8.onnx")


def equal_to_onnxruntime(name: str, values: Arrays, folder: Path) -> None:
    theirs = by_onnxruntime(graph(name), values, inputs(name), folder)
    expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in theirs.graph.initializer}
    tensors = filled(name, values)
    for key, value in tensors.items():
        other = expected[key.replace("derived.", "")]
        assert (value.dtype, value.shape) == (other.dtype, other.shape), key
        np.testing.assert_array_equal(value, other, err_msg=key)
    x = inputs(name, 64)
    whole = theirs.SerializeToString()
    for ours, reference in zip(
        Session(made(name).int8, tensors).run(["logits", "probabilities"], {"x": x}),
        Session(whole).run(["logits", "probabilities"], {"x": x}),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, reference)


@pytest.mark.parametrize("name", ["cnn", "shared", "gain"])
@pytest.mark.parametrize("seed", [0, 1])
def test_filled_skeletons_equal_onnxruntimes_quantizer_to_the_bit(
    name: str, seed: int, tmp_path: Path
) -> None:
    # Seed 1: other parameters than the skeletons were made with.
    equal_to_onnxruntime(name, parameters(name, seed), tmp_path)


@pytest.mark.parametrize(
    ("changed", "factor"),
    [
        ("CW", 0.0),  # dead channels: ranges of one point
        ("CB", 0.0),
        ("CW", 1e-12),  # biases too large for 32 bits of the scale: weights get coarser
        ("DW", 1e-12),
        ("HW", 1e-30),
        ("CW", 1e-40),  # below the smallest scale
        ("DW", 1e6),
        ("DB", -1e6),  # nothing passes the Relu
    ],
)
def test_odd_parameters_are_quantized_as_onnxruntime_does(
    changed: str, factor: float, tmp_path: Path
) -> None:
    values = parameters("cnn", 3)
    values[changed] = (values[changed] * factor).astype(np.float32)
    if changed == "DB":
        values["DB"] = -np.abs(values["DB"])
    values["CW"][2] = 0
    equal_to_onnxruntime("cnn", values, tmp_path)


def test_the_digits_model_equals_onnxruntimes_quantizer_to_the_bit(tmp_path: Path) -> None:
    package = opened(release(2))
    values, x = package.split(package.parameters()), digits().calibration.x
    theirs = by_onnxruntime(package.file("infer.onnx"), values, x, tmp_path)
    expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in theirs.graph.initializer}
    tensors = package.tensors("int8.safetensors")
    assert len(tensors) == 26
    for key, value in tensors.items():
        assert (value.dtype, value.shape) == (expected[key].dtype, expected[key].shape), key
        np.testing.assert_array_equal(value, expected[key], err_msg=key)
    [ours] = Session(package.file("int8.onnx"), tensors).run(["logits"], {"x": digits().held_out.x})
    [reference] = Session(theirs.SerializeToString()).run(["logits"], {"x": digits().held_out.x})
    np.testing.assert_array_equal(ours, reference)


@pytest.mark.parametrize("name", ["cnn", "shared", "gain", "norm", "sequence", "pool", "narrow", "basis"])
def test_skeletons_hold_nothing_of_the_parameters_they_were_made_with(name: str) -> None:
    # Ones and zeros are what gains and shifts begin with, and what an optimizer would remove.
    plain = {
        key: np.full(shape, float("GAIN" in key), np.float32) for key, shape in shapes(graph(name)).items()
    }
    other = skeletons(graph(name), plain, inputs(name))
    assert (other.calib, other.int8, other.mapping) == (made(name).calib, made(name).int8, made(name).mapping)


@pytest.mark.parametrize("name", ["cnn", "shared", "gain", "norm", "sequence", "pool", "narrow", "basis"])
def test_filled_skeletons_say_what_the_float_graph_says(name: str) -> None:
    values, x = parameters(name, 7), inputs(name)
    [expected] = Session(graph(name), values).run(["logits"], {"x": x})
    [actual] = Session(made(name).int8, filled(name, values)).run(["logits"], {"x": x})
    # A few levels of 1/127 of the range, over a few layers.
    assert np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["cnn", "norm", "sequence"])
def test_skeletons_are_plain_onnx_without_values(name: str) -> None:
    for raw in (made(name).calib, made(name).int8):
        model = onnx.load_from_string(raw)
        assert model.ir_version == 9
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
        assert {node.domain for node in model.graph.node} == {""}
    external = {t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL}
    assert external == set(filled(name, parameters(name)))


def test_a_batch_norm_goes_into_the_convolution_before_it() -> None:
    model = onnx.load_from_string(graph("norm"))
    folded = fold(model)
    assert "BatchNormalization" not in {node.op_type for node in folded.graph.node}
    values, x = parameters("norm", 2), inputs("norm")
    [expected] = Session(graph("norm"), values).run(["logits"], {"x": x})
    [actual] = Session(folded.SerializeToString(), values).run(["logits"], {"x": x})
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    # Its weights in int8 are the folded ones: eight channels, each with its own scale.
    [weight] = [
        entry for entry in made("norm").mapping["weights"] if entry["axis"] == 0 and entry["source"] != "HW"
    ]
    assert filled("norm", values)[weight["quantized"]].shape == (8, 3, 3, 3)


def test_a_matrix_repeated_for_each_step_of_a_sequence_is_held_once_and_a_stack_stays_float() -> None:
    values = parameters("sequence", 2)
    tensors = filled("sequence", values)
    assert sorted(t.shape for t in tensors.values() if t.dtype == np.int8 and t.ndim >= 2) == [(4, 8), (6, 8)]
    np.testing.assert_array_equal(tensors["STACK"], values["STACK"])


def test_a_repeated_matrix_that_gives_its_product_a_dimension_is_left_as_it_is() -> None:
    words = """(float[batch,6] x, float[6,8] W) => (float[5,batch,8] y) <int64[3] all = {5, 6, 8}>
        { r = Expand(W, all)  y = MatMul(x, r) }"""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> g {words}')
    assert [node.op_type for node in fold(model).graph.node] == ["Expand", "MatMul"]


def test_skeletons_that_give_another_value_than_onnxruntimes_quantizer_are_refused() -> None:
    values, x = parameters("cnn"), inputs("cnn")
    whole = quantize(graph("cnn"), values, x)
    expected = {key: value for key, value in filled("cnn", values).items() if key.startswith("CW")}
    verify(made("cnn"), values, x, expected, whole)
    expected["CW_scale"] = np.nextafter(expected["CW_scale"], np.float32(1))
    with pytest.raises(UsageError, match="is not what onnxruntime's quantizer makes of it, in 'CW_scale'"):
        verify(made("cnn"), values, x, expected, whole)
    with pytest.raises(UsageError, match="is not what onnxruntime's quantizer makes of it"):
        verify(made("cnn"), values, x, {}, quantize(graph("cnn"), parameters("cnn", 1), x))


def test_a_pool_over_time_loses_its_detour_over_images() -> None:
    folded = fold(onnx.load_from_string(graph("pool")))
    assert not {"Unsqueeze", "Squeeze"} & {node.op_type for node in folded.graph.node}
    values, x = parameters("pool", 2), inputs("pool")
    [expected] = Session(graph("pool"), values).run(["logits"], {"x": x})
    [actual] = Session(folded.SerializeToString(), values).run(["logits"], {"x": x})
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("[1,3], strides=[1,2]", "[1,3], strides=[2,2]"),
        ("e = Squeeze(d, second)", "e = Squeeze(d, row)  z = Relu(d)"),
    ],
)
def test_a_pool_that_is_not_over_time_alone_is_left_as_it_is(written: str, instead: str) -> None:
    words = GRAPHS["pool"].replace(written, instead)
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> g {words}')
    folded = fold(model)
    assert [node.op_type for node in folded.graph.node].count("Unsqueeze") == 1


def test_a_layer_without_a_bias_reads_its_weight_as_it_is_and_one_with_a_bias_is_left_to_onnxruntime() -> (
    None
):
    # As corrections of low rank are: sums over so many inputs round in another way where a weight is not packed.
    assert {entry["source"] for entry in made("narrow").mapping["weights"]} == {"DOWN", "UP"}
    assert made("narrow").mapping["derived"] == []
    values, x = parameters("narrow", 2), inputs("narrow")
    folded = fold(onnx.load_from_string(graph("narrow")))
    assert "Transpose" not in {node.op_type for node in folded.graph.node}
    [expected] = Session(graph("narrow"), values).run(["logits"], {"x": x})
    [actual] = Session(folded.SerializeToString(), values).run(["logits"], {"x": x})
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert "MatMul" in {node.op_type for node in fold(onnx.load_from_string(graph("shared"))).graph.node}


def test_a_model_without_weights_to_quantize_is_refused() -> None:
    with pytest.raises(UsageError, match="Nothing in this model can be quantized"):
        skeletons(graph("bare"), parameters("bare"), inputs("bare"))


def test_too_little_calibration_for_skeletons_is_refused() -> None:
    with pytest.raises(UsageError, match="15 inputs: give at least 16"):
        skeletons(graph("cnn"), parameters("cnn"), inputs("cnn", 15))
    package = opened(first())
    files = {name: package.file(name) for name in (CALIBRATION_GRAPH, INT8_MAPPING)}
    with pytest.raises(UsageError, match="15 inputs: give at least 16"):
        requantize(files, package.split(package.parameters()), digits().calibration.x[:15])


def test_int8_is_within_half_a_point_of_fp32_and_much_smaller() -> None:
    package = opened(release(2))
    x, y = digits().held_out[:2]
    right = {}
    for variant, form in package.manifest.variants.items():
        [logits] = Session(package.file(form.file), package.weights(variant)).run(["logits"], {"x": x})
        right[variant] = float((logits.argmax(1) == y).mean())
    assert right["int8"] >= right["fp32"] - 0.005
    assert len(package.file("int8.safetensors")) < 0.4 * len(package.file("params.safetensors"))


def whole_graph() -> bytes:
    package = opened(release(2))
    return quantize(package.file("infer.onnx"), package.split(package.parameters()), digits().calibration.x)


def test_quantizing_repeats_to_the_byte() -> None:
    package = opened(first())
    arguments = (package.file("infer.onnx"), package.split(package.parameters()), digits().calibration.x)
    assert quantize(*arguments) == quantize(*arguments)


def test_an_int8_graph_is_complete_plain_onnx() -> None:
    model = onnx.load_from_string(whole_graph())
    assert model.ir_version == 9
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer)
    assert [value.name for value in model.graph.output] == ["probabilities", "logits"]


def test_weights_keep_to_seven_bits_so_that_no_processor_saturates() -> None:
    model = onnx.load_from_string(whole_graph())
    weights = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.INT8]
    weights = [weight for weight in weights if weight.ndim >= 2]
    assert len(weights) == 4
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) <= 64


def test_too_little_calibration_is_refused() -> None:
    package = opened(first())
    few = digits().calibration.x[: MIN_CALIBRATION - 1]
    with pytest.raises(UsageError, match="15 inputs: give at least 16"):
        quantize(package.file("infer.onnx"), package.split(package.parameters()), few)


def test_a_graph_with_its_parameters_inside_computes_the_same() -> None:
    package = opened(release(2))
    parameters = package.split(package.parameters())
    x = digits().held_out.x[:5]
    whole = embed(package.file("infer.onnx"), parameters).SerializeToString()
    [inside] = Session(whole).run(["logits"], {"x": x})
    [outside] = Session(package.file("infer.onnx"), parameters).run(["logits"], {"x": x})
    np.testing.assert_allclose(inside, outside, atol=1e-5)

"""The int8 graph is smaller, nearly as right, and plain ONNX."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from model_packages import digits, first, opened, release
from umbel_models.quantize import MIN_CALIBRATION, embed, quantize
from umbel_models.runtime import Session
from umbel_proto.errors import UsageError


def test_int8_is_within_a_point_of_fp32_and_much_smaller() -> None:
    package = opened(release(2))
    x, y = digits().held_out[:2]
    right = {}
    for variant, form in package.manifest.variants.items():
        [logits] = Session(package.file(form.file), package.weights(variant)).run(["logits"], {"x": x})
        right[variant] = float((logits.argmax(1) == y).mean())
    assert right["int8"] > right["fp32"] - 0.01
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

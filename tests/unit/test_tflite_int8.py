"""int8 TFLite files answer as float32 ones do, and what int8 would harm is refused or left in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray
from torch import Tensor, nn

import model_packages as packages
from onnx_exports import exported
from umbel_models import tflite
from umbel_models.runtime import Session
from umbel_models.tasks.digits.task import files
from umbel_models.tflite.errors import UnsupportedOperatorError
from umbel_models.tflite.flatbuffer import SIGNATURE
from umbel_models.tflite.interpret import ends, run
from umbel_proto.errors import PackageError, UsageError

OUTPUTS = ("probabilities", "logits")
LEVEL = 1 / 255  # of the range of an activation: one step of int8


@functools.cache
def trained() -> dict[str, bytes]:
    package = packages.opened(packages.release(2))
    return tflite.variants(
        files()["infer.onnx"], package.split(package.parameters()), packages.digits().calibration.x
    )


def accuracy(file: bytes) -> float:
    held_out = packages.digits().held_out
    [probabilities] = run(file, held_out.x, ["probabilities"])
    return float((probabilities.argmax(axis=1) == held_out.y).mean())


def parsed(file: bytes) -> Any:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(file, 0))


def operators(file: bytes) -> list[tuple[str, int]]:
    """Return each operator with its version."""
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()}
    model = parsed(file)
    codes = [(names[code.builtinCode], code.version) for code in model.operatorCodes]
    return [codes[operator.opcodeIndex] for operator in model.subgraphs[0].operators]


def test_int8_digits_are_within_half_a_point_of_float32_and_a_third_of_the_size() -> None:
    whole, small = trained()[tflite.FLOAT_FILE], trained()[tflite.INT8_FILE]
    assert accuracy(whole) > 0.95
    assert abs(accuracy(small) - accuracy(whole)) <= 0.005
    assert len(small) < 0.4 * len(whole)


def test_int8_probabilities_are_finer_than_int8() -> None:
    x = packages.digits().held_out.x
    probabilities, logits = run(trained()[tflite.INT8_FILE], x, OUTPUTS)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(probabilities, shifted / shifted.sum(axis=1, keepdims=True), atol=1e-6)


def test_values_enter_and_leave_an_int8_file_as_floats_under_the_same_names() -> None:
    whole, small = (ends(trained()[name]) for name in (tflite.FLOAT_FILE, tflite.INT8_FILE))
    assert (small.name, small.batch, sorted(small.outputs)) == ("x", None, sorted(OUTPUTS))
    assert sorted(whole.outputs) == sorted(OUTPUTS)
    tensors = parsed(trained()[tflite.INT8_FILE]).subgraphs[0].tensors
    for index in (small.index, *small.outputs.values()):
        assert tensors[index].type == schema.TensorType.FLOAT32


@pytest.mark.parametrize("count", [1, 2, 7, 64, 500])
def test_the_answer_to_an_example_does_not_depend_on_the_rest_of_its_batch(count: int) -> None:
    x = np.resize(packages.digits().held_out.x, (count, 1, 8, 8))
    for file in trained().values():
        together = run(file, x, OUTPUTS)
        for name, values in zip(OUTPUTS, together, strict=True):
            alone = np.concatenate([run(file, x[row : row + 1], [name])[0] for row in range(min(count, 9))])
            np.testing.assert_allclose(values[:9], alone, rtol=1e-5, atol=1e-5)


def test_ranges_reach_to_the_least_and_greatest_value_met_in_calibration() -> None:
    # One input in forty is ten times the others: an average of ranges would cut it off.
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 6)).astype(np.float32)
    x[7] *= 10
    layer = nn.Linear(6, 6, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(6))
    file = tflite.quantize(tflite.convert(exported(layer, (6,)), batch=None), x)
    [made] = run(file, x, ["y"])
    assert np.abs(made - x).max() <= 1.01 * LEVEL * (x.max() - x.min())


def test_quantizing_repeats_to_the_byte() -> None:
    file = trained()[tflite.FLOAT_FILE]
    calibration = packages.digits().calibration.x
    assert tflite.quantize(file, calibration) == tflite.quantize(file, calibration)


def test_operators_on_int8_say_that_they_need_a_runtime_that_has_them() -> None:
    versions = dict(operators(trained()[tflite.INT8_FILE]))
    # TensorFlow 2, lite/tools/versioning/op_version.cc.
    expected = {"CONV_2D": 3, "FULLY_CONNECTED": 4, "MAX_POOL_2D": 2, "DEQUANTIZE": 2, "QUANTIZE": 1}
    assert {name: versions[name] for name in expected} == expected
    assert versions["SOFTMAX"] == 1  # it stays in float32


def test_a_large_file_has_its_constants_inside_too() -> None:
    layers = nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 64), nn.ReLU(), nn.Linear(64, 3))
    file = tflite.convert(exported(layers, (64,)), batch=None)
    x = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)
    small = tflite.quantize(file, x)
    assert 500_000 < len(small) < 0.35 * len(file)  # from 256 KB on the quantizer puts them elsewhere
    [whole], [made] = run(file, x, ["y"]), run(small, x, ["y"])
    assert np.abs(made - whole).max() <= 0.06 * np.abs(whole).max()


def test_constants_stay_aligned() -> None:
    model = schema.Model.GetRootAs(trained()[tflite.INT8_FILE], 0)
    buffers = [model.Buffers(i) for i in range(model.BuffersLength())]
    starts = [b._tab.Vector(b._tab.Offset(4)) for b in buffers if b.DataLength()]
    assert len(starts) > 8
    assert {start % 16 for start in starts} == {0}


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (lambda: nn.Sequential(nn.Linear(12, 12), nn.LayerNorm(12)), (12,)),
        (lambda: nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.GroupNorm(2, 4)), (2, 6)),
        (lambda: nn.Sequential(nn.Linear(12, 12), nn.Softplus()), (12,)),
    ],
    ids=["layer norm", "group norm", "softplus"],
)
def test_formulas_of_squares_roots_and_logarithms_stay_in_float32(norm: Any, shape: tuple[int, ...]) -> None:
    module = nn.Sequential(norm(), nn.Flatten(), nn.LazyLinear(5))
    module(torch.zeros(2, *shape))
    file = tflite.convert(exported(module, shape), batch=None)
    x = np.random.default_rng(0).normal(size=(64, *shape)).astype(np.float32)
    small = tflite.quantize(file, x)
    formula = {"RSQRT", "MEAN", "SUB", "LOG", "RELU"} & {name for name, _ in operators(small)}
    assert formula >= {"RSQRT", "MEAN", "SUB"} or formula >= {"LOG", "RELU"}
    for name in formula:
        assert types_of(small, name) <= {schema.TensorType.FLOAT32, schema.TensorType.INT32}  # and axes
    [whole], [made] = run(file, x, ["y"]), run(small, x, ["y"])
    assert np.abs(made - whole).max() <= 0.05 * np.abs(whole).max()


@pytest.mark.parametrize(
    "layers",
    [
        (nn.MaxPool2d(3, 2, 1),),  # its padding is the lowest of all floats
        (nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        (nn.Hardtanh(-0.5, 2), nn.Conv2d(4, 4, 1)),
        (nn.ELU(0.5), nn.AvgPool2d(2)),
        (nn.ConstantPad2d(1, 3.0), nn.Conv2d(4, 4, 3)),
    ],
    ids=lambda layers: "-".join(type(layer).__name__ for layer in layers),
)
def test_layers_with_constants_of_their_own_keep_their_outputs(layers: tuple[nn.Module, ...]) -> None:
    file = tflite.convert(exported(nn.Sequential(nn.Conv2d(2, 4, 3), *layers), (2, 8, 8)), batch=None)
    x = np.random.default_rng(0).normal(size=(64, 2, 8, 8)).astype(np.float32)
    [whole], [made] = run(file, x, ["y"]), run(tflite.quantize(file, x), x, ["y"])
    assert np.abs(made - whole).max() <= 0.06 * np.abs(whole).max()


class Scaled(nn.Module):
    def __init__(self, units: Tensor) -> None:
        super().__init__()
        self.register_buffer("units", units)
        self.layer = nn.Linear(len(units), 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(torch.clamp((x - 1) * self.units, -2, 2))
        return y


def test_inputs_in_units_of_very_unequal_size_are_scaled_before_they_become_int8() -> None:
    units = np.array([1e4, 1.0, 1e-3, 50.0], np.float32)
    file = tflite.convert(exported(Scaled(torch.from_numpy(1 / units)), (4,)), batch=None)
    x = (np.random.default_rng(0).normal(size=(64, 4)) * units).astype(np.float32)
    [whole], [made] = run(file, x, ["y"]), run(tflite.quantize(file, x), x, ["y"])
    assert np.abs(made - whole).max() <= 0.05 * np.abs(whole).max()


def test_an_int8_file_that_computes_something_else_is_refused() -> None:
    # Two features of very unequal size: the small one, which alone is the output, drowns in a level of int8.
    layer = nn.Linear(2, 2, bias=False)
    head = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1e4, 0.0], [0.0, 1.0]]))
        head.weight.copy_(torch.tensor([[0.0, 1.0]]))
    file = tflite.convert(exported(nn.Sequential(layer, head), (2,)), batch=None)
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    with pytest.raises(UnsupportedOperatorError, match=r"change the outputs by \d+%.*float32"):
        tflite.quantize(file, x)


def types_of(file: bytes, name: str) -> set[int]:
    model = parsed(file)
    names = [found for found, _ in operators(file)]
    [graph] = model.subgraphs
    return {
        graph.tensors[index].type
        for found, operator in zip(names, graph.operators, strict=True)
        if found == name
        for index in (*operator.inputs, *operator.outputs)
    }


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x @ x.transpose(1, 2), -1) @ x


def test_attention_in_int8_is_refused() -> None:
    file = tflite.convert(exported(Attention(), (4, 6)), batch=None)
    with pytest.raises(UnsupportedOperatorError, match=r"five times slower.*float32"):
        tflite.quantize(file, np.zeros((16, 4, 6), np.float32))


class Last(nn.Module):
    def __init__(self, make: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.cells = make(3, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.cells(x)[0]
        return states[:, -1]


@pytest.mark.parametrize("make", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_layers_in_int8_are_refused(make: Callable[..., nn.Module]) -> None:
    file = tflite.convert(exported(Last(make), (4, 3)), batch=None)
    with pytest.raises(UnsupportedOperatorError, match=r"larger.*float32"):
        tflite.quantize(file, np.zeros((16, 4, 3), np.float32))


def test_a_model_that_int8_harms_has_its_float32_file_only() -> None:
    x = np.random.default_rng(0).normal(size=(16, 4, 6)).astype(np.float32)
    made = tflite.variants(exported(Attention(), (4, 6)), {}, x)
    assert sorted(made) == [tflite.FLOAT_FILE]


def test_a_model_that_needs_a_fixed_batch_gets_a_batch_of_one() -> None:
    layers = nn.Sequential(nn.ConvTranspose2d(2, 3, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
    x = np.random.default_rng(0).normal(size=(20, 2, 2, 2)).astype(np.float32)
    model = exported(layers, (2, 2, 2))
    made = tflite.variants(model, {}, x)
    assert {name: ends(file).batch for name, file in made.items()} == {
        tflite.FLOAT_FILE: 1,
        tflite.INT8_FILE: 1,
    }
    [expected] = Session(model).run(["y"], {"x": x})
    [whole], [small] = (run(file, x, ["y"]) for file in made.values())
    np.testing.assert_allclose(whole, expected, atol=2e-5 * np.abs(expected).max())
    assert np.abs(small - expected).max() <= 0.05 * np.abs(expected).max()


def test_a_file_that_computes_something_else_than_its_graph_is_refused() -> None:
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    torch.manual_seed(0)
    graph, other = (exported(nn.Linear(3, 2), (3,)) for _ in range(2))
    tflite.verify(tflite.convert(graph, batch=None), graph, x)
    tflite.verify(tflite.convert(graph, batch=1), graph, x)
    with pytest.raises(PackageError, match=r"LiteRT computes y .* away from onnxruntime's"):
        tflite.verify(tflite.convert(other, batch=None), graph, x)


@pytest.mark.parametrize(("off", "right"), [(1e-5, True), (4e-5, False)])
def test_two_parts_in_a_hundred_thousand_are_the_bound(off: float, right: bool) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    layer = nn.Linear(3, 2, bias=False)
    graph = exported(layer, (3,))
    layer.weight.data *= 1 + off
    file = tflite.convert(exported(layer, (3,)), batch=None)
    if right:
        tflite.verify(file, graph, x)
        return
    with pytest.raises(PackageError, match="y of calibration inputs"):
        tflite.verify(file, graph, x)


class Bent(nn.Module):
    """Adds something where two inputs are large together."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] + torch.relu(x.sum(1, keepdim=True) - 1.2)


class Straight(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1]


def test_random_inputs_find_what_calibration_never_meets() -> None:
    x = np.eye(2, dtype=np.float32)[np.arange(20) % 2]
    with pytest.raises(PackageError, match="y of random inputs"):
        tflite.verify(tflite.convert(exported(Bent(), (2,)), batch=None), exported(Straight(), (2,)), x)


def test_no_variant_is_made_that_could_not_be_compared() -> None:
    x = np.full((20, 3), np.nan, np.float32)
    with pytest.raises(PackageError, match="LiteRT computes y of calibration inputs nan away"):
        tflite.variants(exported(nn.Linear(3, 2), (3,)), {}, x)


def test_too_little_calibration_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 16"):
        tflite.quantize(trained()[tflite.FLOAT_FILE], np.zeros((15, 1, 8, 8), np.float32))


def test_a_file_of_a_fixed_batch_is_quantized_and_run_too() -> None:
    file = tflite.convert(exported(nn.Linear(3, 2), (3,)), batch=3)
    x: NDArray[np.float32] = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    small = tflite.quantize(file, x)
    assert (ends(small).batch, SIGNATURE) == (3, "serving_default")
    [whole], [made] = run(file, x, ["y"]), run(small, x, ["y"])
    assert made.shape == (20, 2)
    assert np.abs(made - whole).max() <= 0.05 * np.abs(whole).max()

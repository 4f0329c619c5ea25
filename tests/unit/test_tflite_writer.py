"""What the TFLite writer writes computes what onnxruntime does; what it cannot write it names."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import onnx_exports
from umbel_models import tflite
from umbel_models.quantize import embed
from umbel_models.runtime import Session
from umbel_models.tasks.digits.module import initial
from umbel_models.tasks.digits.task import files
from umbel_models.tflite.errors import UnsupportedOperatorError
from umbel_models.tflite.flatbuffer import SIGNATURE, version
from umbel_models.tflite.flatbuffer import Tensor as Written
from umbel_proto.errors import UsageError

TOLERANCE = 2e-5  # of the largest output
BATCHES = (1, 2, 7)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(16, 8, 3, padding=2, dilation=2, groups=4)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        again = torch.cat([self.norm(self.grouped(self.depthwise(first))) + first, first * 0.5], 1)
        return self.head(again.mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.place = nn.Parameter(torch.randn(1, 6, 16))
        self.norm = nn.LayerNorm(16)
        self.project = nn.Linear(16, 48)
        self.out = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        value = self.embed(x) + self.place
        q, k, v = self.project(self.norm(value)).reshape(-1, 6, 3, 2, 8).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.transpose(-2, -1) / 8**0.5, -1) @ v
        value = value + mixed.transpose(1, 2).reshape(-1, 6, 16)
        return (value + self.out(value))[:, 0]


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed((x * 5).long().clamp(0, 9)).mean(1)


class Pieces(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, rest = x[:, :2], x[:, 2:]
        swapped = torch.cat([rest[..., ::2], first[..., 1::2]], 1).transpose(1, 2)
        return swapped.unsqueeze(1).flatten(1) - x.amax((1, 2)).unsqueeze(1) * x.sum(2)[:, :1]


class Activations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kinds = nn.ModuleList([
            nn.ReLU(), nn.ReLU6(), nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.GELU(approximate="tanh"),
            nn.SiLU(), nn.ELU(), nn.ELU(0.5), nn.SELU(), nn.LeakyReLU(0.2), nn.PReLU(), nn.Hardswish(),
            nn.Hardsigmoid(), nn.Hardtanh(-2, 1), nn.Softplus(), nn.Mish(), nn.Softsign(), nn.LogSigmoid(),
        ])  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([kind(3 * x) for kind in self.kinds] + [torch.erf(x)], 1)


class Recurrent(nn.Module):
    def __init__(self, make: Callable[..., nn.Module], size: int, **options: object) -> None:
        super().__init__()
        self.cells = make(3, 5, batch_first=True, **options)
        self.head = nn.Linear(size, 2)

    def forward(self, x: Tensor) -> Tensor:
        states, last = self.cells(x)
        last = last[0] + last[1] if isinstance(last, tuple) else last  # an LSTM's: of outputs and of cells
        return self.head(states).mean(1) + last.mean((0, 2)).unsqueeze(1)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)


def sequence(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (sequence(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4), nn.Softmax(-1)), (6,)),
    "residual": (Residual, (3, 9, 9)),
    "sensor stream": (
        sequence(
            nn.Conv1d(3, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(8, 8, 3, padding=2, dilation=2, groups=8), nn.GELU(), nn.AvgPool1d(2),
            nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 4), nn.LogSoftmax(-1),
        ),
        (3, 20),
    ),
    "uneven pools": (
        sequence(
            nn.MaxPool2d(3, 2, 1), nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(0, 1)),
            nn.AvgPool2d(2, 1, 1), nn.MaxPool2d(2, ceil_mode=True), nn.Softmax(1),
        ),
        (2, 11, 13),
    ),
    "one channel": (sequence(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(72, 3)), (1, 8, 8)),
    "norm first": (sequence(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.InstanceNorm2d(2)), (3, 5, 4)),
    "group norm": (sequence(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.SiLU()), (3, 6, 6)),
    "layer norm": (sequence(nn.LayerNorm((3, 5)), nn.Linear(5, 4), nn.ReLU(), nn.LayerNorm(4)), (3, 5)),
    "attention": (Attention, (6,)),
    "words": (Words, (6,)),
    "pieces": (Pieces, (4, 6)),
    "activations": (Activations, (9,)),
    "gru": (lambda: Recurrent(nn.GRU, 5), (6, 3)),
    "two-way gru": (lambda: Recurrent(nn.GRU, 10, bidirectional=True, num_layers=2, bias=False), (4, 3)),
    "lstm": (lambda: Recurrent(nn.LSTM, 5, num_layers=2), (6, 3)),
    "two-way lstm": (lambda: Recurrent(nn.LSTM, 10, bidirectional=True), (4, 3)),
    "rnn": (lambda: Recurrent(nn.RNN, 5), (6, 3)),
    "rnn of relus": (lambda: Recurrent(nn.RNN, 10, nonlinearity="relu", bidirectional=True), (4, 3)),
    "encoder": (Encoder, (5, 8)),
    "upsampled": (
        sequence(nn.Upsample(scale_factor=2), nn.Conv2d(2, 3, 3), nn.Upsample((9, 5), mode="bilinear")), (2, 4, 3)
    ),
    "stretched": (sequence(nn.Upsample(scale_factor=2, mode="linear"), nn.Upsample(scale_factor=3)), (2, 5)),
    "aligned": (sequence(nn.Upsample(scale_factor=3, mode="bilinear", align_corners=True)), (2, 4, 3)),
    "padded": (sequence(nn.ZeroPad2d((1, 2, 0, 1)), nn.ReflectionPad2d(1), nn.Conv2d(2, 2, 2)), (2, 4, 4)),
}  # fmt: skip


@functools.cache
def exported(name: str) -> bytes:
    make, _ = MODULES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = make().eval()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):  # or folding it would change nothing
                for value in (layer.weight, layer.running_mean, layer.running_var):
                    assert value is not None
                    value.data.uniform_(0.5, 2.0)
        example = inputs(name, 3)
        return onnx_exports.exported(module, MODULES[name][1], example=torch.from_numpy(example))


def inputs(name: str, batch: int) -> NDArray[np.float32] | NDArray[np.int64]:
    rng = np.random.default_rng(batch)
    shape = (batch, *MODULES[name][1])
    if name == "attention":
        return rng.integers(0, 20, shape)
    return rng.normal(size=shape).astype(np.float32)


@functools.cache
def digits() -> bytes:
    parameters = {name: value.detach().numpy() for name, value in initial(0).named_parameters()}
    return bytes(embed(files()["infer.onnx"], parameters).SerializeToString())


def run(file: bytes, x: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
    interpreter = Interpreter(model_content=file, num_threads=1)
    [entry] = interpreter.get_input_details()
    if entry["shape_signature"][0] == -1:
        interpreter.resize_tensor_input(entry["index"], x.shape, strict=True)
    interpreter.allocate_tensors()
    outputs: dict[str, NDArray[np.float32]] = interpreter.get_signature_runner(SIGNATURE)(x=x)
    return outputs


def require_equal(model: bytes, file: bytes, x: NDArray[np.generic], names: list[str]) -> None:
    made = run(file, x)
    assert sorted(made) == sorted(names)
    for name, expected in zip(names, Session(model).run(names, {"x": x}), strict=True):
        assert made[name].shape == expected.shape
        assert np.abs(made[name] - expected).max() <= TOLERANCE * max(float(np.abs(expected).max()), 1e-3)


@pytest.mark.parametrize("name", MODULES)
def test_an_open_batch_computes_what_onnxruntime_does(name: str) -> None:
    model = exported(name)
    file = tflite.convert(model, batch=None)
    for batch in BATCHES:
        require_equal(model, file, inputs(name, batch), ["y"])


@pytest.mark.parametrize("name", MODULES)
def test_a_fixed_batch_computes_what_onnxruntime_does(name: str) -> None:
    model = exported(name)
    for batch in BATCHES:
        require_equal(model, tflite.convert(model, batch=batch), inputs(name, batch), ["y"])


TRANSPOSED = {
    "padded": (sequence(nn.ConvTranspose2d(3, 4, 3, 2, 1), nn.ReLU(), nn.BatchNorm2d(4)), (3, 5, 6)),
    "padded on one side": (sequence(nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1)), (3, 5, 6)),
    "without biases": (sequence(nn.ConvTranspose2d(3, 4, 2, (2, 3), bias=False)), (3, 5, 6)),
    "of a sequence": (sequence(nn.ConvTranspose1d(3, 4, 4, 2, 1)), (3, 9)),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_a_transposed_convolution_computes_what_onnxruntime_does_in_a_fixed_batch(name: str) -> None:
    make, shape = TRANSPOSED[name]
    model = onnx_exports.exported(make(), shape)
    with pytest.raises(UnsupportedOperatorError, match="fixed batch"):
        tflite.convert(model, batch=None)
    x = np.random.default_rng(5).normal(size=(2, *shape)).astype(np.float32)
    require_equal(model, tflite.convert(model, batch=2), x, ["y"])


@pytest.mark.parametrize("backwards", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_scan_is_its_body_once_a_step(axis: int, backwards: int) -> None:
    # h' = tanh(h R + x_t); the states of all steps and the last one.
    part = functools.partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT, shape=None)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["h", "R"], ["p"]),
            helper.make_node("Add", ["p", "v"], ["s"]),
            helper.make_node("Tanh", ["s"], ["t"]),
            helper.make_node("Identity", ["t"], ["all"]),
        ],
        "body",
        [part("h"), part("v")],
        [part("t"), part("all")],
    )
    scan = helper.make_node(
        "Scan",
        ["zeros", "x"],
        ["last", "states"],
        name="the Scan",
        body=body,
        num_scan_inputs=1,
        scan_input_axes=[axis],
        scan_input_directions=[backwards],
        scan_output_axes=[axis],
        scan_output_directions=[backwards],
    )
    rng = np.random.default_rng(axis)
    made = helper.make_graph(
        [scan, helper.make_node("ReduceSum", ["states", "axes"], ["y"], keepdims=1)],
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "last", "states")],
        [
            numpy_helper.from_array(rng.normal(size=(3, 3)).astype(np.float32), "R"),
            numpy_helper.from_array(np.zeros((4, 3), np.float32), "zeros"),
            numpy_helper.from_array(np.array([2]), "axes"),
        ],
    )
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=9).SerializeToString()
    x = rng.normal(size=(4, 4, 3)).astype(np.float32)
    require_equal(model, tflite.convert(model, batch=None), x, ["y", "last", "states"])


def test_the_steps_of_a_recurrent_layer_share_their_weights() -> None:
    short, long = (
        tflite.convert(onnx_exports.exported(Recurrent(nn.GRU, 5), (steps, 3)), batch=None)
        for steps in (4, 8)
    )
    assert operators(long).count("FULLY_CONNECTED") == operators(short).count("FULLY_CONNECTED") + 4
    weights = [constants(file) for file in (short, long)]
    assert weights[0] == weights[1]


def constants(file: bytes) -> int:
    """Return how many constants of floats a file holds."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(file, 0))
    [graph] = model.subgraphs
    return sum(
        tensor.type == schema.TensorType.FLOAT32 and model.buffers[tensor.buffer].data is not None
        for tensor in graph.tensors
    )


def test_the_digits_network_computes_what_onnxruntime_does() -> None:
    names = ["probabilities", "logits"]
    for batch in BATCHES:
        x = np.random.default_rng(batch).uniform(0, 16, (batch, 1, 8, 8)).astype(np.float32)
        for file in (tflite.convert(digits(), batch=None), tflite.convert(digits(), batch=batch)):
            require_equal(digits(), file, x, names)


def test_equal_graphs_give_equal_bytes() -> None:
    assert tflite.convert(digits(), batch=None) == tflite.convert(digits(), batch=None)


def test_constants_are_aligned_as_the_schema_asks() -> None:
    file = tflite.convert(digits(), batch=None)
    model = schema.Model.GetRootAs(file, 0)
    buffers = [model.Buffers(i) for i in range(model.BuffersLength())]
    starts = [b._tab.Vector(b._tab.Offset(4)) for b in buffers if b.DataLength()]
    assert len(starts) > 8
    assert {start % 16 for start in starts} == {0}


def test_a_convolution_absorbs_its_norm_and_its_activation() -> None:
    layers = [("Conv", ["x", "w"], ["c"]), ("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"])]
    rng = np.random.default_rng(0)
    values = {name: rng.uniform(0.5, 2, 4).astype(np.float32) for name in "gbmv"}
    values["w"] = rng.normal(size=(4, 2, 3, 3)).astype(np.float32)
    model = graph([*layers, ("Relu", ["n"], ["y"])], values, (2, 5, 5))
    file = tflite.convert(model, batch=None)
    assert operators(file) == ["TRANSPOSE", "CONV_2D", "TRANSPOSE"]
    require_equal(model, file, rng.normal(size=(2, 2, 5, 5)).astype(np.float32), ["y"])


def test_a_gelu_that_was_written_out_becomes_one_operator() -> None:
    names = operators(tflite.convert(exported("attention"), batch=None))
    assert names.count("GELU") == 1
    assert "EXP" not in names


def graph(
    nodes: list[tuple[str, list[str], list[str]]],
    values: dict[str, NDArray[np.generic]],
    shape: tuple[int, ...] = (4,),
    *,
    takes: tuple[str, ...] = (),
    **attributes: object,
) -> bytes:
    """Return a graph from x, (batch, *shape), to y; the operators in ``takes``, or all, get the attributes."""
    made = helper.make_graph(
        [
            helper.make_node(
                op, ins, outs, name=f"the {op}", **(attributes if op in takes or not takes else {})
            )
            for op, ins, outs in nodes
        ],
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def operators(file: bytes) -> list[str]:
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()}
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(file, 0))
    codes = [names[code.builtinCode] for code in model.operatorCodes]
    return [codes[operator.opcodeIndex] for operator in model.subgraphs[0].operators]


def test_an_operator_without_a_tflite_form_is_named_with_its_node_and_a_cure() -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"Einsum 'the Einsum'.*matmul") as found:
        tflite.convert(graph([("Einsum", ["x"], ["y"])], {}, equation="ij->ji"), batch=None)
    assert (found.value.operator, found.value.node) == ("Einsum", "the Einsum")
    assert found.value.cure
    assert isinstance(found.value, UsageError)


def test_picking_from_an_open_batch_is_refused_and_from_a_fixed_one_works() -> None:
    model = graph([("Gather", ["x", "i"], ["y"])], {"i": np.array([1, -2])})
    with pytest.raises(UnsupportedOperatorError, match="fixed batch"):
        tflite.convert(model, batch=None)
    require_equal(model, tflite.convert(model, batch=3), np.eye(3, 4, dtype=np.float32), ["y"])


def test_a_constant_that_is_the_same_for_every_example_may_follow_an_open_batch() -> None:
    nodes = [("Shape", ["x"], ["s"]), ("ConstantOfShape", ["s"], ["z"]), ("Add", ["x", "z"], ["y"])]
    model = graph(
        nodes, {}, takes=("ConstantOfShape",), value=numpy_helper.from_array(np.array([2.5], np.float32))
    )
    require_equal(model, tflite.convert(model, batch=None), np.eye(3, 4, dtype=np.float32), ["y"])


def test_a_constant_that_differs_from_example_to_example_is_refused() -> None:
    nodes = [
        ("Shape", ["x"], ["s"]),
        ("Gather", ["s", "none"], ["n"]),
        ("Range", ["none", "n", "one"], ["places"]),
        ("Unsqueeze", ["places", "end"], ["column"]),
        ("Cast", ["column"], ["numbers"]),
        ("Add", ["x", "numbers"], ["y"]),
    ]
    values = {"none": np.array(0), "one": np.array(1), "end": np.array([1])}
    model = graph(nodes, values, takes=("Cast",), to=TensorProto.FLOAT)
    with pytest.raises(UnsupportedOperatorError, match="depend on the batch"):
        tflite.convert(model, batch=None)
    require_equal(model, tflite.convert(model, batch=3), np.eye(3, 4, dtype=np.float32), ["y"])


def guarded(mask: NDArray[np.float32]) -> bytes:
    """Return torch's guarded softmax of x + mask: zeros where a whole row is -inf."""
    nodes = [
        helper.make_node("Add", ["x", "mask"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("Equal", ["s", "limit"], ["low"]),
        helper.make_node("Not", ["low"], ["seen"]),
        helper.make_node("Cast", ["seen"], ["number"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["number", "last"], ["any"]),
        helper.make_node("Cast", ["any"], ["some"], to=TensorProto.BOOL),
        helper.make_node("Not", ["some"], ["none"]),
        helper.make_node("Where", ["none", "zero", "p"], ["y"]),
    ]
    values = {
        "mask": mask,
        "limit": np.array(-np.inf, np.float32),
        "last": np.array([-1]),
        "zero": np.zeros((), np.float32),
    }
    made = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    return bytes(helper.make_model(made, opset_imports=opsets, ir_version=9).SerializeToString())


def test_a_softmax_guards_itself_where_rows_can_be_masked_out_and_only_there() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    causal = np.triu(np.full((3, 4), -np.inf, np.float32), 0)  # of row 0 nothing is left
    for mask, guards in ((np.zeros((3, 4), np.float32), False), (causal, True)):
        model = guarded(mask)
        file = tflite.convert(model, batch=None)
        assert ("EQUAL" in operators(file)) == guards
        require_equal(model, file, x, ["y"])


@pytest.mark.parametrize("operator", ["And", "Or"])
def test_conditions_are_joined_element_by_element(operator: str) -> None:
    nodes = [
        ("Greater", ["x", "limit"], ["a"]),
        ("Equal", ["x", "three"], ["b"]),
        ("Not", ["b"], ["c"]),
        (operator, ["a", "c"], ["d"]),
        ("Where", ["d", "x", "limit"], ["y"]),
    ]
    model = graph(nodes, {"limit": np.array(-1, np.float32), "three": np.array(3, np.float32)})
    x = np.array([[-2, -1, 0, 3]], np.float32)
    require_equal(model, tflite.convert(model, batch=None), x, ["y"])


@pytest.mark.parametrize("indices", [[[[0, -1], [1, 2]], [[1, 0], [0, 0]]], [[1], [-2]]])
def test_places_are_picked_along_several_axes_at_once(indices: list[object]) -> None:
    made = graph([("GatherND", ["x", "i"], ["y"])], {"i": np.array(indices)}, (3, 4))
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    with pytest.raises(UnsupportedOperatorError, match="out of the batch"):
        tflite.convert(made, batch=None)
    require_equal(made, tflite.convert(made, batch=2), x, ["y"])


def test_blocks_are_replaced_where_indices_say() -> None:
    values = {"i": np.array([[2, 0], [0, -1]]), "u": np.full((2, 4), 9, np.float32)}
    model = graph([("ScatterND", ["x", "i", "u"], ["y"])], values, (3, 4))
    x = np.random.default_rng(0).normal(size=(3, 3, 4)).astype(np.float32)
    with pytest.raises(UnsupportedOperatorError, match="examples of the batch"):
        tflite.convert(model, batch=None)
    require_equal(model, tflite.convert(model, batch=3), x, ["y"])


@pytest.mark.parametrize("options", [{}, {"exclusive": 1}, {"reverse": 1}])
def test_a_running_sum_runs_as_it_does_in_onnx(options: dict[str, int]) -> None:
    model = graph([("CumSum", ["x", "axis"], ["y"])], {"axis": np.array(1)}, **options)
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    require_equal(model, tflite.convert(model, batch=None), x, ["y"])


@pytest.mark.parametrize("pads", [[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1], [2, 0, 0, 1]])
def test_padding_on_one_side_stays_on_that_side(pads: list[int]) -> None:
    weight = np.random.default_rng(1).normal(size=(2, 2, 2, 2)).astype(np.float32)
    model = graph([("Conv", ["x", "w"], ["y"])], {"w": weight}, (2, 5, 4), pads=pads)
    x = np.random.default_rng(2).normal(size=(2, 2, 5, 4)).astype(np.float32)
    require_equal(model, tflite.convert(model, batch=None), x, ["y"])


def test_the_padding_of_a_pool_is_never_its_maximum() -> None:
    model = graph([("MaxPool", ["x"], ["y"])], {}, (2, 5, 4), kernel_shape=[3, 3], pads=[2, 2, 0, 0])
    x = -1 - np.random.default_rng(2).random((2, 2, 5, 4), np.float32)
    require_equal(model, tflite.convert(model, batch=None), x, ["y"])


@pytest.mark.parametrize("operator", ["Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_a_choice_between_values_is_made_element_by_element(operator: str) -> None:
    nodes = [(operator, ["x", "limit"], ["c"]), ("Neg", ["x"], ["n"]), ("Where", ["c", "x", "n"], ["y"])]
    model = graph(nodes, {"limit": np.array(-1, np.float32)})
    x = np.array([[-2, -1, 0, 3]], np.float32)
    require_equal(model, tflite.convert(model, batch=None), x, ["y"])


def test_parameters_outside_the_graph_are_refused() -> None:
    with pytest.raises(UsageError, match="embed"):
        tflite.convert(files()["infer.onnx"], batch=None)


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_without_examples_is_refused(batch: int) -> None:
    with pytest.raises(UsageError, match="batch"):
        tflite.convert(digits(), batch=batch)


def test_bytes_that_are_no_model_are_refused() -> None:
    for data in (b"", b"no model"):
        with pytest.raises(UsageError):
            tflite.convert(data, batch=None)


def test_another_open_dimension_is_refused() -> None:
    model = onnx.load_from_string(digits())
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(UsageError, match="Dimension 2 of input 'x'"):
        tflite.convert(model.SerializeToString(), batch=None)


@pytest.mark.parametrize(
    ("operator", "ranks", "options", "expected"),
    [
        ("FULLY_CONNECTED", (3, 2), {"keepNumDims": True}, 5),
        ("FULLY_CONNECTED", (2, 2), {"keepNumDims": False}, 1),
        ("DEPTHWISE_CONV_2D", (4, 4), {"dilationHFactor": 1, "dilationWFactor": 2}, 2),
        ("TRANSPOSE", (5,), {}, 4),
        ("TRANSPOSE", (4,), {}, 1),
        ("SLICE", (5,), {}, 5),
        ("BROADCAST_TO", (2,), {}, 2),
    ],
)
def test_an_operator_has_the_version_its_use_needs(
    operator: str, ranks: tuple[int, ...], options: dict[str, object], expected: int
) -> None:
    assert version(operator, [Written(0, (2,) * rank, "float32") for rank in ranks], options) == expected


def test_only_what_others_call_is_public() -> None:
    assert tflite.__all__ == ["FLOAT_FILE", "INT8_FILE", "convert", "quantize", "run", "variants", "verify"]

"""What the exporter writes computes what torch does; otherwise it writes nothing."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from umbel_models.graphs import windows as cut
from umbel_models.graphs.decompositions import (
    batch_norm,
    batch_norm_without_statistics,
    convolution_backward,
    max_pool2d_with_indices_backward,
    threshold_backward,
)
from umbel_models.graphs.export import Graphs, export
from umbel_models.graphs.layers import check_layers
from umbel_models.graphs.model import IR_VERSION, finish
from umbel_models.graphs.pools import adaptive_avg_pool_backward, avg_pool_backward
from umbel_models.graphs.rectified import pooled_first
from umbel_models.graphs.same import require_same
from umbel_models.graphs.truth import Truth
from umbel_models.graphs.verify import compare, verify_gradient, verify_inference
from umbel_models.graphs.windows import windows
from umbel_models.task import cross_entropy as loss
from umbel_models.tasks.digits import export as digits_export
from umbel_models.tasks.digits.module import initial
from umbel_models.tasks.digits.task import files
from umbel_proto.errors import PackageError, UsageError, VerificationError

aten = torch.ops.aten


@pytest.fixture(scope="module")
def made() -> Mapping[str, bytes]:
    """The digits files, exported anew: the one slow step here."""
    return digits_export.make()


def test_the_committed_files_are_what_the_exporter_makes(made: Mapping[str, bytes]) -> None:
    digits_export.check(made, files())


@pytest.mark.parametrize("name", ["infer.onnx", "grad.onnx"])
def test_an_exported_graph_is_plain_onnx(made: Mapping[str, bytes], name: str) -> None:
    model = onnx.load_from_string(made[name])
    assert model.ir_version == IR_VERSION == 9
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.metadata_props
    assert not model.graph.value_info
    assert model.graph.input[-1].type.tensor_type.shape.dim[0].dim_param
    assert not any(node.metadata_props or node.doc_string or node.name for node in model.graph.node)


def test_the_inference_graph_holds_no_parameters(made: Mapping[str, bytes]) -> None:
    graph = onnx.load_from_string(made["infer.onnx"]).graph
    external = {t.name for t in graph.initializer if t.data_location == TensorProto.EXTERNAL}
    assert external == {name for name, _ in initial(0).named_parameters()}
    assert [value.name for value in graph.input] == ["x"]
    assert [value.name for value in graph.output] == ["probabilities", "logits"]


def test_parameters_that_training_leaves_alone_are_no_inputs_of_its_graphs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    graphs = export(net, loss, (4,), trainable=["2.bias", "2.weight"])
    for data, prefix, more in ((graphs.gradient, "grad.", []), (graphs.clipped, "sum.", ["clip"])):
        graph = onnx.load_from_string(data).graph
        external = {t.name for t in graph.initializer if t.data_location == TensorProto.EXTERNAL}
        assert external == {"0.weight", "0.bias"}
        assert [value.name for value in graph.input] == ["2.weight", "2.bias", "x", "y", "w", *more]
        assert [v.name for v in graph.output][:3] == [f"{prefix}2.weight", f"{prefix}2.bias", "loss"]


def test_a_layer_that_is_trained_in_part_is_clipped_by_scan() -> None:
    graphs = export(nn.Sequential(nn.Linear(4, 3)), loss, (4,), trainable=["0.bias"])
    assert "Scan" in [node.op_type for node in onnx.load_from_string(graphs.clipped).graph.node]


def test_a_parameter_that_is_not_there_cannot_be_trained() -> None:
    with pytest.raises(UsageError, match=r"no parameter 1\.weight: name some of 0\.weight, 0\.bias"):
        export(nn.Sequential(nn.Linear(4, 3)), loss, (4,), trainable=["1.weight", "0.bias"])


@pytest.mark.parametrize(
    ("net", "sentence"),
    [
        (nn.Linear(5, 3), "fails on two random examples"),
        (nn.Unflatten(1, (2, 2)), r"gives logits of shape \(2, 2, 2\)"),
    ],
)
def test_a_module_that_does_not_take_its_examples_is_refused(net: nn.Module, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        export(nn.Sequential(nn.Flatten(), net), loss, (4,))


def test_a_module_that_never_uses_a_parameter_is_refused() -> None:
    """Its graph would not open, and onnxruntime says so, in words that name no cure."""

    class Spare(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.spare = nn.Linear(4, 7)

    with pytest.raises(UsageError, match=r"never uses its parameters spare\.weight, spare\.bias: use them"):
        export(Spare(), loss, (4,))


def test_a_loss_that_is_a_mean_is_refused() -> None:
    with pytest.raises(UsageError, match=r"the loss has shape \(\).*reduction='none'"):
        export(nn.Linear(4, 3), nn.functional.cross_entropy, (4,))


def test_a_pool_keeps_no_output_that_nobody_reads(made: Mapping[str, bytes]) -> None:
    graph = onnx.load_from_string(made["grad.onnx"]).graph
    assert [len(node.output) for node in graph.node if node.op_type == "MaxPool"] == [1, 1]


def test_a_graph_with_other_constants_is_found_out(made: Mapping[str, bytes]) -> None:
    truth = Truth(initial(3).train(), loss, (1, 8, 8))
    verify_inference(made["infer.onnx"], truth)
    verify_gradient(made["grad.onnx"], truth)
    for name in ("infer.onnx", "grad.onnx"):
        broken = onnx.load_from_string(made[name])
        scale = next(t for t in broken.graph.initializer if t.data_type == TensorProto.FLOAT and t.raw_data)
        value = numpy_helper.to_array(scale)
        scale.CopyFrom(numpy_helper.from_array((value * np.float32(1.01) + np.float32(1e-3)), scale.name))
        data = broken.SerializeToString()
        with pytest.raises(PackageError, match=f"{name} at batch"):
            verify_inference(data, truth) if name == "infer.onnx" else verify_gradient(data, truth)


def test_a_committed_file_that_computes_something_else_is_found_out(made: Mapping[str, bytes]) -> None:
    model = onnx.load_from_string(made["infer.onnx"])
    model.doc_string = "other bytes, the same graph"
    digits_export.check({**made, "infer.onnx": model.SerializeToString()}, made)
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Abs"
    with pytest.raises(VerificationError, match=r"infer\.onnx computes another"):
        digits_export.check({**made, "infer.onnx": model.SerializeToString()}, made)
    del model.graph.output[1]
    with pytest.raises(VerificationError, match="tensors it should"):
        require_same("infer.onnx", model.SerializeToString(), made["infer.onnx"])


@pytest.mark.parametrize("name", ["grad.onnx", "dpgrad.onnx", "explain.onnx"])
def test_every_committed_graph_is_compared_by_what_it_computes(made: Mapping[str, bytes], name: str) -> None:
    model = onnx.load_from_string(made[name])
    model.doc_string = "other bytes, the same graph"
    require_same(name, model.SerializeToString(), made[name])
    last = next(node for node in reversed(model.graph.node) if model.graph.output[0].name in node.output)
    last.output[0] = "before"
    model.graph.node.add(op_type="Neg", input=["before"], output=[model.graph.output[0].name])
    with pytest.raises(VerificationError, match=f"computes another {model.graph.output[0].name}"):
        require_same(name, model.SerializeToString(), made[name])


@pytest.mark.parametrize("wrong", [np.array([1.0, 2.1]), np.array([1.0, np.nan]), np.array([[1.0, 2.0]])])
def test_verification_refuses_what_differs(wrong: np.ndarray) -> None:
    compare({"y": np.array([1.0, 2.0 + 1e-5])}, {"y": np.array([1.0, 2.0])}, "graph")
    with pytest.raises(PackageError, match="graph: y"):
        compare({"y": wrong}, {"y": np.array([1.0, 2.0])}, "graph")


def test_an_operator_of_another_domain_is_refused() -> None:
    node = onnx.helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "g", [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])]
    )
    with pytest.raises(PackageError, match=r"com\.microsoft"):
        finish(onnx.helper.make_model(graph))


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (nn.BatchNorm2d(4), "'odd' is a BatchNorm2d"),
        (nn.Bilinear(4, 4, 3), "'odd' is a Bilinear"),
        (nn.Dropout(), "'odd' is a Dropout"),
        (nn.ReLU(inplace=True), "'odd' works in place"),
    ],
)
def test_a_layer_that_is_not_exported_yet_is_named(layer: nn.Module, sentence: str) -> None:
    net = nn.Sequential()
    net.add_module("first", nn.Conv2d(1, 4, 3))
    net.add_module("odd", layer)
    with pytest.raises(UsageError, match=sentence):
        check_layers(net)
    check_layers(initial(0))


CONVOLUTIONS = [
    (size, kernel, stride, padding, dilation, groups)
    for size, kernel, stride, padding, dilation, groups in itertools.product(
        [(7, 8)], [(3, 3), (1, 2)], [(1, 1), (2, 3)], [(0, 0), (1, 2)], [(1, 1), (2, 1)], [1, 2]
    )
]


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation", "groups"), CONVOLUTIONS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_gradient_of_a_convolution_is_torchs(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    batch: int,
) -> None:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 4, *size, generator=source)
    weight = torch.randn(6, 4 // groups, *kernel, generator=source)
    y = torch.conv2d(x, weight, None, stride, padding, dilation, groups)
    grad = torch.randn(y.shape, generator=source)
    settings = ([6], stride, padding, dilation, False, [0, 0], groups, [True, True, True])
    for ours, theirs in zip(
        convolution_backward(grad, x, weight, *settings),
        aten.convolution_backward(grad, x, weight, *settings),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [([4], [2], [1], [3]), ([3, 2], [2, 1], [1, 0], [1, 2]), ([2, 1, 2], [1, 2, 1], [0, 1, 2], [2, 1, 1])],
)
def test_windows_in_pieces_give_the_same_gradient(
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    taps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = torch.Generator().manual_seed(7)
    x = torch.randn(2, 4, *[9, 8, 7][: len(kernel)], generator=source)
    weight = torch.randn(6, 4 // groups, *kernel, generator=source)
    y = aten.convolution(x, weight, None, stride, padding, dilation, False, [0] * len(kernel), groups)
    grad, mask = torch.randn(y.shape, generator=source), [False, True, False]
    settings = ([6], stride, padding, dilation, False, [0] * len(kernel), groups, mask)
    monkeypatch.setattr(cut, "LARGE", 0)
    monkeypatch.setattr(cut, "WIDE", 4 * taps)  # Four channels of each.
    pieces = windows(x, kernel, y.shape[2:], stride, padding, dilation, groups)
    assert len(pieces) == -(-math.prod(kernel) // taps)
    torch.testing.assert_close(
        convolution_backward(grad, x, weight, *settings)[1],
        aten.convolution_backward(grad, x, weight, *settings)[1],
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [([4], [2], [1], [3]), ([3, 2], [2, 1], [1, 0], [1, 2]), ([2, 1, 2], [1, 2, 1], [0, 1, 2], [2, 1, 1])],
)
def test_the_windows_of_one_channel_are_one_convolution_and_the_channels_own_numbers(
    kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> None:
    x, dims = torch.randn(3, 1, *[9, 8, 7][: len(kernel)]), len(kernel)
    weight = torch.randn(5, 1, *kernel)
    y = aten.convolution(x, weight, None, stride, padding, dilation, False, [0] * dims, 1)
    trace = make_fx(lambda x: windows(x, kernel, y.shape[2:], stride, padding, dilation, 1)[0])(x)
    assert sum(node.target == aten.convolution.default for node in trace.graph.nodes) == 1
    assert not any(node.target == aten.slice.Tensor for node in trace.graph.nodes)
    assert set(trace(x).unique().tolist()) <= {0.0, *x.unique().tolist()}
    torch.testing.assert_close((trace(x) @ weight.flatten(1).t()).transpose(1, 2).reshape(y.shape), y)


def test_only_the_gradients_asked_for_are_computed() -> None:
    x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
    settings = ([1], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False])
    grad_x, grad_weight, grad_bias = convolution_backward(torch.ones(1, 1, 1, 1), x, weight, *settings)
    assert (grad_x, grad_bias) == (None, None)
    torch.testing.assert_close(grad_weight, x)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups", "more"),
    [([1, 1], [0, 0], [1, 1], 1, [0, 0]), ([2, 3], [1, 0], [1, 2], 2, [1, 1])],
)
def test_the_gradient_of_a_transposed_convolution_is_torchs(
    stride: list[int], padding: list[int], dilation: list[int], groups: int, more: list[int]
) -> None:
    source = torch.Generator().manual_seed(4)
    x = torch.randn(2, 4, 5, 6, generator=source)
    weight = torch.randn(4, 6 // groups, 3, 2, generator=source)
    y = aten.convolution(x, weight, None, stride, padding, dilation, True, more, groups)
    grad = torch.randn(y.shape, generator=source)
    settings = ([6], stride, padding, dilation, True, more, groups, [True, True, True])
    for ours, theirs in zip(
        convolution_backward(grad, x, weight, *settings),
        aten.convolution_backward(grad, x, weight, *settings),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kernel", [[2], [3, 2]])
@pytest.mark.parametrize("stride", [[], [1], [2, 3]])
@pytest.mark.parametrize("padding", [[0], [1]])
@pytest.mark.parametrize("divisor", [None, 5])
def test_the_gradient_of_an_average_pool_is_torchs(
    kernel: list[int], stride: list[int], padding: list[int], divisor: int | None
) -> None:
    x = torch.zeros(2, 3, 7, 9)
    for ceil, counted in itertools.product([False, True], repeat=2):
        settings = (kernel, stride, padding, ceil, counted, divisor)
        grad = torch.randn(aten.avg_pool2d(x, *settings).shape, generator=torch.Generator().manual_seed(5))
        torch.testing.assert_close(
            avg_pool_backward(grad, x, *settings), aten.avg_pool2d_backward(grad, x, *settings)
        )


def test_the_gradient_of_an_average_pool_in_three_dimensions_is_torchs() -> None:
    x, settings = torch.zeros(2, 3, 5, 6, 7), ([2, 3, 2], [2], [1], False, True, None)
    y = aten.avg_pool3d(x, *settings)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(
        avg_pool_backward(grad, x, *settings), aten.avg_pool3d_backward(grad, x, *settings)
    )


@pytest.mark.parametrize("size", [[1, 1], [3, 4], [5, 9]])
def test_the_gradient_of_an_adaptive_average_pool_is_torchs(size: list[int]) -> None:
    x = torch.zeros(2, 3, 7, 9)
    grad = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(
        adaptive_avg_pool_backward(grad, x), aten._adaptive_avg_pool2d_backward(grad, x)
    )


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_norm_is_torchs_in_either_mode(training: bool) -> None:
    source = torch.Generator().manual_seed(8)
    x, weight, bias, mean = (torch.randn(*shape, generator=source) for shape in [(4, 3, 5), (3,), (3,), (3,)])
    variance, settings = torch.tensor([0.5, 1.0, 2.0]), (training, 0.0, 1e-5)
    ours = batch_norm(x, weight, bias, mean, variance, *settings)
    theirs = aten.native_batch_norm(x, weight, bias, mean, variance, *settings)
    torch.testing.assert_close(ours[0], theirs[0])
    if training:
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(batch_norm_without_statistics(x, weight, bias, True, 0.0, 1e-5), theirs)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ([2, 2], [2, 2], [0, 0]),
        ([2], [], [0]),
        ([3, 2], [3, 2], [0, 0]),
        ([3, 3], [1, 2], [1, 1]),
        ([2, 1], [2, 1], [0, 0]),
    ],
)
@pytest.mark.parametrize("ceil", [False, True])
def test_the_gradient_of_a_max_pool_is_torchs_even_on_ties(
    kernel: list[int], stride: list[int], padding: list[int], ceil: bool
) -> None:
    source = torch.Generator().manual_seed(2)
    x = torch.randint(0, 3, (2, 3, 7, 9), generator=source).float()  # three values: ties in most windows
    y, indices = aten.max_pool2d_with_indices(x, kernel, stride, padding, [1, 1], ceil)
    grad = torch.randn(y.shape, generator=source)
    ours = max_pool2d_with_indices_backward(grad, x, kernel, stride, padding, [1, 1], ceil, indices)
    theirs = aten.max_pool2d_with_indices_backward(grad, x, kernel, stride, padding, [1, 1], ceil, indices)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(2, 3, 1, 300), (2, 3, 8, 202), (1, 2, 6, 122)])
def test_the_gradient_of_a_wide_max_pool_is_torchs(shape: tuple[int, ...]) -> None:
    # Wider than one product sorts, with a number of windows that has few divisors.
    kernel = [1, 4] if shape[-2] == 1 else [2, 2]
    x = torch.randint(0, 3, shape).double()
    y, indices = aten.max_pool2d_with_indices(x, kernel)
    grad, rest = torch.randn_like(y), (kernel, kernel, [0, 0], [1, 1], False)
    ours = max_pool2d_with_indices_backward(grad, x, *rest, indices)
    assert torch.equal(ours, aten.max_pool2d_with_indices_backward(grad, x, *rest, indices))


@pytest.mark.parametrize("rectifier", [nn.ReLU(), nn.ReLU(inplace=True), torch.relu, Tensor.relu])
def test_maxima_taken_before_the_rectifier_have_the_same_gradient(
    rectifier: Callable[[Tensor], Tensor],
) -> None:
    # Whole numbers: windows with ties, below zero, at zero and above it.
    start = torch.randint(-2, 3, (4, 3, 8, 8)).double().requires_grad_()

    def gradient() -> tuple[Tensor, Tensor]:
        gave = nn.functional.max_pool2d(rectifier(start * 1), 2)
        return gave.detach(), torch.autograd.grad((gave * gave).sum(), start)[0]

    usual = gradient()
    with pooled_first():
        first = gradient()
    assert all(map(torch.equal, usual, first))


def test_training_rectifies_maxima_and_inference_what_they_are_taken_from() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    graphs = export(net, loss, (1, 8, 8))
    for data, order in ((graphs.infer, ["Relu", "MaxPool"]), (graphs.gradient, ["MaxPool", "Relu"])):
        kinds = [node.op_type for node in onnx.load_from_string(data).graph.node]
        assert [kind for kind in kinds if kind in order] == order


@pytest.fixture(scope="module")
def large() -> Graphs:
    """A network of the letters' layers whose first holds 25 large windows, and whose second has more than 1 MiB."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(32, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    return export(nn.Sequential(*body, nn.Linear(294, 900), nn.ReLU(), nn.Linear(900, 3)), loss, (32, 15, 15))


def test_a_large_layer_multiplies_its_weight_from_the_left_when_it_trains_or_explains(large: Graphs) -> None:
    assert large.explain is not None
    for data, left in (
        (large.infer, False),
        (large.gradient, True),
        (large.clipped, True),
        (large.explain, True),
    ):
        nodes = onnx.load_from_string(data).graph.node
        assert any(node.op_type == "MatMul" and node.input[0] == "4.weight" for node in nodes) is left


@pytest.mark.parametrize("graph", ["gradient", "clipped", "explain"])
def test_no_large_weight_is_transposed_to_train_or_explain(large: Graphs, graph: str) -> None:
    """Training would do it in every step; what lies in the package would be whenever a session is opened."""
    nodes = onnx.load_from_string(getattr(large, graph)).graph.node
    assert not any(node.op_type == "Transpose" and node.input[0] == "4.weight" for node in nodes)


@pytest.mark.parametrize(
    ("graph", "per_tap", "most"),
    [("infer", 0, 10), ("gradient", 3, 190), ("clipped", 5, 260), ("explain", 0, 90)],
)
def test_a_graph_holds_no_more_operators_than_it_needs(
    large: Graphs, graph: str, per_tap: int, most: int
) -> None:
    """A session plans its memory in time that goes with their square, and each costs something in every step.

    A tap of a large convolution is cut out, laid flat and multiplied; a clipped one is summed by its examples' factors
    and squared as well. Whoever needs more writes why where the numbers are raised.
    """
    kinds = Counter(node.op_type for node in onnx.load_from_string(getattr(large, graph)).graph.node)
    assert sum(count // 25 for count in kinds.values()) == per_tap, kinds
    assert kinds.total() <= most, kinds


@pytest.mark.parametrize("graph", ["gradient", "clipped"])
def test_onnxruntime_is_soon_done_with_a_graph(
    large: Graphs, graph: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """It goes over a graph until it finds nothing to do, at most ten times: one rule that never ends costs a third."""
    options = ort.SessionOptions()
    options.log_severity_level = 0
    ort.InferenceSession(getattr(large, graph), options, providers=["CPUExecutionProvider"])
    told = capfd.readouterr().err
    assert 1 <= told.count("GraphTransformer Level1_RuleBasedTransformer modified: ") <= 5


def test_the_gradient_of_a_relu_is_torchs() -> None:
    x = torch.tensor([-1.0, 0.0, 2.0])
    grad = torch.tensor([3.0, 4.0, 5.0])
    torch.testing.assert_close(threshold_backward(grad, x, 0.0), aten.threshold_backward(grad, x, 0.0))


class Places(nn.Module):
    """Adds positions, whose size of 1 is stretched over the batch, and scales by a gain of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.position = nn.Parameter(torch.randn(1, 6, 8) * 0.1)
        self.gain = nn.Parameter(torch.ones(8))
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.out(((self.embed(x) + self.position) * self.gain).relu().mean(1))
        return logits


def test_a_parameter_may_be_stretched_over_the_batch() -> None:
    graphs = export(Places(), loss, (6, 4))
    assert all((graphs.infer, graphs.gradient, graphs.clipped, graphs.explain))

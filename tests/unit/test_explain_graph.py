"""The graph of explanations computes integrated gradients, whose parts add up to what they explain."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from model_packages import digits, first, opened
from umbel_models.graphs.explain import STEPS, integrated_gradients
from umbel_models.graphs.export import export
from umbel_models.graphs.truth import Truth
from umbel_models.graphs.verify import verify_explain
from umbel_models.runtime import Session
from umbel_models.task import cross_entropy as loss
from umbel_models.tasks.digits.module import initial
from umbel_models.tasks.digits.task import files
from umbel_proto.errors import PackageError

OUTPUTS = ("attributions", "logits", "residual")


def explained(x: np.ndarray, baseline: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, ...]:
    package = opened(first())
    session = Session(files()["explain.onnx"], package.split(package.parameters()))
    return tuple(session.run(OUTPUTS, {"x": x, "baseline": baseline, "target": target}))


def trained_alike() -> nn.Module:
    package = opened(first())
    net = initial(0)
    net.load_state_dict({k: torch.tensor(v) for k, v in package.split(package.parameters()).items()})
    return net


@pytest.mark.parametrize("batch", [1, 5])
def test_the_committed_graph_gives_what_a_loop_in_torch_gives(batch: int) -> None:
    net = trained_alike()
    data, target = digits().train[:2]
    x, baseline = data[:batch], data[-batch:]
    total = torch.zeros(x.shape)
    for step in range(STEPS):
        point = torch.tensor(baseline + (step + 0.5) / STEPS * (x - baseline)).requires_grad_()
        picked = net(point)[torch.arange(batch), torch.tensor(target[:batch])].sum()
        total += torch.autograd.grad(picked, [point])[0]
    expected = (total / STEPS).numpy() * (x - baseline)
    attributions, logits, _ = explained(x, baseline, target[:batch])
    np.testing.assert_allclose(attributions, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(logits, net(torch.tensor(x)).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_attributions_add_up_to_the_logits_difference_but_for_the_residual() -> None:
    x, target = (part[:20] for part in digits().held_out[:2])
    baseline = np.zeros_like(x)
    attributions, logits, residual = explained(x, baseline, target)
    _, from_logits, _ = explained(baseline, x, target)
    rows = np.arange(20)
    moved = logits[rows, target] - from_logits[rows, target]
    np.testing.assert_allclose(attributions.sum((1, 2, 3)) - residual, moved, atol=1e-5)
    assert np.abs(residual).max() < 0.02 * np.abs(moved).max()


def test_what_does_not_move_has_no_part() -> None:
    x, target = (part[:6] for part in digits().train[:2])
    baseline = x.copy()
    baseline[:, :, 2:5] = 0.0
    attributions, _, _ = explained(x, baseline, target)
    assert not attributions[:, :, :2].any()
    assert not attributions[:, :, 5:].any()
    nothing, _, residual = explained(x, x, target)
    assert not nothing.any()
    assert not residual.any()


def test_a_linear_model_is_explained_by_its_weights() -> None:
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    x, baseline, target = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0])
    attributions, _, residual = integrated_gradients(net, x, baseline, target)
    torch.testing.assert_close(attributions, (net.weight[target] * (x - baseline)).detach())
    torch.testing.assert_close(residual, torch.zeros(5), atol=1e-6, rtol=0.0)


def test_every_parameter_comes_with_the_session() -> None:
    graph = onnx.load_from_string(files()["explain.onnx"]).graph
    external = {t.name for t in graph.initializer if t.data_location == TensorProto.EXTERNAL}
    assert external == {name for name, _ in initial(0).named_parameters()}
    assert [value.name for value in graph.input] == ["x", "baseline", "target"]
    assert [value.name for value in graph.output] == list(OUTPUTS)


def test_an_explanation_at_other_points_is_found_out() -> None:
    truth = Truth(initial(3), loss, (1, 8, 8))
    verify_explain(files()["explain.onnx"], truth)
    broken = onnx.load_from_string(files()["explain.onnx"])
    places = next(
        tensor
        for tensor in broken.graph.initializer
        if list(tensor.dims)[:1] == [STEPS] and tensor.data_type == TensorProto.FLOAT
    )
    shifted = numpy_helper.to_array(places) - np.float32(0.5 / STEPS)
    places.CopyFrom(numpy_helper.from_array(shifted, places.name))
    with pytest.raises(PackageError, match=r"explain\.onnx at batch"):
        verify_explain(broken.SerializeToString(), truth)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.words(x.long()).mean(1))
        return logits


def test_numbers_of_words_have_no_gradient_and_so_no_explanation() -> None:
    assert export(Words(), loss, (5,), bounds=(0.0, 6.0)).explain is None

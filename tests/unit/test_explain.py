"""Explanations on a device: integrated gradients of a package's own graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from model_packages import digits, first, opened, release, resigned
from umbel._explain.explain import Explainer
from umbel_models.tasks.digits.task import module
from umbel_proto.errors import UsageError


def x(rows: int = 6) -> np.ndarray[Any, np.dtype[np.float32]]:
    return digits().held_out.x[:rows]


def torch_net() -> torch.nn.Module:
    package, net = opened(release(2)), module()
    arrays = package.split(package.parameters())
    net.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in arrays.items()})
    return net


def test_attributions_are_those_of_a_loop_in_torch() -> None:
    net, inputs = torch_net(), torch.from_numpy(x())
    target = net(inputs).argmax(1)
    total = torch.zeros_like(inputs)
    for step in range(32):
        at = (inputs * (step + 0.5) / 32).requires_grad_()
        (gradient,) = torch.autograd.grad(net(at).gather(1, target[:, None]).sum(), [at])
        total += gradient
    explained = Explainer(opened(release(2))).explain(x())
    np.testing.assert_array_equal(explained.target, target)
    np.testing.assert_allclose(explained.attributions, (total / 32 * inputs).numpy(), atol=1e-4)


def test_attributions_add_up_to_the_difference_but_for_the_residual() -> None:
    net = torch_net()
    baseline = np.full_like(x(), 8.0)
    target = np.arange(6)
    explained = Explainer(opened(release(2))).explain(x(), target=target, baseline=baseline)
    with torch.no_grad():
        difference = (net(torch.from_numpy(x())) - net(torch.from_numpy(baseline))).numpy()[range(6), target]
    added = explained.attributions.reshape(6, -1).sum(1)
    np.testing.assert_allclose(added - difference, explained.residual, atol=1e-3)


def test_other_parameters_are_explained_as_they_are() -> None:
    package = opened(release(2))
    zero = Explainer(package, np.zeros(package.manifest.dim, np.float32)).explain(x())
    assert not zero.attributions.any()


def test_one_example_is_a_batch_of_one() -> None:
    assert Explainer(opened(release(2))).explain(x()[0]).attributions.shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"target": np.array([1])}, "one for each input"),
        ({"target": np.full(6, 10)}, r"0\.\.9"),
        ({"target": np.full(6, -1)}, r"0\.\.9"),
        ({"target": np.ones(6)}, "whole numbers"),
        ({"baseline": np.zeros((2, 1, 8, 8))}, "as the inputs"),
        ({"baseline": np.full((6, 1, 8, 8), 17.0)}, "over 16"),
    ],
)
def test_what_cannot_be_explained_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Explainer(opened(release(2))).explain(x(), **given)


def test_a_package_without_the_graph_says_so() -> None:
    package = opened(resigned(first(), lambda body: body["graphs"].pop("explain")))
    with pytest.raises(UsageError, match="no explanation graph"):
        Explainer(package)

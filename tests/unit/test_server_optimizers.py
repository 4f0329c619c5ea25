"""Law: the server optimizers are those of their papers; the oracles are torch and the papers' lines in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from umbel_proto.errors import UsageError
from umbel_server.learning.optimize import Moments, Vector, apply
from umbel_server.learning.plan import Optimizer, RunPlan

START = np.linspace(-1, 1, 7).astype(np.float32)
MEANS = np.random.default_rng(5).standard_normal((6, 7)).astype(np.float32)


def after(optimizer: Optimizer) -> Vector:
    parameters = START
    moments: Moments = {}
    for mean in MEANS:
        before = parameters.copy()
        new, moments = apply(optimizer, parameters, mean, moments)
        assert (parameters == before).all()  # What it is given stays as it is.
        assert new.dtype == np.float32
        parameters = new
    return parameters


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_averaging_is_torch_s_sgd_on_minus_the_mean(momentum: float) -> None:
    weight = torch.nn.Parameter(torch.from_numpy(START.copy()))
    sgd = torch.optim.SGD([weight], lr=0.3, momentum=momentum)
    for mean in MEANS:
        weight.grad = -torch.from_numpy(mean)
        sgd.step()
    kind = "fedavgm" if momentum else "fedavg"
    ours = after(Optimizer(kind, learning_rate=0.3, momentum=momentum))
    assert ours == pytest.approx(weight.detach().numpy(), abs=1e-6)


@pytest.mark.parametrize("kind", ["fedadam", "fedyogi"])
def test_adaptive_steps_are_the_paper_s(kind: str) -> None:
    """Reddi et al., algorithm 2, line by line for each coordinate."""
    rate, beta1, beta2, tau = 0.1, 0.8, 0.95, 1e-2
    expected = []
    for place, x in enumerate(START.astype(float)):
        m, v = 0.0, tau**2
        for mean in MEANS[:, place].astype(float):
            m = beta1 * m + (1 - beta1) * mean
            if kind == "fedadam":
                v = beta2 * v + (1 - beta2) * mean**2
            else:
                v = v - (1 - beta2) * mean**2 * np.sign(v - mean**2)
            x += rate * m / (v**0.5 + tau)
        expected.append(x)
    ours = after(Optimizer(kind, rate, beta1, beta2, tau))
    assert ours == pytest.approx(np.array(expected), abs=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "adam"},
        {"learning_rate": 0.0},
        {"momentum": 1.0},
        {"second_momentum": -1.0},
        {"adaptivity": 0.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Optimizer(**wrong)  # type: ignore[arg-type]


def test_a_plan_in_json_names_an_unknown_metric() -> None:
    text = '{"metrics": {"names": ["age"]}}'
    with pytest.raises(UsageError, match="There is no metric 'age'"):
        RunPlan.from_json(text)

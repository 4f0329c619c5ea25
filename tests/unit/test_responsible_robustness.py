"""Robustness: attacks reach what theory says they reach, corruptions do what they say, rare labels are counted."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from cohort_tables import network, table
from umbel_models.fit import accuracy, fit, predict
from umbel_models.responsible.robustness import (
    CORRUPTIONS,
    World,
    channel_axis,
    fgsm,
    pgd,
    rare_recalls,
    robustness,
    world_of,
)
from umbel_models.task import Examples, cross_entropy
from umbel_proto.errors import UsageError

HELD_OUT = table(1000, seed=2)
WORLD = world_of(table(3000, seed=1), low=-1000.0, high=1000.0)


@functools.cache
def trained() -> nn.Module:
    return fit(
        network(), cross_entropy, table(3000, seed=1), epochs=5, batch_size=64, learning_rate=1e-2, seed=0
    )


@functools.cache
def linear() -> nn.Linear:
    recipe = {"epochs": 3, "batch_size": 64, "learning_rate": 1e-2, "seed": 0}
    return fit(nn.Linear(7, 2), cross_entropy, table(3000, seed=1), **recipe)  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", [fgsm, pgd])
@pytest.mark.parametrize("strength", [0.05, 0.3])
def test_an_attack_on_a_linear_model_costs_what_its_weights_say(attack: object, strength: float) -> None:
    # Every input moves by its whole reach, so that the margin falls by reach times the weights' size.
    weights = (linear().weight[1] - linear().weight[0]).detach().numpy()
    logits = predict(linear(), HELD_OUT.x)
    margin = (logits[:, 1] - logits[:, 0]) * (2 * HELD_OUT.y - 1)
    fallen = margin - strength * (WORLD.spread * np.abs(weights)).sum()
    assert np.abs(fallen).min() > 1e-5
    moved = attack(linear(), cross_entropy, HELD_OUT.x, HELD_OUT.y, strength=strength, world=WORLD)  # type: ignore[operator]
    assert accuracy(linear(), HELD_OUT._replace(x=moved)) == (fallen > 0).mean()


def test_no_attack_goes_beyond_its_reach_or_the_contract() -> None:
    narrow = World(WORLD.middle, WORLD.spread, -1.0, 1.0)
    x = narrow.legal(HELD_OUT.x)
    for attack in (fgsm, pgd):
        moved = attack(trained(), cross_entropy, x, HELD_OUT.y, strength=0.2, world=narrow)
        assert (np.abs(moved - x) <= 0.2 * WORLD.spread + 1e-6).all()
        assert moved.min() >= -1.0
        assert moved.max() <= 1.0
        assert moved.dtype == np.float32


def test_several_steps_find_more_errors_than_one() -> None:
    def left(attack: object) -> float:
        moved = attack(trained(), cross_entropy, HELD_OUT.x, HELD_OUT.y, strength=0.5, world=WORLD)  # type: ignore[operator]
        return accuracy(trained(), HELD_OUT._replace(x=moved))

    assert left(pgd) <= left(fgsm) < accuracy(trained(), HELD_OUT) - 0.2


def windows(count: int = 400) -> np.ndarray:
    return np.random.default_rng(0).normal(5, 2, size=(count, 32, 3)).astype(np.float32)


def test_each_corruption_disturbs_as_much_as_it_says() -> None:
    x = windows()
    world = world_of(Examples(x, np.zeros(len(x), np.int64)), low=-100, high=100)

    def moved(name: str) -> np.ndarray:
        return CORRUPTIONS[name](x, 0.25, world, np.random.default_rng(1)) - x

    assert moved("noise").std() == pytest.approx(0.5, rel=0.02)
    assert (moved("missing values") != 0).mean() == pytest.approx(0.25, abs=0.01)
    dead = (moved("dead channels") != 0).any(1)
    assert dead.mean() == pytest.approx(0.25, abs=0.04)
    np.testing.assert_array_equal((moved("dead channels") != 0).all(1), dead)
    np.testing.assert_allclose(np.abs(moved("offset")), 0.25 * world.spread * np.ones_like(x), rtol=1e-5)
    assert (np.ptp(np.sign(moved("offset")), axis=1) == 0).all()
    np.testing.assert_allclose(np.abs(moved("gain")), 0.25 * np.abs(x), rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "axis"), [((7,), 0), ((128, 9), 1), ((9, 128), 0), ((1, 8, 8), 1), ((1,), 0)]
)
def test_channels_are_the_shortest_axis_with_several_parts(shape: tuple[int, ...], axis: int) -> None:
    assert channel_axis(shape) == axis


def test_labels_under_half_their_share_are_rare_or_the_rarest_is() -> None:
    y = np.array([0] * 60 + [1] * 30 + [2] * 10)
    right = np.ones(100, bool)
    right[90:95] = False
    found = rare_recalls(right, y, ("a", "b", "c"))
    assert list(found) == ["c"]
    assert found["c"].value == 0.5
    # Wilson's interval of 5 in 10, from his formula.
    assert (found["c"].low, found["c"].high) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert list(rare_recalls(right, np.arange(100) % 2, ("a", "b"))) == ["a"]


def test_the_report_names_every_disturbance_and_the_worst_source() -> None:
    shifted = HELD_OUT._replace(x=HELD_OUT.x + 1)
    source = np.arange(1000) % 4
    found = robustness(
        trained(),
        cross_entropy,
        HELD_OUT._replace(source=source),
        WORLD,
        labels=("no", "yes"),
        shifted={"another bank": shifted},
        strengths=(0.1, 0.5),
    )
    assert set(found.disturbed) == {"FGSM", "PGD", *CORRUPTIONS}
    by_source = [accuracy(trained(), HELD_OUT.take(source == each)) for each in range(4)]
    assert found.shifted["the worst of 4 sources"].value == pytest.approx(min(by_source))
    assert found.shifted["another bank"].value == accuracy(trained(), shifted)
    assert found.clean.value == accuracy(trained(), HELD_OUT)
    assert found.disturbed["noise"][0.5] < found.clean.value
    assert all(np.isfinite(each) for each in found.figures().values() if not isinstance(each, str))


def test_a_contract_without_a_range_is_refused() -> None:
    with pytest.raises(UsageError, match="give a range"):
        world_of(HELD_OUT, low=1.0, high=1.0)


def test_measuring_leaves_the_module_and_torch_as_they_were() -> None:
    module = network()
    before = [value.clone() for value in module.parameters()]
    state = torch.random.get_rng_state()
    robustness(module, cross_entropy, HELD_OUT, WORLD, labels=("no", "yes"), strengths=(0.1,))
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert all(value.grad is None for value in module.parameters())
    assert torch.equal(state, torch.random.get_rng_state())

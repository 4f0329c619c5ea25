"""Adaptation: only what is named is trained, and a merged correction is the corrected layer."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from umbel_models.adapt import LowRank, freeze, head, low_rank, merge, trained_names
from umbel_models.fit import accuracy, fit
from umbel_models.task import Examples, cross_entropy
from umbel_proto.errors import UsageError

LAYERS = {
    "linear": (nn.Linear(6, 5), (6,)),
    "no bias": (nn.Linear(6, 5, bias=False), (4, 6)),
    "conv1d": (nn.Conv1d(3, 8, 5, stride=2, padding=1), (3, 11)),
    "conv2d": (nn.Conv2d(3, 8, (3, 2), dilation=2, padding="same"), (3, 7, 6)),
    "circular": (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    "conv3d": (nn.Conv3d(2, 4, 2), (2, 3, 4, 3)),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    )


def stir(module: nn.Module) -> nn.Module:
    """Give every trained parameter new values, as training would."""
    with torch.no_grad():
        for value in module.parameters():
            if value.requires_grad:
                value.normal_(0, 0.3)
    return module


@pytest.mark.parametrize("name", LAYERS)
def test_a_merged_layer_computes_what_the_corrected_one_does(name: str) -> None:
    layer, shape = LAYERS[name]
    torch.manual_seed(1)
    corrected = stir(LowRank(copy.deepcopy(layer), rank=2, alpha=5)).double()
    x = torch.randn(7, *shape, dtype=torch.float64)
    merged = corrected.merged()
    torch.testing.assert_close(merged(x), corrected(x), atol=1e-12, rtol=1e-12)
    assert type(merged) is type(layer)
    assert not torch.allclose(merged(x), copy.deepcopy(layer).double()(x), atol=1e-2)


def test_a_correction_has_the_rank_and_the_size_of_the_paper() -> None:
    corrected = stir(LowRank(nn.Linear(30, 20), rank=3, alpha=6))
    change = corrected.merged().weight - corrected.layer.weight
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 3
    torch.testing.assert_close(change, 2 * corrected.up.weight @ corrected.down.weight)


def test_an_untrained_correction_changes_no_bit() -> None:
    module, x = network(), torch.randn(5, 1, 4, 4)
    assert torch.equal(low_rank(module, 2)(x), module(x))
    assert torch.equal(merge(low_rank(module, 2))(x), module(x))


def test_merging_a_whole_network_keeps_its_function_and_the_names_of_its_parameters() -> None:
    module, x = network(), torch.randn(5, 1, 4, 4)
    adapted = stir(low_rank(module, 2))
    merged = merge(adapted)
    torch.testing.assert_close(merged(x), adapted(x), atol=1e-5, rtol=1e-5)
    assert trained_names(merged) == tuple(name for name, _ in module.named_parameters())
    assert not any(isinstance(layer, LowRank) for layer in merged.modules())


def test_only_the_corrections_travel_and_every_other_parameter_keeps_its_bits() -> None:
    module = network()
    adapted = low_rank(module, 2)
    assert trained_names(adapted) == tuple(f"{i}.{part}.weight" for i in (0, 3, 5) for part in ("down", "up"))
    chance = np.random.default_rng(0)
    examples = Examples(chance.normal(size=(64, 1, 4, 4)).astype(np.float32), chance.integers(0, 4, 64))
    trained = fit(adapted, cross_entropy, examples, epochs=3, batch_size=16, learning_rate=0.01, seed=0)
    after = dict(trained.named_parameters())
    for name, value in adapted.named_parameters():
        assert torch.equal(after[name], value) != value.requires_grad


def test_layers_without_a_saving_are_left_out_and_named_ones_are_not() -> None:
    # 8 filters of 1x3x3 have 72 weights; at rank 5 their correction has 85, that of the last layer 180 for 128.
    assert trained_names(low_rank(network(), 5)) == ("3.down.weight", "3.up.weight")
    assert trained_names(low_rank(network(), 5, layers=["5"])) == ("5.down.weight", "5.up.weight")


def test_the_head_can_be_trained_whole_beside_corrections() -> None:
    adapted = low_rank(network(), 2, also=head(network()))
    assert set(trained_names(adapted)) == {
        "0.down.weight",
        "0.up.weight",
        "3.down.weight",
        "3.up.weight",
        "5.weight",
        "5.bias",
    }


def test_the_head_is_the_last_layer() -> None:
    assert head(network()) == ("5.weight", "5.bias")
    assert trained_names(freeze(network(), head(network()))) == ("5.weight", "5.bias")


def test_the_same_seed_gives_the_same_corrections_and_the_module_stays_whole() -> None:
    module = network()
    pair = [torch.cat([v.flatten() for v in low_rank(module, 2, seed=4).parameters()]) for _ in range(2)]
    assert torch.equal(*pair)
    assert all(value.requires_grad for value in module.parameters())


def test_a_network_turned_by_a_low_rank_map_is_adapted_by_low_rank() -> None:
    # Two inputs change places: a correction of rank 2 of the first layer undoes it, a new last layer cannot.
    chance = np.random.default_rng(0)
    x = chance.normal(size=(1500, 8)).astype(np.float32)
    y = (x[:, 0] > 0) * 2 + (np.abs(x[:, 1]) > 0.7)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4))
    how = {"epochs": 40, "batch_size": 32, "learning_rate": 0.01, "seed": 0}
    trained = fit(module, cross_entropy, Examples(x, y), **how)
    turned = Examples(np.ascontiguousarray(x[:, [0, 2, 1, 3, 4, 5, 6, 7]]), y)
    few, held = turned.take(np.arange(500)), turned.take(np.arange(500, 1500))
    adapted = accuracy(fit(low_rank(trained, 2, layers=["0"]), cross_entropy, few, **how), held)
    assert accuracy(trained, held) < 0.75
    assert adapted > 0.9
    assert adapted > 0.05 + accuracy(fit(freeze(trained, head(trained)), cross_entropy, few, **how), held)


def test_what_cannot_be_adapted_is_refused_in_a_sentence() -> None:
    with pytest.raises(UsageError, match="rank is 0"):
        low_rank(network(), 0)
    with pytest.raises(UsageError, match="No layer has fewer parameters at rank 99: choose a smaller"):
        low_rank(network(), 99)
    with pytest.raises(
        UsageError, match="'1' is no linear layer or ungrouped convolution of the module: choose some of 0, "
    ):
        low_rank(network(), 2, layers=["1"])
    with pytest.raises(UsageError, match=r"no parameter 7\.weight: choose some of 0\.weight"):
        freeze(network(), ["7.weight"])
    with pytest.raises(UsageError, match="no parameter to train"):
        freeze(network(), [])
    with pytest.raises(UsageError, match="no parameters"):
        head(nn.ReLU())

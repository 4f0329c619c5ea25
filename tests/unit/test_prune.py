"""Pruning: what is removed is gone from every layer, and nothing else changes.

The law: a network without some channels computes what the whole one does once those channels are not read.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from umbel_models.channels import removable
from umbel_models.fit import accuracy, fit
from umbel_models.prune import cut, prune
from umbel_models.task import Examples, cross_entropy
from umbel_proto.errors import UsageError


class Residual(nn.Module):
    """Two blocks whose sums tie the channels of three layers together, and a squeezed position axis."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 12, 3, padding=1)
        self.one = nn.Conv1d(12, 12, 3, padding=1)
        self.two = nn.Sequential(nn.Conv1d(12, 20, 1), nn.GELU(), nn.Conv1d(20, 12, 1))
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = x + self.one(x)
        x = torch.relu(x + self.two(x))
        head: Tensor = self.head(self.pool(x).squeeze(-1))
        return head


class Twice(nn.Module):
    """One layer is called twice, and the channels end up last."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.again = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = torch.tanh(self.again(x))
        x = torch.tanh(self.again(x))
        out: Tensor = self.head(x.mean(1))
        return out


class Separable(nn.Module):
    """Depthwise convolutions, frozen batch normalization, a transposition, and a view that reads its sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Conv2d(2, 10, 1)
        self.norm = nn.BatchNorm2d(10).eval()
        self.depth = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.pool = nn.MaxPool2d(2)
        self.mix = nn.Conv2d(10, 6, 1)
        self.hidden = nn.Linear(6 * 9, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(functional.relu(self.depth(self.norm(self.point(x)))))
        x = functional.silu(self.mix(x)).transpose(2, 3)
        head: Tensor = self.head(functional.relu(self.hidden(x.reshape(x.size(0), -1))))
        return head


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 9, 12),
        nn.Sigmoid(),
        nn.Linear(12, 5),
    )


CASES = {
    "plain": (plain, (1, 6, 6)),
    "residual": (Residual, (3, 7)),
    "twice": (Twice, (4, 5)),
    "separable": (Separable, (2, 6, 6)),
}


def made(name: str) -> tuple[nn.Module, tuple[int, ...], Tensor]:
    kind, shape = CASES[name]
    torch.manual_seed(3)
    module = kind()
    for value in module.buffers():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)  # else the running figures of a norm are all alike
    return module, shape, torch.randn(9, *shape)


def unread(module: nn.Module, shape: tuple[int, ...], fraction: float) -> nn.Module:
    """Return the module with the channels that cut() removes by l1 not read: zeros where layers read them."""
    silent = copy.deepcopy(module)
    for group in removable(module, shape):
        parts = [part for part in group.parts if part.makes]
        sizes = [module.get_submodule(part.layer).weight.detach().abs().flatten(1).sum(1) for part in parts]
        score = sum((size / size.mean() for size in sizes), torch.zeros(group.count))
        gone = score.argsort(stable=True)[: group.count - max(1, round((1 - fraction) * group.count))]
        for part in group.parts:
            if part.axis == 1:
                weight = silent.get_submodule(part.layer).weight
                with torch.no_grad():
                    for channel in gone.tolist():
                        weight[:, channel * part.repeat : (channel + 1) * part.repeat] = 0
    return silent


@pytest.mark.parametrize("name", CASES)
def test_removing_no_channel_keeps_every_bit(name: str) -> None:
    module, shape, x = made(name)
    assert torch.equal(cut(module, shape, fraction=0)(x), module(x))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.99])
def test_a_cut_network_computes_what_the_whole_one_does_without_reading_those_channels(
    name: str, fraction: float
) -> None:
    module, shape, x = made(name)
    smaller = cut(module, shape, fraction=fraction)
    torch.testing.assert_close(smaller(x), unread(module, shape, fraction)(x), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(smaller(x), module(x), atol=1e-3)


def test_channels_whose_weights_are_zero_can_go_without_a_trace() -> None:
    module, shape, x = made("residual")
    with torch.no_grad():
        for layer in (module.stem, module.one, module.two[2]):  # these three make the same channels
            layer.weight[::2] = 0
            layer.bias[::2] = 0
        module.two[0].weight[::2] = 0
        module.two[0].bias[::2] = 0
    smaller = cut(module, shape, fraction=0.5)
    torch.testing.assert_close(smaller(x), module(x), atol=1e-6, rtol=0)
    assert [smaller.stem.out_channels, smaller.two[0].out_channels, smaller.head.in_features] == [6, 10, 6]


def test_a_cut_leaves_the_module_itself_alone_and_frozen_parameters_frozen() -> None:
    module, shape, x = made("plain")
    module[0].requires_grad_(False)
    before = module(x)
    smaller = cut(module, shape, fraction=0.5)
    assert torch.equal(module(x), before)
    assert [value.requires_grad for value in smaller.parameters()] == [False, False, True, True, True, True]


def test_every_size_a_layer_states_is_that_of_its_weights() -> None:
    module, shape, _ = made("separable")
    smaller = cut(module, shape, fraction=0.5)
    assert (smaller.point.out_channels, smaller.norm.num_features, smaller.depth.groups) == (5, 5, 5)
    assert (smaller.mix.out_channels, smaller.hidden.in_features, smaller.hidden.out_features) == (3, 27, 8)
    assert smaller.depth.weight.shape == (5, 1, 3, 3)


def test_blocks_of_a_group_norm_stay_equally_large_and_normalize_what_is_left() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv1d(2, 12, 3), nn.GroupNorm(3, 12), nn.ReLU(), nn.Flatten(), nn.Linear(60, 2)
    )
    with torch.no_grad():
        module[0].weight[:4] *= 9  # taken together, all of the first block would stay
    smaller = cut(module, (2, 7), fraction=0.5)
    assert (smaller[1].num_groups, smaller[1].num_channels, smaller[0].out_channels) == (3, 6, 6)
    sizes = module[0].weight.detach().abs().flatten(1).sum(1).view(3, 4)
    kept = [4 * block + int(i) for block in range(3) for i in sorted(sizes[block].argsort()[2:].tolist())]
    assert torch.equal(smaller[0].weight, module[0].weight[kept])


def test_a_layer_norm_shrinks_with_its_channels() -> None:
    module = nn.Sequential(nn.Linear(4, 10), nn.LayerNorm(10), nn.ReLU(), nn.Linear(10, 2))
    smaller = cut(module, (4,), fraction=0.3)
    assert smaller[1].normalized_shape == (7,)
    assert smaller(torch.randn(5, 4)).shape == (5, 2)


def test_taylor_keeps_what_the_loss_needs_where_weights_mislead() -> None:
    # Neurons 0 to 3 have large weights and are hardly read; only 4 to 7 decide.
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        module[0].weight[:4] *= 10
        module[2].weight[:, :4] *= 1e-4
    x = torch.randn(200, 6)
    with torch.no_grad():
        y = module(x).argmax(1)
    examples = Examples(x.numpy(), y.numpy())
    by_taylor = cut(module, (6,), fraction=0.5, loss=cross_entropy, examples=examples)
    assert torch.equal(by_taylor[0].weight, module[0].weight[4:])
    assert torch.equal(cut(module, (6,), fraction=0.5)[0].weight, module[0].weight[:4])


def test_a_pruned_network_that_is_trained_on_reads_digits_about_as_well() -> None:
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    train, held = Examples(x[:1300], y[:1300]), Examples(x[1300:], y[1300:])
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    whole = fit(module, cross_entropy, train, epochs=30, batch_size=32, learning_rate=3e-3, seed=0)
    for by in ("l1", "taylor"):
        small = prune(whole, cross_entropy, train, fraction=0.75, by=by, epochs=20)
        assert sum(value.numel() for value in small.parameters()) == 64 * 16 + 16 + 16 * 10 + 10
        assert accuracy(small, held) > accuracy(whole, held) - 0.03


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) if x.sum() > 0 else x
        return out


class Numbered(nn.Module):
    """Its view holds a size as a number: those channels have to stay, the others need not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 3)
        self.hidden = nn.Linear(16, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        head: Tensor = self.head(torch.relu(self.hidden(self.conv(x).view(-1, 16))))
        return head


class Raw(nn.Module):
    """The weight of a layer is used without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(torch.relu(self.tied(x)), self.tied.weight.T)


def test_an_operation_that_is_not_known_keeps_its_channels_and_only_those() -> None:
    smaller = cut(Numbered(), (1, 6), fraction=0.5)
    assert (smaller.conv.out_channels, smaller.hidden.out_features) == (4, 4)


@pytest.mark.parametrize(
    ("module", "shape", "sentence"),
    [
        (Conditional(), (4,), "operations of a Conditional cannot be followed.*conditions"),
        (nn.Linear(4, 2), (4,), "has no hidden linear or convolutional layer"),
        (nn.Sequential(nn.Linear(4, 6), nn.Softmax(-1), nn.Linear(6, 2)), (4,), "Softmax '1' mixes channels"),
        (
            nn.Sequential(nn.Conv1d(2, 4, 1), nn.Conv1d(4, 4, 1, groups=2)),
            (2, 5),
            "Layer '1' convolves channels in groups",
        ),
        (nn.Sequential(nn.Conv1d(2, 4, 1), nn.LayerNorm([4, 5])), (2, 5), "Layer '1' normalizes positions"),
        (Raw(), (6,), "parameters of 'tied' are used by themselves"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_be_followed_is_refused_in_a_sentence(
    module: nn.Module, shape: tuple[int, ...], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        cut(module, shape, fraction=0.5)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(UsageError, match=r"choose the part of channels to remove, in \[0, 1\)"):
        cut(plain(), (1, 6, 6), fraction=fraction)

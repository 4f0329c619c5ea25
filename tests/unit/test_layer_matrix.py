"""A layer that is not exported is refused by its name, with what to use instead."""

from __future__ import annotations

import pytest
from torch import nn

from umbel_models.graphs.layers import check_layers
from umbel_proto.errors import UsageError

REFUSED = [
    (nn.BatchNorm1d(4), "is a BatchNorm1d.*normalize each example by itself"),
    (nn.BatchNorm2d(4), "is a BatchNorm2d.*normalize each example by itself"),
    (nn.Dropout(), r"is a Dropout.*p=0.*eval\(\)"),
    (nn.Dropout2d(0.1), r"is a Dropout2d.*p=0.*eval\(\)"),
    (nn.ReLU(inplace=True), "works in place.*inplace=False"),
    (nn.EmbeddingBag(9, 4), "is a EmbeddingBag.*nn.Linear on how often"),
    (nn.MaxPool3d(2), "is a MaxPool3d, not exported yet.*use one of"),
    (nn.AdaptiveMaxPool2d(1), "is a AdaptiveMaxPool2d.*amax"),
    (nn.Bilinear(4, 4, 4), "is a Bilinear.*nn.Linear"),
    (nn.ConvTranspose2d(4, 4, 3), "is a ConvTranspose2d.*an ordinary convolution"),
    (nn.RReLU(), "is a RReLU.*nn.ReLU"),
    (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "computes its weight.*remove_parametrizations"),
    (nn.GRU(4, 4), "is a GRU, not exported yet.*use one of"),
    (nn.Embedding(4, 4), "is a Embedding, not exported yet.*use one of"),
]


@pytest.mark.parametrize(("layer", "sentence"), REFUSED, ids=lambda value: type(value).__name__)
def test_a_refused_layer_is_named_with_its_cure(layer: nn.Module, sentence: str) -> None:
    net = nn.Sequential()
    net.add_module("first", nn.Linear(4, 4))
    net.add_module("odd", layer)
    with pytest.raises(UsageError, match=f"Layer 'odd' {sentence}"):
        check_layers(net)
    with pytest.raises(UsageError, match=sentence):
        check_layers(layer)


@pytest.mark.parametrize("layer", [nn.Dropout(0.0), nn.Dropout().eval()])
def test_a_dropout_that_drops_nothing_is_let_through(layer: nn.Module) -> None:
    check_layers(nn.Sequential(nn.Linear(4, 4), layer))

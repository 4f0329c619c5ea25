"""Modules as engineers write them, after torch's documentation: each is exported, or named with a cure that works.

``export`` compares every graph with torch; what is tested is that it gets that far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from umbel_models.graphs.export import export
from umbel_models.task import cross_entropy
from umbel_proto.errors import UsageError


class AutoencoderClassifier(nn.Module):
    """Classifies by the code; the decoder's error joins the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 12))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        code = self.encoder(x)
        error = ((self.decoder(code) - x) ** 2).mean(1, keepdim=True)
        logits: Tensor = self.head(torch.cat([code, error], 1))
        return logits


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, norm: Callable[[int], nn.Module], inplace: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1, self.bn2 = norm(channels), norm(channels)
        self.relu = nn.ReLU(inplace=inplace)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        hidden: Tensor = self.relu(out)
        return hidden


def resnet(norm: Callable[[int], nn.Module], inplace: bool = False) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        ResidualBlock(4, norm, inplace),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


class UNet(nn.Module):
    """Says something for each pixel; the mean over the image are its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 4, 3, padding=1)
        self.bottom = nn.Conv2d(4, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = F.relu(self.down(x))
        coarse = F.relu(self.bottom(F.max_pool2d(fine, 2)))
        pixels: Tensor = self.out(torch.cat([fine, self.up(coarse)], 1))
        return pixels.mean((2, 3))


class Tagger(nn.Module):
    """A tag for each word of a sentence, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(12, 5)
        self.lstm = nn.LSTM(5, 4, bidirectional=True, batch_first=True)
        self.tags = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(self.words(x.long()))
        tags: Tensor = self.tags(out)
        return tags.amax(1)


class TemporalBlock(nn.Module):
    """A dilated causal convolution: it pads on both sides and chomps off the future."""

    def __init__(self, given: int, gives: int, dilation: int) -> None:
        super().__init__()
        self.chomp = 2 * dilation
        self.conv = nn.Conv1d(given, gives, 3, padding=self.chomp, dilation=dilation)
        self.match = nn.Conv1d(given, gives, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.relu(self.conv(x)[:, :, : -self.chomp]) + self.match(x))


class TCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(TemporalBlock(2, 4, 1), TemporalBlock(4, 4, 2))
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.blocks(x.transpose(1, 2))[:, :, -1])
        return logits


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 5, 8) * 0.02)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(
                8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            ),
            num_layers=1,
            enable_nested_tensor=False,
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.places
        logits: Tensor = self.head(self.encoder(tokens)[:, 0])
        return logits


class MixerLayer(nn.Module):
    def __init__(self, patches: int, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.tokens = nn.Sequential(nn.Linear(patches, 6), nn.GELU(), nn.Linear(6, patches))
        self.channels = nn.Sequential(nn.Linear(channels, 6), nn.GELU(), nn.Linear(6, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = x + self.channels(self.norm2(x))
        return mixed


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix, self.head = nn.Conv2d(1, 5, 4, stride=4), MixerLayer(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.mix(self.patches(x).flatten(2).transpose(1, 2)).mean(1))
        return logits


def separable(given: int, gives: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(given, given, 3, padding=1, groups=given),
        nn.ReLU6(),
        nn.Conv2d(given, gives, 1),
        nn.ReLU6(),
    )


class Siamese(nn.Module):
    """Two images in one array: are they alike?"""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh())
        self.judge = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.judge((self.look(x[:, 0]) - self.look(x[:, 1])).abs())
        return logits


class BagOfWords(nn.Module):
    def __init__(self, *, cured: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(12, 5) if cured else nn.EmbeddingBag(12, 5)
        self.out = nn.Linear(5, 3)
        self.cured = cured

    def forward(self, x: Tensor) -> Tensor:
        words = self.words(x.long())
        logits: Tensor = self.out(words.mean(1) if self.cured else words)
        return logits


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


EXPORTED: dict[str, tuple[Callable[[], nn.Module], Sequence[int], tuple[float, float] | None]] = {
    "an autoencoder that classifies": (AutoencoderClassifier, (12,), None),
    "a residual network with its batch norms cured": (lambda: resnet(group_norm), (1, 8, 8), None),
    "a residual network with its batch norms frozen": (
        lambda: resnet(nn.BatchNorm2d).eval(),
        (1, 8, 8),
        None,
    ),
    "a U-Net, pooled": (UNet, (1, 6, 6), None),
    "a tagger of two directions, pooled": (Tagger, (5,), (0.0, 11.0)),
    "a temporal convolution network": (TCN, (9, 2), None),
    "a tiny vision transformer": (ViT, (1, 8, 8), None),
    "an MLP mixer": (Mixer, (1, 8, 8), None),
    "separable convolutions": (
        lambda: nn.Sequential(separable(2, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        (2, 5, 5),
        None,
    ),
    "a bag of words, cured": (lambda: BagOfWords(cured=True), (6,), (0.0, 11.0)),
    "a siamese network": (Siamese, (2, 1, 4, 4), None),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_a_module_of_ones_own_is_exported(name: str) -> None:
    make, shape, bounds = EXPORTED[name]
    torch.manual_seed(0)
    graphs = export(make(), cross_entropy, shape, bounds=bounds)
    assert (graphs.explain is None) == (bounds is not None)


@pytest.mark.parametrize(
    ("make", "shape", "sentence"),
    [
        (lambda: resnet(nn.BatchNorm2d), (1, 8, 8), "Layer '1.bn1' is a BatchNorm2d.*use nn.GroupNorm"),
        (lambda: resnet(group_norm, inplace=True), (1, 8, 8), "Layer '1.relu' works in place.*inplace=False"),
        (
            lambda: BagOfWords(cured=False),
            (6,),
            "Layer 'words' is a EmbeddingBag.*use nn.Embedding and the mean",
        ),
    ],
)
def test_what_is_not_exported_is_named_with_a_cure_that_works(
    make: Callable[[], nn.Module], shape: Sequence[int], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):  # its cure is among those exported above
        export(make(), cross_entropy, shape, bounds=(0.0, 11.0))


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x, dim=1).abs()


class Replicated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, None], (1, 0), mode="replicate")[:, 0]


class Undecided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("odd", "sentence"),
    [
        (Spectrum(), "Layer '1', a Spectrum, computes with complex numbers"),
        (Replicated(), "Layer '1', a Replicated, uses replication_pad1d, whose gradient has no graph"),
        (Undecided(), r"decides by the values of its input.*torch\.where"),
    ],
)
def test_an_operator_without_a_graph_is_named_with_its_layer(odd: nn.Module, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        export(nn.Sequential(nn.Linear(6, 4), odd, nn.Flatten()), cross_entropy, (6,))

"""Every layer that is said to be exported is, and computes what torch does; any other names its cure.

``export`` itself compares each of the four graphs with eager torch, in double precision, at batches of 1, 2
and 7 with random parameters, to 1e-4 of the greatest magnitude, and the clipped sums with one backward pass
for each example. What a test adds is that it gets that far, and by which way the sums are clipped. A probe
holds several related layers, as an export takes seconds.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from umbel_models.graphs import blame
from umbel_models.graphs.export import export
from umbel_models.graphs.layers import CURES, OTHERWISE, SUPPORTED, check_layers
from umbel_models.graphs.rules import RULES, Weigh
from umbel_models.task import cross_entropy
from umbel_proto.errors import UsageError

GUIDE = Path(__file__).parents[2] / "docs/how-to/bring-your-own-model.md"
IMAGE, SEQUENCE = (2, 12, 12), (10, 6)
CLASSES = 5


class Call(nn.Module):
    """A module of the caller's own around some layers."""

    def __init__(self, call: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.call = nn.ModuleList(layers), call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, *self.layers)


def flat(*layers: nn.Module) -> nn.Module:
    """Some layers, flattened, and a linear one that makes logits of them."""
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(CLASSES))


def parallel(*layers: nn.Module) -> nn.Module:
    """The sum of several layers' outputs for the same input."""
    return Call(lambda x, *each: torch.stack([layer(x) for layer in each]).sum(0), *layers)


def joined(*layers: nn.Module) -> nn.Module:
    """Several layers' outputs for the same input, each flattened, one after the other."""
    return Call(lambda x, *each: torch.cat([layer(x).flatten(1) for layer in each], 1), *layers)


def last(layer: nn.Module) -> nn.Module:
    """The last time step of a recurrent layer's outputs."""
    return Call(lambda x, layer: layer(x)[0][:, -1], layer)


def words(x: Tensor) -> Tensor:
    return (x * 3).abs().long().clamp(max=9)


def cell_loop(x: Tensor, gru: nn.Module, lstm: nn.Module, rnn: nn.Module) -> Tensor:
    h = r = g = c = x.new_zeros(x.shape[0], 8)
    for step in range(2):
        h, r = gru(x[:, step], h), rnn(x[:, step], r)
        g, c = lstm(x[:, step], (g, c))
    return torch.cat([h, r, g], 1)


ACTIVATIONS = (
    *(nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.ELU(), nn.SELU(), nn.CELU(), nn.GELU(), nn.GELU("tanh")),
    *(nn.SiLU(), nn.Mish(), nn.Tanh(), nn.Tanhshrink(), nn.Hardtanh(), nn.Sigmoid(), nn.LogSigmoid()),
    *(nn.Hardsigmoid(), nn.Hardswish(), nn.Softplus(), nn.Softsign(), nn.Softmax(-1), nn.LogSoftmax(-1)),
    *(nn.Softmin(-1), nn.Softshrink(), nn.Hardshrink(), nn.Threshold(0.1, 0.3)),
)

Probe = tuple[Callable[[], nn.Module], Sequence[int], bool]

PROBES: dict[str, Probe] = {
    # what it tries: module, shape of an example, whether its clipped sums come out of one pass
    "activations": (lambda: flat(nn.Linear(6, 8), parallel(*ACTIVATIONS)), SEQUENCE, True),
    "activations with parameters or halves": (
        lambda: flat(nn.Linear(6, 8), nn.PReLU(), nn.GLU(), nn.PReLU(10)),
        SEQUENCE,
        False,
    ),
    "convolutions": (
        lambda: flat(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=2),
            nn.Conv2d(4, 4, 3, padding=1, groups=2),
            nn.Conv2d(4, 4, 3, groups=4, bias=False),
            nn.ReLU6(),
            nn.Conv2d(4, 6, 1),
        ),
        IMAGE,
        True,
    ),
    "convolutions that keep the size": (lambda: flat(nn.Conv2d(2, 4, (3, 2), padding="same")), IMAGE, False),
    "convolutions that reflect": (
        lambda: flat(
            nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"),
        ),
        (2, 5, 5),
        False,
    ),
    "convolutions in one dimension": (
        lambda: flat(nn.Conv1d(10, 4, 3, 2), nn.Conv1d(4, 4, 2, groups=2)),
        (10, 9),
        True,
    ),
    "convolutions in three dimensions": (
        lambda: flat(nn.Conv3d(1, 2, 2), nn.Tanh(), nn.Conv3d(2, 2, (1, 2, 3), padding=(0, 0, 1))),
        (1, 3, 4, 3),
        True,
    ),
    "transposed convolutions": (
        lambda: flat(nn.ConvTranspose2d(2, 3, 3, stride=2), nn.ConvTranspose2d(3, 2, (1, 2), groups=1)),
        (2, 4, 4),
        False,
    ),
    "transposed convolutions in one and three dimensions": (
        lambda: flat(
            nn.ConvTranspose1d(3, 2, 3, stride=2), nn.Unflatten(2, (9, 1, 1)), nn.ConvTranspose3d(2, 2, 1)
        ),
        (3, 4),
        False,
    ),
    "max pools": (
        lambda: flat(
            nn.Conv2d(2, 4, 4),
            joined(nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 2, ceil_mode=True), nn.MaxPool2d(2)),
        ),
        IMAGE,
        True,
    ),
    "max pools in one dimension": (
        lambda: flat(nn.Conv1d(10, 4, 3), joined(nn.MaxPool1d(2), nn.MaxPool1d(3, 2, 1))),
        (10, 9),
        True,
    ),
    "average pools": (
        lambda: flat(
            nn.Conv2d(2, 4, 3),
            joined(
                nn.AvgPool2d(2),
                nn.AvgPool2d(3, 2, 1),
                nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
            ),
        ),
        IMAGE,
        True,
    ),
    "average pools of other dimensions": (
        lambda: flat(
            nn.Conv1d(10, 4, 3),
            joined(nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(2)),
            nn.Unflatten(1, (5, 1, 2, 2)),
            joined(nn.AvgPool3d((1, 2, 2)), nn.AvgPool3d((1, 2, 1), padding=(0, 1, 0))),
        ),
        (10, 8),
        True,
    ),
    "adaptive pools": (
        lambda: flat(
            nn.Conv2d(2, 4, 3),
            joined(nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(5), nn.AdaptiveAvgPool2d((3, 4))),
        ),
        IMAGE,
        True,
    ),
    "norms of groups and layers": (
        lambda: flat(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 3), nn.LayerNorm((3, 8, 8))),
        IMAGE,
        True,
    ),
    "norms of instances and by the root": (
        lambda: flat(
            nn.Conv2d(2, 4, 3),
            nn.InstanceNorm2d(4, affine=True),
            nn.RMSNorm(10),
            nn.Flatten(2),
            nn.InstanceNorm1d(4),
        ),
        IMAGE,
        False,
    ),
    "frozen batch norms": (
        lambda: flat(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(2), nn.BatchNorm1d(4)
        ).eval(),
        (2, 6, 6),
        False,
    ),
    "frozen batch norms in three dimensions": (lambda: flat(nn.BatchNorm3d(2)).eval(), (2, 2, 3, 2), False),
    "recurrent layers": (
        lambda: flat(
            joined(
                last(nn.GRU(6, 5, batch_first=True)),
                last(nn.LSTM(6, 4, 2, bidirectional=True, batch_first=True)),
                last(nn.RNN(6, 3, bias=False, batch_first=True)),
            )
        ),
        (4, 6),
        False,
    ),
    "cells in a loop": (
        lambda: flat(Call(cell_loop, nn.GRUCell(6, 8), nn.LSTMCell(6, 8), nn.RNNCell(6, 8))),
        SEQUENCE,
        False,
    ),
    "attention": (
        lambda: flat(
            Call(
                lambda x, layer: layer(x, x, x, need_weights=False)[0],
                nn.MultiheadAttention(6, 2, batch_first=True),
            )
        ),
        SEQUENCE,
        False,
    ),
    "encoder layers": (
        lambda: flat(nn.TransformerEncoderLayer(6, 2, 16, dropout=0.0, batch_first=True)),
        SEQUENCE,
        False,
    ),
    "an encoder, its norms first": (
        lambda: flat(
            nn.TransformerEncoder(
                nn.TransformerEncoderLayer(6, 2, 8, 0.1, "gelu", batch_first=True, norm_first=True),
                1,
                nn.LayerNorm(6),
                enable_nested_tensor=False,
            )
        ).eval(),
        (5, 6),
        False,
    ),
    "a decoder layer": (
        lambda: flat(
            Call(
                lambda x, layer: layer(x, x),
                nn.TransformerDecoderLayer(6, 2, 8, dropout=0.0, batch_first=True),
            )
        ),
        (5, 6),
        False,
    ),
    "embeddings": (
        lambda: Call(
            lambda x, words_, places, out: out((words_(words(x)) + places(words(x[..., :1]))).flatten(1)),
            nn.Embedding(10, 4),
            nn.Embedding(10, 4),
            nn.Linear(240, CLASSES),
        ),
        SEQUENCE,
        True,
    ),
    "dropouts that drop nothing": (
        lambda: flat(
            nn.Linear(6, 8),
            *(nn.Identity(), nn.Dropout(0.0), nn.AlphaDropout(0.3).eval(), nn.Dropout1d().eval()),
            *(nn.Unflatten(2, (2, 4)), nn.Dropout2d().eval()),
            *(nn.Unflatten(3, (2, 2)), nn.Dropout3d().eval()),
        ),
        SEQUENCE,
        True,
    ),
    "upsampling": (
        lambda: flat(
            nn.Conv2d(2, 4, 3),
            joined(
                nn.Upsample(scale_factor=2),
                nn.Upsample(scale_factor=2, mode="bilinear"),
                nn.UpsamplingNearest2d(scale_factor=2),
            ),
        ),
        (2, 5, 5),
        True,
    ),
    "pixels and channels moved": (
        lambda: flat(
            nn.Conv2d(2, 4, 3),
            nn.PixelShuffle(2),
            nn.PixelUnshuffle(4),
            nn.ChannelShuffle(4),
            nn.Flatten(2),
            nn.Unflatten(2, (5, 5)),
        ),
        IMAGE,
        True,
    ),
    "padding": (
        lambda: flat(
            nn.Conv2d(2, 2, 3),
            joined(
                nn.ZeroPad2d(1),
                nn.ConstantPad2d((1, 0, 2, 0), 0.5),
                nn.ReflectionPad2d(1),
            ),
        ),
        (2, 5, 5),
        True,
    ),
    "einsum, residuals and pieces put together": (
        lambda: Call(
            lambda x, mix, out: out(
                torch.cat([torch.einsum("bti,btj->bij", x, mix(x)).flatten(1), (mix(x) + x)[:, 0]], 1)
            ),
            nn.Linear(6, 6),
            nn.Linear(42, CLASSES),
        ),
        SEQUENCE,
        False,
    ),
    "statistics along an axis": (
        lambda: Call(
            lambda x, mix, out: (
                lambda h: out(
                    torch.cat([h.std(1), h.amax(1), h.var(1), h.logsumexp(1), h.cumsum(1)[:, 4]], 1)
                )
            )(mix(x)),
            nn.Linear(6, 6),
            nn.Linear(30, CLASSES),
        ),
        SEQUENCE,
        True,
    ),
}


def built(make: Callable[[], nn.Module], shape: Sequence[int]) -> nn.Module:
    torch.manual_seed(0)
    net = make()
    with torch.no_grad():
        net(torch.zeros(2, *shape))  # tells lazy layers their size
    return net


def operators(graph: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(graph).graph.node]


# torch tells once how it pads; the test is whether the graph does the same.
@pytest.mark.filterwarnings("ignore:Using padding:UserWarning")
@pytest.mark.parametrize("name", PROBES)
def test_an_exported_layer_computes_what_torch_does(name: str) -> None:
    make, shape, one_pass = PROBES[name]
    graphs = export(built(make, shape), cross_entropy, shape)
    assert ("Scan" not in operators(graphs.clipped)) == one_pass


def one_hot(y: Tensor) -> Tensor:
    return F.one_hot(y, CLASSES).float() * 0.9 + 0.02


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "smoothed": functools.partial(F.cross_entropy, reduction="none", label_smoothing=0.1),
    "weighted": lambda o, y: F.cross_entropy(o, y, torch.arange(1.0, CLASSES + 1), reduction="none"),
    "ignoring": functools.partial(F.cross_entropy, reduction="none", ignore_index=1),
    "likelihood": lambda o, y: F.nll_loss(o.log_softmax(1), y, reduction="none"),
    "margin": functools.partial(F.multi_margin_loss, reduction="none"),
    "focal": lambda o, y: (1 - torch.exp(-cross_entropy(o, y))) ** 2 * cross_entropy(o, y),
    "against one-hot labels": lambda o, y: sum(
        (
            each(o, one_hot(y)).mean(1)
            for each in (
                functools.partial(F.binary_cross_entropy_with_logits, reduction="none"),
                lambda o, t: F.binary_cross_entropy(o.sigmoid(), t, reduction="none"),
                functools.partial(F.mse_loss, reduction="none"),
                functools.partial(F.huber_loss, reduction="none"),
                functools.partial(F.smooth_l1_loss, reduction="none"),
                functools.partial(F.l1_loss, reduction="none"),
                lambda o, t: F.kl_div(o.log_softmax(1), t, reduction="none"),
                lambda o, t: 1 - F.cosine_similarity(o, t)[:, None],
            )
        ),
        torch.zeros(()),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_an_exported_loss_is_torchs(name: str) -> None:
    export(built(lambda: nn.Linear(6, CLASSES), (6,)), LOSSES[name], (6,))


def test_every_layer_that_is_let_through_has_a_probe() -> None:
    tried = {type(layer) for make, *_ in PROBES.values() for layer in make().modules()}
    assert {kind.__name__ for kind in SUPPORTED} <= {kind.__name__ for kind in tried}


def test_where_one_pass_sums_wrongly_the_scan_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = RULES[nn.Linear]

    def wrong(layer: nn.Module, given: Tensor, gradient: Tensor) -> tuple[Tensor, Weigh]:
        norms, weigh = rule(layer, given, gradient)
        return norms * 2.0, weigh

    monkeypatch.setattr("umbel_models.graphs.onepass.RULES", {nn.Linear: wrong})
    graphs = export(nn.Sequential(nn.Linear(4, 4)), cross_entropy, (4,))
    assert "Scan" in operators(graphs.clipped)


class FlatRNN(nn.RNN):
    """A layer of the caller's own, derived from one of torch."""


REFUSED = [
    (nn.BatchNorm1d(4), "is a BatchNorm1d.*use nn.GroupNorm"),
    (nn.BatchNorm2d(4), r"is a BatchNorm2d.*use nn.GroupNorm, or freeze its statistics with eval\(\)"),
    (nn.BatchNorm2d(4, track_running_stats=False).eval(), "is a BatchNorm2d.*use nn.GroupNorm"),
    (nn.SyncBatchNorm(4), "is a SyncBatchNorm.*use nn.GroupNorm"),
    (nn.Dropout(), r"is a Dropout.*dropout of 0.*eval\(\)"),
    (nn.Dropout2d(0.1), r"is a Dropout2d.*dropout of 0.*eval\(\)"),
    (nn.MultiheadAttention(4, 2, dropout=0.1), "is a MultiheadAttention.*dropout of 0"),
    (nn.GRU(4, 4, 2, dropout=0.1), "is a GRU.*dropout of 0"),
    (nn.RNN(4, 4, nonlinearity="relu"), "is a RNN.*nonlinearity='tanh'"),
    (FlatRNN(4, 4, nonlinearity="relu"), "is a FlatRNN.*nonlinearity='tanh'"),
    (nn.LSTM(4, 4, proj_size=2), "is a LSTM.*proj_size=0"),
    (nn.ReLU(inplace=True), "works in place.*inplace=False"),
    (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "computes its weight.*remove_parametrizations"),
    (nn.Fold((4, 4), 2), "is a Fold, not exported yet.*bring-your-own-model"),
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


CURED: dict[type[nn.Module], nn.Module] = {
    nn.SyncBatchNorm: nn.SyncBatchNorm(4),
    nn.EmbeddingBag: nn.EmbeddingBag(9, 4),
    nn.MaxPool3d: nn.MaxPool3d(2),
    nn.AdaptiveMaxPool1d: nn.AdaptiveMaxPool1d(1),
    nn.AdaptiveMaxPool2d: nn.AdaptiveMaxPool2d(1),
    nn.AdaptiveMaxPool3d: nn.AdaptiveMaxPool3d(1),
    nn.AdaptiveAvgPool3d: nn.AdaptiveAvgPool3d(1),
    nn.Bilinear: nn.Bilinear(4, 4, 4),
    nn.RReLU: nn.RReLU(),
}


@pytest.mark.parametrize("kind", CURES)
def test_a_layer_with_a_cure_is_refused_with_it(kind: type[nn.Module]) -> None:
    sentence = re.escape(CURES[kind]) if kind is not nn.SyncBatchNorm else "use nn.GroupNorm"
    with pytest.raises(UsageError, match=f"is a {kind.__name__}.*{sentence}"):
        check_layers(CURED[kind])


@pytest.mark.parametrize("layer", [nn.Dropout(0.0), nn.Dropout().eval(), nn.BatchNorm2d(4).eval()])
def test_a_layer_that_does_nothing_at_random_is_let_through(layer: nn.Module) -> None:
    check_layers(nn.Sequential(nn.Linear(4, 4), layer))


class Held(nn.Module):
    """A residual block whose shortcut is an empty Sequential, with parameters in containers and a list of nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shortcut, self.more = nn.Linear(6, 6), nn.Sequential(), nn.ModuleList()
        self.gains = nn.ParameterList([nn.Parameter(torch.full((6,), 0.5)) for _ in range(2)])
        self.shift = nn.ParameterDict({"shift": nn.Parameter(torch.zeros(6))})
        self.last = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu() * self.gains[0] + self.shortcut(x) * self.gains[1] + self.shift["shift"]
        for each in self.more:
            x = each(x)
        logits: Tensor = self.last(x)
        return logits


def test_what_holds_layers_or_parameters_is_no_layer_and_may_be_empty() -> None:
    graphs = export(Held(), cross_entropy, (6,))
    assert all((graphs.infer, graphs.gradient, graphs.clipped, graphs.explain))


def table(heading: str) -> list[tuple[str, str]]:
    """The rows under a heading of the guide, without marks and kinds of quotes."""
    _, _, below = GUIDE.read_text("utf-8").partition(f"\n## {heading}\n")
    rows = [line for line in below.partition("\n## ")[0].splitlines() if line.startswith("|")]
    cells = [re.sub("[`'\"]", "", row).strip("| ").split(" | ") for row in rows]
    return [(what, cure) for what, cure in cells if what[:3] != "---" and cure not in ("cure", "layers")]


def test_the_guide_lists_the_layers_that_are_exported_and_no_others() -> None:
    listed = [name for _, layers in table("What is exported") for name in re.findall(r"nn\.(\w+)", layers)]
    assert sorted(listed) == sorted(kind.__name__ for kind in SUPPORTED)


class Underived(torch.autograd.Function):
    """A function of the caller's own that nobody has derived."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise NotImplementedError("nobody has derived it")


class Spare(nn.Linear):
    def __init__(self) -> None:
        super().__init__(6, CLASSES)
        self.spare = nn.Linear(4, 7)


class Sum(nn.Linear):
    def forward(self, x: Tensor, z: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) + z


def odd(call: Callable[[Tensor], Any]) -> nn.Module:
    return Call(lambda x, layer: call(layer(x)), nn.Linear(6, CLASSES))


def mean_loss(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y)


Refusal = tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], str, str]


def refusal(module: nn.Module, cure: str, *, loss: Any = cross_entropy, said: str = "") -> Refusal:
    """A module that is refused, with what loss; what the error says, by default its cure; and what the guide says."""
    return module, loss, said or cure, cure


TOLD: dict[str, Refusal] = {
    "batch norms in training mode": refusal(nn.BatchNorm1d(6), "use nn.GroupNorm"),
    **{f"nn.{kind.__name__}": refusal(CURED[kind], cure) for kind, cure in CURES.items()},
    "dropout in training mode, of attention and recurrent layers too": refusal(
        nn.Dropout(), "a dropout of 0"
    ),
    "a layer with inplace=True": refusal(nn.ReLU(inplace=True), "inplace=False"),
    "RNN with ReLU": refusal(nn.RNN(4, 4, nonlinearity="relu"), "nonlinearity=tanh"),
    "LSTM with a projection": refusal(nn.LSTM(4, 4, proj_size=2), "proj_size=0"),
    "weight_norm and other parametrizations": refusal(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        "torch.nn.utils.parametrize.remove_parametrizations",
    ),
    "every other layer of torch: not exported yet": refusal(nn.Fold((4, 4), 2), OTHERWISE),
    "decides by the values of its input, with if, while or .item()": refusal(
        odd(lambda x: x if x.sum() > 0 else -x), blame.CURES["decides by the values"]
    ),
    "computes with complex numbers, as torch.fft does": refusal(
        odd(lambda x: torch.fft.rfft(x).real), blame.CURES["complex numbers"]
    ),
    "calls an operator that has no graph, or whose gradient has none": refusal(
        odd(lambda x: F.pad(x[:, None], (1, 0), mode="replicate")[:, 0]), blame.CURES["no graph"]
    ),
    "anything else that cannot be exported": refusal(odd(Underived.apply), blame.CURES["cannot be exported"]),
    "an answer that is no single tensor (batch, classes), or of a regression (batch, ..)": refusal(
        odd(lambda x: (x, x)), "return one tensor"
    ),
    "a loss that is one number for the batch": refusal(
        nn.Linear(6, CLASSES), "reduction=none", loss=mean_loss
    ),
    "parameters that are not float32": refusal(nn.Linear(6, CLASSES).double(), "float() on the module"),
    "a parameter that forward never uses": refusal(
        Spare(), "use it, or take it out", said="use them in forward"
    ),
    "a module that fails on random inputs of its range": refusal(
        Call(lambda x, words: words(x.long()).mean(1), nn.Embedding(2, CLASSES)), "with bounds"
    ),
    "several inputs": refusal(
        Sum(6, CLASSES), "one array, taken apart in the module", said="missing 1 required"
    ),
}


@pytest.mark.parametrize("what", TOLD)
def test_what_the_guide_says_is_refused_is_refused_with_its_cure(what: str) -> None:
    module, loss, said, cure = TOLD[what]
    (found,) = [cell for row, cell in table("What is refused") if row == what]
    assert cure in found
    with pytest.raises(UsageError) as told:
        export(module, loss, (6,))
    assert said in re.sub("['\"]", "", str(told.value))


def test_everything_that_the_guide_says_is_refused_is_tried() -> None:
    assert {what for what, _ in table("What is refused")} == TOLD.keys()
    assert {cure for _, _, _, cure in TOLD.values()} >= {*CURES.values(), *blame.CURES.values(), OTHERWISE}

"""Which layers of torch are exported, and what to do about those that are not."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from umbel_proto.errors import UsageError

GUIDE = "docs/how-to/bring-your-own-model.md"

SUPPORTED: tuple[type[nn.Module], ...] = (
    *(nn.Linear, nn.Identity, nn.Flatten, nn.Unflatten, nn.Embedding),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
    *(nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.RMSNorm),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.GRU, nn.LSTM, nn.RNN, nn.GRUCell, nn.LSTMCell, nn.RNNCell),
    *(nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Tanhshrink, nn.Hardtanh, nn.Sigmoid, nn.LogSigmoid, nn.Hardsigmoid, nn.Hardswish, nn.GLU),
    *(nn.Softplus, nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Threshold),
    *(nn.Softmax, nn.LogSoftmax, nn.Softmin),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    *(nn.Upsample, nn.UpsamplingNearest2d, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    *(nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d),
)
"""Each of them is exported and compared with torch by tests/unit/test_layer_matrix.py."""

HOLDERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""They compute nothing of their own, whatever they hold, or nothing: an empty Sequential is how many write a shortcut."""

_MAX = "use amax over the positions, or nn.MaxPool2d"
CURES: dict[type[nn.Module], str] = {
    nn.SyncBatchNorm: "use nn.GroupNorm",
    nn.EmbeddingBag: "use nn.Embedding and the mean over the words",
    nn.MaxPool3d: "use nn.AvgPool3d, or nn.MaxPool2d with one dimension joined to the channels",
    nn.AdaptiveMaxPool1d: _MAX,
    nn.AdaptiveMaxPool2d: _MAX,
    nn.AdaptiveMaxPool3d: _MAX,
    nn.AdaptiveAvgPool3d: "use nn.AvgPool3d, or the mean over the positions",
    nn.Bilinear: "use nn.Linear on the product, or on both inputs joined",
    nn.RReLU: "use nn.LeakyReLU, as a graph draws no random numbers",
}
"""What to use instead of a layer that is not exported."""
OTHERWISE = "write it with layers or operators that are"
"""What to do about any other layer of torch."""


def check_layers(module: nn.Module) -> None:
    """Refuse a module with a layer whose export is not known to be right.

    A module of the caller's own is let through: it is traced operator by operator, and verified.

    Raises:
        UsageError: A layer is not exported; the message names it and what to use instead.
    """
    for name, layer in module.named_modules():
        kind = type(layer).__name__
        where = f"Layer {name!r}" if name else "The module"
        if problem := _problem(layer):
            raise UsageError(f"{where} is a {kind}, {problem}.")
        if getattr(layer, "inplace", False):
            raise UsageError(f"{where} works in place, which a gradient graph cannot: set inplace=False.")
        if hasattr(layer, "parametrizations"):
            raise UsageError(
                f"{where} computes its weight from other parameters, which is not exported: call "
                "torch.nn.utils.parametrize.remove_parametrizations."
            )
        if cure := CURES.get(type(layer)):
            raise UsageError(f"{where} is a {kind}, which is not exported: {cure}.")
        ours = next(layer.children(), None) is not None or not type(layer).__module__.startswith("torch.nn")
        if not (ours or isinstance(layer, (*SUPPORTED, *HOLDERS))):
            raise UsageError(f"{where} is a {kind}, not exported yet: {OTHERWISE}, as {GUIDE} lists them.")


def _problem(layer: nn.Module) -> str | None:
    """Return what is wrong with a layer of a supported kind as it is set, with its cure."""
    drops = isinstance(layer, _DropoutNd) and layer.p
    drops = drops or (isinstance(layer, nn.MultiheadAttention | nn.RNNBase) and layer.dropout)
    if drops and layer.training:
        return (
            "which draws random numbers, and two runs of a graph must agree: give it a dropout of 0, or put it "
            "into evaluation mode with eval()"
        )
    if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
        return (
            "which normalizes by the other examples of a batch, so that no example has a gradient of its own to "
            "clip, and one that only fills up a batch would change the rest: use nn.GroupNorm, or freeze its "
            "statistics with eval()"
        )
    if isinstance(layer, nn.RNN) and layer.nonlinearity != "tanh":
        return "of which only the one with tanh is exported: set nonlinearity='tanh'"
    if isinstance(layer, nn.LSTM) and layer.proj_size:
        return "whose projection is not exported: set proj_size=0 and use nn.Linear on what it returns"
    return None

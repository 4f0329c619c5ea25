"""Which layers of torch are exported, and what to do about those that are not."""

from __future__ import annotations

from torch import nn

from umbel_proto.errors import UsageError

SUPPORTED = (nn.Linear, nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Identity)
_BATCH_NORM = (
    "it normalizes by the other examples of a batch, so no example has a gradient of its own to clip, and "
    "one that only fills up a batch would change the rest: normalize each example by itself, in a module of your own"
)
_TRANSPOSED = (
    "use an ordinary convolution with more channels, and move them into positions by reshape and permute"
)
_CURES: dict[type[nn.Module], str] = {
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.BatchNorm3d: _BATCH_NORM,
    nn.SyncBatchNorm: _BATCH_NORM,
    nn.EmbeddingBag: "use nn.Linear on how often each word occurs",
    nn.AdaptiveMaxPool1d: "use amax over the positions",
    nn.AdaptiveMaxPool2d: "use amax over the positions, or nn.MaxPool2d",
    nn.Bilinear: "use nn.Linear on the product, or on both inputs joined",
    nn.ConvTranspose1d: _TRANSPOSED,
    nn.ConvTranspose2d: _TRANSPOSED,
    nn.ConvTranspose3d: _TRANSPOSED,
    nn.RReLU: "use nn.ReLU, as a graph draws no random numbers",
}


def check_layers(module: nn.Module) -> None:
    """Refuse a module with a layer whose export is not known to be right.

    A leaf module of the caller's own is let through: it is traced operator by operator, and verified.

    Raises:
        UsageError: A layer is not exported; the message names it and what to use instead.
    """
    for name, layer in module.named_modules():
        kind = type(layer).__name__
        where = f"Layer {name!r}" if name else "The module"
        if getattr(layer, "inplace", False):
            raise UsageError(f"{where} works in place, which a gradient graph cannot: set inplace=False.")
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            if layer.training and layer.p > 0:
                raise UsageError(
                    f"{where} is a {kind}, which draws random numbers, and two runs of a graph must agree: "
                    "give it p=0, or put it into evaluation mode with eval()."
                )
            continue
        if cure := _CURES.get(type(layer)):
            raise UsageError(f"{where} is a {kind}, which is not exported: {cure}.")
        if hasattr(layer, "parametrizations"):
            raise UsageError(
                f"{where} computes its weight from other parameters, which is not exported: call "
                "torch.nn.utils.parametrize.remove_parametrizations."
            )
        ours = next(layer.children(), None) is not None or not type(layer).__module__.startswith("torch.nn")
        if not (ours or isinstance(layer, SUPPORTED)):
            raise UsageError(
                f"{where} is a {kind}, not exported yet: use one of "
                f"{', '.join(kind.__name__ for kind in SUPPORTED)}."
            )

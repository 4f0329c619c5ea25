"""Per-example gradients by Opacus: what others compute of the same module."""

from __future__ import annotations

import warnings

from torch import Tensor, nn

from umbel_models.graphs.truth import Truth


class OpacusError(Exception):
    """Opacus cannot be asked; the message says why."""


def each_by_opacus(truth: Truth, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return every example's gradient by name, (batch, *shape), and loss, (batch,), as ``Truth.each`` does.

    Raises:
        OpacusError: It is not installed, or does not know a layer of the module.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus imports what it says is deprecated.
        try:
            from opacus import GradSampleModule
        except ImportError as exc:
            raise OpacusError("it is not installed.") from exc
        module = truth.copy_of_module()
        for layer in module.modules():
            # Opacus records layers in training mode alone. Those with parameters of their own compute the same in
            # either, but for batch norms, which it refuses.
            if next(layer.parameters(recurse=False), None) is not None:
                layer.training = True
        module.training = True
        try:
            # By autograd: Opacus' own rule of a convolution (1.6) is silently wrong where its input is not
            # row-major in memory.
            wrapped: nn.Module = GradSampleModule(module, loss_reduction="sum", force_functorch=True)
            losses = truth.losses_of(wrapped, x, y)
            losses.sum().backward()  # type: ignore[no-untyped-call]
            named = module.named_parameters()
            gradients = {
                name: getattr(value, "grad_sample", None) for name, value in named if value.requires_grad
            }
        except Exception as exc:  # whatever Opacus and torch raise of a layer that they do not know
            reason = " ".join(str(exc).split())
            raise OpacusError(f"it fails on this module ({reason[:200].rstrip('.')}).") from exc
    kept = {}
    for name, gradient in gradients.items():
        if not isinstance(gradient, Tensor) or len(gradient) != len(x):
            raise OpacusError(f"it keeps no gradient of {name} for each example.")
        kept[name] = gradient.detach()
    return kept, losses.detach()

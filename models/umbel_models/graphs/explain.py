"""Integrated gradients: how much each value of an input moved the output, against a baseline.

Source: Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017 (arXiv:1703.01365),
section 3; the integral by the midpoint rule.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEPS = 32
"""Points on the way from the baseline to the input: what is left of completeness is an output."""


def integrated_gradients(
    network: Callable[[Tensor], Tensor], x: Tensor, baseline: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return attributions, shape of ``x``, outputs (batch, *answer), and what completeness lacks, (batch,).

    Attributions of an example add up to how far its target's output is from the baseline's, but for the
    error of the sum that stands for an integral: the third result, which says how far to trust the first.

    Args:
        network: Maps inputs to logits or values. It sees ``STEPS`` times the batch at once.
        x: Inputs, shape (batch, *example).
        baseline: Inputs that stand for nothing, shape of ``x``.
        target: What is explained for each, the place of a number in its outputs, row-major, int64 (batch,).
    """
    places = torch.tensor([(step + 0.5) / STEPS for step in range(STEPS)])
    way = x - baseline
    points = baseline + places.reshape(-1, 1, *(1 for _ in x.shape[1:])) * way
    # All that the network is asked in one batch: what onnxruntime packs for each of its layers it packs once.
    asked = torch.cat([points, x[None], baseline[None]]).flatten(0, 1).detach().requires_grad_()
    with torch.enable_grad():
        outputs = network(asked)
        reached = torch.unflatten(flat(outputs), 0, (STEPS + 2, -1))
        picked = reached.gather(2, target[None, :, None].expand(STEPS + 2, -1, 1))[..., 0]
        (gradients,) = torch.autograd.grad(picked[:STEPS].sum(), [asked])
    attributions = torch.unflatten(gradients, 0, (STEPS + 2, -1))[:STEPS].mean(0) * way
    logits = torch.unflatten(outputs.detach(), 0, (STEPS + 2, -1))[STEPS]
    moved = (picked[STEPS] - picked[STEPS + 1]).detach()
    return attributions.detach(), logits, attributions.detach().flatten(1).sum(1) - moved


def flat(outputs: Tensor) -> Tensor:
    """Return outputs, shape (batch, *answer), with all numbers of an answer in one row."""
    return outputs if outputs.dim() == 2 else outputs.unsqueeze(-1).flatten(1)

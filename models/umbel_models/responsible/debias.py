"""Adversarial debiasing: a model learns its labels while a second one fails to tell its cohorts.

Source: Zhang, Lemoine, Mitchell, "Mitigating Unwanted Biases with Adversarial Learning", AIES 2018
(arXiv:1801.07593v1): section 3 for the update, 3.2 for an adversary that also sees the label, which makes
equalized odds the goal.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from umbel_models.fit import Loss, Network, repeatable
from umbel_models.responsible.fairness import cohorts
from umbel_models.task import Examples
from umbel_proto.errors import UsageError

# A slow adversary lags behind a model that dodges it, and both swing: at 0.05 a third of the trials ended with
# a wider gap than they began with, at 0.2 none of those of 10 epochs.
_ADVERSARY_RATE = 0.2


def debias(
    module: Network,
    loss: Loss,
    examples: Examples,
    *,
    strength: float = 1.0,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: Callable[[int, float], object] | None = None,
) -> Network:
    """Return a trained copy of a module whose logits tell little of the cohort beyond what the label tells.

    Args:
        module: Maps x to logits.
        loss: Maps logits and labels to one loss per example, shape (batch,).
        examples: What to learn from, with cohorts; the module itself never sees them.
        strength: How much the adversary's failure counts against the labels, >= 0; the paper's alpha.
        epochs: Passes over the examples: 10 or more, as the two must come to rest.
        batch_size: Examples in a step.
        learning_rate: Of the first step; it falls to 0 along a cosine.
        seed: Order of the examples.
        progress: Told the number of each epoch done, from 1, and the adversary's mean loss in nats: at its
            best, it is no better than the entropy of the cohorts.

    Raises:
        UsageError: No cohorts are told, or training diverged.
    """
    if not (strength >= 0 and epochs >= 1 and batch_size >= 1 and learning_rate > 0):
        raise UsageError(
            "Debiasing takes a strength >= 0, epochs and a batch_size >= 1, a learning_rate > 0."
        )
    groups, numbers = np.unique(cohorts(examples), return_inverse=True)
    x, y = torch.from_numpy(examples.x), torch.from_numpy(examples.y)
    cohort = torch.from_numpy(numbers.astype(np.int64))
    trained = copy.deepcopy(module)
    own = [value for value in trained.parameters() if value.requires_grad]
    steps = epochs * math.ceil(len(x) / batch_size)
    with repeatable(seed):
        with torch.no_grad():
            labels = trained(x[:1]).shape[1]
        # A weight for each label's probability, once for each true label.
        adversary = nn.Linear(labels * (labels + 1), len(groups))
        learner = torch.optim.AdamW(own, lr=learning_rate)
        opponent = torch.optim.Adam(adversary.parameters(), lr=_ADVERSARY_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(learner, steps)
        for epoch in range(1, epochs + 1):
            seen = 0.0
            for rows in torch.split(torch.randperm(len(x)), batch_size):
                logits = trained(x[rows])
                error = loss(logits, y[rows]).mean()
                guess = functional.cross_entropy(adversary(_evidence(logits, y[rows])), cohort[rows])
                if not torch.isfinite(error + guess):
                    raise UsageError(f"Debiasing diverged in epoch {epoch}: choose a smaller strength.")
                wanted = torch.autograd.grad(error, own, retain_graph=True)
                telling = torch.autograd.grad(guess, own, retain_graph=True)
                opponent.zero_grad()
                guess.backward(inputs=list(adversary.parameters()))  # type: ignore[no-untyped-call]
                opponent.step()
                for parameter, step in zip(own, against(wanted, telling, strength), strict=True):
                    parameter.grad = step
                learner.step()
                schedule.step()
                seen += guess.item() * len(rows)
            if progress is not None:
                progress(epoch, seen / len(x))
    return trained


def against(wanted: Sequence[Tensor], telling: Sequence[Tensor], strength: float) -> list[Tensor]:
    """Return the gradient to descend: the labels' without its part along the adversary's, minus the adversary's.

    A small step along it changes the adversary's loss by ``strength`` times its squared gradient, upwards:
    whatever the labels want, it never helps the adversary.

    Args:
        wanted: Gradient of the labels' loss, an array for each parameter.
        telling: Gradient of the adversary's loss, alike.
        strength: How much it counts.
    """
    inner = sum((p * q).sum() for p, q in zip(wanted, telling, strict=True))
    length = sum((q * q).sum() for q in telling)
    share = inner / length.clamp_min(torch.finfo(torch.float32).tiny)  # type: ignore[union-attr]
    return [p - (share + strength) * q for p, q in zip(wanted, telling, strict=True)]


def _evidence(logits: Tensor, y: Tensor) -> Tensor:
    # The probabilities, and the same again in the place of the true label: the adversary may compare within it.
    probabilities = logits.softmax(1)
    placed = functional.one_hot(y, logits.shape[1]).to(logits.dtype)[:, :, None] * probabilities[:, None, :]
    return torch.cat([probabilities, placed.flatten(1)], dim=1)

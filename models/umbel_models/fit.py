"""Train a torch module on the workbench: what a model learns before devices ever see it.

The same arguments give the same bits on the same machine.

Source of the steps: Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019
(arXiv:1711.05101v3), with the learning rate falling to 0 along a cosine (arXiv:1608.03983v5, without
restarts).
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from umbel_models.task import Examples
from umbel_proto.errors import UmbelError, UsageError

WEIGHT_DECAY = 0.01
_PREDICTED_AT_ONCE = 512

Loss = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[int, float], object]
Network = TypeVar("Network", bound=nn.Module)


def fit(
    module: Network,
    loss: Loss,
    examples: Examples,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    weights: NDArray[np.floating] | None = None,
    progress: Progress | None = None,
) -> Network:
    """Return a trained copy of a module; the module itself stays as it is.

    Layers keep the mode they are in, and parameters with ``requires_grad`` off keep their values.

    Args:
        module: Maps x to logits.
        loss: Maps logits and labels to one loss per example, shape (batch,).
        examples: What to learn from, n of them.
        epochs: Passes over the examples, >= 0.
        batch_size: Examples in a step, >= 1.
        learning_rate: Of the first step, > 0.
        seed: Order of the examples, and whatever the module draws at random.
        weights: How much each example counts, shape (n,), >= 0; only their proportions matter.
        progress: Told the number of each epoch done, from 1, and its mean loss.

    Raises:
        UsageError: There is nothing to learn from or to train, a value is not finite, or training diverged.
    """
    if epochs < 0 or batch_size < 1 or not learning_rate > 0:
        raise UsageError("Training takes epochs >= 0, a batch_size >= 1 and a learning_rate > 0.")
    x, y, share = _tensors(examples, weights)
    trained = copy.deepcopy(module)
    parameters = [value for value in trained.parameters() if value.requires_grad]
    if not parameters:
        raise UsageError("Every parameter is frozen: leave at least one to train.")
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=WEIGHT_DECAY)
    steps = max(1, epochs * math.ceil(len(x) / batch_size))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with repeatable(seed):
        for epoch in range(1, epochs + 1):
            total = 0.0
            for rows in torch.split(torch.randperm(len(x)), batch_size):
                optimizer.zero_grad()
                with asked(x[rows]):
                    mean = (share[rows] * loss(trained(x[rows]), y[rows])).mean()
                if not torch.isfinite(mean):
                    raise UsageError(f"Training diverged in epoch {epoch}: choose a smaller learning_rate.")
                mean.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total += mean.item() * len(rows)
            if progress is not None:
                progress(epoch, total / len(x))
    if not all(bool(torch.isfinite(value).all()) for value in parameters):
        raise UsageError("Training diverged in its last step: choose a smaller learning_rate.")
    return trained


def predict(module: nn.Module, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the module's logits of inputs x, shape (n, *example); shape (n, labels).

    Raises:
        UsageError: An input or a logit is not finite.
    """
    if not np.isfinite(x).all():
        raise UsageError("An input holds a value that is not finite: clean the data first.")
    with repeatable(0), torch.no_grad(), asked(torch.from_numpy(x)):
        parts = [
            module(torch.from_numpy(x[i : i + _PREDICTED_AT_ONCE])).numpy()
            for i in range(0, max(1, len(x)), _PREDICTED_AT_ONCE)
        ]
    logits: NDArray[np.float32] = np.concatenate(parts)
    if not np.isfinite(logits).all():
        raise UsageError("The module gives values that are not finite: its parameters are damaged.")
    return logits


def accuracy(module: nn.Module, examples: Examples) -> float:
    """Return the part of the examples whose label has the greatest logit, in [0, 1]."""
    return float((predict(module, examples.x).argmax(1) == examples.y).mean())


def _tensors(examples: Examples, weights: NDArray[np.floating] | None) -> tuple[Tensor, Tensor, Tensor]:
    count = len(examples.x)
    if count == 0 or len(examples.y) != count:
        raise UsageError(
            f"There are {count} inputs and {len(examples.y)} labels: give one label for each, and some."
        )
    if not np.isfinite(examples.x).all():
        raise UsageError("An input holds a value that is not finite: clean the data first.")
    share = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    if share.shape != (count,) or not np.isfinite(share).all() or share.min() < 0 or share.sum() <= 0:
        raise UsageError(f"Weights are one finite number >= 0 for each of the {count} examples, not all 0.")
    share = (share / share.mean()).astype(np.float32)
    return torch.from_numpy(examples.x), torch.from_numpy(examples.y), torch.from_numpy(share)


@contextlib.contextmanager
def asked(x: Tensor) -> Iterator[None]:
    """Turn what a module or a loss raises about inputs x into a sentence: they are the caller's own."""
    try:
        yield
    except UmbelError:
        raise
    except Exception as exc:  # whatever the caller's own module raises
        raise UsageError(
            f"The module or its loss fails on {len(x)} examples of shape {tuple(x.shape[1:])}: {exc}."
        ) from exc


@contextlib.contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """Run on one thread and under a seed, and put both back as they were."""
    # With several threads sums are split as the machine likes, and their last bits with them. The caller's
    # random state and number of threads are left as they were.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)

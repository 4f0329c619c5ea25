"""Teach a small network what a large one knows: not only the right label, also how alike the others are.

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531v1, section 2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from umbel_models.fit import Loss, Network, Progress, fit, predict
from umbel_models.task import Examples
from umbel_proto.errors import UsageError


def distill(
    teacher: nn.Module,
    student: Network,
    loss: Loss,
    examples: Examples,
    *,
    temperature: float = 3.0,
    soft: float = 0.9,
    epochs: int = 40,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Network:
    """Return a copy of the student, trained on the teacher's probabilities and on the labels.

    Args:
        teacher: The trained network; it is only asked.
        student: The network to train, for the same inputs and labels; it stays as it is.
        loss: Maps logits and labels to one loss per example.
        examples: What to learn from. Only their labels need people: with ``soft`` 1 none are read.
        temperature: T > 0; the greater, the more the unlikely labels count.
        soft: Part of the loss that comes from the teacher, in [0, 1]; the rest comes from the labels.
        epochs: Passes over the examples, as all that follows.
        batch_size: Examples in a step.
        learning_rate: Of the first step.
        seed: Order of the examples.
        progress: Told of each epoch.

    Raises:
        UsageError: The two give other numbers of logits, a setting is out of range, or training diverged.
    """
    if not (0 < temperature < float("inf") and 0 <= soft <= 1):
        raise UsageError(
            f"temperature is {temperature} and soft is {soft}: choose a number > 0, and one in [0, 1]."
        )
    known = predict(teacher, examples.x)
    wanted = predict(student, examples.x[:1]).shape[1:]
    if known.shape[1:] != wanted:
        raise UsageError(
            f"The teacher gives logits of shape {known.shape[1:]}, the student of {wanted}: give both the same labels."
        )
    taught, labels = torch.from_numpy(known), torch.from_numpy(examples.y)

    def both(logits: Tensor, rows: Tensor) -> Tensor:
        imitated = soft_loss(logits, taught[rows], temperature)
        return soft * imitated + (1 - soft) * loss(logits, labels[rows])

    return fit(
        student,
        both,
        Examples(examples.x, np.arange(len(examples.y))),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        progress=progress,
    )


def soft_loss(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Return T^2 times the Kullback-Leibler divergence from the teacher's softened probabilities.

    The factor keeps gradients as large as those of labels, whatever T: softened ones are 1/T^2 of them.

    Args:
        logits: The student's, shape (batch, labels).
        taught: The teacher's, same shape.
        temperature: T.

    Returns:
        One loss per example, shape (batch,).
    """
    divergence = functional.kl_div(
        functional.log_softmax(logits / temperature, -1),
        functional.log_softmax(taught / temperature, -1),
        reduction="none",
        log_target=True,
    )
    return temperature**2 * divergence.sum(-1)

"""Weights under which the label does not depend on the cohort."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from umbel_models.responsible.figures import Labels
from umbel_proto.errors import UsageError


def reweigh(y: Labels, cohort: Labels) -> NDArray[np.float64]:
    """Return a weight for each example, shape (n,): in the weighted data label and cohort are independent.

    It aims at demographic parity: where labels truly depend on the cohort, errors may become less alike. Both
    keep their own shares, and the weights sum to n. They are for ``fit(..., weights=...)``: the model
    never sees the cohort, on the workbench or on a device.

    Args:
        y: Labels, shape (n,).
        cohort: Cohort of each example, shape (n,).

    Raises:
        UsageError: A cohort holds no example of a label: no weight can make up for it.

    Source:
        Kamiran, Calders, "Data preprocessing techniques for classification without discrimination",
        Knowledge and Information Systems 33, 2012, section 4.3.
    """
    labels, row = np.unique(y, return_inverse=True)
    groups, column = np.unique(cohort, return_inverse=True)
    counts = np.zeros((len(labels), len(groups)))
    np.add.at(counts, (row, column), 1.0)
    if not counts.all():
        label, group = np.argwhere(counts == 0)[0]
        raise UsageError(
            f"Cohort {groups[group]} holds no example of label {labels[label]}, and weights cannot make one: "
            "collect some, or join cohorts."
        )
    expected = np.outer(counts.sum(1), counts.sum(0)) / len(y)
    weights: NDArray[np.float64] = (expected / counts)[row, column]
    return weights

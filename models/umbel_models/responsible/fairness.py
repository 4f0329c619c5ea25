"""How far a model's decisions differ between cohorts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from umbel_models.responsible.figures import Figures, Labels
from umbel_models.task import Examples
from umbel_proto.errors import UsageError


@dataclass(frozen=True, slots=True)
class Gaps:
    """Differences between the best and the worst served cohort, each in [0, 1], 0 where all are alike.

    Args:
        accuracy: In the share of right decisions.
        parity: In the share that is given a label, the label where it is greatest (demographic parity).
        odds: In the share that is given a label among those who truly have the same one, the pair of labels
            where it is greatest (equalized odds).
    """

    accuracy: float
    parity: float
    odds: float

    def figures(self, prefix: str = "") -> Figures:
        """Return the three gaps by name, rounded to 4 places."""
        return {
            f"{prefix}accuracy gap": round(self.accuracy, 4),
            f"{prefix}demographic parity gap": round(self.parity, 4),
            f"{prefix}equalized odds gap": round(self.odds, 4),
        }


def gaps(predicted: Labels, y: Labels, cohort: Labels) -> Gaps:
    """Return how far decisions differ between cohorts, all of shape (n,).

    A cohort without an example of a label has no rate there, and is left out of that comparison.

    Source: Hardt, Price, Srebro, "Equality of Opportunity in Supervised Learning", NeurIPS 2016
    (arXiv:1610.02413v1), section 2; for several labels each pair of true and given label is a rate.
    """
    groups, labels = np.unique(cohort), np.unique(np.concatenate([y, predicted]))
    given = predicted[:, None] == labels

    def spread(mask: NDArray[np.bool_], rows: NDArray[np.bool_]) -> float:
        rates = [
            mask[rows & (cohort == group)].mean(0) for group in groups if (rows & (cohort == group)).any()
        ]
        return float(np.ptp(np.array(rates), axis=0).max()) if rates else 0.0

    every = np.ones(len(y), bool)
    return Gaps(
        accuracy=spread((predicted == y)[:, None], every),
        parity=spread(given, every),
        odds=max(spread(given, y == label) for label in labels),
    )


def rates(
    predicted: Labels, y: Labels, cohort: Labels, *, names: Sequence[str] = (), labels: Sequence[str] = ()
) -> dict[str, Figures]:
    """Return for each cohort its examples, its accuracy, and how often each label is given when it is true.

    Args:
        predicted: Labels given, shape (n,).
        y: True labels, shape (n,).
        cohort: Cohort of each example, shape (n,).
        names: Of the cohorts; their numbers where there are none.
        labels: Names of the labels; their numbers where there are none.
    """
    table: dict[str, Figures] = {}
    for name, rows in by_name(cohort, names):
        table[name] = {
            "examples": int(rows.sum()),
            "accuracy": round(float((predicted == y)[rows].mean()), 4),
            **{
                f"recall of {labels[label] if labels else label}": round(
                    float((predicted[rows & (y == label)] == label).mean()), 4
                )
                for label in np.unique(y[rows])
            },
        }
    return table


def by_name(cohort: Labels, names: Sequence[str] = ()) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Give each cohort there is with the examples that belong to it, as a mask of shape (n,).

    Args:
        cohort: Cohort of each example, shape (n,).
        names: Of the cohorts; their numbers where there are none.
    """
    for group in np.unique(cohort):
        yield names[group] if group < len(names) else str(group), cohort == group


def cohorts(examples: Examples) -> Labels:
    """Return the examples' cohorts.

    Raises:
        UsageError: They tell none.
    """
    if examples.cohort is None:
        raise UsageError("These examples tell no cohort: set Examples.cohort to the group each belongs to.")
    return examples.cohort

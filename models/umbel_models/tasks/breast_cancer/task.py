"""The breast cancer task: its labels and its data contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umbel_models.task import About, Task, cross_entropy
from umbel_models.tasks.breast_cancer import data
from umbel_models.tasks.parts import datasheet
from umbel_proto.contract import Column, DataContract, Field
from umbel_proto.ids import ModelName

if TYPE_CHECKING:
    from umbel_models.tasks.breast_cancer.module import BreastCancerNet

SEED = 0


def module() -> BreastCancerNet:
    """Return the network with its initial parameters."""
    from umbel_models.tasks.breast_cancer.module import initial

    return initial(SEED)


def column(name: str) -> Column:
    """Return what a device may be told of a column: half of its documented range beyond either end, never under 0.

    A mass may be unlike all 569 that were documented. Further away than this, a unit or a column was mistaken.
    """
    low, high = data.RANGES[name]
    beyond = (high - low) / 2
    return Column(name.replace(" ", "-"), max(0.0, low - beyond), high + beyond)


BREAST_CANCER = Task(
    model=ModelName("breast-cancer"),
    module=module,
    loss=cross_entropy,
    labels=("malignant", "benign"),
    contract=DataContract((Field.of_columns("x", "float32", [column(name) for name in data.RANGES]),)),
    decision_threshold=0.95,
    data=data.split,
    about=About(
        purpose="Tell malignant from benign breast masses by 30 measurements of cell nuclei; shows what umbel does "
        "on a small real table, and is no medical device.",
        data="W. Wolberg, O. Mangasarian, N. Street, W. Street, Breast Cancer Wisconsin (Diagnostic), UCI 1995, "
        "doi:10.24432/C5DW2B: 569 masses, as scikit-learn ships it.",
        limits=(
            "569 patients of one clinic in the early 1990s, measured half by hand: not for any patient today.",
            "A malignant mass taken for benign costs far more than the reverse; accuracy counts them alike.",
        ),
        license="CC-BY-4.0",
        datasheet=datasheet(__package__),
    ),
    columns=tuple(data.RANGES),
)

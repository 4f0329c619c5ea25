"""The breast cancer task: its labels and its data contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umbel_models.task import About, Task, cross_entropy
from umbel_models.tasks.breast_cancer import data
from umbel_proto.contract import DataContract, Field
from umbel_proto.ids import ModelName

if TYPE_CHECKING:
    from umbel_models.tasks.breast_cancer.module import BreastCancerNet

SEED = 0
LARGEST = max(high for _, high in data.RANGES.values())


def module() -> BreastCancerNet:
    """Return the network with its initial parameters."""
    from umbel_models.tasks.breast_cancer.module import initial

    return initial(SEED)


BREAST_CANCER = Task(
    model=ModelName("breast-cancer"),
    module=module,
    loss=cross_entropy,
    labels=("malignant", "benign"),
    contract=DataContract(
        (Field("x", "float32", (len(data.RANGES),), 0.0, LARGEST, unit="in each column's own unit"),)
    ),
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
    ),
    columns=tuple(data.RANGES),
)

"""The credit task: its labels and its data contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umbel_models.task import About, Task, cross_entropy
from umbel_models.tasks.credit import data
from umbel_models.tasks.credit.features import FEATURES, column
from umbel_models.tasks.parts import datasheet
from umbel_proto.contract import DataContract, Field
from umbel_proto.ids import ModelName

if TYPE_CHECKING:
    from umbel_models.tasks.credit.module import CreditNet

SEED = 0


def module() -> CreditNet:
    """Return the network with its initial parameters."""
    from umbel_models.tasks.credit.module import initial

    return initial(SEED)


CREDIT = Task(
    model=ModelName("credit"),
    module=module,
    loss=cross_entropy,
    labels=("repaid", "default"),
    contract=DataContract((Field.of_columns("x", "float32", [column(each) for each in FEATURES]),)),
    decision_threshold=0.8,
    data=data.split,
    about=About(
        purpose="Tell which of two cohorts a lender's model treats worse, and try what helps; never to lend by.",
        data="Generated: a structural causal model (umbel_models.tasks.credit.data) with a threshold model of "
        "default after Vasicek 2002; its numbers are chosen, not estimated. No person's data is in it.",
        limits=(
            "No real population is like it: a model trained on it says nothing about anyone.",
            "Cohort B defaults more often, is measured worse and is told by where it lives, as much as is asked.",
        ),
        license="CC0-1.0",
        datasheet=datasheet(__package__),
    ),
    cohorts=("A", "B"),
    columns=tuple(feature.name for feature in FEATURES),
)

"""The columns of a credit application: what each means, and what it depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from umbel_proto.checks import CLIP, REJECT
from umbel_proto.contract import Column


@dataclass(frozen=True, slots=True)
class Feature:
    """One column, a monotone function of a standard normal variable.

    Args:
        name: The column's name.
        unit: Its unit, in words.
        middle: Its median.
        spread: Of a column whose logarithm is normal, the deviation of that; otherwise its own deviation.
        maximum: What greater values are cut to; smaller ones than 0 are cut to 0.
        causes: Weights of what it depends on; their squares sum to 1 at most, and the rest is the person's own.
        normal: Whether the column itself is normal, instead of its logarithm.
        whole: Whether it counts something.
        filed: Whether it comes from a credit bureau's file, which is poorer for one cohort.
    """

    name: str
    unit: str
    middle: float
    spread: float
    maximum: float
    causes: Mapping[str, float] = field(default_factory=dict)
    normal: bool = False
    whole: bool = False
    filed: bool = False


FEATURES = (
    Feature("income", "thousand a year", 32, 0.45, 200, {"means": 0.9}),
    Feature("amount", "thousand", 8, 0.7, 200, {"means": 0.5, "burden": 0.5}),
    Feature("duration", "months", 36, 0.4, 120, {"burden": 0.3}),
    Feature("installment", "% of income", 9, 0.5, 100, {"burden": 0.9, "means": -0.2}),
    Feature("other debt", "% of income", 6, 0.7, 100, {"burden": 0.5, "prudence": -0.15}),
    Feature("housing", "% of income", 30, 9, 100, {"means": -0.5}, normal=True),
    Feature("savings", "months of expenses", 2, 0.9, 60, {"prudence": 0.25, "means": 0.5}),
    Feature("employed", "years", 5, 0.8, 45, {"stability": 0.8}),
    Feature("address", "years", 5, 0.8, 60, {"stability": 0.6}),
    Feature("income variation", "%", 10, 0.6, 100, {"stability": -0.6}),
    Feature("overdrafts", "in 12 months", 0.7, 1.0, 24, {"prudence": -0.25, "stability": -0.3}, whole=True),
    Feature("accounts", "number", 3, 0.5, 30, {"means": 0.3}, whole=True, filed=True),
    Feature("account age", "years", 7, 0.7, 50, {"prudence": 0.4}, filed=True),
    Feature("utilization", "% of limits", 45, 22, 100, {"prudence": -0.7}, normal=True, filed=True),
    Feature("late payments", "in 24 months", 0.8, 1.0, 24, {"prudence": -0.75}, whole=True, filed=True),
    Feature("since late", "months", 24, 0.8, 120, {"prudence": 0.6}, filed=True),
    Feature("inquiries", "in 12 months", 1.5, 0.8, 20, {"prudence": -0.5}, whole=True, filed=True),
    Feature("neighborhood", "index", 50, 15, 100, {"place": 1.0}, normal=True),
    Feature("branch distance", "km", 4, 0.8, 100, {"place": 0.6}),
    Feature("cash", "% of payments", 30, 12, 100, {"place": 0.4}, normal=True),
)
"""The columns, in their order."""


def column(feature: Feature) -> Column:
    """Return what a device may be told of a column.

    What is measured is cut to its range, as the data is; what is counted is a whole number in it, and anything else
    is some other quantity.
    """
    known = tuple(float(number) for number in range(int(feature.maximum) + 1)) if feature.whole else ()
    return Column(
        feature.name.replace(" ", "-"),
        0.0,
        float(feature.maximum),
        values=known,
        unit=feature.unit,
        action=REJECT if feature.whole else CLIP,
    )

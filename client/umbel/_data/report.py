"""What a data set holds, in numbers that say nothing of any one example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DataReport:
    """What a data set holds, without its values. Times are Unix seconds.

    Args:
        model: The model.
        rows: Examples.
        bytes: Size of their encrypted rows.
        oldest_s: When the oldest came; None if there is none.
        newest_s: When the newest came.
        unlabeled: Examples without a label.
        disputed: Examples whose annotators are even.
        unusable: Examples that the installed version of the model does not take any more.
        labels: Examples by class, by its name; empty for targets.
        imbalance: The largest class over the smallest; infinite where a class has none; None for targets.
        sources: Examples by where they are from.
        agreement: Mean agreement where several annotated one example; None where nobody did.
        train: Examples to train on, at a share of 20 %.
        test: Examples kept from training.
        copies: Examples whose input is the same as an earlier one's.
        near_copies: Examples whose input is nearly an earlier one's.
        leaks: Examples kept from training that are near one that is not, all the same.
        expired: Examples deleted because of their age.
        crowded: Examples deleted for want of room.
    """

    model: str
    rows: int
    bytes: int
    oldest_s: float | None
    newest_s: float | None
    unlabeled: int
    disputed: int
    unusable: int
    labels: Mapping[str, int]
    imbalance: float | None
    sources: Mapping[str, int]
    agreement: float | None
    train: int
    test: int
    copies: int
    near_copies: int
    leaks: int
    expired: int
    crowded: int


def imbalance(counts: Sequence[int]) -> float | None:
    """Return the largest class over the smallest; None where there is none."""
    if not any(counts):
        return None
    return max(counts) / min(counts) if min(counts) else float("inf")


def repeats(marks: Sequence[bytes]) -> int:
    """Return how many marks were there before."""
    return len(marks) - len(set(marks))


def leaks(marks: Sequence[bytes], tested: Sequence[bool]) -> int:
    """Return how many tested examples share a mark with one that is not."""
    trained = {mark for mark, test in zip(marks, tested, strict=True) if not test}
    return sum(test and mark in trained for mark, test in zip(marks, tested, strict=True))

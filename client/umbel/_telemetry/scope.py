"""What the windows of a model version say of it beyond what all windows say, and what they hide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from umbel._telemetry.columns import Columns
from umbel_proto.package import Package

MAX_LABELS = 1000
"""Labels counted by themselves in one window; further ones are counted together."""
JUDGED_RIGHT, JUDGED_WRONG = "feedback.right", "feedback.wrong"
"""Confidences of predictions that a label arrived for: of those that it agreed with, and of the others."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a package asks of windows.

    Args:
        classes: How many classes the model tells apart; 0 where it answers with numbers.
        epsilon: By telemetry task, with what its events are randomized before they are sealed.
        columns: The columns of its input, each counted by itself; none where the contract names none.
    """

    classes: int = 0
    epsilon: Mapping[str, float] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)

    @classmethod
    def of(cls, package: Package) -> Scope:
        """Return what a package asks of the windows of its model."""
        manifest = package.manifest
        return cls(len(manifest.labels), manifest.telemetry_epsilon, Columns.of(package))


NOTHING = Scope()
"""Of a window that predicts nothing, or of a model that no package describes."""

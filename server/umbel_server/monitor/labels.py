"""Labels by the names that people write."""

from __future__ import annotations

from collections.abc import Sequence

from umbel_proto.errors import UsageError


def label_number(labels: Sequence[str], label: str, model: str) -> int:
    """Return the number of a label.

    Args:
        labels: Names of the model's labels, in order.
        label: By name or number.
        model: Whose, for the sentence.

    Raises:
        UsageError: It has no such label.
    """
    number = labels.index(label) if label in labels else int(label) if label.isdecimal() else -1
    if not 0 <= number < len(labels):
        known = ", ".join(labels[:10]) or "none: it is a regression"
        raise UsageError(f"Model {model} has no label {label[:40]!r}; it has {known}.")
    return number

"""What the store of examples takes and gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from umbel_proto.errors import UsageError


@dataclass(frozen=True, slots=True)
class Retention:
    """How long a device keeps a model's examples; what is over a bound goes, the oldest first.

    Args:
        max_age_s: Seconds, > 0.
        max_rows: Examples, >= 1.
        max_bytes: Size of their encrypted rows, >= 1.
    """

    max_age_s: float = 365 * 86400.0
    max_rows: int = 100_000
    max_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        for name, most in (("max_rows", self.max_rows), ("max_bytes", self.max_bytes)):
            if isinstance(most, bool) or not isinstance(most, int) or most >= 1 << 63:
                raise UsageError(f"{name} is {most!r:.40}: give a whole number under 2**63.")
        age: object = self.max_age_s
        if isinstance(age, bool) or not isinstance(age, int | float):
            raise UsageError(f"max_age_s is {age!r:.40}: give a number of seconds.")
        if not (self.max_age_s > 0 and self.max_rows >= 1 and self.max_bytes >= 1):
            raise UsageError("Retention needs an age over 0, and at least one row and one byte.")


@dataclass(frozen=True, slots=True)
class NewRow:
    """An example that is to be kept.

    Args:
        marks: Its exact, near and shifted mark.
        content: Where it is from, and its input.
        label: Its label with its origin, if there is one.
    """

    marks: tuple[bytes, bytes, bytes]
    content: bytes = field(repr=False)
    label: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Row:
    """An example that is kept. Times are Unix seconds.

    Args:
        name: 16 hexadecimal digits.
        schema: What kind of model it is for.
        marks: Its exact, near and shifted mark.
        added_s: When it came.
        content: Where it is from, and its input.
        labels: When each label came and what it says, oldest first.
    """

    name: str
    schema: bytes
    marks: tuple[bytes, bytes, bytes]
    added_s: float
    content: bytes = field(repr=False)
    labels: tuple[tuple[float, bytes], ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Held:
    """How much a model has here; it takes no key to know.

    Args:
        model: Its name.
        rows: Examples.
        bytes: Size of their encrypted rows.
        expired: Examples deleted because of their age.
        crowded: Examples deleted for want of room.
    """

    model: str
    rows: int
    bytes: int
    expired: int
    crowded: int

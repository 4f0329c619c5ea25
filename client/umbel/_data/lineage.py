"""Where labels are from, who gave them, and what they come to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from umbel_proto.errors import UsageError

MAX_WORDS = 200


@dataclass(frozen=True, slots=True)
class Label:
    """A label that somebody gave an example.

    Args:
        y: The class, or the target's numbers in row-major order.
        source: Where it is from: ``user``, ``import``, the name of a sensor..
        annotator: Who gave it; may be empty.
        at_s: When, Unix seconds of the device's clock.
    """

    y: int | tuple[float, ...]
    source: str
    annotator: str
    at_s: float


def voices(labels: Sequence[Label]) -> dict[str, Label]:
    """Return the newest label of each annotator, or of each source where nobody is named."""
    return {label.annotator or label.source: label for label in labels}


def agreed(labels: Sequence[Label]) -> tuple[int | tuple[float, ...] | None, float | None]:
    """Return what labels come to, and the share of annotators that say so.

    Returns:
        The class that most gave last, or the median of targets; None while there is none, or as many for one
        class as for another. And the share that gave it; None for targets.
    """
    said = [label.y for label in voices(labels).values()]
    if not said:
        return None, None
    targets = [each for each in said if isinstance(each, tuple)]
    if targets:
        from statistics import median

        return tuple(float(median(values)) for values in zip(*targets, strict=True)), None
    counted = Counter(said).most_common(2)
    if len(counted) > 1 and counted[0][1] == counted[1][1]:
        return None, counted[0][1] / len(said)
    return counted[0][0], counted[0][1] / len(said)


def pack(fields: Mapping[str, str], raw: bytes) -> bytes:
    """Return words and bytes as one row."""
    head = json.dumps(fields).encode()
    return len(head).to_bytes(4, "big") + head + raw


def unpack(content: bytes) -> tuple[dict[str, str], bytes]:
    """Read what ``pack`` gave."""
    end = 4 + int.from_bytes(content[:4], "big")
    return json.loads(content[4:end]), content[end:]


def check_words(*words: str) -> None:
    """Refuse a source or a name that is no name.

    Raises:
        UsageError: It is no text, or too long.
    """
    for each in words:
        given: object = each
        if not isinstance(given, str):
            raise UsageError(f"A source, annotator or reason is a text: {given!r:.40} is none.")
        if len(each) > MAX_WORDS:
            raise UsageError(
                f"A source or annotator has {len(each)} characters: a name has at most {MAX_WORDS}."
            )

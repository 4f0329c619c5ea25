"""Device classes: what devices say they are, as one word that steps can ask for and reports are made by.

A class is ``ARCH-MEMORY-ENGINE``, as in ``aarch64-4g-onnx``: of memory the nearest power of two. What a device did not
say is ``unknown``. A device says it itself: it decides only what it is offered, and in which row it is counted.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Mapping

from umbel_proto.errors import UsageError

UNKNOWN = "unknown"
_OTHER = re.compile(r"[^a-z0-9_.+]")
_PATTERN = re.compile(r"[a-z0-9_.+*?-]{1,80}")


def class_of(facts: Mapping[str, str | int]) -> str:
    """Return the class of a device that states these facts.

    Args:
        facts: ``arch``, ``memory_mib``, ``engine``; any may be missing.
    """
    return "-".join((_word(facts.get("arch")), _memory(facts.get("memory_mib")), _word(facts.get("engine"))))


def fits(device_class: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns, of ``*`` and ``?`` as in a shell, is of the whole class."""
    return any(fnmatch.fnmatchcase(device_class, pattern) for pattern in patterns)


def check_pattern(pattern: str) -> str:
    """Return a pattern of classes, if it is one.

    Raises:
        UsageError: It could never fit.
    """
    if not _PATTERN.fullmatch(pattern) or ("*" not in pattern and pattern.count("-") != 2):
        raise UsageError(
            f"{pattern[:80]!r} is no class of devices: write one as  aarch64-4g-onnx,  with * for what may be anything."
        )
    return pattern


def _word(said: object) -> str:
    return _OTHER.sub("_", said.lower())[:32] if isinstance(said, str) and said else UNKNOWN


def _memory(mib: object) -> str:
    if not isinstance(mib, int) or mib < 1:
        return UNKNOWN
    nearest = 1 << round(math.log2(mib))
    return f"{nearest >> 10}g" if nearest >= 1024 else f"{nearest}m"

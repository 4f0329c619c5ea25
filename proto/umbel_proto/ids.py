"""Typed names: what a string stands for, said by its type."""

from __future__ import annotations

import re
from typing import NewType

from umbel_proto.errors import UsageError

FleetId = NewType("FleetId", str)
DeviceId = NewType("DeviceId", str)
RunId = NewType("RunId", str)
ModelName = NewType("ModelName", str)

MAX_NAME = 63
_NAME = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{MAX_NAME - 1}}}")


def check_name(value: str, what: str) -> str:
    """Return ``value`` if it is a legal name, for use in ids, paths and URLs.

    Args:
        value: 1 to 63 of ``a-z 0-9 . _ -``, beginning with a letter or digit.
        what: What it names, for the error's sentence.

    Raises:
        UsageError: It is anything else; a name goes into file paths and certificates.
    """
    given: object = value
    if not isinstance(given, str):
        raise UsageError(f"{what} {given!r:.80} is not a name: a name is a text.")
    if not _NAME.fullmatch(value):
        raise UsageError(
            f"{what} {value[:80]!r} is not a name: use 1 to 63 of a-z, 0-9, '.', '_' and '-', "
            "beginning with a letter or digit."
        )
    return value

"""What a device says it is, as the service keeps it."""

from __future__ import annotations

import json

from umbel_proto.errors import UsageError
from umbel_proto.wire import enrollment_pb2 as pb

MAX_FACT_CHARACTERS = 32


def facts_json(facts: pb.DeviceFacts) -> str | None:
    """Return what a device says it is, JSON; None if it says nothing.

    Raises:
        UsageError: A fact is long, or holds what a screen cannot show.
    """
    texts = {"arch": facts.arch, "os": facts.os, "engine": facts.engine}
    for name, value in texts.items():
        if len(value) > MAX_FACT_CHARACTERS or not (value.isascii() and value.isprintable()):
            raise UsageError(f"The device's {name} is not a short word.")
    told = {name: value for name, value in {**texts, "memory_mib": facts.memory_mib}.items() if value}
    return json.dumps(told) if told else None

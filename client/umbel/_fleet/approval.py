"""Waiting for an operator to let a device in, and what the device says of itself meanwhile.

Source: docs/spec/enrollment.md, section 7.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
from collections.abc import Callable
from typing import TypeVar

from umbel._fleet.channel import PendingError
from umbel_proto.errors import UnavailableError
from umbel_proto.wire.enrollment_pb2 import DeviceFacts

FIRST_PAUSE_S = 5.0
LAST_PAUSE_S = 60.0
GROWTH = 1.5
_ENGINES = (("onnx", "onnxruntime"), ("tflite", "ai_edge_litert"))
_FACT_CHARACTERS = 32

log = logging.getLogger(__name__)
T = TypeVar("T")


def until_approved(
    ask: Callable[[], T], *, tell: Callable[[PendingError], None], stopped: Callable[[float], bool]
) -> T | None:
    """Ask until an operator has let the device in.

    What fails on the way once it waits, such as a gateway that starts again, is tried again: only the fleet's word ends
    the waiting. A restart loses nothing, as the fleet knows the device by its keys.

    Args:
        ask: Enrolls.
        tell: Is told when the waiting begins.
        stopped: Waits up to so many seconds and tells whether to stop, as ``Event.wait`` does.

    Returns:
        What ``ask`` returned; None if it was stopped.

    Raises:
        UmbelError: What ``ask`` raised, but for what passes while the device waits.
    """
    waits, pause_s = False, FIRST_PAUSE_S
    while True:
        least_s = 0.0
        try:
            return ask()
        except PendingError as exc:
            least_s = exc.retry_after_s
            if not waits:
                waits = True
                tell(exc)
        except UnavailableError as exc:
            if not waits:
                raise
            log.info("%s", exc)
        if stopped(max(pause_s, least_s)):
            return None
        pause_s = min(pause_s * GROWTH, LAST_PAUSE_S)


def facts() -> DeviceFacts:
    """Return what this device is, for operators who choose devices by it."""
    return DeviceFacts(
        arch=_word(platform.machine()),
        os=_word(platform.system().lower()),
        memory_mib=_memory_mib(),
        engine="+".join(engines()),
    )


def engines() -> tuple[str, ...]:
    """Return the engines that are installed here, by their names in manifests; only opening one tells that it works."""
    return tuple(name for name, module in _ENGINES if importlib.util.find_spec(module))


def _word(text: str) -> str:
    return text[:_FACT_CHARACTERS] if text.isascii() and text.isprintable() else ""


def _memory_mib() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    except (ValueError, OSError, AttributeError):
        return 0  # Not a system that tells.

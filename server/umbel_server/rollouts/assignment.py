"""Which devices a rollout or experiment draws: by hash, so that it needs no memory and never changes its mind."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from umbel_proto.ids import DeviceId
from umbel_server.rollouts.classes import fits
from umbel_server.rollouts.plan import Step


def place(salt: str, device: DeviceId) -> float:
    """Return where a device stands in a draw, in [0, 1): evenly spread over devices, and independent between salts.

    Args:
        salt: The draw's own random text.
        device: The device.
    """
    # A name holds no NUL: no two pairs of salt and device hash alike.
    digest = hashlib.sha256(f"{salt}\0{device}".encode()).digest()
    # 53 bits are what a float holds without rounding: never 1.
    return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


def reaches(steps: Collection[Step], where: float, tags: Collection[str], device_class: str = "") -> bool:
    """Whether a device is in one of a rollout's steps.

    A device that an earlier step reached stays in: pass all steps up to the present one.

    Args:
        steps: The steps so far.
        where: The device's place in the rollout's draw.
        tags: The device's tags.
        device_class: The device's class.
    """
    return any(
        where < step.percent / 100
        and (not step.tags or not step.tags.isdisjoint(tags))
        and (not step.classes or fits(device_class, step.classes))
        for step in steps
    )


def stays(step: Step, where: float, tags: Collection[str]) -> bool:
    """Whether a step keeps a device as it is on purpose: those that a growing share would reach last.

    Args:
        step: The step.
        where: The device's place in the rollout's draw.
        tags: The device's tags.
    """
    return (
        step.control is not None
        and where >= 1 - step.control / 100
        and (not step.tags or not step.tags.isdisjoint(tags))
    )

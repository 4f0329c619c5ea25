"""Run models on devices, and let devices learn together without their data leaving.

with umbel.Device.open() as device:
prediction = device.model("digits").predict(image)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from umbel._device import Device, Release, Status
    from umbel._model import Model, Prediction
    from umbel_proto.errors import (
        BudgetError,
        CertificateError,
        MissingExtraError,
        PackageError,
        ProtocolError,
        RefusedError,
        StorageError,
        TokenError,
        UmbelError,
        UnavailableError,
        UsageError,
        VerificationError,
    )

__all__ = [
    "BudgetError",
    "CertificateError",
    "Device",
    "MissingExtraError",
    "Model",
    "PackageError",
    "Prediction",
    "ProtocolError",
    "RefusedError",
    "Release",
    "Status",
    "StorageError",
    "TokenError",
    "UmbelError",
    "UnavailableError",
    "UsageError",
    "VerificationError",
]


def __getattr__(name: str) -> object:
    # Each name is imported when it is first used: an application's start does not wait for all of us.
    if name not in __all__:
        raise AttributeError(f"module 'umbel' has no attribute {name!r}")
    import importlib

    if name in ("Device", "Release", "Status"):
        module = "umbel._device"
    elif name in ("Model", "Prediction"):
        module = "umbel._model"
    else:
        module = "umbel_proto.errors"
    value: object = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

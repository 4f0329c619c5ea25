"""Run models on devices, and let devices learn together without their data leaving.

with umbel.Device.open() as device:
    prediction = device.model("digits").predict(image)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from umbel._data.consent import Consent
    from umbel._data.dataset import DataSet
    from umbel._data.report import DataReport
    from umbel._data.rows import Retention
    from umbel._device import Device
    from umbel._explain.counterfactual import Change, Counterfactual
    from umbel._explain.explain import Explanation
    from umbel._predict.graph import Graph
    from umbel._predict.model import Estimate, Model, Prediction
    from umbel._predict.open import UnverifiedPackageWarning, load
    from umbel._privacy import Privacy
    from umbel._quantize.report import Quantization, QuantizedForm
    from umbel._releases.shadows import ShadowRelease
    from umbel._review.review import Case, Feedback, Review, Ruling
    from umbel._rounds.conditions import Conditions, Verdict
    from umbel._rounds.probes import Reading
    from umbel._status import FailedRelease, Release, Status
    from umbel._telemetry.telemetry import Telemetry
    from umbel.engines import EngineOptions
    from umbel_proto.conditions import Rules
    from umbel_proto.errors import (
        BudgetError,
        CertificateError,
        ContractError,
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
    from umbel_proto.manifest import TensorSpec

    __version__: str

__all__ = [
    "BudgetError",
    "Case",
    "CertificateError",
    "Change",
    "Conditions",
    "Consent",
    "ContractError",
    "Counterfactual",
    "DataReport",
    "DataSet",
    "Device",
    "EngineOptions",
    "Estimate",
    "Explanation",
    "FailedRelease",
    "Feedback",
    "Graph",
    "MissingExtraError",
    "Model",
    "PackageError",
    "Prediction",
    "Privacy",
    "ProtocolError",
    "Quantization",
    "QuantizedForm",
    "Reading",
    "RefusedError",
    "Release",
    "Retention",
    "Review",
    "Rules",
    "Ruling",
    "ShadowRelease",
    "Status",
    "StorageError",
    "Telemetry",
    "TensorSpec",
    "TokenError",
    "UmbelError",
    "UnavailableError",
    "UnverifiedPackageWarning",
    "UsageError",
    "Verdict",
    "VerificationError",
    "load",
]


_ELSEWHERE = {
    "Case": "umbel._review.review",
    "Feedback": "umbel._review.review",
    "Review": "umbel._review.review",
    "Ruling": "umbel._review.review",
    "EngineOptions": "umbel.engines",
    "Telemetry": "umbel._telemetry.telemetry",
    "Conditions": "umbel._rounds.conditions",
    "Change": "umbel._explain.counterfactual",
    "Consent": "umbel._data.consent",
    "Counterfactual": "umbel._explain.counterfactual",
    "DataReport": "umbel._data.report",
    "DataSet": "umbel._data.dataset",
    "Explanation": "umbel._explain.explain",
    "Graph": "umbel._predict.graph",
    "Privacy": "umbel._privacy",
    "Reading": "umbel._rounds.probes",
    "Quantization": "umbel._quantize.report",
    "QuantizedForm": "umbel._quantize.report",
    "Retention": "umbel._data.rows",
    "Rules": "umbel_proto.conditions",
    "ShadowRelease": "umbel._releases.shadows",
    "Verdict": "umbel._rounds.conditions",
    "TensorSpec": "umbel_proto.manifest",
    "UnverifiedPackageWarning": "umbel._predict.open",
    "load": "umbel._predict.open",
}


def __getattr__(name: str) -> object:
    # Each name is imported when it is first used: an application's start does not wait for all of us.
    if name == "__version__":
        return _version()
    if name not in __all__:
        raise AttributeError(f"module 'umbel' has no attribute {name!r}")
    import importlib

    if name == "Device":
        module = "umbel._device"
    elif name in ("FailedRelease", "Release", "Status"):
        module = "umbel._status"
    elif name in _ELSEWHERE:
        module = _ELSEWHERE[name]
    elif name in ("Estimate", "Model", "Prediction"):
        module = "umbel._predict.model"
    else:
        module = "umbel_proto.errors"
    value: object = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def _version() -> str:
    """Return the version of the installed distribution, which `umbel --version` prints too."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = globals()["__version__"] = version("umbel")
    except PackageNotFoundError as exc:
        # Of files that were copied without their metadata nobody knows.
        raise AttributeError("umbel's version is not known here: install umbel with pip.") from exc
    return found


def __dir__() -> list[str]:
    return __all__

"""Engines run one variant of a model. They know nothing of telemetry, decisions or files."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import MissingExtraError, PackageError, UsageError
from umbel_proto.package import Package

Probabilities = NDArray[np.float32]


class Outputs(NamedTuple):
    """What a classifier computes of a batch.

    Args:
        probabilities: Shape (n, classes); each row sums to 1.
        logits: Shape (n, classes), what the probabilities were made from.
    """

    probabilities: NDArray[np.float32]
    logits: NDArray[np.float32]


class Engine(Protocol):
    """One variant, loaded. Any number of threads may call it at once."""

    @property
    def name(self) -> str:
        """The engine, as manifests and telemetry call it."""

    @property
    def variant(self) -> str:
        """The variant it runs."""

    def probabilities(self, x: NDArray[Any]) -> Probabilities:
        """Return class probabilities, shape (n, classes).

        Args:
            x: A batch that has passed the data contract, shape (n, *example), n >= 1.
        """

    def outputs(self, x: NDArray[Any]) -> Outputs:
        """Return everything the graph computes of a batch, shape (n, *example), n >= 1."""


def load_engine(package: Package, variant: str | None = None) -> Engine:
    """Load a variant of a package; by default the one its manifest prefers.

    Raises:
        UsageError: The package has no such variant.
        MissingExtraError: Its engine is not installed.
        PackageError: No engine of this umbel runs it, or its graph cannot be loaded.
    """
    manifest = package.manifest
    name = variant or manifest.default_variant
    if name not in manifest.variants:
        known = ", ".join(sorted(manifest.variants))
        raise UsageError(
            f"Model {manifest.model} {manifest.version} has no variant {name!r}: choose {known}."
        )
    # Loading a runtime takes longer than all of umbel: only who predicts pays for it.
    match manifest.variants[name].engine:
        case "onnx":
            from umbel.engines.onnx import OnnxEngine

            return OnnxEngine(package, name)
        case "tflite":
            try:
                from umbel.engines.tflite import TfliteEngine
            except ImportError as exc:
                raise MissingExtraError("tflite", f"Variant {name} of {manifest.model}") from exc
            return TfliteEngine(package, name)
        case engine:
            raise PackageError(
                f"Variant {name} of {manifest.model} needs the engine {engine!r}: update umbel."
            )

"""Training with onnxruntime and numpy alone: the gradients are graphs of the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from umbel._data.examples import Examples
from umbel.engines.onnx import open_session
from umbel.train import METER, Controls, Meter, TrainPlan, TrainResult
from umbel.train.descent import descend
from umbel.train.factors import Factors, factored
from umbel.train.graph import GraphGradients, Signature, trim
from umbel.train.prepare import prepare
from umbel_proto.errors import UsageError
from umbel_proto.manifest import GRADIENT, FloatVector
from umbel_proto.package import Package


class OnnxTrainer:
    """Stochastic gradient descent over a package's gradient graphs, in this process.

    Args:
        package: The package of the model.
        meter: What limits on time and energy are measured with.
        watch: Called after every step; what it raises ends a training.

    Raises:
        UsageError: The package has no gradient graph: this model cannot be trained.
    """

    def __init__(
        self, package: Package, *, meter: Meter = METER, watch: Callable[[], object] | None = None
    ) -> None:
        manifest = package.manifest
        if GRADIENT not in manifest.graphs:
            raise UsageError(
                f"Model {manifest.model} {manifest.version} has no gradient graph: it cannot be trained."
            )
        self._package, self._meter, self._watch = package, meter, watch
        self._sessions: dict[str, tuple[ort.InferenceSession, Factors]] = {}

    def train(
        self,
        parameters: FloatVector,
        x: NDArray[Any],
        y: NDArray[Any],
        plan: TrainPlan,
        *,
        held_back: Examples | None = None,
        controls: Controls | None = None,
    ) -> TrainResult:
        """Improve a parameter vector on local examples: see ``Trainer``.

        Raises:
            UsageError: The data breaks the contract, the settings do not fit together, training diverged, or
                the package has no graph to keep examples private with.
            PackageError: onnxruntime cannot run the graph.
        """
        package, manifest = self._package, self._package.manifest
        work = prepare(
            manifest,
            x,
            y,
            plan,
            held_back=held_back,
            controls=controls,
            meter=self._meter,
            watch=self._watch,
        )
        signature = Signature.of(manifest, plan)
        file = signature.file
        if file not in self._sessions:
            graph, factors = factored(package.file(file), signature.shapes)
            self._sessions[file] = open_session(graph, file, package.frozen(), planned=False), factors
            trim()  # What reading the package took would stand beside what training takes.
        current = np.array(parameters, np.float32)
        manifest.split(current)  # Refuses one that is not of this model.
        session, factors = self._sessions[file]
        return descend(current, GraphGradients(session, signature, current, factors), work)

    def close(self) -> None:
        """Drop the sessions, and hand the memory they held back to the system where the C library can."""
        self._sessions.clear()
        trim()

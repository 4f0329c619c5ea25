"""Training with onnxruntime and numpy alone: the gradients are graphs of the package."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from umbel._data import Examples
from umbel.engines.onnx import open_session
from umbel.train import METER, Controls, Meter, TrainPlan, TrainResult
from umbel.train.descent import Weights, descend, prepare
from umbel_proto.errors import UsageError
from umbel_proto.manifest import CLIPPED_GRADIENT, GRADIENT, FloatVector
from umbel_proto.package import Package


class OnnxTrainer:
    """Stochastic gradient descent over a package's gradient graphs.

    Args:
        package: The package of the model.
        meter: What limits on time and energy are measured with.

    Raises:
        UsageError: The package has no gradient graph: this model cannot be trained.
    """

    def __init__(self, package: Package, *, meter: Meter = METER) -> None:
        manifest = package.manifest
        if GRADIENT not in manifest.graphs:
            raise UsageError(
                f"Model {manifest.model} {manifest.version} has no gradient graph: it cannot be trained."
            )
        self._package, self._meter = package, meter
        self._sessions: dict[str, ort.InferenceSession] = {}

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
        manifest = self._package.manifest
        work = prepare(manifest, x, y, plan, held_back=held_back, controls=controls, meter=self._meter)
        current = np.array(parameters, np.float32)
        arrays = manifest.split(current)  # views: they follow every step
        kind = GRADIENT if plan.privacy is None else CLIPPED_GRADIENT
        return descend(current, _Gradients(self._open(kind), manifest.inputs[0].name, arrays), work)

    def close(self) -> None:
        """Drop the sessions, and hand the memory they held back to the system where the C library can."""
        self._sessions.clear()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

    def _open(self, kind: str) -> ort.InferenceSession:
        graphs = self._package.manifest.graphs
        if kind not in graphs:
            raise UsageError(
                f"Model {self._package.manifest.model} {self._package.manifest.version} has no {kind} graph: its "
                "examples cannot be kept private. Build the package again with this umbel."
            )
        if kind not in self._sessions:
            self._sessions[kind] = open_session(
                self._package.file(graphs[kind]), graphs[kind], self._package.frozen()
            )
        return self._sessions[kind]


class _Gradients:
    """The gradients of one training's parameters, by a graph.

    Args:
        session: Its session.
        example: The name of the graph's input.
        parameters: Views of the parameters that training changes.
    """

    def __init__(
        self, session: ort.InferenceSession, example: str, parameters: Mapping[str, NDArray[np.float32]]
    ) -> None:
        self._session, self._example, self._parameters = session, example, parameters
        self._flat = np.empty(sum(value.size for value in parameters.values()), np.float32)

    def mean(self, x: NDArray[Any], y: NDArray[np.int64], w: Weights) -> tuple[FloatVector, float]:
        return self._run("grad", {self._example: x, "y": y, "w": w})

    def clipped(
        self, x: NDArray[Any], y: NDArray[np.int64], w: Weights, clip: float
    ) -> tuple[FloatVector, float]:
        return self._run("sum", {self._example: x, "y": y, "w": w, "clip": np.array(clip, np.float32)})

    def loss(self, x: NDArray[Any], y: NDArray[np.int64], w: Weights) -> float:
        options = ort.RunOptions()
        # Without this the whole graph runs, gradients and all.
        options.only_execute_path_to_fetches = True
        feed = {**self._parameters, self._example: x, "y": y, "w": w}
        (loss,) = self._session.run(["loss"], feed, options)
        return float(loss)

    def _run(self, prefix: str, inputs: Mapping[str, NDArray[Any]]) -> tuple[FloatVector, float]:
        outputs = [*(f"{prefix}.{name}" for name in self._parameters), "loss"]
        *pieces, loss = self._session.run(outputs, {**self._parameters, **inputs})
        np.concatenate([piece.ravel() for piece in pieces], out=self._flat)
        return self._flat, float(loss)

"""Training with onnxruntime and numpy alone: the gradient is a graph of the package."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from umbel.engines.onnx import open_session
from umbel.train import TrainPlan, TrainResult
from umbel_proto.encoding import digest
from umbel_proto.errors import UsageError
from umbel_proto.manifest import FloatVector
from umbel_proto.package import Package
from umbel_proto.prg import Keystream

GRADIENT = "gradient"
SHUFFLE_LABEL = "umbel/1/shuffle"


class OnnxTrainer:
    """Stochastic gradient descent with momentum over a package's gradient graph.

    Momentum is torch's: ``v = momentum * v + g; p = p - learning_rate * v``, v = 0 at the start.

    Args:
        package: The package of the model.

    Raises:
        UsageError: The package has no gradient graph: this model cannot be trained.
    """

    def __init__(self, package: Package) -> None:
        manifest = package.manifest
        if GRADIENT not in manifest.graphs:
            raise UsageError(
                f"Model {manifest.model} {manifest.version} has no gradient graph: it cannot be trained."
            )
        self._package = package
        self._session: ort.InferenceSession | None = None
        self._outputs = [f"grad.{parameter.name}" for parameter in manifest.parameters] + ["loss"]

    def train(
        self,
        parameters: FloatVector,
        x: NDArray[Any],
        y: NDArray[Any],
        *,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        momentum: float,
        seed: int,
    ) -> TrainResult:
        """Improve a parameter vector on local examples.

        Every batch has ``batch_size`` rows; those that only fill up the last one weigh nothing.

        Args:
            parameters: Where to start, shape (dim,); it is not changed.
            x: Examples, shape (n, *example), that keep the data contract.
            y: Labels, whole numbers, shape (n,).
            epochs: Passes over the data.
            batch_size: Examples in a step.
            learning_rate: Length of a step.
            momentum: How much of the last step goes into the next, in [0, 1).
            seed: Order of the examples.

        Raises:
            UsageError: The data breaks the contract, the settings make no sense, or training diverged.
            PackageError: onnxruntime cannot run the gradient graph.
        """
        plan = TrainPlan(epochs, batch_size, learning_rate, momentum, seed)
        manifest = self._package.manifest
        inputs, labels = self._examples(x, y)
        current = np.array(parameters, np.float32)
        arrays = manifest.split(current)  # views: they follow every step
        session = self._open()
        gradient = np.empty_like(current)
        velocity = np.zeros_like(current)
        step, count = np.float32(plan.learning_rate), len(labels)
        total, steps = 0.0, 0
        for epoch in range(plan.epochs):
            total = 0.0
            for rows, weights in _batches(count, plan, epoch):
                feed = {**arrays, manifest.inputs[0].name: inputs[rows], "y": labels[rows], "w": weights}
                *pieces, loss = session.run(self._outputs, feed)
                np.concatenate([piece.ravel() for piece in pieces], out=gradient)
                velocity *= np.float32(plan.momentum)
                velocity += gradient
                current -= step * velocity
                total += float(loss) * float(weights.sum())
                steps += 1
        if not (np.isfinite(current).all() and np.isfinite(total)):
            raise UsageError(
                f"Training diverged at learning rate {plan.learning_rate:g}: choose a lower one."
            )
        return TrainResult(current, total / count, count, steps)

    def close(self) -> None:
        """Drop the session, and hand the memory it held back to the system where the C library can."""
        self._session = None
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

    def _open(self) -> ort.InferenceSession:
        if self._session is None:
            name = self._package.manifest.graphs[GRADIENT]
            self._session = open_session(self._package.file(name), name)
        return self._session

    def _examples(self, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        manifest = self._package.manifest
        inputs, single = manifest.contract.check(x)
        labels = np.asarray(y)
        if single or labels.shape != (len(inputs),):
            raise UsageError(
                f"Training needs a batch of inputs and one label for each: y has shape {labels.shape}."
            )
        classes = len(manifest.labels)
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
            raise UsageError(f"Labels must be whole numbers in 0..{classes - 1}.")
        return inputs, labels.astype(np.int64)


def _batches(
    count: int, plan: TrainPlan, epoch: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    # The order needs no secrecy. A keystream gives the same one under every version of numpy.
    words = Keystream(digest(SHUFFLE_LABEL, plan.seed, epoch)).uint64(count)
    order = np.argsort(words, kind="stable")
    for begin in range(0, count, plan.batch_size):
        rows = order[begin : begin + plan.batch_size]
        weights = np.zeros(plan.batch_size, np.float32)
        weights[: len(rows)] = 1.0
        yield np.pad(rows, (0, plan.batch_size - len(rows)), mode="edge"), weights

"""Gradients by a graph of the package, in onnxruntime.

What trains in a process of its own imports this: neither the package's format nor anything that verifies it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from umbel.train.factors import Factors
from umbel.train.plan import TrainPlan
from umbel.train.summed import Product, Summed
from umbel_proto.errors import UsageError

if TYPE_CHECKING:
    import onnxruntime as ort

    from umbel.train.descent import Weights
    from umbel_proto.manifest import FloatVector, Manifest


@dataclass(frozen=True, slots=True)
class Signature:
    """How a graph that computes gradients is called.

    Args:
        file: Its file in the package.
        prefix: What the names of its gradients begin with.
        example: The name of its input of examples.
        shapes: The trainable parameters' shapes by name, in the order of vectors.
    """

    file: str
    prefix: str
    example: str
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, manifest: Manifest, plan: TrainPlan) -> Signature:
        """Return that of the graph which a plan needs.

        Raises:
            UsageError: The package has no such graph.
        """
        # The kinds are umbel_proto.manifest's.
        kind, prefix = ("gradient", "grad") if plan.privacy is None else ("clipped_gradient", "sum")
        if kind not in manifest.graphs:
            what = f"Model {manifest.model} {manifest.version} has no {kind} graph:"
            raise UsageError(
                f"{what} it cannot be trained."
                if plan.privacy is None
                else f"{what} its examples cannot be kept private. Build the package again with this umbel."
            )
        shapes = {parameter.name: parameter.shape for parameter in manifest.parameters}
        return cls(manifest.graphs[kind], prefix, manifest.inputs[0].name, shapes)

    def split(self, vector: FloatVector) -> dict[str, NDArray[np.float32]]:
        """Cut a vector of the trainable parameters, shape (dim,), into views by name."""
        arrays, offset = {}, 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            arrays[name] = vector[offset : offset + size].reshape(shape)
            offset += size
        return arrays


class GraphGradients:
    """The gradients of one training's parameters, by a graph.

    The graph reads parameters where training changes them, and writes its gradients into one vector: no copy
    of either is made in a step. Of a sum that it gives in factors the vector has no memory until it is asked for whole.

    Args:
        session: Its session.
        signature: How it is called.
        current: The parameters that training changes, shape (dim,).
        factors: Which sums the graph leaves in factors: see ``factored``.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        signature: Signature,
        current: FloatVector,
        factors: Factors | None = None,
    ) -> None:
        self._session, self._example = session, signature.example
        self._parameters = signature.split(current)  # views: they follow every step
        self._flat, self._loss = np.empty(len(current), np.float32), np.zeros((), np.float32)
        self._binding = session.io_binding()
        for name, value in self._parameters.items():
            _bind(self._binding.bind_input, name, value)
        self._factors: dict[int, tuple[str, str]] = {}
        begin = 0
        for name, value in signature.split(self._flat).items():
            if factors and name in factors:
                self._factors[begin] = factors[name]
            else:
                _bind(self._binding.bind_output, f"{signature.prefix}.{name}", value)
            begin += value.size
        _bind(self._binding.bind_output, "loss", self._loss)
        if self._factors:
            from umbel.train.product import Multiplier

            self._multiply = Multiplier()

    def mean(self, x: NDArray[Any], y: NDArray[np.int64], w: Weights) -> tuple[FloatVector, float]:
        """See ``Gradients``."""
        return self._run({self._example: x, "y": y, "w": w})

    def clipped(self, x: NDArray[Any], y: NDArray[np.int64], w: Weights, clip: float) -> tuple[Summed, float]:
        """See ``Gradients``."""
        names = sorted({name for pair in self._factors.values() for name in pair})
        for name in names:
            self._binding.bind_output(name, "cpu")
        vector, loss = self._run({self._example: x, "y": y, "w": w, "clip": np.array(clip, np.float32)})
        given = dict(zip(names, self._binding.get_outputs()[-len(names) :], strict=True)) if names else {}
        products = (
            Product(begin, given[left].numpy(), given[right].numpy(), self._multiply)
            for begin, (left, right) in self._factors.items()
        )
        return Summed(vector, tuple(products)), loss

    def loss(self, x: NDArray[Any], y: NDArray[np.int64], w: Weights) -> float:
        """See ``Gradients``. It takes as long as they do: onnxruntime as it is published computes a graph whole."""
        feed = {**self._parameters, self._example: x, "y": y, "w": w}
        (loss,) = self._session.run(["loss"], feed)
        return float(loss)

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[FloatVector, float]:
        for name, value in inputs.items():
            self._binding.bind_cpu_input(name, value)
        self._session.run_with_iobinding(self._binding)
        return self._flat, float(self._loss)


def _bind(place: Callable[..., None], name: str, array: NDArray[np.float32]) -> None:
    """Let a graph read or write an array where it lies: whoever binds it keeps it alive."""
    place(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)


def trim() -> None:
    """Hand free memory back to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

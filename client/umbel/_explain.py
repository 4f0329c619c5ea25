"""Which values of an input made a model say what it says: the explanation graph of its package, run here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.engines.onnx import open_session
from umbel_proto.errors import UsageError
from umbel_proto.manifest import EXPLAIN, FloatVector
from umbel_proto.package import Package


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Why a model gives a class its score.

    Args:
        attributions: How much each value moved the score of the explained class away from the baseline's,
            shape (n, *example). They stay on the device: they tell as much of an input as the input does.
        target: The class that was explained, int64 (n,).
        residual: What the attributions lack to the whole difference, (n,): how far to trust them, in the
            unit of a logit.
    """

    attributions: NDArray[np.float32] = field(repr=False)
    target: NDArray[np.int64]
    residual: NDArray[np.float32]


class Explainer:
    """Explains what a package's model says of inputs, by integrated gradients.

    Args:
        package: The package.
        parameters: Trainable parameters to explain, shape (dim,); by default the package's own.

    Raises:
        UsageError: The package has no explanation graph.
        PackageError: onnxruntime cannot run it.

    Source:
        Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017 (arXiv:1703.01365).
    """

    def __init__(self, package: Package, parameters: FloatVector | None = None) -> None:
        manifest = package.manifest
        if EXPLAIN not in manifest.graphs:
            raise UsageError(
                f"Model {manifest.model} {manifest.version} has no explanation graph: it cannot be explained."
            )
        file = manifest.graphs[EXPLAIN]
        arrays = package.split(package.parameters() if parameters is None else parameters)
        self._manifest = manifest
        self._session = open_session(package.file(file), file, arrays)

    def explain(
        self, x: object, *, target: NDArray[np.int64] | None = None, baseline: object = None
    ) -> Explanation:
        """Return what made the model give a class its score.

        Args:
            x: One example or a batch, in the contract's unit.
            target: The class to explain for each, shape (n,); by default the one that the model gives.
            baseline: Inputs that stand for nothing, shaped as ``x``; by default zero, or the legal value
                nearest to it.

        Raises:
            UsageError: ``x`` or the baseline breaks the contract, or there is no such class.
        """
        field_ = self._manifest.contract.fields[0]
        inputs, _ = self._manifest.contract.check(x)
        if baseline is None:
            nothing = np.full_like(inputs, min(max(0.0, field_.minimum), field_.maximum))
        else:
            nothing, _ = self._manifest.contract.check(baseline)
        if nothing.shape != inputs.shape:
            raise UsageError(
                f"The baseline has shape {nothing.shape}: give one of {inputs.shape}, as the inputs."
            )
        if target is None:
            chosen = self._run(["logits"], inputs, nothing, np.zeros(len(inputs), np.int64))[0].argmax(1)
        else:
            chosen = self._checked(target, len(inputs))
        attributions, residual = self._run(["attributions", "residual"], inputs, nothing, chosen)
        return Explanation(attributions, chosen, residual)

    def _checked(self, target: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        chosen, classes = np.asarray(target), len(self._manifest.labels)
        if chosen.shape != (count,) or chosen.dtype.kind not in "iu" or not _within(chosen, classes):
            raise UsageError(f"Classes to explain are whole numbers in 0..{classes - 1}, one for each input.")
        return chosen.astype(np.int64)

    def _run(
        self,
        outputs: list[str],
        x: NDArray[Any],
        baseline: NDArray[Any],
        target: NDArray[np.int64],
    ) -> list[NDArray[Any]]:
        feed = {self._manifest.inputs[0].name: x, "baseline": baseline, "target": target}
        results: list[NDArray[Any]] = self._session.run(outputs, feed)
        return results


def _within(numbers: NDArray[Any], end: int) -> bool:
    return bool(((numbers >= 0) & (numbers < end)).all())

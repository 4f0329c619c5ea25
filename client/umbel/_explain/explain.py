"""Which values of an input made a model say what it says.

By the explanation graph of its package where there is one: integrated gradients, at the price of 33 predictions. Else,
and to check them, by covering parts of the input and asking the model that runs again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from umbel._explain.occlusion import Ask, occlude
from umbel._fork import leave_alone, renew_in_child
from umbel.engines.onnx import open_session
from umbel_proto.contract import Column, Field
from umbel_proto.errors import UsageError
from umbel_proto.manifest import CLASSIFICATION, EXPLAIN, REGRESSION, FloatVector, Manifest
from umbel_proto.package import Package

if TYPE_CHECKING:
    from umbel._predict.loaded import Loaded

Method = Literal["gradients", "occlusion"]
GRADIENTS: Method = "gradients"
OCCLUSION: Method = "occlusion"


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Why a model gives a class its score, or a number of its answer its value.

    Args:
        attributions: How much each value moved what is explained away from the baseline's, shape (n, *example). They
            stay on the device: they tell as much of an input as the input does.
        target: The class that was explained, or the place of a number in an answer, row-major, int64 (n,).
        residual: What the attributions lack to the whole difference, (n,): how far to trust them, in the
            unit of what is explained: a logit, a number of the answer, or a probability where there is no logit.
        method: How: ``gradients``, of the float graph with this version's parameters, or ``occlusion``, of what runs.
    """

    attributions: NDArray[np.float32] = field(repr=False)
    target: NDArray[np.int64]
    residual: NDArray[np.float32]
    method: Method = GRADIENTS


class Explaining:
    """Explains what a model says, version after version: a session is opened for the first question about each."""

    def __init__(self) -> None:
        self._explainer: Explainer | None = None
        renew_in_child(self._renew)

    def _renew(self) -> None:
        """In a forked process: open a session of its own for its first question."""
        leave_alone(self._explainer)
        self._explainer = None

    def explain(
        self,
        loaded: Loaded,
        x: object,
        *,
        target: object = None,
        baseline: object = None,
        method: Method | None = None,
        patch: Sequence[int] | None = None,
    ) -> Explanation:
        """See ``Model.explain``."""
        package = loaded.package
        if len(package.manifest.contract.fields) != 1:
            raise UsageError(
                f"Model {package.manifest.model} has several inputs: only a model of one is explained."
            )
        if method not in (None, GRADIENTS, OCCLUSION):
            raise UsageError(f"There is no explanation by {method!r}: choose gradients or occlusion.")
        if method is None:
            method = GRADIENTS if EXPLAIN in package.manifest.graphs and patch is None else OCCLUSION
        if method == GRADIENTS and patch is not None:
            raise UsageError("Gradients need no patch: explain by occlusion, or give none.")
        inputs, nothing = _inputs(package.manifest, x, baseline)
        if target is None and package.manifest.kind == CLASSIFICATION:
            chosen = loaded.engine.answers(inputs).argmax(axis=1).astype(np.int64)
        else:
            chosen = _targets(package.manifest, 0 if target is None else target, len(inputs))
        if method == OCCLUSION:
            attributions, residual = occlude(_scores(loaded), inputs, nothing, chosen, patch=patch)
            return Explanation(attributions, chosen, residual, OCCLUSION)
        explainer = self._explainer
        if explainer is None or explainer.package is not package:
            explainer = self._explainer = Explainer(package)
        return explainer.explained(inputs, nothing, chosen)


def _scores(loaded: Loaded) -> Ask:
    """Return what is explained: the logits of a classifier, else the numbers."""
    engine = loaded.engine
    if loaded.package.manifest.kind == CLASSIFICATION:
        return lambda batch: engine.outputs(batch)["logits"]
    return engine.answers


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
        self.package: Package = package
        self._manifest = manifest
        self._session = open_session(package.file(file), file, arrays)

    def explain(
        self, x: object, *, target: NDArray[np.int64] | None = None, baseline: object = None
    ) -> Explanation:
        """Return what made the model give a class its score, or a number of its answer its value.

        Args:
            x: One example or a batch, in the contract's unit.
            target: The class to explain for each, shape (n,); by default the one that the model gives. Of a model
                that answers with numbers, the place of one in its answer, in row-major order; by default the first.
            baseline: Inputs that stand for nothing, shaped as ``x``; by default zero, or the legal value
                nearest to it.

        Raises:
            UsageError: ``x`` or the baseline breaks the contract, or there is no such class or number.
        """
        inputs, nothing = _inputs(self._manifest, x, baseline)
        if target is None and self._manifest.kind == REGRESSION:
            chosen = np.zeros(len(inputs), np.int64)
        elif target is None:
            chosen = self._run(["logits"], inputs, nothing, np.zeros(len(inputs), np.int64))[0].argmax(1)
        else:
            chosen = _targets(self._manifest, target, len(inputs))
        return self.explained(inputs, nothing, chosen)

    def explained(self, x: NDArray[Any], baseline: NDArray[Any], target: NDArray[np.int64]) -> Explanation:
        """Return the explanation of inputs that have passed the contract, shape (n, *example), target (n,)."""
        attributions, residual = self._run(["attributions", "residual"], x, baseline, target)
        return Explanation(attributions, target, residual)

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


def _inputs(manifest: Manifest, x: object, baseline: object) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the inputs and their baselines as the graph takes them, of one shape."""
    only = manifest.contract.fields[0]
    inputs, _ = only.check(x)
    if baseline is None:
        legal = [_nearest_to_zero(each, each.values) for each in only.columns] or [_nearest_to_zero(only)]
        nothing = np.ascontiguousarray(np.broadcast_to(np.array(legal, inputs.dtype), inputs.shape))
    else:
        nothing, single = only.check(baseline)
        if single:
            nothing = np.repeat(nothing, len(inputs), axis=0)
    if nothing.shape != inputs.shape:
        raise UsageError(
            f"The baseline has shape {nothing.shape}: give one of {inputs.shape}, as the inputs."
        )
    return inputs, nothing


def _nearest_to_zero(of: Field | Column, values: Sequence[float] = ()) -> float:
    return min(values, key=abs) if values else min(max(0.0, of.minimum), of.maximum)


def one_for_each(labels: Sequence[str], target: object, count: int, end: int) -> NDArray[np.int64]:
    """Return what is explained of each of ``count`` inputs: one for all, a class's name too, or one for each.

    Args:
        labels: Name of each class, of a classifier.
        target: What was asked for.
        count: How many inputs there are.
        end: How many classes or numbers there are.

    Raises:
        UsageError: There is no such class or number.
    """
    if isinstance(target, str):
        if target not in labels:
            raise UsageError(f"There is no class {target[:80]!r}: see the model's labels.")
        target = list(labels).index(target)
    elif isinstance(target, list | tuple) and any(isinstance(each, str) for each in target):
        target = [int(one_for_each(labels, each, 1, end)[0]) for each in target]
    try:
        numbers = np.asarray(target)
    except ValueError:  # Rows of different lengths.
        numbers = np.empty((0, 0))
    chosen = np.repeat(numbers, count) if numbers.ndim == 0 else numbers
    legal = chosen.shape == (count,) and chosen.dtype.kind in "iu"
    if not legal or not ((chosen >= 0) & (chosen < end)).all():
        what = "Classes" if labels else "Numbers of an answer"
        raise UsageError(f"{what} to explain are whole numbers in 0..{end - 1}, one for each input.")
    return chosen.astype(np.int64)


def _targets(manifest: Manifest, target: object, count: int) -> NDArray[np.int64]:
    return one_for_each(manifest.labels, target, count, math.prod(manifest.answer_shape))

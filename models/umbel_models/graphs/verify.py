"""Does a graph compute what torch does? Asked of every graph, before anything is written.

Exporters fail silently: batch normalization in training mode becomes inference, an in-place ReLU changes
what another layer saw. Only running both finds it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umbel_models.graphs.truth import Truth
from umbel_models.runtime import Session
from umbel_proto.errors import PackageError

BATCHES = (1, 2, 7)
RELATIVE = 1e-4
CANCELED = 1e-2
"""Gradients below this part of the greatest one are measured against it: where terms cancel, as in a bias
before a norm, only rounding is left."""

Arrays = Mapping[str, NDArray[np.generic]]


def verify_inference(graph: bytes, truth: Truth) -> None:
    """Compare an inference graph with torch, at random parameters and several batch sizes.

    Raises:
        PackageError: An output differs by more than ``RELATIVE`` of its greatest magnitude.
    """
    opened = _Opened("infer.onnx", graph, truth)
    for batch in BATCHES:
        x, _, _ = truth.examples(batch)
        logits = truth.logits(x)
        opened.compare({"x": x}, {"probabilities": torch.softmax(logits, -1), "logits": logits})


def verify_gradient(graph: bytes, truth: Truth) -> None:
    """Compare a gradient graph with autograd, at random parameters, batch sizes and weights.

    Raises:
        PackageError: A gradient or the loss differs by more than ``RELATIVE`` of its greatest magnitude.
    """
    opened = _Opened("grad.onnx", graph, truth)
    for batch in BATCHES:
        x, y, w = truth.examples(batch)
        gradients, mean = truth.gradient(x, y, w)
        opened.compare({"x": x, "y": y, "w": w}, {"loss": mean})
        opened.compare(
            {"x": x, "y": y, "w": w},
            {f"grad.{name}": value for name, value in gradients.items()},
            CANCELED * _greatest(gradients),
        )


def verify_clipped(graph: bytes, truth: Truth) -> None:
    """Compare a graph of clipped sums with one backward pass for each example, some clipped and some not.

    Raises:
        PackageError: A sum, a norm or the loss differs by more than ``RELATIVE`` of its greatest magnitude;
            an example's norm by more than that of itself: privacy rests on the norms.
    """
    opened = _Opened("dpgrad.onnx", graph, truth)
    for batch in BATCHES:
        x, y, w = truth.examples(batch)
        gradients, losses = truth.each(x, y)
        norms = torch.stack([(value.flatten(1) ** 2).sum(1) for value in gradients.values()]).sum(0).sqrt()
        for clip in (float(norms.median()), float(norms.max()) * 2):
            feed = {"x": x, "y": y, "w": w, "clip": torch.tensor(max(clip, 1e-3))}
            factors = w.to(norms) * (feed["clip"].to(norms) / norms).clamp(max=1.0)
            sums = {name: torch.tensordot(factors, value, 1) for name, value in gradients.items()}
            opened.compare(feed, {"loss": w.to(losses) @ losses})
            opened.compare(
                feed, {f"sum.{name}": value for name, value in sums.items()}, CANCELED * _greatest(sums)
            )
            opened.compare(feed, {"norms": norms}, each=True)


def verify_explain(graph: bytes, truth: Truth) -> None:
    """Compare an explanation graph with a loop over the midpoints, at random parameters and baselines.

    Raises:
        PackageError: An attribution or logit differs by more than ``RELATIVE`` of the greatest magnitude, or
            the residual by more than that of the greatest logit.
    """
    opened = _Opened("explain.onnx", graph, truth)
    for batch in BATCHES:
        x, target, _ = truth.examples(batch)
        baseline = truth.examples(batch + 1)[0][:batch]
        attributions, logits, residual = truth.explanation(x, baseline, target)
        feed = {"x": x, "baseline": baseline, "target": target}
        opened.compare(feed, {"attributions": attributions, "logits": logits})
        opened.compare(feed, {"residual": residual}, float(logits.abs().max()))


class _Opened:
    """A graph under test, with the truth's parameters."""

    def __init__(self, what: str, graph: bytes, truth: Truth) -> None:
        parameters = {name: value.numpy() for name, value in truth.parameters.items()}
        self._what = what
        self._inputs = (
            {} if what in ("infer.onnx", "explain.onnx") else {n: parameters[n] for n in truth.trained}
        )
        self._session = Session(graph, {n: v for n, v in parameters.items() if n not in self._inputs})

    def compare(
        self,
        feed: Mapping[str, Tensor],
        expected: Mapping[str, Tensor],
        least: float = 0.0,
        *,
        each: bool = False,
    ) -> None:
        given = {**self._inputs, **{name: value.numpy() for name, value in feed.items()}}
        what = f"{self._what} at batch {len(feed['x'])}"
        try:
            results = self._session.run(list(expected), given)
        except Exception as exc:  # onnxruntime's exceptions share no other base class
            raise PackageError(f"{what} does not run: {exc}") from exc
        actual = dict(zip(expected, results, strict=True))
        wanted = {name: value.numpy() for name, value in expected.items()}
        if not each:
            compare(actual, wanted, what, least)
            return
        for row in range(len(feed["x"])):
            compare(
                {n: v[row] for n, v in actual.items()}, {n: v[row] for n, v in wanted.items()}, what, least
            )


def compare(actual: Arrays, expected: Arrays, what: str, least: float = 0.0) -> None:
    """Refuse arrays that differ.

    Args:
        actual: What the graph computed.
        expected: What torch computed.
        what: Which graph, and on what.
        least: Magnitude against which an array's error is measured, if its own is smaller.

    Raises:
        PackageError: Shapes differ, or a value by more than ``RELATIVE`` of the array's greatest magnitude.
    """
    for name, reference in expected.items():
        value = actual[name]
        if value.shape != reference.shape:
            raise PackageError(f"{what}: {name} has shape {value.shape}, torch gives {reference.shape}.")
        error = float(np.abs(value.astype(np.float64) - reference.astype(np.float64)).max(initial=0.0))
        scale = float(np.abs(reference).max(initial=0.0))
        if not error <= RELATIVE * max(scale, least) + 1e-7:
            raise PackageError(
                f"{what}: {name} is {error:.1e} away from torch's, of {scale:.1e}. Nothing was written."
            )


def _greatest(values: Mapping[str, Tensor]) -> float:
    return max(float(value.abs().max()) for value in values.values())

"""Does a graph compute what torch does? Asked of every graph, before anything is written.

Exporters fail silently: batch normalization in training mode becomes inference, an in-place ReLU changes
what another layer saw. Only running both finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umbel_models.graphs.opacus_each import OpacusError, each_by_opacus
from umbel_models.graphs.truth import Truth
from umbel_models.runtime import Session
from umbel_proto.errors import PackageError
from umbel_proto.manifest import OUTPUTS, REGRESSION

BATCHES = (1, 2, 7)
RELATIVE = 1e-4
CANCELED = 1e-2
"""Gradients below this part of the greatest one are measured against it: where terms cancel, as in a bias
before a norm, only rounding is left."""
DRAWS = 8
AT_A_KINK = 1e-2
"""How far a result may be off, of its greatest magnitude, where rounding moves torch's own as far: a value that a
ReLU or a pool compares lies so close to the other side that float32 cannot tell. A network of 6.6 million
parameters has such values in some of its explanations, and torch itself in float32 is off by 1e-3 there."""

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, eq=False)
class _Case:
    """What a graph is given, and what it should return.

    Args:
        feed: Its inputs, but for parameters.
        expected: Outputs by name.
        least: Magnitude against which an output's error is measured, if its own is smaller.
        each: Whether every example's part is measured on its own.
    """

    feed: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]
    least: float = 0.0
    each: bool = False


Cases = Callable[[Truth, int], list[_Case]]
"""Asks a truth about a batch of some size."""


def verify_inference(graph: bytes, truth: Truth) -> None:
    """Compare an inference graph with torch, at random parameters and several batch sizes.

    Raises:
        PackageError: An output differs by more than ``RELATIVE`` of its greatest magnitude, or at a kink by more
            than rounding can move it.
    """
    _verify("infer.onnx", graph, truth, _inference)


def verify_gradient(graph: bytes, truth: Truth) -> None:
    """Compare a gradient graph with autograd, at random parameters, batch sizes and weights.

    Raises:
        PackageError: A gradient or the loss differs, as in ``verify_inference``.
    """
    _verify("grad.onnx", graph, truth, _gradient)


def verify_clipped(graph: bytes, truth: Truth) -> None:
    """Compare a graph of clipped sums with one backward pass for each example, some clipped and some not.

    Raises:
        PackageError: A sum, a norm or the loss differs, as in ``verify_inference``; an example's norm by more
            than that of itself: privacy rests on the norms.
    """
    _verify("dpgrad.onnx", graph, truth, _clipped)


def verify_explain(graph: bytes, truth: Truth) -> None:
    """Compare an explanation graph with a loop over the midpoints, at random parameters and baselines.

    Raises:
        PackageError: An attribution or logit differs, as in ``verify_inference``, or the residual by more than
            that of the greatest logit.
    """
    _verify("explain.onnx", graph, truth, _explanation)


def verify_opacus(graph: bytes, truth: Truth) -> str:
    """Compare a graph of clipped sums with Opacus too, where it is installed and knows the module's layers.

    Returns:
        Why there was no comparison; nothing if there was one.

    Raises:
        PackageError: A sum, a norm or the loss differs.
    """
    try:
        _by_opacus(truth, BATCHES[-1])
    except OpacusError as exc:
        return f"Opacus was not asked about clipped gradients: {exc}"
    _verify("dpgrad.onnx", graph, truth, _by_opacus, BATCHES[-1:])
    return ""


def verify_every(graphs: Mapping[str, bytes], truth: Truth) -> None:
    """Compare graphs that were made before, with torch and with Opacus where it can be asked.

    Args:
        graphs: ``infer.onnx``, ``grad.onnx``, ``dpgrad.onnx``, and ``explain.onnx`` where there is one.
        truth: What torch says.

    Raises:
        PackageError: A graph is none, or differs.
    """
    verify_inference(graphs["infer.onnx"], truth)
    verify_gradient(graphs["grad.onnx"], truth)
    verify_clipped(graphs["dpgrad.onnx"], truth)
    verify_opacus(graphs["dpgrad.onnx"], truth)
    if "explain.onnx" in graphs:
        verify_explain(graphs["explain.onnx"], truth)


def _inference(truth: Truth, batch: int) -> list[_Case]:
    x, _, _ = truth.examples(batch)
    outputs = truth.logits(x)
    if truth.kind == REGRESSION:
        return [_Case({"x": x}, {"values": outputs})]
    return [_Case({"x": x}, {"probabilities": torch.softmax(outputs, -1), "logits": outputs})]


def _gradient(truth: Truth, batch: int) -> list[_Case]:
    x, y, w = truth.examples(batch)
    gradients, mean = truth.gradient(x, y, w)
    feed = {"x": x, "y": y, "w": w}
    return [_Case(feed, {"loss": mean}), _parts("grad", feed, gradients)]


def _clipped(truth: Truth, batch: int) -> list[_Case]:
    x, y, _ = truth.examples(batch)
    return _sums(truth, batch, *truth.each(x, y))


def _by_opacus(truth: Truth, batch: int) -> list[_Case]:
    x, y, _ = truth.examples(batch)
    return _sums(truth, batch, *each_by_opacus(truth, x, y))


def _sums(truth: Truth, batch: int, gradients: Mapping[str, Tensor], losses: Tensor) -> list[_Case]:
    x, y, w = truth.examples(batch)
    norms = torch.stack([(value.flatten(1) ** 2).sum(1) for value in gradients.values()]).sum(0).sqrt()
    cases = []
    for clip in (float(norms.median()), float(norms.max()) * 2):
        feed = {"x": x, "y": y, "w": w, "clip": torch.tensor(max(clip, 1e-3))}
        factors = w.to(norms) * (feed["clip"].to(norms) / norms).clamp(max=1.0)
        sums = {name: torch.tensordot(factors, value, 1) for name, value in gradients.items()}
        cases.append(_Case(feed, {"loss": w.to(losses) @ losses}))
        cases.append(_parts("sum", feed, sums))
        cases.append(_Case(feed, {"norms": norms}, each=True))
    return cases


def _explanation(truth: Truth, batch: int) -> list[_Case]:
    x, target = truth.examples(batch)[0], truth.chosen(batch)
    baseline = truth.examples(batch + 1)[0][:batch]
    attributions, logits, residual = truth.explanation(x, baseline, target)
    feed = {"x": x, "baseline": baseline, "target": target}
    return [
        _Case(feed, {"attributions": attributions, OUTPUTS[truth.kind][-1]: logits}),
        _Case(feed, {"residual": residual}, float(logits.abs().max())),
    ]


def _parts(prefix: str, feed: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> _Case:
    greatest = max(float(value.abs().max()) for value in values.values())
    return _Case(feed, {f"{prefix}.{name}": value for name, value in values.items()}, CANCELED * greatest)


def _verify(what: str, graph: bytes, truth: Truth, cases: Cases, batches: tuple[int, ...] = BATCHES) -> None:
    parameters = {name: value.numpy() for name, value in truth.parameters.items()}
    given = {} if what in ("infer.onnx", "explain.onnx") else {n: parameters[n] for n in truth.trained}
    session = Session(graph, {n: v for n, v in parameters.items() if n not in given})
    for batch in batches:
        where, near = f"{what} at batch {batch}", None
        for number, case in enumerate(cases(truth, batch)):
            feed = {**given, **{name: value.numpy() for name, value in case.feed.items()}}
            try:
                results = session.run(list(case.expected), feed)
            except Exception as exc:  # onnxruntime's exceptions share no other base class
                raise PackageError(f"{where} does not run: {exc}") from exc
            actual = dict(zip(case.expected, results, strict=True))
            try:
                _compare_case(actual, case, where, [])
            except PackageError:
                if near is None:
                    near = [cases(other, batch) for other in truth.nearby(DRAWS)]
                _compare_case(actual, case, where, [answers[number] for answers in near])


def _compare_case(actual: Arrays, case: _Case, what: str, near: list[_Case]) -> None:
    wanted = {name: value.numpy() for name, value in case.expected.items()}
    moved = {
        name: 2 * np.max([np.abs(other.expected[name].numpy() - value) for other in near], axis=0)
        if near
        else np.zeros_like(value)
        for name, value in wanted.items()
    }
    if not case.each:
        compare(actual, wanted, what, case.least, moved=moved)
        return
    for row in range(len(case.feed["x"])):
        one, right, far = ({name: value[row] for name, value in of.items()} for of in (actual, wanted, moved))
        compare(one, right, what, case.least, moved=far)


def compare(
    actual: Arrays, expected: Arrays, what: str, least: float = 0.0, *, moved: Arrays | None = None
) -> None:
    """Refuse arrays that differ.

    Args:
        actual: What the graph computed.
        expected: What torch computed.
        what: Which graph, and on what.
        least: Magnitude against which an array's error is measured, if its own is smaller.
        moved: How far rounding moves what torch computed; the greatest of an array is allowed in all of it, up to
            ``AT_A_KINK``.

    Raises:
        PackageError: Shapes differ, or a value by more than ``RELATIVE`` of the array's greatest magnitude.
    """
    for name, reference in expected.items():
        value = actual[name]
        if value.shape != reference.shape:
            raise PackageError(f"{what}: {name} has shape {value.shape}, torch gives {reference.shape}.")
        error = float(np.abs(value.astype(np.float64) - reference.astype(np.float64)).max(initial=0.0))
        scale = float(np.abs(reference).max(initial=0.0))
        allowed = RELATIVE * max(scale, least)
        if moved is not None:
            allowed = max(allowed, min(float(moved[name].max(initial=0.0)), AT_A_KINK * max(scale, least)))
        if not error <= allowed + 1e-7:
            raise PackageError(
                f"{what}: {name} is {error:.1e} away from torch's, of {scale:.1e}. Nothing was written."
            )

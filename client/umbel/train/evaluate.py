"""How good given parameters are on local examples; which examples a device keeps from training for that."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from umbel._data import Examples
from umbel.engines.onnx import open_session
from umbel_proto.encoding import digest
from umbel_proto.errors import UsageError
from umbel_proto.manifest import FloatVector
from umbel_proto.package import Package
from umbel_proto.prg import Keystream

MAX_HOLDBACK = 0.5
HOLDBACK_LABEL = "umbel/1/holdback"
LEAST_PROBABILITY = 1e-12
"""A label given less counts as given this: one impossible example must not make a mean infinite."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good parameters are on some examples. It stays on the device.

    Args:
        loss: Mean cross-entropy, nats.
        accuracy: Share of examples classified right.
    """

    loss: float = field(repr=False)
    accuracy: float = field(repr=False)


def evaluate(package: Package, parameters: FloatVector, examples: Examples) -> Evaluation:
    """Evaluate parameters, shape (dim,), with the package's fp32 graph.

    Raises:
        UsageError: The examples break the data contract or have no labels.
        PackageError: onnxruntime cannot run the graph.
    """
    if examples.y is None:
        raise UsageError("The examples hold no labels: evaluating needs an array y.")
    x, _ = package.manifest.contract.check(examples.x)
    form = package.manifest.variants["fp32"]
    session = open_session(package.file(form.file), form.file, package.split(parameters))
    (probabilities,) = session.run(["probabilities"], {package.manifest.inputs[0].name: x})
    if not 0 <= examples.y.min() <= examples.y.max() < probabilities.shape[1]:
        raise UsageError(f"Labels must be whole numbers in 0..{probabilities.shape[1] - 1}.")
    given = probabilities[np.arange(len(x)), examples.y].astype(np.float64)
    loss = -float(np.log(np.maximum(given, LEAST_PROBABILITY)).mean())
    return Evaluation(loss, float((probabilities.argmax(1) == examples.y).mean()))


def hold_back(examples: Examples, share: float) -> tuple[Examples, Examples]:
    """Return the examples to train on and those to evaluate on; with a share of 0 both are all of them.

    Whether an example is held back depends on its place alone, so that one held back in a round is
    in every other, also when more examples have come.

    Args:
        examples: The device's.
        share: Of them to hold back, in [0, 1/2].

    Raises:
        UsageError: The share is out of range, or there are too few examples to divide.
    """
    if not 0 <= share <= MAX_HOLDBACK:
        raise UsageError(
            f"The share of examples to hold back is {share}: choose a number in [0, {MAX_HOLDBACK:g}]."
        )
    if share == 0:
        return examples, examples
    if len(examples) < 2:
        raise UsageError("One example cannot be divided into training and evaluation: collect more.")
    places = Keystream(digest(HOLDBACK_LABEL)).uint64(len(examples))
    held = places < np.uint64(share * 2**64)
    if held.all() or not held.any():
        held = places == places.min()
    rows = np.flatnonzero(held), np.flatnonzero(~held)
    evaluation, training = (
        Examples(examples.x[each], None if examples.y is None else examples.y[each]) for each in rows
    )
    return training, evaluation

"""How good given parameters are on local examples; which examples a device keeps from training for that."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from umbel._data.examples import Examples
from umbel.engines.onnx import open_session
from umbel_proto.answers import checked_answers, loss, score
from umbel_proto.encoding import digest
from umbel_proto.errors import UsageError
from umbel_proto.manifest import FloatVector
from umbel_proto.package import Package
from umbel_proto.prg import Keystream

MAX_HOLDBACK = 0.5
HOLDBACK_LABEL = "umbel/1/holdback"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good parameters are on some examples. It stays on the device.

    Args:
        loss: Mean cross-entropy, nats; of a model that answers with numbers, mean squared error of one.
        score: Share of examples classified right; of numbers R^2, not a number where all targets are alike.
    """

    loss: float = field(repr=False)
    score: float = field(repr=False)


def evaluate(package: Package, parameters: FloatVector, examples: Examples) -> Evaluation:
    """Evaluate parameters, shape (dim,), with the package's fp32 graph.

    Raises:
        UsageError: The examples break the data contract or have no labels or targets.
        PackageError: onnxruntime cannot run the graph.
    """
    if examples.y is None:
        raise UsageError("The examples hold no labels: evaluating needs an array y.")
    manifest = package.manifest
    x, _ = manifest.contract.check(examples.x)
    y = checked_answers(manifest, examples.y, len(x))
    form = manifest.variants["fp32"]
    session = open_session(package.file(form.file), form.file, package.split(parameters))
    (said,) = session.run([manifest.answer], {manifest.inputs[0].name: x})
    return Evaluation(loss(manifest, said, y), score(manifest, said, y))


def hold_back(examples: Examples, share: float) -> tuple[Examples, Examples]:
    """Return the examples to train on and those to evaluate on; with a share of 0 both are all of them.

    Whether an example is held back depends on its place alone, so that one held back in a round is
    in every other, also when more examples have come: on its place in the file or, in the local data set, on
    a hash of its content.

    Args:
        examples: The device's.
        share: Of them to hold back, in [0, 1/2].

    Raises:
        UsageError: The share is out of range, or there are too few examples to divide, or all are copies.
    """
    if not 0 <= share <= MAX_HOLDBACK:
        raise UsageError(
            f"The share of examples to hold back is {share}: choose a number in [0, {MAX_HOLDBACK:g}]."
        )
    if share == 0:
        return examples, examples
    if len(examples) < 2:
        raise UsageError("One example cannot be divided into training and evaluation: collect more.")
    places = examples.places
    if places is None:
        places = Keystream(digest(HOLDBACK_LABEL)).uint64(len(examples))
    held = places < np.uint64(share * 2**64)
    if held.all() or not held.any():
        held = places == places.min()
    if held.all():
        raise UsageError(
            "Copies of one example cannot be divided into training and evaluation: collect others."
        )
    rows = np.flatnonzero(held), np.flatnonzero(~held)
    evaluation, training = (
        Examples(
            examples.x[each],
            None if examples.y is None else examples.y[each],
            None if examples.places is None else examples.places[each],
        )
        for each in rows
    )
    return training, evaluation

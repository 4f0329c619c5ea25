"""How good a model is on data that the server owns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from umbel_proto.answers import SCORES, checked_answers, score
from umbel_proto.errors import UsageError
from umbel_proto.manifest import REGRESSION
from umbel_proto.package import Package


class HeldOut:
    """Held-out examples, and a package's inference graph to judge parameters by.

    Args:
        package: The package whose fp32 graph is run.
        path: An ``.npz`` file with ``x``, shape (n, ...), and labels or targets ``y``, shape (n, ...).

    Raises:
        UsageError: The file cannot be read or does not hold such arrays.
    """

    def __init__(self, package: Package, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                x, y = file["x"], file["y"]
        except (OSError, ValueError, KeyError) as exc:
            raise UsageError(f"{path} is not an .npz file with x and y: {exc}.") from exc
        if len(x) != len(y) or len(x) == 0:
            raise UsageError(f"{path} holds {len(x)} examples and {len(y)} labels.")
        self._package = package
        (field,) = package.manifest.contract.fields
        self._x, _ = field.check(x)
        self._name = field.name
        self._y = checked_answers(package.manifest, y, len(self._x))
        if package.manifest.kind == REGRESSION and (self._y == self._y[0]).all():
            raise UsageError(
                f"{path} holds one target for all examples: R^2 judges a model by how they differ."
            )

    @property
    def figure(self) -> str:
        """What ``score`` is: ``accuracy``, or ``r2`` of a model that answers with numbers."""
        return SCORES[self._package.manifest.kind]

    def score(self, parameters: NDArray[np.float32]) -> float:
        """Return how good these parameters are: see ``umbel_proto.answers.score``.

        Args:
            parameters: Shape (dim,).
        """
        import onnxruntime as ort

        arrays = self._package.split(parameters)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        values = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for array in arrays.values()]
        options.add_external_initializers(list(arrays), values)
        variant = self._package.manifest.variants["fp32"]
        session = ort.InferenceSession(
            self._package.file(variant.file), options, providers=["CPUExecutionProvider"]
        )
        manifest = self._package.manifest
        (said,) = session.run([manifest.answer], {self._name: self._x})
        return score(manifest, said, self._y)

"""Bare graphs, .onnx and .tflite: their own names and shapes, any number of inputs, no contract and no weights apart.

What a package's engines take for granted, one input called as the manifest says and answers of a known form, is
not so of a file that somebody's converter wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import onnxruntime as ort
from numpy.typing import NDArray

from umbel._fork import leave_alone, renew_in_child
from umbel.engines import EngineOptions
from umbel.engines.onnx import open_session
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.manifest import TensorSpec

Arrays = dict[str, NDArray[Any]]
"""Inputs or outputs of a graph by name."""

_TENSORS = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class Runner(Protocol):
    """A bare graph, loaded. Any number of threads may ask it at once."""

    @property
    def name(self) -> str:
        """The engine that runs it."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes. A dimension that is open has a name instead of a size."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it gives."""

    def run(self, feed: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return every output of arrays of the graph's types, one for each input."""


class OnnxGraph:
    """A bare graph in onnxruntime.

    Args:
        file: The .onnx file; weights that it keeps in files beside it are found there.
        content: A form of it that is not on disk, to run instead.
        options: How the engine may use this machine.

    Raises:
        UsageError: onnxruntime cannot open it, or it takes what is no array of numbers.
    """

    name: str = "onnx"

    def __init__(
        self, file: Path, content: bytes | None = None, *, options: EngineOptions | None = None
    ) -> None:
        self._file, self._content, self._options = file, content, options
        session = self._open()
        self._session: ort.InferenceSession | None = session
        self.inputs: tuple[TensorSpec, ...] = tuple(_spec(each) for each in session.get_inputs())
        given = [each for each in session.get_outputs() if each.type in _TENSORS]
        self.outputs: tuple[TensorSpec, ...] = tuple(_spec(each) for each in given)
        self._names = [spec.name for spec in self.outputs]
        renew_in_child(self._renew)

    def run(self, feed: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return every output that is an array of numbers, by name."""
        # Two threads may both open one in a forked process: the later one stays, and both are right.
        session = self._session
        if session is None:
            session = self._session = self._open()
        return dict(zip(self._names, session.run(self._names, dict(feed)), strict=True))

    def _open(self) -> ort.InferenceSession:
        graph = str(self._file) if self._content is None else self._content
        try:
            return open_session(graph, self._file.name, options=self._options)
        except PackageError as exc:
            raise UsageError(
                f"onnxruntime cannot open {self._file}: it is damaged, its weights are not beside it, or it is too "
                "new: export it again, or update onnxruntime."
            ) from exc

    def _renew(self) -> None:
        """In a forked process: open a session of its own, from the same file, when it is first asked for."""
        leave_alone(self._session)
        self._session = None


def _spec(argument: Any) -> TensorSpec:
    if argument.type not in _TENSORS:
        raise UsageError(
            f"Input {argument.name!r} takes {argument.type}, and umbel feeds arrays of numbers: export the graph "
            "without what reads it."
        )
    shape = tuple(size if isinstance(size, int) and size > 0 else str(size or "?") for size in argument.shape)
    return TensorSpec(argument.name, _TENSORS[argument.type], shape)

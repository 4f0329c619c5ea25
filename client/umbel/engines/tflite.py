"""LiteRT, for devices that have it: one thread, and an interpreter for each thread that asks."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from umbel.engines import Outputs, Probabilities
from umbel_proto.errors import PackageError
from umbel_proto.package import Package

_SIGNATURE = "serving_default"


class TfliteEngine:
    """A variant of a package in LiteRT.

    An interpreter holds the numbers of the prediction it makes, so each thread has its own; the file is
    shared. Weights are packed for the processor once per thread: ask big models from few threads.

    Args:
        package: The package.
        variant: One of its variants.

    Raises:
        PackageError: LiteRT cannot run its file. Only opening it tells: a runtime may be installed and
            work with nothing.
    """

    name = "tflite"

    def __init__(self, package: Package, variant: str) -> None:
        self._file = package.manifest.variants[variant].file
        self._content = package.file(self._file)
        self._input = package.manifest.inputs[0].name
        self._variant = variant
        self._local = threading.local()
        self._opened()

    @property
    def variant(self) -> str:
        """The variant it runs."""
        return self._variant

    def probabilities(self, x: NDArray[Any]) -> Probabilities:
        """Return class probabilities, shape (n, classes), of a batch, shape (n, *example)."""
        [result] = self._opened().run(x, ("probabilities",))
        return result

    def outputs(self, x: NDArray[Any]) -> Outputs:
        """Return probabilities and logits of a batch, shape (n, *example)."""
        return Outputs(*self._opened().run(x, ("probabilities", "logits")))

    def _opened(self) -> _Opened:
        opened: _Opened | None = getattr(self._local, "opened", None)
        if opened is None:
            try:
                opened = _Opened(self._content, self._input)
            except Exception as exc:  # ValueError, RuntimeError and more, by what is wrong
                raise PackageError(
                    f"LiteRT cannot run {self._file}: update ai-edge-litert, or report the package."
                ) from exc
            self._local.opened = opened
        return opened


class _Opened:
    """An interpreter with its tensors allocated, for one thread.

    Args:
        content: The file.
        entry: Name of its input.
    """

    def __init__(self, content: bytes, entry: str) -> None:
        self._interpreter = Interpreter(model_content=content, num_threads=1)
        self._input, self._outputs, self._open, self._batch = _ends(self._interpreter, entry)
        self._interpreter.allocate_tensors()

    def run(self, x: NDArray[Any], names: tuple[str, ...]) -> list[NDArray[np.float32]]:
        """Return outputs of a batch, in the order of ``names``."""
        if self._open and len(x) != self._batch:
            self._batch = 0  # until the new one is allocated, no size is right
            self._interpreter.resize_tensor_input(self._input, x.shape, strict=True)
            self._interpreter.allocate_tensors()
            self._batch = len(x)
        if len(x) == self._batch:
            return self._invoke(x, names)
        blocks = [
            self._invoke(self._filled(x[begin : begin + self._batch]), names)
            for begin in range(0, len(x), self._batch)
        ]
        return [np.concatenate(parts)[: len(x)] for parts in zip(*blocks, strict=True)]

    def _invoke(self, x: NDArray[Any], names: tuple[str, ...]) -> list[NDArray[np.float32]]:
        self._interpreter.set_tensor(self._input, x)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(self._outputs[name]) for name in names]

    def _filled(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a block of a fixed batch: the last example repeated, where there are too few."""
        missing = self._batch - len(x)
        return np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing else x


def _ends(interpreter: Interpreter, entry: str) -> tuple[int, dict[str, int], bool, int]:
    """Return the input's tensor, the outputs' by name, whether the batch is open, and its size in the file.

    The signature's runner must be gone before anything is allocated: LiteRT takes it for a view of memory.
    """
    signature = interpreter.get_signature_runner(_SIGNATURE)
    given = signature.get_input_details()[entry]
    outputs = {name: int(details["index"]) for name, details in signature.get_output_details().items()}
    return int(given["index"]), outputs, bool(given["shape_signature"][0] == -1), int(given["shape"][0])

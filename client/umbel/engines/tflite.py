"""LiteRT, for devices that have it: one thread, and an interpreter for each thread that asks."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from umbel._fork import leave_alone, renew_in_child
from umbel.engines import Answers, EngineOptions, Outputs, Seat
from umbel_proto.errors import PackageError
from umbel_proto.manifest import OUTPUTS
from umbel_proto.package import Package

_SIGNATURE = "serving_default"

MAX_BYTES = 1 << 30
"""All tensors of a file together, at the batch it is written with. LiteRT allocates what a damaged file asks for, and holds
Python's lock for the minute that it takes to fill eight gigabytes."""

BRIEF_S = 6.5e-6
"""Of eight threads on two processors, digits' 3.5 microseconds are sooner done in turn, activity's 10 of int8 side by side."""


class TfliteEngine:
    """A variant of a package in LiteRT.

    An interpreter holds the numbers of the prediction it makes, so each thread has its own; the file is
    shared. Weights are packed for the processor once per thread, and once more where it asks both about single
    examples and about batches: ask big models from few threads.

    Args:
        package: The package.
        variant: One of its variants.
        options: How it may use the device.

    Raises:
        PackageError: LiteRT cannot run its file. Only opening it tells: a runtime may be installed and
            work with nothing.
    """

    name = "tflite"

    def __init__(self, package: Package, variant: str, *, options: EngineOptions | None = None) -> None:
        self._file = package.manifest.variants[variant].file
        self._content = package.file(self._file)
        self._input = package.manifest.inputs[0].name
        self._outputs = OUTPUTS[package.manifest.kind]
        self._variant = variant
        self._threads = (options or EngineOptions()).threads
        self._local = threading.local()
        self._local.opened = self._open(first=True)
        renew_in_child(self._renew)

    @property
    def variant(self) -> str:
        """The variant it runs."""
        return self._variant

    def answers(self, x: NDArray[Any]) -> Answers:
        """Return probabilities or values, shape (n, *answer), of a batch, shape (n, *example)."""
        [result] = self._opened().run(x, self._outputs[:1])
        return result

    def outputs(self, x: NDArray[Any]) -> Outputs:
        """Return every output of a batch, shape (n, *example), by name."""
        return dict(zip(self._outputs, self._opened().run(x, self._outputs), strict=True))

    def seat(self) -> Seat | None:
        """Return a new seat; None where the file's batch is fixed.

        It takes the thread's interpreter, if there is one: only a thread that asks about batches as well gets
        another.
        """
        opened = self._local.__dict__.pop("opened", None) or self._open()
        seat: Seat | None = opened.seat(self._outputs[0])
        if seat is None:
            self._local.opened = opened
        return seat

    def _renew(self) -> None:
        """In a forked process: open interpreters of its own when it is first asked for them."""
        leave_alone(self._local)
        self._local = threading.local()

    def _opened(self) -> _Opened:
        opened: _Opened | None = getattr(self._local, "opened", None)
        if opened is None:
            opened = self._local.opened = self._open()
        return opened

    def _open(self, *, first: bool = False) -> _Opened:
        try:
            return _Opened(self._content, self._input, self._threads, first=first)
        except Exception as exc:  # ValueError, RuntimeError and more, by what is wrong
            raise PackageError(
                f"LiteRT cannot run {self._file}: update ai-edge-litert, or report the package."
            ) from exc


class _Opened:
    """An interpreter with its tensors allocated, for one thread.

    Args:
        content: The file.
        entry: Name of its input.
        threads: Threads that compute.
        first: Whether it is the file's first, which tells of all whether there is room for them.
    """

    def __init__(self, content: bytes, entry: str, threads: int, *, first: bool) -> None:
        self._interpreter = Interpreter(model_content=content, num_threads=threads)
        if first:
            check_size(self._interpreter)
        self._brief_s = BRIEF_S if threads == 1 else 0.0
        self._input, self._outputs, self._open, shape = _ends(self._interpreter, entry)
        self._batch, self._example = shape[0], shape[1:]
        self._interpreter.allocate_tensors()

    def seat(self, name: str) -> Seat | None:
        """Return the interpreter as a seat: it is asked for nothing else then. None where its batch is fixed."""
        if self._open and self._batch != 1:
            self._interpreter.resize_tensor_input(self._input, [1, *self._example], strict=True)
            self._interpreter.allocate_tensors()
            self._batch = 1
        if self._batch != 1:
            return None
        output = self._outputs[name]
        try:
            # The public calls copy both ways, and refuse to run beside a view, as tensors might move. These
            # do not: nothing is resized any more. Where the inside is not what it was, the public ones serve.
            inside = self._interpreter._interpreter
            run: Callable[[], object] = inside.Invoke
            return Seat(
                inside.tensor(inside, self._input), inside.tensor(inside, output), run, self, self._brief_s
            )
        except AttributeError:
            return None

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


def check_size(interpreter: Interpreter) -> None:
    """Refuse a file whose tensors no device has room for, before they are allocated.

    Raises:
        ValueError: Its tensors are too large together.
    """
    size = sum(
        math.prod(tensor["shape"].tolist()) * np.dtype(tensor["dtype"]).itemsize
        for tensor in interpreter.get_tensor_details()
    )
    if not 0 <= size <= MAX_BYTES:
        raise ValueError(f"Its tensors take {size} bytes together, of {MAX_BYTES} that they may.")


def _ends(interpreter: Interpreter, entry: str) -> tuple[int, dict[str, int], bool, list[int]]:
    """Return the input's tensor, the outputs' by name, whether the batch is open, and its shape in the file.

    The signature's runner must be gone before anything is allocated: LiteRT takes it for a view of memory.
    """
    signature = interpreter.get_signature_runner(_SIGNATURE)
    given = signature.get_input_details()[entry]
    outputs = {name: int(details["index"]) for name, details in signature.get_output_details().items()}
    return int(given["index"]), outputs, bool(given["shape_signature"][0] == -1), given["shape"].tolist()

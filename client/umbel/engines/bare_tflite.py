"""Bare .tflite files in LiteRT: one thread, and an interpreter for each thread that asks."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from umbel._fork import leave_alone, renew_in_child
from umbel.engines import EngineOptions
from umbel.engines.bare import Arrays
from umbel.engines.tflite import check_size
from umbel_proto.errors import UsageError
from umbel_proto.manifest import BATCH, TensorSpec

_SIGNATURE = "serving_default"


class TfliteGraph:
    """A bare file in LiteRT.

    Args:
        content: The file's bytes.
        file: Its name, for the error's sentence.
        options: How the engine may use this machine: threads alone.

    Raises:
        UsageError: LiteRT cannot run it. Only opening it tells: a runtime may be installed and work with nothing.
    """

    name: str = "tflite"

    def __init__(self, content: bytes, file: Path, *, options: EngineOptions | None = None) -> None:
        self._content = content
        self._threads = (options or EngineOptions()).threads
        self._file = file
        self._local = threading.local()
        opened = self._opened()
        self.inputs: tuple[TensorSpec, ...] = tuple(_spec(name, each) for name, each in opened.inputs.items())
        self.outputs: tuple[TensorSpec, ...] = tuple(
            _spec(name, each) for name, each in opened.outputs.items()
        )
        renew_in_child(self._renew)

    def run(self, feed: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return every output, by name."""
        return self._opened().run(feed)

    def _renew(self) -> None:
        """In a forked process: open interpreters of its own when it is first asked for them."""
        leave_alone(self._local)
        self._local = threading.local()

    def _opened(self) -> _Opened:
        opened: _Opened | None = getattr(self._local, "opened", None)
        if opened is None:
            try:
                opened = _Opened(self._content, self._threads)
            except Exception as exc:  # ValueError, RuntimeError and more, by what is wrong
                raise UsageError(
                    f"LiteRT cannot open {self._file}: it is damaged, or has operators that this version lacks: "
                    "convert it again, or update ai-edge-litert."
                ) from exc
            self._local.opened = opened
        return opened


class _Opened:
    """An interpreter with its tensors allocated, for one thread."""

    def __init__(self, content: bytes, threads: int) -> None:
        self._interpreter = Interpreter(model_content=content, num_threads=threads)
        check_size(self._interpreter)
        self.inputs, self.outputs = _ends(self._interpreter)
        self._shapes = {name: tuple(each["shape"]) for name, each in self.inputs.items()}
        self._interpreter.allocate_tensors()

    def run(self, feed: Mapping[str, NDArray[Any]]) -> Arrays:
        shapes = {name: feed[name].shape for name in self.inputs}
        if shapes != self._shapes:
            self._shapes = {}  # until the new ones are allocated, none is right
            for name, shape in shapes.items():
                self._interpreter.resize_tensor_input(self.inputs[name]["index"], shape, strict=True)
            self._interpreter.allocate_tensors()
            self._shapes = shapes
        for name, each in self.inputs.items():
            self._interpreter.set_tensor(each["index"], feed[name])
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(each["index"]) for name, each in self.outputs.items()}


def _ends(interpreter: Interpreter) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return inputs and outputs by name: those of the signature, where the file has the usual one.

    The signature's runner must be gone before anything is allocated: LiteRT takes it for a view of memory.
    """
    if _SIGNATURE in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(_SIGNATURE)
        return dict(runner.get_input_details()), dict(runner.get_output_details())
    return (
        {each["name"]: each for each in interpreter.get_input_details()},
        {each["name"]: each for each in interpreter.get_output_details()},
    )


def _spec(name: str, details: Mapping[str, Any]) -> TensorSpec:
    sizes = details.get("shape_signature", details["shape"])
    sizes = sizes if len(sizes) == len(details["shape"]) else details["shape"]
    shape = tuple(
        int(size) if size >= 0 else (BATCH if axis == 0 else "?") for axis, size in enumerate(sizes)
    )
    return TensorSpec(name, np.dtype(details["dtype"]).name, shape)

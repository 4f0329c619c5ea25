"""Run any variant of a package on the workbench, whatever its engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_models.runtime import Session
from umbel_proto.errors import MissingExtraError, PackageError
from umbel_proto.manifest import INSIDE, OUTPUTS, Manifest
from umbel_proto.tensors import load_tensors

Run = Callable[[NDArray[Any]], list[NDArray[Any]]]
"""Maps inputs, shape (n, *example), to the outputs of the model's kind in order, each shape (n, *answer)."""


def open_variant(manifest: Manifest, file: Callable[[str], bytes], name: str) -> Run:
    """Return what runs a variant, opened once.

    Args:
        manifest: The package's.
        file: Returns a file of it, by name.
        name: The variant.

    Raises:
        MissingExtraError: Its engine is not installed.
        PackageError: Its engine is not known here, or cannot run its graph.
    """
    form, outputs = manifest.variants[name], OUTPUTS[manifest.kind]
    match form.engine:
        case "onnx":
            weights = {} if form.weights == INSIDE else load_tensors(file(form.weights), form.weights)
            session, given = Session(file(form.file), weights), manifest.inputs[0].name
            return lambda x: session.run(outputs, {given: x})
        case "tflite":
            return _tflite(file(form.file), name, outputs)
        case engine:
            raise PackageError(f"Variant {name} needs the engine {engine!r}: update umbel.")


def _tflite(content: bytes, name: str, outputs: Sequence[str]) -> Run:
    try:
        from ai_edge_litert.interpreter import Interpreter

        from umbel_models.tflite.interpret import ends
    except ImportError as exc:
        raise MissingExtraError("tflite", f"Running variant {name}") from exc
    at = ends(content)
    interpreter = Interpreter(model_content=content, num_threads=1)
    prepared = 0

    def run(x: NDArray[Any]) -> list[NDArray[Any]]:
        nonlocal prepared
        size = at.batch or len(x)
        if size != prepared:
            interpreter.resize_tensor_input(at.index, (size, *x.shape[1:]), strict=True)
            interpreter.allocate_tensors()
            prepared = size
        whole = np.concatenate([x, np.repeat(x[-1:], -len(x) % size, axis=0)])
        made = []
        for begin in range(0, len(whole), size):
            interpreter.set_tensor(at.index, whole[begin : begin + size])
            interpreter.invoke()
            made.append([interpreter.get_tensor(at.outputs[each]) for each in outputs])
        return [np.concatenate(blocks)[: len(x)] for blocks in zip(*made, strict=True)]

    return run

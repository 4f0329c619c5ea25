"""LiteRT on the workbench: one thread, outputs by name, any number of examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from umbel_models.tflite.flatbuffer import SIGNATURE
from umbel_proto.errors import PackageError


@dataclass(frozen=True, slots=True)
class Ends:
    """Where values enter a file and leave it.

    Args:
        name: Name of its input.
        index: Its tensor.
        batch: The batch it takes, None where that is open.
        outputs: The tensors of its outputs, by name.
    """

    name: str
    index: int
    batch: int | None
    outputs: dict[str, int]


def ends(file: bytes) -> Ends:
    """Return the ends of a file's signature.

    Raises:
        PackageError: LiteRT cannot open the file.
    """
    runner = _opened(file).get_signature_runner(SIGNATURE)
    [(name, entry)] = runner.get_input_details().items()
    size = int(entry["shape_signature"][0])
    outputs = {key: int(details["index"]) for key, details in runner.get_output_details().items()}
    return Ends(name, int(entry["index"]), None if size == -1 else size, outputs)


def run(file: bytes, x: NDArray[Any], outputs: Sequence[str]) -> list[NDArray[Any]]:
    """Return outputs of a file, in the order asked for, of inputs of shape (n, *example).

    Raises:
        PackageError: LiteRT cannot run the file.
    """
    at = ends(file)
    size = at.batch or len(x)
    whole = np.concatenate([x, np.repeat(x[-1:], -len(x) % size, axis=0)])
    interpreter = _opened(file)
    made: list[list[NDArray[Any]]] = []
    try:
        interpreter.resize_tensor_input(at.index, (size, *x.shape[1:]), strict=True)
        interpreter.allocate_tensors()
        for begin in range(0, len(whole), size):
            interpreter.set_tensor(at.index, whole[begin : begin + size])
            interpreter.invoke()
            made.append([interpreter.get_tensor(at.outputs[name]) for name in outputs])
    except (ValueError, RuntimeError) as exc:
        raise PackageError(f"LiteRT cannot run the file: {exc}") from exc
    return [np.concatenate(blocks)[: len(x)] for blocks in zip(*made, strict=True)]


def _opened(file: bytes) -> Interpreter:
    try:
        return Interpreter(model_content=file, num_threads=1)
    except (ValueError, RuntimeError) as exc:
        raise PackageError(f"LiteRT cannot open the file: {exc}") from exc

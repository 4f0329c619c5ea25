"""The process that trains for a device: ``python -m umbel.train.worker FD``, started by ``umbel.train.apart``.

It is told the graph, the parameters and the examples, all checked, and keeps nothing. It imports as little as a
training needs: what verifies packages, keeps data and talks to servers is not for it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.engines.onnx import open_session
from umbel.train import Controls, ExamplePrivacy, Meter, TrainPlan, TrainResult
from umbel.train.descent import Work, descend
from umbel.train.factors import factored
from umbel.train.graph import GraphGradients, Signature, trim
from umbel.train.pipe import FORM, FROZEN, Arrays, Pipe, PipeError
from umbel_proto.errors import UmbelError

IDLE_S = 30.0
"""Without work for so long, the process ends and its memory goes back; another one takes about 0.3 s to start."""


def serve(pipe: Pipe) -> None:
    """Train as told until nothing comes any more, or the device's own process is gone.

    Raises:
        PipeError: It is gone.
    """
    pipe.send({"form": FORM})
    while pipe.arrives(IDLE_S):
        _answer(pipe)
        trim()


def _answer(pipe: Pipe) -> None:
    """Take a training, and answer with its result or why there is none."""
    head, arrays = pipe.receive(sys.maxsize)
    pipe.send({"taken": True})
    try:
        result = _train(pipe, head, arrays)
    except PipeError:
        raise
    except UmbelError as exc:
        pipe.send({"error": type(exc).__name__, "sentence": str(exc)})
    except Exception as exc:
        # Out of memory, most likely. Its message, which may quote a value, goes nowhere.
        import traceback

        sys.stderr.write("".join(traceback.format_tb(exc.__traceback__)))
        pipe.send({"failed": type(exc).__name__})
    else:
        given: dict[str, NDArray[Any]] = {"parameters": result.parameters}
        if result.control is not None:
            given["control"] = result.control
        told = ("loss", "examples", "steps", "ended", "seconds", "joules")
        pipe.send({name: getattr(result, name) for name in told}, given)


def _train(pipe: Pipe, head: Mapping[str, Any], arrays: Arrays) -> TrainResult:
    told = head["signature"]
    shapes = {name: tuple(shape) for name, shape in told["shapes"].items()}
    signature = Signature(**{**told, "shapes": shapes})
    frozen = {name.removeprefix(FROZEN): arrays.pop(name) for name in list(arrays) if name.startswith(FROZEN)}
    graph, factors = factored(arrays.pop("graph").tobytes(), shapes)
    session = open_session(graph, signature.file, frozen, planned=False)
    del graph, frozen  # onnxruntime has its own.
    trim()  # What reading the graph took would stand beside what training takes.
    current = arrays.pop("parameters")
    return descend(current, GraphGradients(session, signature, current, factors), _work(pipe, head, arrays))


def _work(pipe: Pipe, head: Mapping[str, Any], arrays: Arrays) -> Work:
    privacy = head["plan"]["privacy"]
    private = None if privacy is None else ExamplePrivacy(**privacy)
    y = arrays["y"]

    def order(epoch: int) -> NDArray[np.int64]:
        # Its keystream needs cryptography, which the other process has and this one goes without.
        pipe.send({"ask": "order", "epoch": epoch})
        _, said = pipe.receive(8 * len(y))
        return said["order"]

    def ask(what: str) -> float:
        pipe.send({"ask": what})
        said, _ = pipe.receive(0)
        return float(said["value"])

    def watch() -> None:
        # Nothing is sent unasked: the device's process has ended.
        if pipe.arrives(0):
            raise PipeError("Nobody waits for this training.")

    return Work(
        TrainPlan(**{**head["plan"], "privacy": private}),
        arrays["x"],
        y,
        order,
        (arrays["held.x"], arrays["held.y"]) if "held.x" in arrays else None,
        Controls(arrays["server"], arrays["own"]) if "own" in arrays else None,
        Meter(
            (lambda: ask("clock")) if head["asks_clock"] else time.monotonic,
            (lambda: ask("joules")) if head["asks_joules"] else None,
        ),
        watch,
    )


if __name__ == "__main__":
    try:
        serve(Pipe(int(sys.argv[1])))
    except PipeError:
        sys.exit(0)

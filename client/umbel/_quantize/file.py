"""``Graph.quantize``: make int8 of a bare file with local samples, and run it where it is faster and says the same.

A package brings what this takes; a bare file needs ``umbel[quantize]``: onnx for .onnx, ai-edge-quantizer for .tflite.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from umbel._quantize.here import MIN_SAMPLES, parts
from umbel._quantize.report import Quantization, QuantizedForm, reason
from umbel._releases.choice import Clock, choose
from umbel.engines import Answers, Outputs, Seat
from umbel.engines.bare import OnnxGraph, Runner
from umbel_proto.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from umbel._predict.graph import Graph

FLOAT, INT8 = "fp32", "int8"
BLOCK = 16
"""Samples in a batch of calibration, where the file leaves the batch open."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A form of a graph, as the forms of packages are asked when they are compared."""

    graph: Graph
    variant: str

    @property
    def name(self) -> str:
        """The engine."""
        return self.graph.engine

    def answers(self, x: NDArray[Any]) -> Answers:
        """Return probabilities, shape (n, classes), or numbers, (n, *answer)."""
        return self.graph._answers(x)

    def outputs(self, x: NDArray[Any]) -> Outputs:
        """Return everything the graph computes."""
        return self.graph.run(x)

    def seat(self) -> Seat | None:
        """Return none: a form is only compared."""
        return None


def quantize_file(
    graph: Graph,
    file: Path,
    name: str,
    x: NDArray[Any],
    y: object,
    *,
    clock: Clock = time.perf_counter,
) -> tuple[Quantization, bytes, Runner]:
    """Return what quantizing a bare file came to, its int8 form, and what runs that.

    Args:
        graph: The graph, which is float.
        file: Where it is.
        name: Its only input.
        x: Samples as the graph takes them, shape (n, *example).
        y: What is right of each, or None.
        clock: What forms are timed with, seconds.

    Raises:
        UsageError: The samples or what is right of them cannot be used, or the file cannot be quantized.
        MissingExtraError: What it takes is not installed.
    """
    begin = clock()
    _require_samples(x)
    used, held = parts(len(x))
    blocks = _blocks(x[used], graph._block or BLOCK)
    # Asked first: it says which shape it cannot compute with, and a quantizer says anything.
    answer = graph._answers(blocks[0]).shape[1:]
    right = None if y is None else _right(y, len(x), answer, len(graph.labels))
    made, runner = (_onnx if graph.engine == "onnx" else _tflite)(file, name, blocks)
    forms = {FLOAT: Asked(graph, FLOAT), INT8: Asked(graph._with_runner(runner), INT8)}
    shown = choose(
        forms,
        x[held],
        None if right is None else right[held],
        reference=FLOAT,
        kind=graph.kind,
        clock=clock,
    )
    sizes = {FLOAT: file.stat().st_size, INT8: len(made)}
    report = Quantization(
        shown.variant,
        reason(INT8, shown.variant, FLOAT, shown.measured, golden=True, held_back=len(held)),
        tuple(
            QuantizedForm.of(form, forms[form], sizes[form], measured)
            for form, measured in shown.measured.items()
        ),
        len(held),
        clock() - begin,
    )
    return report, made, runner


def int8_file(out: object, loaded: Path) -> Path:
    """Return where the int8 form of a file is to be written, before the work that ends in it.

    Args:
        out: What was given.
        loaded: The float file.

    Raises:
        UsageError: It is no path, has another suffix, or cannot be written; or it is the float file.
    """
    suffix = loaded.suffix.lower()
    if not isinstance(out, str | os.PathLike):
        raise UsageError(f"out is {out!r:.40}: give the path of a file that ends in {suffix}.")
    file = Path(out)
    if file.suffix.lower() != suffix:
        raise UsageError(
            f"{file} would not be named as the graph that was loaded: name a file that ends in {suffix}."
        )
    if file.is_dir() or not (file.parent.is_dir() and os.access(file.parent, os.W_OK)):
        raise UsageError(
            f"{file} cannot be written: name a file in a directory that is there and takes files."
        )
    if file.exists() and file.samefile(loaded):
        raise UsageError(f"{file} is the file that was loaded: name another, or its floats are lost.")
    return file


def _require_samples(x: NDArray[Any]) -> None:
    """Refuse samples that no range can be taken from."""
    if not x.ndim:
        raise UsageError("The samples are one number: give an array of shape (n, *example).")
    if len(x) < MIN_SAMPLES:
        raise UsageError(f"{len(x)} samples are too few to quantize with: give at least {MIN_SAMPLES}.")
    # One such value makes a range endless, or is left out of it without a word.
    broken = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
    if len(broken):
        raise UsageError(
            f"{len(broken)} of {len(x)} samples are not finite, the first of them samples[{broken[0]}]: it holds NaN, "
            "infinity or a number beyond float32. Leave such samples out, or mend them."
        )


def _right(y: object, count: int, answer: tuple[int, ...], classes: int) -> NDArray[Any]:
    """Return what is right of each sample: a label, or a finite number for each of an answer's."""
    try:
        right = np.asarray(y)
    except ValueError as exc:
        raise UsageError("y is not an array: its rows have different lengths.") from exc
    if not right.ndim or len(right) != count or right.dtype.kind not in "fiu":
        raise UsageError(f"There are {count} samples: give as many labels or numbers as y.")
    if classes:
        # Compared with answers, a column of labels is chance.
        if right.ndim != 1 or not np.isin(right, np.arange(classes)).all():
            raise UsageError(
                f"The labels y have shape {right.shape}: give each row a whole number in 0..{classes - 1}."
            )
    elif right.shape[1:] != answer or not np.isfinite(right).all():
        raise UsageError(
            f"The numbers y have shape {right.shape}: give finite ones of shape {(count, *answer)}, as the "
            "graph answers."
        )
    return right


def _onnx(file: Path, name: str, blocks: list[NDArray[Any]]) -> tuple[bytes, Runner]:
    try:
        from umbel.engines.quantize_onnx import quantized
    except ImportError as exc:
        raise _missing(exc) from exc
    made = _made(lambda: quantized(file, name, blocks), file)
    return made, OnnxGraph(file, made)


def _tflite(file: Path, name: str, blocks: list[NDArray[Any]]) -> tuple[bytes, Runner]:
    try:
        from umbel.engines.bare_tflite import TfliteGraph
        from umbel.engines.quantize_tflite import quantized
    except ImportError as exc:
        raise _missing(exc) from exc
    made = _made(lambda: quantized(file, name, blocks), file)
    return made, TfliteGraph(made, file)


def _made(make: Callable[[], bytes], file: Path) -> bytes:
    try:
        return make()
    except UsageError:
        raise
    except Exception as exc:  # whatever a quantizer raises
        raise UsageError(
            f"{file.name} cannot be made int8: run it as it is, or quantize it where it was trained."
        ) from exc


def _missing(exc: ImportError) -> MissingExtraError:
    if (exc.name or "").partition(".")[0].startswith("umbel"):
        raise exc
    return MissingExtraError("quantize", "To quantize a bare file")


def _blocks(x: NDArray[Any], size: int) -> list[NDArray[Any]]:
    """Return samples in batches of one size: the last is filled up."""
    whole = np.concatenate([x, np.repeat(x[-1:], -len(x) % size, axis=0)])
    return [whole[begin : begin + size] for begin in range(0, len(whole), size)]

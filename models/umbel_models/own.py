"""A task of somebody's own: what its functions raise, or return that cannot be used, is said in one sentence.

The sentence names the file, the function and the line, as nobody who brings a task knows ours.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from umbel_models.task import Examples, Split, Task
from umbel_proto.errors import UmbelError, UsageError
from umbel_proto.manifest import CLASSIFICATION

_MOST = 300
"""Characters of somebody's message; some of torch's are pages."""


def guarded(task: Task, path: Path) -> Task:
    """Return a task whose functions fail with a ``UsageError``, and whose data are checked and converted.

    Args:
        task: The task that the file makes.
        path: The file.
    """
    return replace(
        task,
        module=_asked(task.module, "module", path, _network),
        loss=_asked(task.loss, "loss", path),
        data=_asked(task.data, "data", path, functools.partial(_data, task)),
        metrics={name: _asked(each, f"metric {name!r}", path) for name, each in task.metrics.items()},
        shifted=task.shifted and _asked(task.shifted, "shifted", path, functools.partial(_shifted, task)),
        committed=task.committed and _asked(task.committed, "committed", path),
    )


def where(exc: Exception, path: Path) -> str:
    """Return the last line of a file that an exception came through, and what it says."""
    kind = "" if isinstance(exc, UmbelError) else f"{type(exc).__name__}: "
    text = " ".join(f"{kind}{exc}".split())[:_MOST].rstrip(". ")
    if isinstance(exc, SyntaxError):
        return f"line {exc.lineno}: {text}"
    file = str(path.absolute())  # as a module has it, whatever name it was loaded by
    lines = [frame.lineno for frame in traceback.extract_tb(exc.__traceback__) if frame.filename == file]
    return f"line {lines[-1]}: {text}" if lines else text


def _asked(
    function: Callable[..., Any], name: str, path: Path, checked: Callable[[Any], Any] = lambda made: made
) -> Callable[..., Any]:
    @functools.wraps(function)
    def ask(*given: Any) -> Any:
        try:
            made = function(*given)
        except UmbelError:
            raise
        except Exception as exc:  # whatever the file's function raises: it is not ours
            if any(type(value).__name__ == "FakeTensor" for value in given):
                raise  # the exporter's: who called it knows which layer or operator has no graph
            raise UsageError(f"{path} cannot be used: its {name} fails, {where(exc, path)}.") from exc
        try:
            return checked(made)
        except UsageError as exc:
            raise UsageError(f"{path} cannot be used: its {name} {exc}") from exc

    return ask


def _network(made: Any) -> Any:
    if isinstance(made, type) or not hasattr(made, "named_parameters"):
        raise UsageError(f"returns a {type(made).__name__}: return a torch.nn.Module.")
    return made


def _data(task: Task, made: Any) -> Split:
    parts = made if isinstance(made, Split) else (made,)
    if wrong := [type(part).__name__ for part in parts if not isinstance(part, Examples)]:
        what = f"a Split with a {wrong[0]}" if isinstance(made, Split) else f"a {wrong[0]}"
        raise UsageError(
            f"returns {what}: return a Split of three Examples, to train on, to hold out and to calibrate with."
        )
    return Split(*(_examples(task, part, name) for name, part in zip(Split._fields, made, strict=True)))


def _shifted(task: Task, made: Any) -> Mapping[str, Examples]:
    if not (isinstance(made, Mapping) and all(isinstance(part, Examples) for part in made.values())):
        raise UsageError(f"returns a {type(made).__name__}: return Examples by name.")
    return {name: _examples(task, part, name) for name, part in made.items()}


def _examples(task: Task, part: Examples, name: str) -> Examples:
    """Return examples as graphs and torch take them: float32 inputs within the contract, labels int64."""
    if len(task.contract.fields) != 1:
        return part  # refused by whoever needs one input, in words of its own
    try:
        x, _ = task.contract.check(part.x)
    except UsageError as exc:
        raise UsageError(f"gives examples ({name}) that break the contract: {exc}") from exc
    y = np.asarray(part.y)
    if task.kind == CLASSIFICATION:
        most = len(task.labels) - 1
        if y.shape != (len(x),) or y.dtype.kind not in "iu" or not 0 <= y.min() <= y.max() <= most:
            positions = " Labels of every position are targets of a regression, each a 1 among zeros."
            raise UsageError(
                f"gives {len(x)} examples ({name}) with labels y of shape {y.shape} and type {y.dtype}: give each "
                f"a whole number in 0..{most}.{positions if y.ndim > 1 else ''}"
            )
        y = y.astype(np.int64)
    else:
        if y.ndim < 1 or len(y) != len(x) or y.dtype.kind not in "fiu":
            raise UsageError(
                f"gives {len(x)} examples ({name}) with targets y of shape {y.shape} and type {y.dtype}: give each "
                "its numbers."
            )
        y = y.astype(np.float32)
    others = {"cohort": part.cohort, "source": part.source}
    for kind, values in others.items():
        if values is not None and (
            np.shape(values) != (len(x),) or np.asarray(values).dtype.kind not in "iu"
        ):
            raise UsageError(
                f"gives no whole number as the {kind} of each of its {len(x)} examples ({name})."
            )
    return Examples(x, y, **{k: None if v is None else np.asarray(v, np.int64) for k, v in others.items()})

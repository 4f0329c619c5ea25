"""Graphs that are kept beside a task: compared with torch before they are packed, as those exported now are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from umbel_models.task import Task
from umbel_proto.errors import MissingExtraError, PackageError, UsageError
from umbel_proto.package import PARAMETERS
from umbel_proto.tensors import load_tensors

if TYPE_CHECKING:
    from umbel_models.graphs.truth import Truth

COMPARED = {
    "umbel_models.tasks.digits.task:module": "9ccda970618464893d455a826a8b3613df267aee4efdf7fff39d2697e38861ba",
}
"""Graphs of umbel's own tasks, by what makes the module: the hash of all of them, as ``graphs_sha256`` gives it.

These were compared when they were committed, and are with every run of the tests, so that who has no torch can pack
them: the demo does. Others, and these if a bit of them is another, are compared when they are packed.
"""

_NEEDED = ("infer.onnx", "grad.onnx", "dpgrad.onnx", PARAMETERS)


def graphs_sha256(files: Mapping[str, bytes]) -> str:
    """Return a hash of a task's graphs, by name; their parameters are not in it."""
    each = [
        f"{name} {hashlib.sha256(files[name]).hexdigest()}\n" for name in sorted(files) if name != PARAMETERS
    ]
    return hashlib.sha256("".join(each).encode()).hexdigest()


def require_compared(
    task: Task, files: Mapping[str, bytes], truth: Callable[[], Truth], progress: Callable[[str], object]
) -> None:
    """Refuse committed graphs that do not compute what the task's module does.

    Args:
        task: Whose they are.
        files: ``infer.onnx``, ``grad.onnx``, ``dpgrad.onnx``, ``params.safetensors``, and ``explain.onnx`` if there
            is one.
        truth: Returns what torch says of the task's module.
        progress: Told of a comparison before it begins.

    Raises:
        MissingExtraError: They have to be compared, and torch is not installed.
        UsageError: A file is missing, or the module cannot be run.
        PackageError: A graph computes something else, or the parameters are not the module's.
    """
    if missing := [name for name in _NEEDED if name not in files]:
        raise UsageError(f"Task {task.model} keeps no {missing[0]} beside it: export its graphs anew.")
    maker: Any = task.module
    made_by = f"{getattr(maker, '__module__', '')}:{getattr(maker, '__qualname__', '')}"
    if COMPARED.get(made_by) == graphs_sha256(files):
        return
    progress("comparing the committed graphs with torch")
    try:
        from umbel_models.graphs.verify import verify_every
    except ImportError as exc:
        raise MissingExtraError("models", "Comparing a task's committed graphs with torch") from exc
    said = truth()
    try:
        _require_parameters(said, files[PARAMETERS])
        verify_every(files, said)
    except PackageError as exc:
        raise PackageError(
            f"Task {task.model} cannot be packed, as its committed graphs are not its module's: {exc} Export them "
            "anew, or leave committed out of the task."
        ) from exc


def _require_parameters(truth: Truth, data: bytes) -> None:
    held = {name: value.shape for name, value in load_tensors(data, PARAMETERS).items()}
    wanted = {name: tuple(value.shape) for name, value in truth.parameters.items()}
    if odd := sorted(name for name in held.keys() | wanted if held.get(name) != wanted.get(name)):
        raise PackageError(
            f"{PARAMETERS}: {odd[0]} has shape {held.get(odd[0])}, and in the module {wanted.get(odd[0])}."
        )

"""The graphs and parameters of a task: those kept beside it, or exported from its module now."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import safetensors.numpy

from umbel_models.committed import require_compared
from umbel_models.task import Task
from umbel_proto.errors import MissingExtraError, PackageError, UsageError
from umbel_proto.manifest import CLIPPED_GRADIENT, EXPLAIN, GRADIENT, REGRESSION, Parameter
from umbel_proto.package import PARAMETERS
from umbel_proto.tensors import load_tensors

if TYPE_CHECKING:
    from torch import nn

    from umbel_models.graphs.truth import Truth

INFER = "infer.onnx"
GRAPH_FILES = {GRADIENT: "grad.onnx", CLIPPED_GRADIENT: "dpgrad.onnx", EXPLAIN: "explain.onnx"}
_DTYPE = "float32"

Progress = Callable[[str], object]


@dataclass(frozen=True, slots=True, eq=False)
class Exported:
    """What a task's module became.

    Args:
        files: ``infer.onnx``, the graphs of ``GRAPH_FILES`` and ``params.safetensors``, by name.
        trainable: The parameters that training changes, in the order of the module.
        frozen: Those that it leaves, by name.
        notes: What came out otherwise than one might expect, in plain sentences.
    """

    files: Mapping[str, bytes]
    trainable: tuple[Parameter, ...]
    frozen: tuple[Parameter, ...]
    notes: tuple[str, ...] = ()


def exported(task: Task, *, progress: Progress) -> Exported:
    """Return a task's graphs, from its committed files or with torch.

    Raises:
        MissingExtraError: The task has no committed files, or some that must be compared with torch, and torch is not
            installed.
        UsageError: The module holds what cannot be exported; the message names the layer and the cure.
        PackageError: A graph does not compute what torch does.
    """
    if task.committed is not None:
        files: Mapping[str, bytes] = task.committed()
        require_compared(task, files, lambda: truth_of(task), progress)
        notes: tuple[str, ...] = ()
    else:
        progress("exporting and verifying graphs with torch")
        files, notes = _export(task)
    arrays = load_tensors(files[PARAMETERS], PARAMETERS)
    trainable = _trainable(files[GRAPH_FILES[GRADIENT]], arrays.keys())
    frozen = sorted(arrays.keys() - set(trainable))
    return Exported(
        files,
        tuple(Parameter(name, arrays[name].shape) for name in trainable),
        tuple(Parameter(name, arrays[name].shape) for name in frozen),
        notes,
    )


def _export(task: Task) -> tuple[dict[str, bytes], tuple[str, ...]]:
    (field, *others) = task.contract.fields
    if others or field.name != "x" or field.dtype != _DTYPE:
        raise UsageError(
            f"The data contract of task {task.model} must have one field: x, of {_DTYPE}. Join several inputs in one "
            "array, and take them apart in the module."
        )
    try:
        from umbel_models.graphs.export import export
    except ImportError as exc:
        raise MissingExtraError("models", "Exporting a torch module") from exc
    module, facts = task.module(), _facts(task)
    try:
        graphs = export(
            module,
            task.loss,
            field.shape,
            trainable=task.trainable,
            bounds=facts.bounds,
            kind=task.kind,
            targets=facts.targets,
            answer=facts.answer,
        )
    except (PackageError, UsageError) as exc:
        raise type(exc)(f"Task {task.model} cannot be packed: {exc}") from exc
    files = {
        INFER: graphs.infer,
        GRAPH_FILES[GRADIENT]: graphs.gradient,
        GRAPH_FILES[CLIPPED_GRADIENT]: graphs.clipped,
        GRAPH_FILES[EXPLAIN]: graphs.explain,
        PARAMETERS: _parameters(module),
    }
    return {name: data for name, data in files.items() if data is not None}, graphs.notes


class _Facts(NamedTuple):
    """What of a task's data its graphs are compared on: see ``export``."""

    bounds: tuple[float, float]
    targets: tuple[float, float] | None
    answer: tuple[int, ...]


def _facts(task: Task) -> _Facts:
    field = task.contract.fields[0]
    bounds = (field.minimum, field.maximum)
    if task.kind != REGRESSION:
        return _Facts(bounds, None, (len(task.labels),))
    y = task.data().calibration.y  # A loss may fail on targets that are unlike the task's.
    return _Facts(bounds, (float(y.min()), float(y.max())), y.shape[1:])


def truth_of(task: Task) -> Truth:
    """Return what torch, which must be installed, says of a task's module at random parameters.

    Raises:
        UsageError: The module cannot be run.
    """
    from umbel_models.graphs.truth import Truth

    facts = _facts(task)
    return Truth(
        task.module(),
        task.loss,
        task.contract.fields[0].shape,
        list(task.trainable) or None,
        facts.bounds,
        kind=task.kind,
        targets=facts.targets,
    )


def parameters_sha256(module: nn.Module) -> str:
    """Return the SHA-256 of a module's ``params.safetensors``: its package's manifest has the same."""
    return hashlib.sha256(_parameters(module)).hexdigest()


def _parameters(module: nn.Module) -> bytes:
    values = {name: value.detach().numpy() for name, value in module.named_parameters()}
    return bytes(safetensors.numpy.save(values))


def _trainable(gradient: bytes, parameters: Container[str]) -> list[str]:
    import onnx

    inputs = [value.name for value in onnx.load_from_string(gradient).graph.input]
    return [name for name in inputs if name in parameters]

"""What a model package says about itself: tensors, files, graphs, variants, data contract, lineage.

Source: docs/spec/package.md, section 2.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_proto.contract import DataContract, Field
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.ids import ModelName, check_name

FORMAT = 2
MAX_MANIFEST_BYTES = 1 << 18
BATCH = "batch"

GRADIENT = "gradient"
"""Graph: parameters, x, y, w -> ``grad.NAME`` for each parameter, loss; means over what w weighs."""

CLIPPED_GRADIENT = "clipped_gradient"
"""Graph: parameters, x, y, w, clip -> ``sum.NAME`` for each parameter, loss, norms; weighted sums, each
example's gradient clipped first."""

EXPLAIN = "explain"
"""Graph: x, baseline, target -> attributions, logits, residual; all parameters external."""

CALIBRATION = "calibration"
"""Graph: x -> ranges of what the int8 graph quantizes; all parameters external."""

GRAPHS = frozenset({GRADIENT, CLIPPED_GRADIENT, EXPLAIN, CALIBRATION})

CARD = "card"
"""Document: what the model is for and how good it is, a CycloneDX ``modelCard`` in JSON."""

BASELINE = "baseline"
"""Document: histograms of what the model was made for, in JSON; what comes later is compared with it."""

DATASHEET = "datasheet"
"""Document: where the data comes from, Markdown."""

QUANTIZATION = "quantization"
"""Document: how ranges and parameters become the tensors of the int8 graph, in JSON."""

DOCUMENTS = frozenset({CARD, BASELINE, DATASHEET, QUANTIZATION})

INSIDE = ""
"""Weights of a variant whose graph is complete in itself."""

FloatVector = NDArray[np.float32]
Scalar = str | int | float

_SHA256 = re.compile(r"[0-9a-f]{64}")
# Nothing that means a folder to anybody who unpacks the archive with another tool.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a package.

    Args:
        sha256: Its hash, 64 hexadecimal digits.
        size: Its length, bytes.
    """

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Parameter:
    """One array of the model's parameters, float32.

    Args:
        name: Its name in every graph and in ``params.safetensors``.
        shape: Its shape.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of the inference graphs.

    Args:
        name: Its name in every variant's graph.
        dtype: Its element type, in numpy's words.
        shape: Its shape; ``"batch"`` stands for the number of examples.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """One form of the model that a device may run.

    Args:
        engine: What runs it: ``onnx``.
        file: Its graph.
        weights: The package's tensor file whose arrays the graph takes by name: ``params.safetensors``, or
            another of its own; ``INSIDE`` where the graph holds them itself.
        tolerance: How far an output may be from the golden one, as a share of the greatest magnitude
            among that output's golden values.
    """

    engine: str
    file: str
    weights: str
    tolerance: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a package declares.

    Args:
        model: The model's name; a fleet holds one line of versions under it.
        version: Grows with every release, >= 1.
        parameters: The parameters that training changes, in the order of the vector that travels in rounds.
        frozen: The parameters that it leaves as they are; they never travel.
        inputs: Inputs of the inference graphs.
        outputs: Their outputs, ``probabilities`` and ``logits``.
        labels: Name of each class, in the order of ``probabilities``.
        contract: What inputs must look like.
        variants: The forms of the model, by name.
        default_variant: The one to run where nothing was measured.
        decision_threshold: Confidence from which a prediction needs no review, in [0, 1].
        graphs: Other graphs by purpose, of ``GRAPHS``.
        documents: Other files by purpose, of ``DOCUMENTS``.
        lineage: Where this version comes from, in flat facts.
        files: Every other file of the package by name; filled in by ``write_package``.
        format: Version of this format.
    """

    model: ModelName
    version: int
    parameters: tuple[Parameter, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    contract: DataContract
    variants: Mapping[str, Variant]
    default_variant: str
    decision_threshold: float
    frozen: tuple[Parameter, ...] = ()
    graphs: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)
    lineage: Mapping[str, Scalar] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        check_name(self.model, "model")
        _require(
            self.format == FORMAT, f"has format {self.format}, and this umbel reads {FORMAT}: update umbel"
        )
        _require(1 <= self.version < 1 << 31, f"has version {self.version}: use 1 or more")
        everything = (*self.parameters, *self.frozen)
        _require(len({p.name for p in everything}) == len(everything), "names a parameter twice")
        _require(all(size >= 1 for p in everything for size in p.shape), "has a parameter without elements")
        _require(self.dim < 1 << 31, f"has {self.dim} parameters, more than 2**31 - 1")
        _require(len(self.labels) >= 2, "has fewer than two labels")
        _require(self.default_variant in self.variants, f"has no variant {self.default_variant!r}")
        _require(0 <= self.decision_threshold <= 1, "has a decision threshold outside [0, 1]")
        for name, variant in self.variants.items():
            check_name(name, "variant")
            _require(0 <= variant.tolerance <= 1, f"gives variant {name} a tolerance outside [0, 1]")
        self._check_purposes()
        inputs = [(spec.name, spec.dtype, spec.shape) for spec in self.inputs]
        promised = [(f.name, f.dtype, (BATCH, *f.shape)) for f in self.contract.fields]
        _require(inputs == promised, "has inputs that its data contract does not describe")
        outputs = {spec.name: spec.shape for spec in self.outputs}
        classes = (BATCH, len(self.labels))
        _require(
            outputs == {"probabilities": classes, "logits": classes},
            f"does not give probabilities and logits of {len(self.labels)} labels",
        )

    def _check_purposes(self) -> None:
        for known, named, what in (
            (GRAPHS, self.graphs, "graph"),
            (DOCUMENTS, self.documents, "document"),
        ):
            odd = sorted(set(named) - known)
            _require(not odd, f"has a {what} for {odd[:1]}, and this umbel knows none: update umbel")
        if GRADIENT in self.graphs or CLIPPED_GRADIENT in self.graphs:
            _require(self.dim >= 1, "has a gradient graph and no parameter to train")
        _require(
            (CALIBRATION in self.graphs) == (QUANTIZATION in self.documents),
            "has a calibration graph without a quantization document, or one without the other",
        )

    @property
    def dim(self) -> int:
        """How many parameters training changes: the length of the vector that travels in rounds."""
        return sum(parameter.size for parameter in self.parameters)

    def split(self, vector: FloatVector) -> dict[str, NDArray[np.float32]]:
        """Cut a vector of the trainable parameters into named arrays, as views where its layout allows.

        Args:
            vector: Shape (dim,).

        Raises:
            UsageError: The vector has another shape: it is not of this model.
        """
        if vector.shape != (self.dim,):
            raise UsageError(
                f"Model {self.model} has {self.dim} parameters, this vector has shape {vector.shape}."
            )
        vector = np.ascontiguousarray(vector, np.float32)
        arrays, offset = {}, 0
        for parameter in self.parameters:
            arrays[parameter.name] = vector[offset : offset + parameter.size].reshape(parameter.shape)
            offset += parameter.size
        return arrays

    def join(self, arrays: Mapping[str, NDArray[Any]]) -> FloatVector:
        """Return the parameter vector, shape (dim,), of named arrays: the inverse of ``split``.

        Raises:
            UsageError: A name, shape or type is not the manifest's, or a value is not finite.
        """
        self._check_arrays(self.parameters, arrays)
        pieces = [arrays[parameter.name].ravel() for parameter in self.parameters]
        return np.concatenate([np.empty(0, np.float32), *pieces])

    def part(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[FloatVector, dict[str, NDArray[np.float32]]]:
        """Return the vector of the trainable parameters, shape (dim,), and the frozen ones by name.

        Args:
            arrays: All parameters of the model, as ``params.safetensors`` holds them.

        Raises:
            UsageError: A name, shape or type is not the manifest's, or a value is not finite.
        """
        self._check_arrays((*self.parameters, *self.frozen), arrays)
        trainable = {parameter.name: arrays[parameter.name] for parameter in self.parameters}
        return self.join(trainable), {parameter.name: arrays[parameter.name] for parameter in self.frozen}

    def _check_arrays(self, parameters: Sequence[Parameter], arrays: Mapping[str, NDArray[Any]]) -> None:
        if set(arrays) != {parameter.name for parameter in parameters}:
            raise UsageError(
                f"These arrays are not the parameters of model {self.model}: their names differ."
            )
        for parameter in parameters:
            array = arrays[parameter.name]
            if array.shape != parameter.shape or array.dtype != np.float32:
                raise UsageError(
                    f"Parameter {parameter.name} of model {self.model} is float32 {parameter.shape}, "
                    f"not {array.dtype} {array.shape}."
                )
            if not np.isfinite(array).all():
                raise UsageError(f"The parameters of model {self.model} hold values that are not finite.")

    def to_json(self) -> bytes:
        """Return the manifest as JSON with sorted keys: the same manifest, the same bytes."""
        body = {
            "format": self.format,
            "model": self.model,
            "version": self.version,
            "parameters": [{"name": p.name, "shape": list(p.shape)} for p in self.parameters],
            "frozen": [{"name": p.name, "shape": list(p.shape)} for p in self.frozen],
            "inputs": [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in self.inputs],
            "outputs": [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in self.outputs],
            "labels": list(self.labels),
            "contract": [
                {
                    "name": f.name,
                    "dtype": f.dtype,
                    "shape": list(f.shape),
                    "minimum": float(f.minimum),
                    "maximum": float(f.maximum),
                    "allow_missing": f.allow_missing,
                    "unit": f.unit,
                }
                for f in self.contract.fields
            ],
            "variants": {
                name: {
                    "engine": v.engine,
                    "file": v.file,
                    "weights": v.weights,
                    "tolerance": float(v.tolerance),
                }
                for name, v in self.variants.items()
            },
            "default_variant": self.default_variant,
            "decision_threshold": float(self.decision_threshold),
            "graphs": dict(self.graphs),
            "documents": dict(self.documents),
            "lineage": dict(self.lineage),
            "files": {name: {"sha256": e.sha256, "size": e.size} for name, e in self.files.items()},
        }
        return json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False).encode()


def parse_manifest(raw: bytes) -> Manifest:
    """Read ``manifest.json``, strictly: every key is known, present once and of its type.

    Raises:
        PackageError: It is anything else.
    """
    if len(raw) > MAX_MANIFEST_BYTES:
        raise PackageError(f"The manifest has {len(raw)} bytes, more than {MAX_MANIFEST_BYTES}.")
    try:
        body = json.loads(
            raw, object_pairs_hook=_object, parse_float=_finite, parse_constant=_refuse_constant
        )
        return _manifest(body)
    except (ValueError, RecursionError, UsageError) as exc:
        raise PackageError(f"The manifest cannot be used: {exc}") from exc


def _manifest(body: object) -> Manifest:
    top = _take(
        body,
        "the manifest",
        format=int, model=str, version=int, parameters=list, frozen=list, inputs=list, outputs=list,
        labels=list, contract=list, variants=dict, default_variant=str, decision_threshold=float,
        graphs=dict, documents=dict, lineage=dict, files=dict,
    )  # fmt: skip
    return Manifest(
        format=top["format"],
        model=ModelName(top["model"]),
        version=top["version"],
        parameters=_parameters(top["parameters"]),
        frozen=_parameters(top["frozen"]),
        inputs=_specs(top["inputs"]),
        outputs=_specs(top["outputs"]),
        labels=tuple(_typed(label, str, "a label") for label in top["labels"]),
        contract=DataContract(tuple(_field(item) for item in top["contract"])),
        variants={name: _variant(item) for name, item in top["variants"].items()},
        default_variant=top["default_variant"],
        decision_threshold=top["decision_threshold"],
        graphs={name: _typed(item, str, "a graph") for name, item in top["graphs"].items()},
        documents={name: _typed(item, str, "a document") for name, item in top["documents"].items()},
        lineage={_typed(name, str, "a fact's name"): _scalar(item) for name, item in top["lineage"].items()},
        files={_file_name(name): _file(item) for name, item in top["files"].items()},
    )


def _parameters(items: list[object]) -> tuple[Parameter, ...]:
    taken = [_take(item, "a parameter", name=str, shape=list) for item in items]
    return tuple(Parameter(p["name"], _shape(p["shape"])) for p in taken)


def _field(item: object) -> Field:
    values = _take(
        item,
        "a contract field",
        name=str, dtype=str, shape=list, minimum=float, maximum=float, allow_missing=bool, unit=str,
    )  # fmt: skip
    return Field(**{**values, "shape": _shape(values["shape"])})


def _variant(item: object) -> Variant:
    return Variant(**_take(item, "a variant", engine=str, file=str, weights=str, tolerance=float))


def _file(item: object) -> FileEntry:
    values = _take(item, "a file", sha256=str, size=int)
    if not _SHA256.fullmatch(values["sha256"]) or values["size"] < 0:
        raise ValueError("a file's hash or size is malformed")
    return FileEntry(**values)


def _file_name(name: str) -> str:
    if not _FILE_NAME.fullmatch(name):
        raise ValueError("a file's name holds something other than letters, digits, dots, dashes")
    return name


def _specs(items: list[object]) -> tuple[TensorSpec, ...]:
    taken = [_take(item, "a tensor", name=str, dtype=str, shape=list) for item in items]
    return tuple(
        TensorSpec(
            t["name"],
            t["dtype"],
            tuple(size if size == BATCH else _typed(size, int, "a dimension") for size in t["shape"]),
        )
        for t in taken
    )


def _shape(sizes: list[object]) -> tuple[int, ...]:
    return tuple(_typed(size, int, "a dimension") for size in sizes)


def _scalar(value: object) -> Scalar:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("lineage holds something other than text and numbers")
    return _typed(value, type(value), "lineage")  # type: ignore[no-any-return]


def _typed(value: object, kind: type[Any], what: str) -> Any:
    # bool is an int to Python, and JSON writes 1.0 and 1 for the same float: neither may pass for the other.
    if type(value) is not kind:
        raise ValueError(f"{what} is {type(value).__name__}, not {kind.__name__}")
    # Names and facts are shown on terminals: no escape sequence, no line break, no half of a character.
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(f"{what} holds characters that cannot be printed")
    return value


def _take(item: object, what: str, **kinds: type[Any]) -> dict[str, Any]:
    values: dict[str, Any] = _typed(item, dict, what)
    if values.keys() != kinds.keys():
        odd = sorted(values.keys() ^ kinds.keys())[0]
        raise ValueError(f"{what} lacks {odd!r} or should not have it")
    return {key: _typed(values[key], kind, f"{key} of {what}") for key, kind in kinds.items()}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands twice")
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of a float's range")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UsageError(f"The manifest {otherwise}.")

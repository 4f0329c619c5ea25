"""What a model package says about itself: tensors, files, graphs, variants, data contract, lineage.

Source: docs/spec/package.md, section 2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_proto.contract import DataContract, Field
from umbel_proto.errors import UsageError
from umbel_proto.ids import ModelName, check_name
from umbel_proto.privacy.stated import check_stated

FORMAT = 2
MAX_MANIFEST_BYTES = 1 << 18
BATCH = "batch"

CLASSIFICATION = "classification"
"""Kind: the model says which of several classes an example is of."""

REGRESSION = "regression"
"""Kind: the model answers with numbers: a measure, a forecast, its input made again."""

OUTPUTS = {CLASSIFICATION: ("probabilities", "logits"), REGRESSION: ("values",)}
"""Outputs of the inference graphs by kind; the first one is the answer."""

GRADIENT = "gradient"
"""Graph: parameters, x, y, w -> ``grad.NAME`` for each parameter, loss; means over what w weighs."""

CLIPPED_GRADIENT = "clipped_gradient"
"""Graph: parameters, x, y, w, clip -> ``sum.NAME`` for each parameter, loss, norms; weighted sums, each
example's gradient clipped first."""

EXPLAIN = "explain"
"""Graph: x, baseline, target -> attributions, logits or values, residual; all parameters external."""

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

_FLOAT = "float32"


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
class Target:
    """What one number of a regression's answer is, for who reads it.

    Args:
        name: Its name.
        unit: Its unit, in words.
    """

    name: str
    unit: str = ""


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
        outputs: Their outputs: ``OUTPUTS`` of the kind.
        contract: What inputs must look like.
        variants: The forms of the model, by name.
        default_variant: The one to run where nothing was measured.
        kind: What it answers with: ``CLASSIFICATION`` or ``REGRESSION``.
        labels: Of a classification, name of each class, in the order of ``probabilities``.
        decision_threshold: Of a classification, confidence from which a prediction needs no review, in [0, 1].
        label_thresholds: Of a classification, the same for single labels, by name, where it is another.
        telemetry_epsilon: By telemetry task, the epsilon with which devices randomize each event; others are counted as
            they are.
        targets: Of a regression, what each number of an answer is, in row-major order; none where nobody said.
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
    contract: DataContract
    variants: Mapping[str, Variant]
    default_variant: str
    kind: str = CLASSIFICATION
    labels: tuple[str, ...] = ()
    decision_threshold: float = 0.0
    label_thresholds: Mapping[str, float] = field(default_factory=dict)
    telemetry_epsilon: Mapping[str, float] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
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
        _require(self.default_variant in self.variants, f"has no variant {self.default_variant!r}")
        for name, variant in self.variants.items():
            check_name(name, "variant")
            _require(0 <= variant.tolerance <= 1, f"gives variant {name} a tolerance outside [0, 1]")
        self._check_purposes()
        inputs = [(spec.name, spec.dtype, spec.shape) for spec in self.inputs]
        promised = [(f.name, f.dtype, (BATCH, *f.shape)) for f in self.contract.fields]
        _require(inputs == promised, "has inputs that its data contract does not describe")
        self._check_answers()
        check_stated(self.telemetry_epsilon, classifies=self.kind == CLASSIFICATION)

    def _check_answers(self) -> None:
        if self.kind == REGRESSION:
            thresholds = self.decision_threshold or self.label_thresholds
            _require(not (self.labels or thresholds), "has labels or a decision threshold")
            names = [spec.name for spec in self.outputs]
            _require(names == list(OUTPUTS[REGRESSION]), f"gives {names[:3]}: a regression gives values")
            (spec,) = self.outputs
            batch, sizes = spec.shape[:1], spec.shape[1:]
            known = all(isinstance(size, int) and size >= 1 for size in sizes)
            _require(
                spec.dtype == _FLOAT and batch == (BATCH,) and known,
                "gives values that are not float32 of shape (batch, ..)",
            )
            named = [target.name for target in self.targets]
            _require(len(set(named)) == len(named), "names a target twice")
            count = math.prod(self.answer_shape)
            _require(
                len(named) in (0, count), f"names {len(named)} targets, and an answer has {count} numbers"
            )
            return
        _require(self.kind == CLASSIFICATION, f"has kind {self.kind!r}: update umbel")
        _require(len(self.labels) >= 2, "has fewer than two labels")
        _require(len(set(self.labels)) == len(self.labels), "names a label twice")
        _require(
            all(0 <= each <= 1 for each in (self.decision_threshold, *self.label_thresholds.values())),
            "has a decision threshold outside [0, 1]",
        )
        _require(
            set(self.label_thresholds) <= set(self.labels), "has a threshold of a label it does not know"
        )
        _require(not self.targets, "names targets, which are of a regression")
        classes = (_FLOAT, (BATCH, len(self.labels)))
        _require(
            {spec.name: (spec.dtype, spec.shape) for spec in self.outputs}
            == dict.fromkeys(OUTPUTS[CLASSIFICATION], classes),
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

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Of each label, the confidence from which a prediction needs no review; empty for a regression."""
        return tuple(self.label_thresholds.get(label, self.decision_threshold) for label in self.labels)

    @property
    def answer(self) -> str:
        """The output that answers: ``probabilities`` or ``values``."""
        return OUTPUTS[self.kind][0]

    @property
    def answer_shape(self) -> tuple[int, ...]:
        """Shape of every output for one example."""
        return tuple(int(size) for size in self.outputs[0].shape[1:])

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
        body: dict[str, Any] = {
            "format": self.format,
            "model": self.model,
            "version": self.version,
            "parameters": [{"name": p.name, "shape": list(p.shape)} for p in self.parameters],
            "frozen": [{"name": p.name, "shape": list(p.shape)} for p in self.frozen],
            "inputs": [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in self.inputs],
            "outputs": [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in self.outputs],
            "contract": [_field_body(f) for f in self.contract.fields],
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
            "graphs": dict(self.graphs),
            "documents": dict(self.documents),
            "lineage": dict(self.lineage),
            "files": {name: {"sha256": e.sha256, "size": e.size} for name, e in self.files.items()},
        }
        if self.telemetry_epsilon:
            body["telemetry_epsilon"] = {k: float(v) for k, v in self.telemetry_epsilon.items()}
        if self.kind == REGRESSION:
            body["kind"] = self.kind
            body["targets"] = [{"name": t.name, "unit": t.unit} for t in self.targets]
        else:
            body["labels"] = list(self.labels)
            body["decision_threshold"] = float(self.decision_threshold)
            if self.label_thresholds:
                body["label_thresholds"] = {k: float(v) for k, v in self.label_thresholds.items()}
        return json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False).encode()


def _field_body(field: Field) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": field.name,
        "dtype": field.dtype,
        "shape": list(field.shape),
        "minimum": float(field.minimum),
        "maximum": float(field.maximum),
        "allow_missing": field.allow_missing,
        "unit": field.unit,
    }
    if field.plain:
        return body
    return {
        **body,
        "action": field.action,
        "max_age_s": float(field.max_age_s),
        "stale": field.stale,
        "columns": [
            {
                "name": c.name,
                "minimum": float(c.minimum),
                "maximum": float(c.maximum),
                "values": [float(value) for value in c.values],
                "allow_missing": c.allow_missing,
                "unit": c.unit,
                "action": c.action,
            }
            for c in field.columns
        ],
    }


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UsageError(f"The manifest {otherwise}.")

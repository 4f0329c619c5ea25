"""Make signed model packages: the first of a task, and the next version from new parameters."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from umbel_models import baseline, int8_gate, tflite
from umbel_models.card import Card, Figures
from umbel_models.confidence import calibrated, confidence
from umbel_models.evaluation import evaluate, evaluate_numbers, evaluate_own
from umbel_models.exported import GRAPH_FILES, INFER, Progress, exported
from umbel_models.requantize import requantize
from umbel_models.task import FIXED_METRICS, Examples, OwnMetric, Task
from umbel_models.variants import open_variant
from umbel_proto.answers import checked_answers
from umbel_proto.contract import Column, DataContract, Field
from umbel_proto.errors import UsageError
from umbel_proto.keys import SigningKey
from umbel_proto.manifest import (
    BASELINE,
    BATCH,
    CALIBRATION,
    CARD,
    DATASHEET,
    INSIDE,
    OUTPUTS,
    QUANTIZATION,
    REGRESSION,
    FloatVector,
    Manifest,
    Scalar,
    TensorSpec,
    Variant,
)
from umbel_proto.package import GOLDEN, PARAMETERS, Package, write_package
from umbel_proto.quantization import (
    CALIBRATION_GRAPH,
    INT8_GRAPH,
    INT8_MAPPING,
    INT8_TENSORS,
    MIN_CALIBRATION,
)
from umbel_proto.tensors import load_tensors

GOLDEN_INPUTS = 16
# Other processors round differently, in the last bits of a float.
FP32_TOLERANCE = 1e-4
# A float that rounds to the neighbouring int8 level moves what follows by a level: 1/127 of its range a
# layer. A wrong kernel or a damaged weight moves it by much more.
INT8_TOLERANCE = 0.1
# LiteRT computes int8 in integers from end to end: its kernels differ by a level or two of the last layer.
LITE_INT8_TOLERANCE = 0.03
_LITE_FILES = (tflite.FLOAT_FILE, tflite.INT8_FILE)
_DOCUMENTS = {CARD: "card.json", BASELINE: "baseline.json"}
DATASHEET_FILE = "datasheet.md"
_EVALUATION_BATCH = 256
# How the facts of a run's privacy begin.
_PRIVACY = ("epsilon", "example_epsilon", "delta", "noise")

Sections = Mapping[str, Figures]
Arrays = dict[str, NDArray[np.float32]]


def _silent(step: str) -> None:
    del step


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """What a new version is judged by.

    Args:
        card: The card without this version's figures.
        examples: What it did not learn from; none where nobody gave any.
        cohorts: Name of each cohort of the examples.
        sections: Sections of the card that others made.
        fitted_on: How many examples the temperature was fitted on; 0 where there is none.
        metrics: The task's own, by name.
    """

    card: Card
    examples: Examples | None
    cohorts: tuple[str, ...]
    sections: Sections
    fitted_on: int = 0
    metrics: Mapping[str, OwnMetric] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """What the variants of a version say.

    Args:
        inputs: Of what they say it: of the examples, or of the calibration inputs where there are none.
        examples: With answers as the manifest wants them.
        answers: Their outputs, by variant and name.
    """

    inputs: NDArray[np.float32]
    examples: Examples | None
    answers: Mapping[str, Arrays]


def build(
    task: Task,
    *,
    key: SigningKey,
    version: int = 1,
    calibration: NDArray[np.float32] | None = None,
    calibration_y: NDArray[Any] | None = None,
    lineage: Mapping[str, Scalar] | None = None,
    sections: Sections | None = None,
    sections_of: str = "",
    lite: bool = False,
    progress: Progress = _silent,
    note: Progress = _silent,
) -> bytes:
    """Return the first package of a task, with its initial parameters.

    An int8 form that loses too much of the task's metric on held-out examples is left out: see ``int8_gate``.

    Args:
        task: The task. Its graphs are exported and verified here, unless they are kept beside it.
        key: The fleet's release key.
        version: The version to give it, >= 1.
        calibration: Inputs to quantize with and to take golden vectors from; by default the task's own.
        calibration_y: Their labels, from which a temperature is fitted; without them there is none.
        lineage: Facts about where it comes from.
        sections: Sections to add to its card: figures by name.
        sections_of: SHA-256 of the ``params.safetensors`` that the sections are about; others are then refused.
        lite: Whether to add TFLite variants, for devices that have LiteRT.
        progress: Told of each step before it begins.
        note: Told what came out otherwise than one might expect, in plain sentences; the card has them too.

    Raises:
        MissingExtraError: Exporting needs torch, or writing TFLite ai-edge-quantizer, and it is not installed.
        UsageError: The module holds what cannot be exported, the task's data breaks its contract, or the sections
            are of other parameters.
        PackageError: A graph does not compute what torch does, or the parts do not fit together.
    """
    progress("reading the task's data")
    data = task.data()
    answer = data.calibration.y.shape[1:] if task.kind == REGRESSION else (len(task.labels),)
    if task.kind == REGRESSION and len(task.targets) not in (0, math.prod(answer)):
        raise UsageError(
            f"Task {task.model} names {len(task.targets)} targets, and an answer has {math.prod(answer)} numbers: name "
            "all of them, or none."
        )
    made = exported(task, progress=progress)
    parameters = load_tensors(made.files[PARAMETERS], PARAMETERS)
    _require_about(sections_of, parameters)
    manifest = Manifest(
        model=task.model,
        version=version,
        parameters=made.trainable,
        frozen=made.frozen,
        inputs=tuple(TensorSpec(f.name, f.dtype, (BATCH, *f.shape)) for f in task.contract.fields),
        outputs=tuple(TensorSpec(name, "float32", (BATCH, *answer)) for name in OUTPUTS[task.kind]),
        kind=task.kind,
        labels=task.labels,
        targets=task.targets,
        contract=task.contract,
        variants={
            "fp32": Variant("onnx", INFER, weights=PARAMETERS, tolerance=FP32_TOLERANCE),
        },
        default_variant="fp32",
        decision_threshold=task.decision_threshold,
        label_thresholds=task.label_thresholds,
        telemetry_epsilon=task.telemetry_epsilon,
        graphs={purpose: name for purpose, name in GRAPH_FILES.items() if name in made.files},
        lineage={"task": task.model, **(lineage or {})},
    )
    names = task.labels or tuple(f"{each.name} {each.unit}".rstrip() for each in task.targets)
    card = Card(task.model, version, task.about, _described(task.contract), names, kind=task.kind)
    inputs, y = (
        (data.calibration.x, data.calibration.y) if calibration is None else (calibration, calibration_y)
    )
    inputs, _ = task.contract.check(inputs)
    progress("preparing int8")
    manifest, added = _quantizable(manifest, made.files, parameters, inputs)
    notes = [*made.notes, *([] if added else [f"There is no int8 form. {manifest.lineage['int8']}"])]
    for sentence in notes:
        note(sentence)
    noted = {"export": {f"note {i}": text for i, text in enumerate(notes, 1)}} if notes else {}
    judged = _Judged(card, data.held_out, task.cohorts, {**noted, **(sections or {})})
    files = {**made.files, **added}
    files, fitted_on = calibrated(manifest, files, parameters, inputs, y)
    judged = replace(judged, fitted_on=fitted_on, metrics=task.metrics)
    if task.about.datasheet:
        manifest = replace(manifest, documents={**manifest.documents, DATASHEET: DATASHEET_FILE})
        files[DATASHEET_FILE] = task.about.datasheet.encode()
    if lite:
        progress("writing TFLite")
        manifest, added = _lite(manifest, files, parameters, inputs)
    return _pack(manifest, {**files, **added}, parameters, inputs, judged, key, progress, note)


def repack(
    base: Package,
    parameters: FloatVector,
    *,
    calibration: NDArray[np.float32],
    calibration_y: NDArray[Any] | None = None,
    version: int,
    key: SigningKey,
    lineage: Mapping[str, Scalar] | None = None,
    held_out: Examples | None = None,
    metrics: Mapping[str, OwnMetric] | None = None,
    sections: Sections | None = None,
    sections_of: str = "",
    progress: Progress = _silent,
    note: Progress = _silent,
) -> bytes:
    """Return the package of new parameters for the model of ``base``: quantized and with golden vectors anew.

    Figures of the base are not of these parameters: the card gets new ones, or none. An int8 form that loses too
    much on ``held_out`` is left out, and from versions that are made from this one too.

    Args:
        base: The package whose graphs, labels and contract to keep.
        parameters: The new trainable parameters, shape (dim,).
        calibration: Inputs to quantize with and to take golden vectors from, shape (n, *example), n >= 16.
        calibration_y: Their labels, shape (n,), from which a temperature is fitted; without them there is none.
        version: The new version, greater than the base's.
        key: The fleet's release key.
        lineage: Facts about where the parameters come from; the base's hash and version are added.
        held_out: Labelled examples to evaluate on.
        metrics: Figures of the task's own to tell of them too, as ``Task.metrics``.
        sections: Sections to add to its card: figures by name.
        sections_of: SHA-256 of the ``params.safetensors`` that the sections are about; others are then refused.
        progress: Told of each step before it begins.
        note: Told what came out otherwise than one might expect, in plain sentences; the card has them too.

    Raises:
        UsageError: The parameters are not the model's, the version is not newer, the calibration inputs or the
            examples break the contract or are too few, or the sections are of other parameters.
        PackageError: The parts do not fit together.
    """
    manifest = base.manifest
    if version <= manifest.version:
        raise UsageError(f"Version {version} is not newer than {manifest.version}, which it is made from.")
    facts = {**(lineage or {}), "base_sha256": base.sha256, "base_version": manifest.version}
    files = {name: base.file(name) for name in manifest.files}
    if CARD not in manifest.documents:
        raise UsageError(
            f"Package {manifest.model} {manifest.version} has no card: build it with this umbel."
        )
    card = Card.from_json(base.file(manifest.documents[CARD]))
    told = {each.kind for each in card.metrics} - FIXED_METRICS - set(metrics or {})
    if told and held_out is not None:
        note(
            f"The card of version {version} does not tell of {', '.join(sorted(told))}, as that of {manifest.version} "
            "does: only the task computes it, so give --task."
        )
    card = replace(card, version=version, metrics=(), sections={})
    manifest = replace(manifest, version=version, lineage=facts)
    arrays = base.split(parameters)
    _require_about(sections_of, arrays)
    files, fitted_on = calibrated(
        manifest, files, arrays, manifest.contract.check(calibration)[0], calibration_y
    )
    judged = _Judged(card, held_out, (), sections or {}, fitted_on, metrics or {})
    if any(variant.engine == "tflite" for variant in manifest.variants.values()):
        progress("writing TFLite")
        inputs, _ = manifest.contract.check(calibration)
        manifest, added = _lite(manifest, files, arrays, inputs)
        files = {name: data for name, data in files.items() if name not in _LITE_FILES} | added
    return _pack(manifest, files, arrays, calibration, judged, key, progress, note)


def _pack(
    manifest: Manifest,
    files: Mapping[str, bytes],
    parameters: Arrays,
    calibration: NDArray[np.float32],
    judged: _Judged,
    key: SigningKey,
    progress: Progress,
    note: Progress,
) -> bytes:
    manifest.part(parameters)  # refuses values that are not finite
    calibration, _ = manifest.contract.check(calibration)
    progress("quantizing to int8")
    contents = {**files, PARAMETERS: safetensors.numpy.save(parameters)}
    if CALIBRATION in manifest.graphs:
        contents[INT8_TENSORS] = safetensors.numpy.save(requantize(files, parameters, calibration))
    progress("evaluating every variant")
    seen = _seen(manifest, contents, calibration, judged.examples)
    said = {name: values[manifest.answer] for name, values in seen.answers.items()}
    figures = int8_gate.figures(manifest, contents, said, seen.examples) if int8_gate.INT8 in said else {}
    why = int8_gate.refused(manifest.kind, said, seen.examples)
    manifest, contents = int8_gate.without(manifest, contents, why)
    seen = replace(seen, answers={name: seen.answers[name] for name in manifest.variants})
    for name, sentence in why.items():
        figures[f"left out {name}"] = sentence
        note(sentence)
    contents[GOLDEN] = golden(manifest, contents, calibration)
    manifest = replace(manifest, documents={**manifest.documents, **_DOCUMENTS})
    return write_package(manifest, contents | _documents(manifest, contents, seen, judged, figures), key)


def _seen(
    manifest: Manifest,
    files: Mapping[str, bytes],
    calibration: NDArray[np.float32],
    examples: Examples | None,
) -> _Seen:
    inputs = calibration
    if examples is not None:
        inputs, _ = manifest.contract.check(examples.x)
        examples = examples._replace(y=checked_answers(manifest, examples.y, len(inputs)))
    answers = {name: run_variant(manifest, files, name, inputs) for name in manifest.variants}
    return _Seen(inputs, examples, answers)


def _require_about(sha256: str, parameters: Arrays) -> None:
    packed = hashlib.sha256(safetensors.numpy.save(parameters)).hexdigest()
    if sha256 and sha256 != packed:
        raise UsageError(
            f"The sections are of the parameters {sha256[:12]}, and those that are packed are {packed[:12]}: run  umbel "
            "model assess --package  on a package of these, and give what it prints."
        )


def _quantizable(
    manifest: Manifest, files: Mapping[str, bytes], parameters: Arrays, calibration: NDArray[np.float32]
) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest with an int8 variant, and its graphs; as it was for a model that has none.

    Raises:
        UsageError: There are too few inputs to calibrate with.
    """
    if len(calibration) < MIN_CALIBRATION:
        raise UsageError(f"Calibration has {len(calibration)} inputs: give at least {MIN_CALIBRATION}.")
    from umbel_models.quantize import skeletons

    try:
        made = skeletons(files[INFER], parameters, calibration)
    except UsageError as exc:
        return replace(manifest, lineage={**manifest.lineage, "int8": f"none: {exc}"}), {}
    int8 = Variant("onnx", INT8_GRAPH, weights=INT8_TENSORS, tolerance=INT8_TOLERANCE)
    manifest = replace(
        manifest,
        variants={**manifest.variants, "int8": int8},
        graphs={**manifest.graphs, CALIBRATION: CALIBRATION_GRAPH},
        documents={**manifest.documents, QUANTIZATION: INT8_MAPPING},
    )
    mapping = json.dumps(made.mapping, sort_keys=True, separators=(",", ":")).encode()
    return manifest, {CALIBRATION_GRAPH: made.calib, INT8_GRAPH: made.int8, INT8_MAPPING: mapping}


def _lite(
    manifest: Manifest, files: Mapping[str, bytes], parameters: Arrays, calibration: NDArray[np.float32]
) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest with TFLite variants, float32 and, where it helps, int8, and their files."""
    made = tflite.variants(files[INFER], parameters, calibration)
    forms = {
        "tflite": (tflite.FLOAT_FILE, FP32_TOLERANCE),
        "tflite-int8": (tflite.INT8_FILE, LITE_INT8_TOLERANCE),
    }
    added = {
        name: Variant("tflite", file, weights=INSIDE, tolerance=tolerance)
        for name, (file, tolerance) in forms.items()
        if file in made
    }
    # Those of a base hold its parameters, and int8 may be refused for these.
    kept = {name: each for name, each in manifest.variants.items() if each.engine != "tflite"}
    return replace(manifest, variants={**kept, **added}), made


def golden(manifest: Manifest, files: Mapping[str, bytes], inputs: NDArray[np.float32]) -> bytes:
    """Return golden vectors: some inputs, and what every variant makes of them here.

    The inputs are the ones every variant is surest of, in turn for each label, so that a device whose
    outputs lie within tolerance also gives the same labels; of a regression, some from end to end.
    """
    outputs = {name: run_variant(manifest, files, name, inputs) for name in manifest.variants}
    if manifest.kind == REGRESSION:
        rows = np.unique(np.linspace(0, len(inputs) - 1, GOLDEN_INPUTS).astype(np.int64))
    else:
        rows = _surest([values["probabilities"] for values in outputs.values()])
    chosen = {
        f"{name}.{key}": value[rows] for name, values in outputs.items() for key, value in values.items()
    }
    return bytes(safetensors.numpy.save({"x": inputs[rows], **chosen}))


def run_variant(
    manifest: Manifest, files: Mapping[str, bytes], variant: str, inputs: NDArray[np.float32]
) -> Arrays:
    """Return the outputs of one variant, by name, each shape (n, *answer).

    Raises:
        PackageError: Its graph cannot be run.
    """
    run = open_variant(manifest, lambda name: files[name], variant)
    # In batches: an evaluation of many examples must fit into memory.
    pieces = [
        run(inputs[begin : begin + _EVALUATION_BATCH]) for begin in range(0, len(inputs), _EVALUATION_BATCH)
    ]
    return {
        name: np.concatenate([piece[i] for piece in pieces]) for i, name in enumerate(OUTPUTS[manifest.kind])
    }


def _documents(
    manifest: Manifest, files: Mapping[str, bytes], seen: _Seen, judged: _Judged, quantization: Figures
) -> dict[str, bytes]:
    """Return the card and the baseline of this version, by file."""
    said = {name: values[manifest.answer] for name, values in seen.answers.items()}
    card, examples = judged.card, seen.examples
    if examples is not None:
        if manifest.kind == REGRESSION:
            metrics = evaluate_numbers(said["fp32"], examples, manifest.targets, judged.cohorts)
        else:
            metrics = evaluate(said["fp32"], examples, manifest.labels, judged.cohorts)
        own = evaluate_own(judged.metrics, said["fp32"], examples)
        card = replace(card, metrics=(*metrics, *own))
    if manifest.kind != REGRESSION:
        worth = confidence(files[manifest.variants["fp32"].file], seen.answers, examples, judged.fitted_on)
        card = card.with_section("confidence", worth)
    if quantization:
        card = card.with_section("quantization", quantization)
    for name, figures in judged.sections.items():
        card = card.with_section(name, figures)
    card = card.with_section("privacy", _privacy(manifest.lineage)).with_section("lineage", manifest.lineage)
    return {
        _DOCUMENTS[CARD]: card.to_json(),
        _DOCUMENTS[BASELINE]: baseline.to_json(
            baseline.baseline(seen.inputs, said[manifest.default_variant], kind=manifest.kind)
        ),
    }


def _privacy(lineage: Mapping[str, Scalar]) -> dict[str, Scalar]:
    figures = {name: value for name, value in lineage.items() if name.startswith(_PRIVACY)}
    return figures or {"guarantee": "none is claimed for these parameters"}


def _described(contract: DataContract) -> str:
    return "; ".join(
        f"{f.name}: {f.dtype} {f.shape}, {', '.join(map(_legal, f.columns)) or _legal(f)}"
        for f in contract.fields
    )


def _legal(of: Field | Column) -> str:
    name = f"{of.name} " if isinstance(of, Column) else ""
    what = f"{len(of.values)} values from" if isinstance(of, Column) and of.values else ""
    return f"{name}{what} {of.minimum:g} to {of.maximum:g} {of.unit}".replace("  ", " ").strip()


def _surest(probabilities: list[NDArray[np.float32]]) -> NDArray[np.int64]:
    margins = []
    for values in probabilities:
        best = np.sort(values, axis=1)
        margins.append(best[:, -1] - best[:, -2])
    order = np.argsort(-np.min(margins, axis=0), kind="stable")
    labels = probabilities[0].argmax(axis=1)
    # The place of each input among those of its label: all first ones come before any second one.
    place = np.empty(len(order), np.int64)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        place[rows] = np.arange(len(rows))
    return np.sort(order[np.argsort(place[order], kind="stable")][:GOLDEN_INPUTS])

"""Is int8 worth packing? What it loses of the task's own metric, on examples that nobody learned from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from umbel_models.task import Examples
from umbel_proto.manifest import CALIBRATION, INSIDE, QUANTIZATION, REGRESSION, Manifest, Scalar

FP32, INT8, LITE_INT8 = "fp32", "int8", "tflite-int8"
MOST_LOST = 0.005
"""Share of the examples that int8 may answer wrongly more than fp32, as a device asks that chooses."""
MOST_GROWN = 0.01
"""How much larger the root mean square error of a regression may be in int8, as a device asks that chooses."""

Said = Mapping[str, NDArray[np.float32]]
"""Answers by variant: probabilities (n, labels), or of a regression values (n, *answer)."""


def refused(kind: str, said: Said, examples: Examples | None) -> dict[str, str]:
    """Return why int8 variants are not packed, a sentence by variant; those that may be are not named.

    Nothing is refused where nothing can be lost: without examples, or where fp32 itself says no more of them than
    somebody who always gives the commonest label, or the mean of the targets. So the parameters that a model line
    begins with, mostly untrained, do not decide by chance what its later versions hold.

    Args:
        kind: What the model answers with.
        said: What every variant says of the examples.
        examples: With labels, or targets; None where nobody gave any.
    """
    if examples is None or not learned(kind, said[FP32], examples):
        return {}
    judged = [name for name in (INT8, LITE_INT8) if name in said]
    why = {
        name: _grown(name, said, examples) if kind == REGRESSION else _lost(name, said, examples)
        for name in judged
    }
    return {name: sentence for name, sentence in why.items() if sentence}


def learned(kind: str, said: NDArray[np.float32], examples: Examples) -> bool:
    """Whether answers say more of the examples than always the same answer would."""
    if kind == REGRESSION:
        return _rms(said - examples.y) < _rms(examples.y - examples.y.mean(0, dtype=np.float64))
    return int(_right(said, examples).sum()) > int(np.bincount(examples.y).max())


def without(
    manifest: Manifest, files: Mapping[str, bytes], why: Mapping[str, str]
) -> tuple[Manifest, dict[str, bytes]]:
    """Return a package's manifest and files without some variants, and without what only they need.

    Args:
        manifest: The package's.
        files: Its files by name.
        why: The variants, and why each is left out: the manifest's lineage says so.
    """
    if not why:
        return manifest, dict(files)
    graphs, documents = dict(manifest.graphs), dict(manifest.documents)
    dropped = [manifest.variants[name] for name in why]
    gone = {name for each in dropped for name in (each.file, each.weights)} - {INSIDE}
    if INT8 in why:
        gone |= {graphs.pop(CALIBRATION), documents.pop(QUANTIZATION)}
    manifest = replace(
        manifest,
        variants={name: each for name, each in manifest.variants.items() if name not in why},
        graphs=graphs,
        documents=documents,
        lineage={**manifest.lineage, **{name: f"none: {sentence}" for name, sentence in why.items()}},
    )
    return manifest, {name: data for name, data in files.items() if name not in gone}


def figures(
    manifest: Manifest, files: Mapping[str, bytes], said: Said, examples: Examples | None
) -> dict[str, Scalar]:
    """Return what int8 costs and saves, for the model card: bytes, and how good each form is.

    Args:
        manifest: The package's, with all variants that were made.
        files: Its files by name.
        said: What every variant says of the examples, or of other inputs where there are none.
        examples: With labels or targets.
    """
    found: dict[str, Scalar] = {}
    for name, variant in manifest.variants.items():
        weights = 0 if variant.weights == INSIDE else len(files[variant.weights])
        found[f"bytes {name}"] = len(files[variant.file]) + weights
    if examples is not None and not learned(manifest.kind, said[FP32], examples):
        found["judged"] = "no: fp32 says no more of the held-out examples than always the same answer would"
    if manifest.kind == REGRESSION:
        return {**found, **_growth(said, examples)}
    agree = said[INT8].argmax(1) == said[FP32].argmax(1)
    found["share of equal answers int8"] = float(agree.mean())
    if examples is not None:
        found |= {f"accuracy {name}": float(_right(each, examples).mean()) for name, each in said.items()}
    return found


def _growth(said: Said, examples: Examples | None) -> dict[str, Scalar]:
    """Return how much larger than fp32's the error of each form is; without examples, how far apart they are."""
    if examples is None:
        return {f"root mean square from fp32 {name}": _rms(each - said[FP32]) for name, each in said.items()}
    errors = {name: _rms(each - examples.y) for name, each in said.items()}
    found: dict[str, Scalar] = {f"root mean squared error {name}": error for name, error in errors.items()}
    if errors[FP32]:
        found |= {f"growth of error {name}": errors[name] / errors[FP32] - 1 for name in said if name != FP32}
    return found


def _lost(name: str, said: Said, examples: Examples) -> str:
    before, after = (int(_right(said[form], examples).sum()) for form in (FP32, name))
    count = len(examples.y)
    if before - after <= MOST_LOST * count:
        return ""
    return _sentence(
        f"{name} loses {100 * (before - after) / count:.1f} points of accuracy on {count:,} held-out examples "
        f"({100 * before / count:.1f} to {100 * after / count:.1f} %), more than {100 * MOST_LOST:g}"
    )


def _grown(name: str, said: Said, examples: Examples) -> str:
    before, after = (_rms(said[form] - examples.y) for form in (FP32, name))
    if after <= (1 + MOST_GROWN) * before:
        return ""
    larger = f"{100 * (after / before - 1):.1f} % larger" if before else "no longer 0"
    return _sentence(
        f"The root mean squared error of {name} is {larger} on {len(examples.y):,} held-out examples ({before:.4g} to "
        f"{after:.4g}), more than {100 * MOST_GROWN:g} % larger"
    )


def _sentence(what: str) -> str:
    return f"{what}: the package has none of it. Calibrate with inputs like those it will meet, without outliers."


def _right(probabilities: NDArray[np.float32], examples: Examples) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = probabilities.argmax(1) == examples.y
    return right


def _rms(values: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))

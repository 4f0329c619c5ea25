"""The temperature of a package: fitted when it is packed, put into its graphs, and told in its card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from umbel_models.calibration import Scores, calibration_error, fitted, softmax
from umbel_models.task import Examples
from umbel_models.tempering import temperature_of, tempered
from umbel_models.variants import open_variant
from umbel_proto.answers import checked_answers
from umbel_proto.manifest import OUTPUTS, REGRESSION, Manifest, Scalar
from umbel_proto.package import PARAMETERS

_BATCH = 256


def calibrated(
    manifest: Manifest,
    files: Mapping[str, bytes],
    parameters: Mapping[str, NDArray[np.float32]],
    inputs: NDArray[np.float32],
    y: NDArray[Any] | None,
) -> tuple[dict[str, bytes], int]:
    """Return the files with a temperature of these parameters in each ONNX variant, and on how many labels it was fitted.

    A temperature of other parameters is taken out. TFLite is written after it, from the same graph.

    Args:
        manifest: The package's; its first ONNX variants need be there only.
        files: Its files by name, as far as they are made.
        parameters: The parameters, by name.
        inputs: Examples that trained nothing and measure nothing, as the contract passes them, shape (n, *example).
        y: Their labels, shape (n,); None where nobody knows them: then there is no temperature.

    Raises:
        UsageError: The labels are not one for each input.
    """
    if manifest.kind == REGRESSION:
        return dict(files), 0
    graphs = {form.file for form in manifest.variants.values() if form.engine == "onnx"}
    # Left alone byte by byte where there is nothing to change.
    plain = {
        name: tempered(files[name], 1.0) if temperature_of(files[name]) != 1.0 else files[name]
        for name in graphs
    }
    whole = {**files, **plain}
    if y is None:
        return whole, 0
    y = checked_answers(manifest, y, len(inputs))
    with_parameters = {**whole, PARAMETERS: safetensors.numpy.save(dict(parameters))}
    run, place = (
        open_variant(manifest, with_parameters.__getitem__, "fp32"),
        OUTPUTS[manifest.kind].index("logits"),
    )
    logits = np.concatenate(
        [run(inputs[begin : begin + _BATCH])[place] for begin in range(0, len(y), _BATCH)]
    )
    found = fitted(Scores(logits, y))
    if found == 1.0:
        return whole, 0
    return {**whole, **{name: tempered(whole[name], found) for name in graphs}}, len(y)


def confidence(
    graph: bytes,
    answers: Mapping[str, Mapping[str, NDArray[np.float32]]],
    examples: Examples | None,
    fitted_on: int,
) -> dict[str, Scalar]:
    """Return what confidence is worth, before and after the temperature, on what it was not fitted on.

    Args:
        graph: The graph of fp32.
        answers: The outputs of every variant for the examples, by name.
        examples: What accuracy is measured on; None where nobody gave any.
        fitted_on: How many others the temperature was fitted on.
    """
    figures: dict[str, Scalar] = {
        "temperature": round(temperature_of(graph), 4),
        "fitted on examples": fitted_on,
    }
    if examples is not None:
        before = softmax(answers["fp32"]["logits"])
        figures["calibration error before"] = round(calibration_error(before, examples.y), 4)
        for name, values in answers.items():
            after = calibration_error(values["probabilities"].astype(np.float64), examples.y)
            figures[f"calibration error {name}"] = round(after, 4)
    return figures

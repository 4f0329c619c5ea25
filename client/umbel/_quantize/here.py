"""``Model.quantize``: make int8 of a package with local samples, try it here, and keep what is faster and agrees."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from umbel._quantize.quantize import MIN_HELD_BACK, calibrated, int8_variant
from umbel._quantize.report import Quantization, QuantizedForm, reason
from umbel._releases.choice import Choice, Clock, choose, decide
from umbel._releases.kept import Kept, forms, graphs_of, same_on_golden
from umbel.engines import Engine
from umbel.engines.onnx import OnnxEngine
from umbel_proto.answers import checked_answers
from umbel_proto.errors import UsageError
from umbel_proto.manifest import INSIDE
from umbel_proto.package import Package
from umbel_proto.quantization import MIN_CALIBRATION

if TYPE_CHECKING:
    from umbel._predict.listeners import Window
    from umbel._predict.loaded import Loaded

MIN_SAMPLES = MIN_CALIBRATION + MIN_HELD_BACK
_HELD_BACK = 4
_ORDER = 0
"""The seed of which samples are held back: the same samples, the same choice of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What came of quantizing a version of a model.

    Args:
        report: What the application is told.
        choice: What was measured.
        kept: What is to be remembered; None where what ran goes on.
        engine: What is to run from now on.
    """

    report: Quantization
    choice: Choice = field(repr=False)
    kept: Kept | None = field(repr=False)
    engine: Engine = field(repr=False)


def quantize_here(loaded: Loaded, x: object, y: object, *, clock: Clock = time.perf_counter) -> Made:
    """See ``Model.quantize``.

    Args:
        loaded: The version that answers.
        x: Samples of this device, shape (n, *example), n >= 32.
        y: What is right of each, or None.
        clock: What forms are timed with, seconds.
    """
    begin = clock()
    package = loaded.package
    manifest = package.manifest
    own, reference = int8_variant(package), manifest.default_variant
    inputs, _ = manifest.contract.check(x)
    if len(inputs) < MIN_SAMPLES:
        raise UsageError(f"{len(inputs)} samples are too few to quantize with: give at least {MIN_SAMPLES}.")
    right = None if y is None else checked_answers(manifest, y, len(inputs))
    used, held = parts(len(inputs))
    options = loaded.engine.options if isinstance(loaded.engine, OnnxEngine) else None
    tensors, ranges = calibrated(package, package.parameters(), inputs[used])
    engines = forms(package, OnnxEngine(package, own, tensors, options=options), loaded.engine)
    choice = choose(
        engines,
        inputs[held],
        None if right is None else right[held],
        reference=reference,
        kind=manifest.kind,
        clock=clock,
    )
    golden = same_on_golden(package, engines[own])
    name = choice.variant if golden or choice.variant != own else _without(choice, own, reference)
    sizes = {
        form: _bytes(package, engine, tensors if form == own else None) for form, engine in engines.items()
    }
    report = Quantization(
        name,
        reason(own, name, reference, choice.measured, golden=golden, held_back=len(held)),
        tuple(
            QuantizedForm.of(form, engines[form], sizes[form], shown)
            for form, shown in choice.measured.items()
        ),
        len(held),
        clock() - begin,
    )
    kept = None
    if engines[name] is not loaded.engine:
        variant = engines[name].variant
        kept = Kept(package.sha256, graphs_of(package), variant, name == own, tensors, ranges)
    return Made(report, choice, kept, engines[name])


def tell(window: Window, shown: QuantizedForm, *, chosen: bool, held_back: int) -> None:
    """Count what a form showed: sums over devices say how often, how fast and how alike."""
    window.count("quantize.measured")
    window.count("quantize.latency_ns", max(1, round(1000 * shown.latency_us)))
    if shown.agreement is not None:
        window.count("quantize.compared", held_back)
        window.count("quantize.agreed", round(shown.agreement * held_back))
    if chosen:
        window.count("quantize.chosen")


def parts(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which samples to calibrate with, and which to hold back: a quarter, and 16 at least."""
    order = np.random.default_rng(_ORDER).permutation(count)
    held = max(MIN_HELD_BACK, count // _HELD_BACK)
    return order[held:], order[:held]


def _without(choice: Choice, own: str, reference: str) -> str:
    left = {name: shown for name, shown in choice.measured.items() if name != own}
    return decide(left, reference=reference)


def _bytes(package: Package, engine: Engine, tensors: dict[str, NDArray[Any]] | None) -> int:
    form = package.manifest.variants[engine.variant]
    graph = package.manifest.files[form.file].size
    if tensors is not None:
        return graph + sum(value.nbytes for value in tensors.values())
    return graph + (0 if form.weights == INSIDE else package.manifest.files[form.weights].size)

"""How fast, how large and how right every form of a package is on this machine: ``umbel model bench``.

Latency is that of the runtime alone, on one thread, as a device sets it up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_models.exported import Progress
from umbel_models.runtime import Session
from umbel_models.show import table, total_bytes
from umbel_models.variants import open_variant
from umbel_proto.errors import MissingExtraError
from umbel_proto.manifest import CLASSIFICATION, CLIPPED_GRADIENT, EXPLAIN, GRADIENT, INSIDE, REGRESSION
from umbel_proto.package import GOLDEN, Package

BATCHES = (1, 64)
TRAINING_BATCH = 32
MEASURING_S = 0.3
MIN_RUNS = 30

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one call takes, microseconds.

    Args:
        p50: The median.
        p95: The time that one call in twenty exceeds.
    """

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Form:
    """One variant, measured.

    Args:
        engine: What runs it.
        bytes: Size of its graph and weights.
        agreement: Share of the golden inputs to which it gives the label that the default variant gave when the
            package was made; None for a model that answers with numbers.
        difference: The greatest difference of a probability or number from the default variant's on the golden inputs.
        latency_us: By batch size.
    """

    engine: str
    bytes: int
    agreement: float | None
    difference: float
    latency_us: Mapping[int, Latency]


@dataclass(frozen=True, slots=True)
class Measured:
    """A package, measured.

    Args:
        model: The model.
        version: Its version.
        default_variant: The variant whose answers the others' are compared with.
        variants: Its variants, by name.
        graphs: Latency of a training step's graph at batch 32, and of an explanation, by purpose.
        skipped: Why a variant was not measured, by name.
    """

    model: str
    version: int
    default_variant: str
    variants: Mapping[str, Form]
    graphs: Mapping[str, Latency]
    skipped: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the lines of a terminal."""
        head = ("variant", "engine", "bytes", "equal labels", "difference")
        timed = [f"batch {size}, us" for size in BATCHES]
        rows = [
            (
                name,
                form.engine,
                f"{form.bytes:,}",
                "" if form.agreement is None else f"{form.agreement:.1%}",
                f"{form.difference:.1e}",
                *(text for size in BATCHES for text in _shown(form.latency_us[size])),
            )
            for name, form in self.variants.items()
        ]
        found = table((*head, *(part for text in timed for part in (text, "p95"))), rows)
        found.append(f"Equal labels and differences are from {self.default_variant}, the package's default.")
        if self.graphs:
            graphs = [(purpose, *_shown(latency)) for purpose, latency in self.graphs.items()]
            found += ["", *table(("graph", "us", "p95"), graphs)]
        return found + [f"{name} was not measured: {why}" for name, why in self.skipped.items()]


def measure(package: Package, *, progress: Progress, clock: Clock = time.perf_counter) -> Measured:
    """Return what every variant and graph of a package costs here.

    Args:
        package: The package, verified.
        progress: Told of each step before it begins.
        clock: What calls are timed with, seconds.

    Raises:
        PackageError: A graph cannot be run.
    """
    manifest = package.manifest
    golden = package.tensors(GOLDEN)
    variants, skipped = {}, {}
    for name, form in manifest.variants.items():
        progress(f"variant {name}")
        try:
            run = open_variant(manifest, package.file, name)
        except MissingExtraError as exc:
            skipped[name] = str(exc)
            continue
        said, reference = run(golden["x"])[0], golden[f"{manifest.default_variant}.{manifest.answer}"]
        equal = (said.argmax(1) == reference.argmax(1)).mean() if manifest.kind == CLASSIFICATION else None
        files = [form.file] if form.weights == INSIDE else [form.file, form.weights]
        variants[name] = Form(
            engine=form.engine,
            bytes=total_bytes(manifest.files, files),
            agreement=None if equal is None else float(equal),
            difference=float(np.abs(said - reference).max()),
            latency_us={size: _time(run, _rows(golden["x"], size), clock) for size in BATCHES},
        )
    graphs = {}
    for purpose in (GRADIENT, CLIPPED_GRADIENT, EXPLAIN):
        if purpose in manifest.graphs:
            progress(f"graph {purpose}")
            graphs[purpose] = _graph(package, purpose, golden["x"], clock)
    return Measured(manifest.model, manifest.version, manifest.default_variant, variants, graphs, skipped)


def _graph(package: Package, purpose: str, x: NDArray[Any], clock: Clock) -> Latency:
    manifest = package.manifest
    parameters, name = manifest.split(package.parameters()), manifest.inputs[0].name
    if purpose == EXPLAIN:
        x = _rows(x, 1)
        feed = {name: x, "baseline": np.zeros_like(x), "target": np.zeros(1, np.int64)}
        external, outputs = {**parameters, **package.frozen()}, ["attributions"]
    else:
        x = _rows(x, TRAINING_BATCH)
        weights = np.ones(TRAINING_BATCH, np.float32)
        y = (
            np.zeros((TRAINING_BATCH, *manifest.answer_shape), np.float32)
            if manifest.kind == REGRESSION
            else np.zeros(TRAINING_BATCH, np.int64)
        )
        feed = {name: x, "y": y, "w": weights, **parameters}
        prefix = "grad" if purpose == GRADIENT else "sum"
        if purpose == CLIPPED_GRADIENT:
            feed["clip"] = np.array(1, np.float32)
        external, outputs = package.frozen(), [*(f"{prefix}.{each}" for each in parameters), "loss"]
    session = Session(package.file(manifest.graphs[purpose]), external)
    return _time(lambda _: session.run(outputs, feed), x, clock)


def _time(run: Callable[[NDArray[Any]], object], x: NDArray[Any], clock: Clock) -> Latency:
    for _ in range(MIN_RUNS // 5):
        run(x)
    taken: list[float] = []
    end = clock() + MEASURING_S
    while len(taken) < MIN_RUNS or clock() < end:
        begin = clock()
        run(x)
        taken.append(1e6 * (clock() - begin))
    return Latency(*(float(value) for value in np.quantile(taken, (0.5, 0.95))))


def _rows(x: NDArray[Any], count: int) -> NDArray[Any]:
    return np.ascontiguousarray(np.resize(x, (count, *x.shape[1:])))


def _shown(latency: Latency) -> tuple[str, str]:
    return f"{latency.p50:,.1f}", f"{latency.p95:,.1f}"

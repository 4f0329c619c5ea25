"""Engines run one variant of a model. They know nothing of telemetry, decisions or files."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import MissingExtraError, PackageError, UsageError

if TYPE_CHECKING:
    from umbel_proto.package import Package

Answers = NDArray[np.float32]
"""Of a classification class probabilities, shape (n, classes), each row of sum 1; else values, (n, *answer)."""

Outputs = dict[str, NDArray[np.float32]]
"""All that a graph computes of a batch, by name: ``umbel_proto.manifest.OUTPUTS``."""

MAX_THREADS = 1024
"""More than any machine computes one prediction with; a runtime that cannot start them all says so in riddles."""
SEAT_BYTES = 256 * 1024
"""An example larger than this has no seat: to copy it would cost more than a seat saves."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine may use the device. The default suits small models on shared processors.

    Args:
        threads: Threads that compute one prediction, 1 to 1024. Two make a small model slower, not faster.
        providers: What onnxruntime computes with, the best first; LiteRT always takes the processor.
        arena: Whether onnxruntime keeps the memory that a prediction took for the next one. Without it a
            process stays smaller, and a prediction takes longer.
        arena_bytes: The most memory that onnxruntime takes for a model's predictions, the parameters it packs
            included; None for any. One that needs more fails.

    Raises:
        UsageError: There is no thread or too many, nothing to compute with, or a limit on what is not there.
    """

    threads: int = 1
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    arena: bool = True
    arena_bytes: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "threads", _whole("threads", self.threads))
        if self.arena_bytes is not None:
            object.__setattr__(self, "arena_bytes", _whole("arena_bytes", self.arena_bytes))
        if not 1 <= self.threads <= MAX_THREADS:
            raise UsageError(
                f"An engine cannot compute with {self.threads} threads: give it 1 to {MAX_THREADS}."
            )
        given: object = self.providers
        if isinstance(given, str):  # Every letter of it would be a provider.
            raise UsageError("providers is one text: give a tuple of names, the best first.")
        object.__setattr__(self, "providers", tuple(self.providers))  # A list cannot be told from another.
        if not self.providers:
            raise UsageError("An engine needs something to compute with: name a provider, or leave them out.")
        if self.arena_bytes is not None and not (self.arena and self.arena_bytes >= 1):
            raise UsageError(
                f"An arena of {self.arena_bytes} bytes cannot be: give 1 or more, and leave the arena on."
            )


def _whole(name: str, count: object) -> int:
    """Return a whole number of Python's or numpy's.

    Raises:
        UsageError: It is none.
    """
    try:
        if not isinstance(count, bool):
            return operator.index(count)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise UsageError(f"{name} is {count!r:.40}: give a whole number.")


@dataclass(frozen=True, slots=True, eq=False)
class Seat:
    """One thread's place at an engine: an example in, its answer out, nothing made in between.

    Args:
        example: What the next run reads, shape (1, *example): write it in place.
        answer: What the last run said, shape (1, *answer): the next one writes over it.
        run: Computes the answer.
        keeps: What must not end before the seat does.
        brief_s: Threads that ask without rest are sooner done one after another where a run takes less of its thread's
            time, seconds; 0: never.
    """

    example: NDArray[Any]
    answer: NDArray[np.float32]
    run: Callable[[], object]
    keeps: object = None
    brief_s: float = 0.0


class Engine(Protocol):
    """One variant, loaded. Any number of threads may call it at once."""

    @property
    def name(self) -> str:
        """The engine, as manifests and telemetry call it."""

    @property
    def variant(self) -> str:
        """The variant it runs."""

    def answers(self, x: NDArray[Any]) -> Answers:
        """Return probabilities or values, shape (n, *answer).

        Args:
            x: A batch that has passed the data contract, shape (n, *example), n >= 1.
        """

    def outputs(self, x: NDArray[Any]) -> Outputs:
        """Return everything the graph computes of a batch, shape (n, *example), n >= 1."""

    def seat(self) -> Seat | None:
        """Return a new seat, for the thread that asks alone; None where ``answers`` is as fast."""


def require_options(options: EngineOptions | None) -> None:
    """Refuse what is no options, such as an engine's name.

    Raises:
        UsageError: It is not.
    """
    given: object = options
    if given is not None and not isinstance(given, EngineOptions):
        raise UsageError(
            f"engine is {given!r}: give EngineOptions(threads=...), or leave it out. The variant decides what computes it."
        )


def load_engine(
    package: Package, variant: str | None = None, *, options: EngineOptions | None = None
) -> Engine:
    """Load a variant of a package; by default the one its manifest prefers.

    Raises:
        UsageError: The package has no such variant, or this device not what the options name.
        MissingExtraError: Its engine is not installed.
        PackageError: No engine of this umbel runs it, or its graph cannot be loaded.
    """
    manifest = package.manifest
    name = variant or manifest.default_variant
    if name not in manifest.variants:
        known = ", ".join(sorted(manifest.variants))
        raise UsageError(
            f"Model {manifest.model} {manifest.version} has no variant {name!r}: choose {known}."
        )
    options = options or EngineOptions()
    # Loading a runtime takes longer than all of umbel: only who predicts pays for it.
    match manifest.variants[name].engine:
        case "onnx":
            from umbel.engines.onnx import OnnxEngine

            return OnnxEngine(package, name, options=options)
        case "tflite":
            try:
                from umbel.engines.tflite import TfliteEngine
            except ImportError as exc:
                raise MissingExtraError("tflite", f"Variant {name} of {manifest.model}") from exc
            return TfliteEngine(package, name, options=options)
        case engine:
            raise PackageError(
                f"Variant {name} of {manifest.model} needs the engine {engine!r}: update umbel."
            )


def answer_shape(package: Package) -> tuple[int, ...]:
    """Return the shape of one example's answer."""
    return tuple(int(size) for size in package.manifest.outputs[0].shape[1:])

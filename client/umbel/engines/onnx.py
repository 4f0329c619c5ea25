"""onnxruntime, set up for small models on shared processors: one thread that never spins."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from umbel._fork import Lock, leave_alone, renew_in_child
from umbel.engines import SEAT_BYTES, Answers, EngineOptions, Outputs, Seat, answer_shape
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.manifest import OUTPUTS

if TYPE_CHECKING:
    from umbel_proto.package import Package

PROCESSOR = ("CPUExecutionProvider",)
BRIEF_S = 12e-6
"""Of eight threads on two processors, digits' 9 microseconds are sooner done in turn, its 15 of int8 side by side."""
_registering = Lock()


def open_session(
    graph: bytes | str,
    what: str,
    parameters: Mapping[str, NDArray[Any]] | None = None,
    *,
    optimized: bool = True,
    planned: bool = True,
    options: EngineOptions | None = None,
) -> ort.InferenceSession:
    """Open a graph on one thread, or as the options say.

    Two threads make small models slower, and a spinning one takes a core from the application.

    Args:
        graph: A serialized ONNX model, or the path of its file.
        what: Its name, for the error's sentence.
        parameters: Values of its external initializers, by name. onnxruntime copies them.
        optimized: Whether onnxruntime may rearrange the graph. Calibration forbids it: every activation then
            has the bits that onnxruntime's own quantizer sees.
        planned: Whether onnxruntime plans one block of memory for each shape of the inputs, beside the pieces
            that a first run took. It saves microseconds and costs a training half as much memory again.
        options: How it may use the device.

    Raises:
        UsageError: This device has no such provider.
        PackageError: onnxruntime cannot run it.
    """
    options = options or EngineOptions()
    unknown = sorted({*options.providers} - {*ort.get_available_providers()})
    if unknown:
        raise UsageError(
            f"onnxruntime {ort.__version__} has no {unknown[0]} here: choose of "
            f"{', '.join(ort.get_available_providers())}."
        )
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.log_severity_level = 4  # What is only an error is raised, and said in a sentence.
    settings.enable_mem_pattern = planned
    settings.enable_cpu_mem_arena = options.arena
    if not optimized:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if parameters:
        # np.ascontiguousarray would give a scalar a dimension.
        values = [
            ort.OrtValue.ortvalue_from_numpy(np.asarray(value, order="C")) for value in parameters.values()
        ]
        settings.add_external_initializers(list(parameters), values)
    try:
        with _limited(settings, options.arena_bytes):
            # Its fall-back is the processor: where that is what failed, it would only try again, and print so.
            return ort.InferenceSession(
                graph,
                settings,
                providers=list(options.providers),
                enable_fallback=options.providers != PROCESSOR,
            )
    except Exception as exc:  # onnxruntime's exceptions share no other base class
        raise PackageError(
            f"onnxruntime {ort.__version__} cannot run {what}: update umbel, or report the package."
        ) from exc


@contextlib.contextmanager
def _limited(settings: ort.SessionOptions, arena_bytes: int | None) -> Iterator[None]:
    """A block in which a session that is opened takes no more memory.

    onnxruntime bounds the memory of its environment, not of a session; a session keeps to what it found there.
    """
    if arena_bytes is None:
        yield
        return
    with _registering:
        bounds = ort.OrtArenaCfg({"max_mem": arena_bytes, "arena_extend_strategy": 1})
        memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        ort.create_and_register_allocator(memory, bounds)
        settings.add_session_config_entry("session.use_env_allocators", "1")
        yield


class OnnxEngine:
    """A variant of a package in onnxruntime.

    Args:
        package: The package.
        variant: One of its variants.
        weights: Arrays to run it with, by name, instead of the package's: what this device has learned.
        options: How it may use the device.

    Raises:
        UsageError: This device has not what the options name.
        PackageError: onnxruntime cannot run its graph.
    """

    name = "onnx"

    def __init__(
        self,
        package: Package,
        variant: str,
        weights: Mapping[str, NDArray[Any]] | None = None,
        *,
        options: EngineOptions | None = None,
    ) -> None:
        self._package = package
        self._weights = weights
        self._options = options
        self._input = package.manifest.inputs[0].name
        self._outputs = list(OUTPUTS[package.manifest.kind])
        self._variant = variant
        self._session: ort.InferenceSession | None = self._open()
        renew_in_child(self._renew)

    @property
    def variant(self) -> str:
        """The variant it runs."""
        return self._variant

    @property
    def options(self) -> EngineOptions | None:
        """How it may use the device; None for the defaults."""
        return self._options

    def answers(self, x: NDArray[Any]) -> Answers:
        """Return probabilities or values, shape (n, *answer), of a batch, shape (n, *example)."""
        result: list[Answers] = self._opened().run(self._outputs[:1], {self._input: x})
        return result[0]

    def outputs(self, x: NDArray[Any]) -> Outputs:
        """Return every output of a batch, shape (n, *example), by name."""
        return dict(zip(self._outputs, self._opened().run(self._outputs, {self._input: x}), strict=True))

    def seat(self) -> Seat | None:
        """Return a new seat; None for a large example, or where the processor's memory is not the engine's."""
        field = self._package.manifest.contract.fields[0]
        example = np.zeros((1, *field.shape), field.dtype)
        session = self._opened()
        if example.nbytes > SEAT_BYTES or session.get_providers() != ["CPUExecutionProvider"]:
            return None
        answer = np.zeros((1, *answer_shape(self._package)), np.float32)
        binding = session.io_binding()
        binding.bind_cpu_input(self._input, example)
        binding.bind_output(self._outputs[0], "cpu", 0, np.float32, list(answer.shape), answer.ctypes.data)
        alone = (self._options or EngineOptions()).threads == 1
        return Seat(example, answer, _runner(session, binding), brief_s=BRIEF_S if alone else 0.0)

    def _renew(self) -> None:
        """In a forked process: open a session of its own when it is first asked for."""
        if self._session is not None:
            leave_alone(self._session)
        self._session = None

    def _opened(self) -> ort.InferenceSession:
        # Two threads may both open one here: the later one stays, and both are right.
        session = self._session
        if session is None:
            session = self._session = self._open()
        return session

    def _open(self) -> ort.InferenceSession:
        form = self._package.manifest.variants[self._variant]
        arrays = self._package.weights(self._variant) if self._weights is None else self._weights
        return open_session(self._package.file(form.file), form.file, arrays, options=self._options)


def _runner(session: ort.InferenceSession, binding: ort.IOBinding) -> Callable[[], object]:
    """Return what runs a binding.

    The public method looks at every call for what only graphics processors need, which takes longer than a
    small model does. Where its inside is not what it was, the public one serves.
    """
    try:
        return functools.partial(session._sess.run_with_iobinding, binding._iobinding, None)
    except AttributeError:
        return functools.partial(session.run_with_iobinding, binding)

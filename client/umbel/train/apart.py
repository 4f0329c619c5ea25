"""Training in a process of its own, for a device that does something else as well.

Its memory goes back whole when it ends, it computes only when nobody else wants to, the system takes it first when
memory runs out, and it is ended at once when the device may not train any more.
"""

from __future__ import annotations

import contextlib
import logging
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel._data.examples import Examples
from umbel._rounds.load import OwnLoad
from umbel.train import METER, Controls, DivergedError, Ended, Meter, TrainPlan, TrainResult
from umbel.train.descent import Work
from umbel.train.graph import Signature
from umbel.train.pipe import EVERY_S, FORM, FROZEN, Arrays, Pipe, PipeError
from umbel.train.prepare import prepare
from umbel.train.start import NoPythonError, Running, start_worker
from umbel_proto.errors import PackageError, UmbelError, UnavailableError, UsageError
from umbel_proto.manifest import GRADIENT, FloatVector
from umbel_proto.package import Package

log: logging.Logger = logging.getLogger(__name__)

Look = Callable[[float], object]
"""Told about every second how long a training has taken, seconds; what it raises ends the training."""

START_S = 120.0
"""A process that has not said a word after so long never will."""

_ERRORS: dict[str, type[UmbelError]] = {
    each.__name__: each for each in (DivergedError, PackageError, UsageError)
}


class ApartTrainer:
    """Trains as ``OnnxTrainer`` does, to the bit, in a process of its own; in this one where none can be started.

    Args:
        package: The package of the model.
        meter: What limits on time and energy are measured with.
        look: Looks about every second whether training may go on. Left out, it may.
        worker: The process to train in, which outlives this trainer; by default one that ends with it.

    Raises:
        UsageError: The package has no gradient graph: this model cannot be trained.
    """

    def __init__(
        self,
        package: Package,
        *,
        meter: Meter = METER,
        look: Look | None = None,
        worker: Worker | None = None,
    ) -> None:
        manifest = package.manifest
        if GRADIENT not in manifest.graphs:
            raise UsageError(
                f"Model {manifest.model} {manifest.version} has no gradient graph: it cannot be trained."
            )
        self._package, self._meter, self._look = package, meter, look
        self._worker, self._own = worker or Worker(), worker is None

    def train(
        self,
        parameters: FloatVector,
        x: NDArray[Any],
        y: NDArray[Any],
        plan: TrainPlan,
        *,
        held_back: Examples | None = None,
        controls: Controls | None = None,
    ) -> TrainResult:
        """Improve a parameter vector on local examples: see ``Trainer``.

        Raises:
            UsageError: The data breaks the contract, the settings do not fit together, training diverged, or
                the package has no graph to keep examples private with.
            PackageError: onnxruntime cannot run the graph.
            UnavailableError: The process was ended, or had too little memory.
        """
        manifest, watch = self._package.manifest, _watch(self._look)
        work = prepare(
            manifest, x, y, plan, held_back=held_back, controls=controls, meter=self._meter, watch=watch
        )
        signature = Signature.of(manifest, plan)
        start = np.asarray(parameters, np.float32)
        manifest.split(start)  # Refuses one that is not of this model.
        frozen = {FROZEN + name: value for name, value in self._package.frozen().items()}
        graph = np.frombuffer(self._package.file(signature.file), np.uint8)
        try:
            return self._worker.train(signature, {"graph": graph, **frozen, "parameters": start}, work)
        except NoPythonError as exc:
            log.warning("trains in this process: %s", exc)
        # With onnxruntime: 26 MB that this process need not hold otherwise.
        from umbel.train.onnx import OnnxTrainer

        with contextlib.closing(OnnxTrainer(self._package, meter=self._meter, watch=watch)) as inside:
            return inside.train(start, x, y, plan, held_back=held_back, controls=controls)

    def close(self) -> None:
        """End the process, if it is the trainer's own."""
        if self._own:
            self._worker.close()


class Worker:
    """A process that trains: started when there is something to do, kept for what comes next, for one thread.

    It ends by itself after half a minute without work, and when this process does.
    """

    def __init__(self) -> None:
        self._running: Running | None = None
        self._end: Callable[[], object] | None = None
        self._load = OwnLoad()

    @property
    def load(self) -> float:
        """How much of the machine's load, in programs that want to compute, is this one's."""
        return self._load.now()

    def train(self, signature: Signature, arrays: Mapping[str, NDArray[Any]], work: Work) -> TrainResult:
        """Return what a training gave.

        Args:
            signature: How the graph is called.
            arrays: The graph, its frozen parameters, and those to begin with.
            work: What to do; its ``watch`` is called every second or so, and its order when it is asked for.

        Raises:
            NoPythonError: No process can be started here.
            UsageError: Training diverged.
            PackageError: onnxruntime cannot run the graph.
            UnavailableError: The process was ended, or had too little memory.
        """
        head = {
            "plan": asdict(work.plan),
            "signature": asdict(signature),
            "asks_clock": work.meter.clock is not METER.clock,
            "asks_joules": work.meter.joules is not None,
        }
        given = {**arrays, "x": work.x, "y": work.y}
        if work.held_back is not None:
            given |= dict(zip(("held.x", "held.y"), work.held_back, strict=True))
        if work.controls is not None:
            given |= {"server": work.controls.server, "own": work.controls.own}
        self._load.begin()
        try:
            said = _attend(self._hand_over(head, given, work), work, len(arrays["parameters"]))
        except PipeError as exc:
            raise UnavailableError(self._why()) from exc
        except BaseException:
            self.close()  # Whatever it was, nobody waits for the training any more.
            raise
        finally:
            self._load.end()
        if isinstance(said, UmbelError):
            raise said
        return said

    def close(self) -> None:
        """End the process, whatever it does: it keeps nothing."""
        if self._end is not None:
            self._end()
        self._running = self._end = None

    def _hand_over(self, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], work: Work) -> Pipe:
        """Send a training to the process that was kept, or to a new one, and return the pipe to it."""
        running = self._running
        if running is not None and running.process.poll() is None:
            with contextlib.suppress(PipeError):  # It ended meanwhile, for want of work.
                return _taken(running.pipe(work.watch), head, arrays)
        self.close()
        self._running = running = start_worker()
        self._end = weakref.finalize(self, running.end)
        pipe = running.pipe(_impatient(work.watch))
        said, _ = pipe.receive(0)
        if said != {"form": FORM}:
            raise UnavailableError("umbel was updated since this program began: start it again.")
        return _taken(running.pipe(work.watch), head, arrays)

    def _why(self) -> str:
        """Return how the process ended, which it has or soon will have."""
        assert self._running is not None
        how = self._running.how_it_ended()
        self.close()
        return (
            f"The process that trains {how}: the device was short of memory, or somebody ended it. "
            "Nothing of this training is kept; a later round begins anew."
        )


def _taken(pipe: Pipe, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Pipe:
    pipe.send(head, arrays)
    said, _ = pipe.receive(0)
    if said != {"taken": True}:
        raise PipeError("The process answers what nobody asked.")
    return pipe


def _attend(pipe: Pipe, work: Work, dim: int) -> TrainResult | UmbelError:
    """Answer what a training asks, and return its result, or why there is none."""
    while True:
        said, arrays = pipe.receive(8 * dim)
        match said:
            case {"ask": "order", "epoch": int(epoch)}:
                pipe.send({}, {"order": work.order(epoch)})
            case {"ask": "clock"}:
                pipe.send({"value": work.meter.clock()})
            case {"ask": "joules"} if work.meter.joules is not None:
                pipe.send({"value": work.meter.joules()})
            case {"error": str(name), "sentence": str(sentence)} if name in _ERRORS:
                return _ERRORS[name](sentence)
            case {"failed": name}:
                return UnavailableError(
                    f"Training failed ({name}): the device may have too little memory for it. Nothing of it is kept."
                )
            case {"ended": str()}:
                return _result(said, arrays, work, dim)
            case _:
                raise PipeError("The process says what nobody understands.")


def _result(said: Mapping[str, Any], arrays: Arrays, work: Work, dim: int) -> TrainResult:
    wanted = {"parameters"} | (set() if work.controls is None else {"control"})
    if set(arrays) != wanted or any(a.shape != (dim,) or a.dtype != np.float32 for a in arrays.values()):
        raise PipeError("The process returns other vectors than it was given.")
    try:
        return TrainResult(
            arrays["parameters"], ended=Ended(said["ended"]), control=arrays.get("control"),
            **{name: said[name] for name in ("loss", "examples", "steps", "seconds", "joules")},
        )  # fmt: skip
    except (KeyError, ValueError) as exc:
        raise PipeError("The process returns something else than a result.") from exc


def _watch(look: Look | None) -> Callable[[], None] | None:
    """Return what may be called as often as one likes, and looks every second."""
    if look is None:
        return None
    begin_s = looked_s = time.monotonic()

    def watch() -> None:
        nonlocal looked_s
        now_s = time.monotonic()
        if now_s - looked_s >= EVERY_S:
            looked_s = now_s
            look(now_s - begin_s)

    return watch


def _impatient(watch: Callable[[], object] | None) -> Callable[[], None]:
    """Return a watch that also gives up a process which never says a word."""
    until_s = time.monotonic() + START_S

    def both() -> None:
        if watch is not None:
            watch()
        if time.monotonic() > until_s:
            raise UnavailableError(
                f"The process that trains did not start in {START_S:g} s: this device is too busy."
            )

    return both

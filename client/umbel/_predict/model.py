"""A model that an application asks: contract check, engine, and a classifier's confidence and decision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter, time
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from umbel._predict.answer import Decision as Decision
from umbel._predict.answer import Estimate as Estimate
from umbel._predict.answer import Prediction as Prediction
from umbel._predict.loaded import Loaded
from umbel.engines import Engine
from umbel_proto.errors import ContractError, UmbelError, UsageError
from umbel_proto.manifest import CLASSIFICATION, REGRESSION, Target, TensorSpec
from umbel_proto.package import Package

if TYPE_CHECKING:
    from umbel._explain.counterfactual import Counterfactual
    from umbel._explain.explain import Explaining, Explanation, Method
    from umbel._predict.listeners import Shadow, Window
    from umbel._quantize.here import Made
    from umbel._quantize.report import Quantization
    from umbel._review.queue import Queue
    from umbel._review.review import Feedback, Review


class Model:
    """A model that answers. Any number of threads may ask it at once; no question waits on network or disk.

    What answers may be replaced by a newer version between two questions; a question is answered by one.

    Args:
        package: Where the model comes from.
        engine: What runs it.
        window: What counts its predictions, if telemetry is on.
        clock: Returns Unix time, seconds: where the contract bounds an example's age.
    """

    def __init__(
        self,
        package: Package,
        engine: Engine,
        window: Window | None = None,
        *,
        clock: Callable[[], float] = time,
    ) -> None:
        self._loaded = Loaded(package, engine, window)
        self._clock = clock
        self._explaining: Explaining | None = None
        self._adopt: Callable[[Model, Loaded, Made], None] | None = None
        self._queue: Queue | None = None
        self._shadow: Shadow | None = None

    def _replace(self, loaded: Loaded) -> None:
        """Answer by another version from now on; questions under way end with the one they began with."""
        loaded.expect(len(self._loaded.taken))
        self._loaded = loaded

    def __repr__(self) -> str:
        runs = f"version={self.version}, variant={self.variant!r}, engine={self.engine!r}"
        return f"Model({self.name!r}, {runs}, verified={self.verified})"

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            f"Model {self.name} is not copied or sent to another process: load it anew, once in each process."
        )

    @property
    def name(self) -> str:
        """The model's name."""
        return self._loaded.package.manifest.model

    @property
    def version(self) -> int:
        """Its version."""
        return self._loaded.version

    @property
    def variant(self) -> str:
        """The variant that runs."""
        return self._loaded.engine.variant

    @property
    def engine(self) -> str:
        """The engine that runs it."""
        return self._loaded.engine.name

    @property
    def labels(self) -> Sequence[str]:
        """Name of each class; empty where the model answers with numbers."""
        return self._loaded.labels

    @property
    def kind(self) -> str:
        """``classification``, or ``regression``: the model answers with numbers."""
        return self._loaded.package.manifest.kind

    @property
    def targets(self) -> Sequence[Target]:
        """What each number of an answer is, in row-major order; empty for a classifier, or where nobody said."""
        return self._loaded.package.manifest.targets

    @property
    def verified(self) -> bool:
        """Whether a release key says who made it; on an enrolled device always."""
        return self._loaded.package.verified

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """Name, element type and shape of each input."""
        return self._loaded.package.manifest.inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """Name, element type and shape of each output."""
        return self._loaded.package.manifest.outputs

    def run(self, x: object) -> dict[str, NDArray[Any]]:
        """Return every output of the graph, by name, with the batch dimension. Nothing is counted.

        Args:
            x: As for ``predict``.

        Returns:
            Of each output an array of shape (n, ...), as ``outputs`` tells it; n is 1 for one example.

        Raises:
            ContractError: The input breaks the data contract.
            UmbelError: The engine could not compute an answer, as for want of memory.
        """
        loaded = self._loaded
        batch, _ = loaded.check(x)
        try:
            return dict(loaded.engine.outputs(batch))
        except Exception as exc:
            raise _failed(loaded, exc) from exc

    def predict(self, x: object, *, at: float | None = None) -> Prediction | list[Prediction]:
        """Return a classifier's prediction for one example, or a list of them for a batch.

        Args:
            x: One example of the contract's shape, as ``inputs`` tells it after the batch, or a batch of them, shape
                (n, *example), in the contract's unit; by itself, or in a dictionary by the input's name. A table that
                names its columns as the contract does is taken by these names, in whatever order.
            at: When it was measured, Unix seconds; needed where the contract bounds its age.

        Raises:
            ContractError: The input breaks the data contract.
            UsageError: The model answers with numbers: ``estimate``.
            UmbelError: The engine could not compute an answer, as for want of memory.
        """
        loaded = self._loaded
        try:
            ask = loaded.local.ask
        except AttributeError:
            ask = loaded.sit().ask
        # The ordinary question: one array, as the graph takes it, with nothing wrong. It is counted there.
        try:
            said = ask(x)
        except Exception as exc:
            _fail(loaded, exc)
        if type(said) is not Prediction:
            self._require(CLASSIFICATION, "answers with numbers: call estimate")
            return self._predict(loaded, x, at)
        if self._queue is not None and said.decision == "review":
            self._queue.offer(said, x)
        if (shadow := self._shadow) is not None:  # It may end meanwhile.
            shadow.offer(x, said)
        return said

    def _predict(self, loaded: Loaded, x: object, at: float | None) -> Prediction | list[Prediction]:
        begin = perf_counter()
        batch, single, flagged, probabilities = self._run(loaded, x, at)
        labels, confidences = probabilities.argmax(axis=1).tolist(), probabilities.max(axis=1).tolist()
        said = []
        for row, label, confidence, odd in zip(probabilities, labels, confidences, flagged, strict=True):
            unsure = not confidence >= loaded.thresholds[label]  # NaN is not sure of anything.
            decision: Decision = "review" if unsure or odd else "automatic"
            name = loaded.labels[label]
            said.append(Prediction(label, name, confidence, decision, loaded.version, row))
            if decision == "review" and self._queue is not None:
                self._queue.offer(said[-1], batch[len(said) - 1], unsure=unsure, flagged=bool(odd))
        _tell(loaded, batch, labels, confidences, begin)
        if (shadow := self._shadow) is not None:  # It may end meanwhile.
            shadow.offer_batch(batch, said)
        return said[0] if single else said

    def estimate(self, x: object, *, at: float | None = None) -> Estimate | list[Estimate]:
        """Return what a model that answers with numbers says of one example, or a list of it for a batch.

        Args:
            x: As for ``predict``.
            at: As for ``predict``.

        Raises:
            ContractError: The input breaks the data contract.
            UsageError: The model is a classifier: ``predict``.
            UmbelError: The engine could not compute an answer, as for want of memory.
        """
        loaded = self._loaded
        try:
            ask = loaded.local.ask
        except AttributeError:
            ask = loaded.sit().ask
        try:
            estimate = ask(x)
        except Exception as exc:
            _fail(loaded, exc)
        if type(estimate) is Estimate:
            if (shadow := self._shadow) is not None:  # It may end meanwhile.
                shadow.offer(x, estimate)
            return estimate
        self._require(REGRESSION, "tells labels apart: call predict")
        begin = perf_counter()
        batch, single, _, values = self._run(loaded, x, at)
        said = [Estimate(row, loaded.version) for row in np.asarray(values)]
        nothing = [None] * len(said)
        _tell(loaded, batch, nothing, nothing, begin)
        if (shadow := self._shadow) is not None:  # It may end meanwhile.
            shadow.offer_batch(batch, said)
        return said[0] if single else said

    def _require(self, kind: str, otherwise: str) -> None:
        if self.kind != kind:
            raise UsageError(f"Model {self.name} {otherwise}.")

    @property
    def review(self) -> Review:
        """The predictions that wait for a person, and what people decided.

        Raises:
            UsageError: The model is not a device's, or answers with numbers.
        """
        from umbel._review.review import Review

        self._require(CLASSIFICATION, "answers with numbers: none of its answers is reviewed")
        if self._queue is None:
            raise UsageError(
                f"Model {self.name} was opened from a file: only models of a device have reviews, Device.open()."
            )
        return Review(self._queue, self.labels, self.version)

    def feedback(
        self,
        prediction: Prediction | str,
        *,
        label: int | str,
        source: str,
        annotator: str = "",
        x: object = None,
    ) -> Feedback:
        """Take a label that arrived after its prediction. It stays on this device.

        Telemetry hears how often labels agreed with predictions. With its example the label goes into the local
        data set, if the user allows training: with ``x``, or of a prediction that waits for a review. Each call adds
        an example.

        Args:
            prediction: The prediction, or the id of one of the last.
            label: The class that holds, by its number in ``labels`` or by name.
            source: Where the label is from, such as ``user``.
            annotator: Who gave it.
            x: The example, as for ``predict``, if the application still has it.

        Raises:
            UsageError: The prediction or the class is not known, no source is named, or ``x`` breaks the contract.
            StorageError: The disk is full.
        """
        return self.review.feedback(prediction, label=label, source=source, annotator=annotator, x=x)

    def predict_proba(self, x: object) -> NDArray[np.float32]:
        """Return class probabilities: shape (classes,) for one example, (n, classes) for a batch.

        Nothing is counted: this is for evaluation.

        Args:
            x: As for ``predict``.

        Raises:
            ContractError: The input breaks the data contract.
            UsageError: The model answers with numbers.
            UmbelError: The engine could not compute an answer, as for want of memory.
        """
        self._require(CLASSIFICATION, "answers with numbers and has no probabilities: call estimate")
        loaded = self._loaded
        batch, single = loaded.check(x)
        try:
            probabilities = loaded.engine.answers(batch)
        except Exception as exc:
            raise _failed(loaded, exc) from exc
        return probabilities[0] if single else probabilities

    def explain(
        self,
        x: object,
        *,
        target: object = None,
        baseline: object = None,
        method: Method | None = None,
        patch: Sequence[int] | None = None,
    ) -> Explanation:
        """Return which values of an input made the model say what it says. Nothing is counted.

        Args:
            x: One example of the contract's shape, or a batch of them, in the contract's unit.
            target: The class to explain, by number or name, one for all or one for each; by default the one that
                the model gives. Of a model that answers with numbers, the place of one in its answer, in row-major
                order; by default the first.
            baseline: What stands for nothing, one example or shaped as ``x``; by default zero, or the legal value
                nearest to it.
            method: ``gradients``: integrated gradients through the package's explanation graph, of the float form
                of the parameters; ``occlusion``: parts of the input are covered and the variant that runs is asked
                again. By default gradients where the package has the graph, unless a patch is given.
            patch: Of occlusion, size of a part along each axis of an example; by default the smallest of which
                there are at most 256.

        Raises:
            UsageError: The input or the baseline breaks the data contract, there is no such class or number, the
                package has no explanation graph and gradients were asked for, or the model has several inputs.
            PackageError: onnxruntime cannot run the explanation graph.
            UmbelError: The engine could not compute an answer, as for want of memory.
        """
        from umbel._explain.explain import Explaining

        explaining = self._explaining
        if explaining is None:
            explaining = self._explaining = Explaining()
        loaded = self._loaded
        try:
            return explaining.explain(loaded, x, target=target, baseline=baseline, method=method, patch=patch)
        except UmbelError:
            raise
        except Exception as exc:
            raise _failed(loaded, exc) from exc

    def counterfactual(
        self,
        x: object,
        *,
        target: int | str | None = None,
        fixed: Sequence[int | str] = (),
        limit: int = 5,
    ) -> Counterfactual | None:
        """Return a row near to one of a table of which a classifier says something else, or None: none was found.

        Only legal values are tried, and of columns that the package's baseline tells, values that occur in the data.
        Nothing is counted.

        Args:
            x: One row of the contract's shape, (columns,), in its unit.
            target: The class to reach, by number or name; by default the likeliest other one.
            fixed: Columns that may not change, by name or number: what nobody can change is no advice.
            limit: Most columns that may change, >= 1.

        Raises:
            UsageError: The row breaks the data contract, the model says ``target`` already, there is no such class or
                column, or the model does not classify rows of a table.
        """
        from umbel._explain.counterfactual import counterfactual

        return counterfactual(self._loaded, x, target, fixed, limit)

    def quantize(self, samples: object, y: object = None) -> Quantization:
        """Make an int8 form of the model with samples of this device, and run it if it is faster and says the same.

        Three quarters of the samples calibrate, the others and the golden inputs compare the forms. The samples are
        not kept. A model of a device runs what was chosen at the next start too, and telemetry counts it. Predictions
        go on meanwhile; measuring takes 50 ms for each form.

        Args:
            samples: Inputs like those the model meets here, shape (n, *example), n >= 32, in the contract's unit.
                With fewer than 800, one label that differs is enough to keep the float form, unless ``y`` is given.
            y: What is right of each, as for training: labels, shape (n,), or numbers; then accuracy decides.

        Raises:
            UsageError: The package has no int8 form, or the samples are too few or break the data contract.
            PackageError: The package's parts do not fit together, or onnxruntime cannot run them.
            StorageError: The disk is full: nothing changes.
        """
        from umbel._quantize.here import quantize_here

        loaded = self._loaded
        made = quantize_here(loaded, samples, y)
        if self._adopt is not None:
            self._adopt(self, loaded, made)
        elif made.engine is not loaded.engine:
            self._replace(Loaded(loaded.package, made.engine, loaded.window))
        return made.report

    def _run(
        self, loaded: Loaded, x: object, at: float | None
    ) -> tuple[NDArray[Any], bool, NDArray[np.bool_], NDArray[np.float32]]:
        """Return the batch that was answered, whether it was one example, which a person should see, and answers."""
        try:
            batch, single, breach = loaded.contract.examine(x)
            old = loaded.contract.examine_age(at, self._clock(), len(batch))
        except Exception as exc:
            _count_failure(loaded.window, exc)
            raise
        try:
            answers = loaded.engine.answers(batch)
        except Exception as exc:
            _fail(loaded, exc)
        flagged = np.zeros(len(batch), np.bool_)
        for each in filter(None, (breach, old)):
            flagged |= each.flagged
            _count_broken(loaded.window, each.counts)
        return batch, single, flagged, answers


def _fail(loaded: Loaded, exc: Exception) -> NoReturn:
    """Count that the engine failed, and say so: engines raise whatever their runtimes do."""
    _count_failure(loaded.window, exc)
    if isinstance(exc, UmbelError):
        raise exc
    raise _failed(loaded, exc) from exc


def _failed(loaded: Loaded, exc: Exception) -> UmbelError:
    manifest = loaded.package.manifest
    return UmbelError(
        f"Model {manifest.model} {manifest.version} ({loaded.engine.variant}) could not compute an answer "
        f"({type(exc).__name__}): give it fewer examples at once or more memory, or report the package."
    )


def _count_failure(window: Window | None, exc: Exception) -> None:
    if window is not None:
        window.error()
        if isinstance(exc, ContractError):
            _count_broken(window, exc.counts)


def _count_broken(window: Window | None, counts: Mapping[str, int]) -> None:
    if window is not None:
        for name, by in counts.items():
            window.count(f"contract.{name}", by)


def _tell(
    loaded: Loaded,
    batch: NDArray[Any],
    labels: Sequence[int | None],
    confidences: Sequence[float | None],
    begin: float,
) -> None:
    if loaded.window is not None:
        latency_ns = 1e9 * (perf_counter() - begin) / len(labels)
        loaded.window.observe_batch(latency_ns, labels, confidences, batch)

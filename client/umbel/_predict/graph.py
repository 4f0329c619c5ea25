"""A model from a bare file, .onnx or .tflite: what the file itself tells, and labels where the caller gives some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from umbel._predict.model import Decision, Estimate, Prediction
from umbel.engines.bare import Arrays, Runner
from umbel_proto.contract import unmasked
from umbel_proto.errors import UsageError
from umbel_proto.manifest import CLASSIFICATION, REGRESSION, TensorSpec

if TYPE_CHECKING:
    from umbel._explain.explain import Explanation
    from umbel._quantize.report import Quantization

# How far from one the probabilities of an example may add up: half precision and int8 round so far.
_SUM_TOLERANCE = 0.02
_PROBABILITIES = "probabilities"


class Graph:
    """A bare graph that answers, for a developer who has no package yet. Any number of threads may ask it at once.

    It has no contract, no version and no signature: any number goes in, NaN too, and who made the file is not known.

    Args:
        runner: What runs it.
        file: Where it is from.
        labels: Name of each class; none where it answers with numbers.
        output: The output that answers; by default the only one that can.
        logits: Whether that holds logits instead of probabilities.
        decision_threshold: Confidence from which a prediction needs no review, in [0, 1].

    Raises:
        UsageError: It takes or gives no array of numbers; no output, or more than one, can be the answer; two classes
            have one name; or the threshold is outside [0, 1].
    """

    verified: bool = False
    version: int = 0

    def __init__(
        self,
        runner: Runner,
        file: Path,
        *,
        labels: Sequence[str] = (),
        output: str | None = None,
        logits: bool = False,
        decision_threshold: float = 0.0,
    ) -> None:
        given: object = decision_threshold
        if isinstance(given, bool) or not isinstance(given, Real) or not 0 <= decision_threshold <= 1:
            raise UsageError(f"The decision threshold is {given!r:.40}: give a number in 0..1.")
        if not (runner.inputs and runner.outputs):
            raise UsageError(
                f"{file} has no input or no output that is an array of numbers: export it with both."
            )
        for label, times in Counter(labels).items():
            if times > 1:
                raise UsageError(
                    f"The label {label!r} is given {times} times: give each class a name of its own."
                )
        self._runner = runner
        self._file = file
        self._name = file.stem
        self._variant = "file"
        self._labels = tuple(labels)
        self._logits = logits
        self._threshold = decision_threshold
        self._answer = _answer(runner.outputs, self._labels, output)
        self._block: int | None = _block(runner.inputs)

    def __repr__(self) -> str:
        takes = ", ".join(f"{each.name}: {each.dtype} {_shape(each)}" for each in self.inputs)
        return f"Graph({self._name!r}, engine={self.engine!r}, inputs=[{takes}], verified=False)"

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            f"Graph {self._name} is not copied or sent to another process: load it anew, once in each process."
        )

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self._name

    @property
    def variant(self) -> str:
        """``file``, as it was loaded; or ``int8``, once it was quantized here."""
        return self._variant

    @property
    def engine(self) -> str:
        """The engine that runs it: ``onnx`` or ``tflite``."""
        return self._runner.name

    @property
    def labels(self) -> Sequence[str]:
        """Name of each class; empty where none were given."""
        return self._labels

    @property
    def kind(self) -> str:
        """``classification`` where it was given labels, else ``regression``: it answers with numbers."""
        return CLASSIFICATION if self._labels else REGRESSION

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, element type and shape of each input, as the file tells them."""
        return self._runner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, element type and shape of each output that is an array of numbers."""
        return self._runner.outputs

    def run(self, x: object) -> dict[str, NDArray[Any]]:
        """Return every output, by name, as the graph gives it: with the batch dimension.

        Args:
            x: One example, of the shape that ``inputs`` tells after the batch, or a batch of them, shape
                (n, *example), in whatever unit the graph was made for; of a graph with several inputs, a dictionary
                of them by name.

        Returns:
            Of each output an array of shape (n, ...), as ``outputs`` tells it; n is 1 for one example.

        Raises:
            UsageError: An input is missing or does not fit, or the graph cannot compute with it.
        """
        return self._run(x)[0]

    def predict(self, x: object) -> Prediction | list[Prediction]:
        """Return a classifier's prediction for one example, or a list of them for a batch.

        Args:
            x: As for ``run``.

        Raises:
            UsageError: As for ``run``; or the graph was loaded without labels, or its numbers are no probabilities, or
                not finite.
        """
        probabilities, single = self._probabilities(x)
        said = []
        for row, label in zip(probabilities, probabilities.argmax(axis=1).tolist(), strict=True):
            confidence = float(row[label])
            decision: Decision = "automatic" if confidence >= self._threshold else "review"
            said.append(Prediction(label, self._labels[label], confidence, decision, 0, row))
        return said[0] if single else said

    def predict_proba(self, x: object) -> NDArray[np.float32]:
        """Return class probabilities: shape (classes,) for one example, (n, classes) for a batch.

        Args:
            x: As for ``run``.

        Raises:
            UsageError: As for ``predict``.
        """
        probabilities, single = self._probabilities(x)
        return probabilities[0] if single else probabilities

    def estimate(self, x: object) -> Estimate | list[Estimate]:
        """Return what a graph that answers with numbers says of one example, or a list of it for a batch.

        Args:
            x: As for ``run``.

        Raises:
            UsageError: As for ``run``; or the graph was loaded with labels, or has several outputs and none was named, or
                its numbers are not finite.
        """
        if self._labels:
            raise UsageError(f"{self._name} tells labels apart: call predict.")
        if self._answer is None:
            names = ", ".join(spec.name for spec in self.outputs)
            raise UsageError(
                f"{self._name} has several outputs ({names}): load it with output=, or call run."
            )
        outputs, single = self._run(x)
        with np.errstate(over="ignore"):
            rows = np.atleast_1d(np.asarray(outputs[self._answer], np.float32))
        self._require(np.isfinite(rows).all())
        said = [Estimate(np.asarray(row), 0) for row in rows]
        return said[0] if single else said

    def explain(
        self, x: object, *, target: object = None, baseline: object = None, patch: Sequence[int] | None = None
    ) -> Explanation:
        """Return which values of an input made the graph say what it says: parts of it are covered in turn.

        Args:
            x: As for ``run``; of a graph with one input.
            target: The class, by number or name, or the place of a number in an answer, one for all or one for each; by default the class
                that the graph gives, or the first number.
            baseline: What covers a part, one example or shaped as ``x``; by default zero.
            patch: Size of a part along each axis of an example; by default the smallest of which there are at most
                256.

        Raises:
            UsageError: As for ``run``; or the graph has several inputs, or there is no such class or number.
        """
        from umbel._explain.explain import OCCLUSION, Explanation, one_for_each
        from umbel._explain.occlusion import occlude

        only, answer = self._only("explained"), self._answer
        if answer is None:
            raise UsageError(f"{self._name} has several outputs: load it with output= to have one explained.")
        feed, _ = self._feed(x)
        inputs = feed[only.name]
        nothing = np.zeros_like(inputs) if baseline is None else self._feed(baseline)[0][only.name]
        if len(nothing) == 1:
            nothing = np.repeat(nothing, len(inputs), axis=0)
        if nothing.shape != inputs.shape:
            raise UsageError(
                f"The baseline has shape {nothing.shape}: give one of {inputs.shape}, as the inputs."
            )
        scores = self.run(inputs)[answer].reshape(len(inputs), -1)
        self._require(np.isfinite(scores.max(axis=1)).all())
        if target is None:
            chosen = scores.argmax(axis=1) if self._labels else np.zeros(len(inputs), np.int64)
        else:
            chosen = one_for_each(self._labels, target, len(inputs), scores.shape[1])
        explained = occlude(lambda batch: self.run(batch)[answer], inputs, nothing, chosen, patch=patch)
        return Explanation(explained[0], chosen.astype(np.int64), explained[1], OCCLUSION)

    def quantize(self, samples: object, y: object = None, *, out: str | Path | None = None) -> Quantization:
        """Make an int8 form of the file with local samples, and run it if it is faster here and says the same.

        Three quarters of the samples calibrate, the others compare the two. It needs ``umbel[quantize]``.

        Args:
            samples: Inputs like those the graph meets, shape (n, *example), n >= 32. With fewer than 800, one label
                that differs is enough to keep the float form, unless ``y`` is given.
            y: What is right of each: labels, shape (n,), or numbers; then accuracy decides.
            out: Where to write the int8 file, if it is chosen: with the suffix of the file that was loaded, and another
                name.

        Raises:
            UsageError: The samples are too few, do not fit or are not finite, ``y`` does not fit, or the graph has
                several inputs or no one answer, or cannot be quantized; or ``out`` is no such file.
            MissingExtraError: ``umbel[quantize]`` is not installed.
            StorageError: The disk is full, or ``out`` cannot be written.
        """
        from umbel._home.files import PUBLIC_MODE, write_atomically
        from umbel._quantize.file import INT8, int8_file, quantize_file

        only = self._only("quantized")
        if self._answer is None:
            raise UsageError(f"{self._name} has several outputs: load it with output= to have it quantized.")
        if only.dtype != "float32" or self._variant == INT8:
            raise UsageError(f"{self._name} is not float32, or was quantized before: load the float file.")
        written = None if out is None else int8_file(out, self._file)
        inputs = self._feed(samples)[0][only.name]
        report, made, runner = quantize_file(self, self._file, only.name, inputs, y)
        if report.choice == INT8:
            if written is not None:
                write_atomically(written, made, PUBLIC_MODE)
            self._runner, self._variant = runner, INT8
        return report

    def _answers(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Return what the answering output says of a batch: probabilities, (n, classes), or numbers, (n, *answer).

        Raises:
            UsageError: As for ``predict`` and ``estimate``.
        """
        if self._labels:
            return self._probabilities(x)[0]
        return np.asarray(self.run(x)[str(self._answer)], np.float32)

    def _with_runner(self, runner: Runner) -> Graph:
        """Return the same graph, run by another form of its file."""
        return Graph(
            runner,
            self._file,
            labels=self._labels,
            output=self._answer,
            logits=self._logits,
            decision_threshold=self._threshold,
        )

    def _probabilities(self, x: object) -> tuple[NDArray[np.float32], bool]:
        if not self._labels or self._answer is None:
            raise UsageError(
                f"{self._name} was loaded without labels: load it with labels=[...], or call estimate or run."
            )
        outputs, single = self._run(x)
        with np.errstate(over="ignore"):
            scores = np.asarray(outputs[self._answer], np.float32)
        if scores.ndim != 2 or scores.shape[1] != len(self._labels):
            raise UsageError(
                f"Output {self._answer!r} of {self._name} has shape {scores.shape}, and {len(self._labels)} labels "
                "were given: give one for each class."
            )
        # A logit may be minus infinity: of a class that is ruled out.
        self._require(np.isfinite(scores.max(axis=1)).all())
        return (_softmax(scores) if self._logits else self._checked(scores)), single

    def _require(self, finite: bool | np.bool_) -> None:
        # The likeliest of what is no number is the first class, without a reason; and JSON has no NaN.
        if not finite:
            raise UsageError(
                f"Output {self._answer!r} of {self._name} is not finite: look in the input for NaN, or for numbers that are "
                "far too large."
            )

    def _checked(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        # Logits taken for probabilities would make every confidence, and so every decision, wrong without a word.
        legal = (scores >= -_SUM_TOLERANCE).all() and (abs(scores.sum(axis=1) - 1) <= _SUM_TOLERANCE).all()
        if not legal:
            raise UsageError(
                f"Output {self._answer!r} of {self._name} does not add up to one, so it holds no probabilities: "
                "if it holds logits, load with logits=True."
            )
        return scores

    def _run(self, x: object) -> tuple[Arrays, bool]:
        feed, single = self._feed(x)
        try:
            return self._in_blocks(feed), single
        except UsageError:
            raise
        except Exception as exc:  # whatever a runtime raises
            given = ", ".join(f"{name} {array.shape}" for name, array in feed.items())
            raise UsageError(
                f"{self._name} cannot compute with inputs of these shapes: {given}. Give what it was made for."
            ) from exc

    def _in_blocks(self, feed: Arrays) -> Arrays:
        rows = {len(array) for array in feed.values() if array.ndim}
        if self._block is None or rows == {self._block}:
            return self._runner.run(feed)
        if len(rows) != 1:
            raise UsageError(
                f"The inputs of {self._name} have different numbers of examples: give as many of each."
            )
        [count] = rows
        blocks = []
        for begin in range(0, count, self._block):
            part = {
                name: _filled(array[begin : begin + self._block], self._block) for name, array in feed.items()
            }
            blocks.append(self._runner.run(part))
        return {name: np.concatenate([each[name] for each in blocks])[:count] for name in blocks[0]}

    def _feed(self, x: object) -> tuple[Arrays, bool]:
        names = [spec.name for spec in self.inputs]
        if isinstance(x, Mapping):
            given = x
        elif len(names) == 1:
            given = {names[0]: x}
        else:
            raise UsageError(f"{self._name} takes several inputs: give a dictionary with {', '.join(names)}.")
        if set(given) != set(names):
            raise UsageError(f"{self._name} takes {', '.join(names)}: give each of them, and nothing else.")
        fitted = [(spec.name, *_fitted(spec, given[spec.name])) for spec in self.inputs]
        return {name: array for name, array, _ in fitted}, all(single for _, _, single in fitted)

    def _only(self, done: str) -> TensorSpec:
        if len(self.inputs) != 1:
            raise UsageError(f"{self._name} takes several inputs: only a graph of one is {done}.")
        return self.inputs[0]


def _answer(outputs: Sequence[TensorSpec], labels: Sequence[str], output: str | None) -> str | None:
    """Return the name of the output that answers; None where numbers are asked for and it is not clear."""
    names = [spec.name for spec in outputs]
    if output is not None:
        if output not in names:
            raise UsageError(f"There is no output {output!r}: choose one of {', '.join(names)}.")
        return output
    if not labels:
        return names[0] if len(names) == 1 else None
    if len(labels) < 2:
        raise UsageError("A classifier tells two or more labels apart: give each a name.")
    fitting = [spec.name for spec in outputs if _scores(spec, len(labels))]
    if _PROBABILITIES in fitting:
        return _PROBABILITIES
    if len(fitting) != 1:
        found = ", ".join(f"{spec.name}: {spec.dtype} {_shape(spec)}" for spec in outputs)
        raise UsageError(
            f"{'Several outputs' if fitting else 'No output'} of the graph can score {len(labels)} labels ({found}): "
            f"{'name one with output=' if fitting else 'give as many labels as it has classes'}."
        )
    return fitting[0]


def _scores(spec: TensorSpec, classes: int) -> bool:
    last = spec.shape[-1] if len(spec.shape) == 2 else None
    return spec.dtype.startswith("float") and (last == classes or isinstance(last, str))


def _block(inputs: Sequence[TensorSpec]) -> int | None:
    """Return how many examples the graph takes at once, where that is one fixed number."""
    sizes = {spec.shape[0] if spec.shape else None for spec in inputs}
    [size, *others] = sizes
    return size if isinstance(size, int) and not others else None


def _fitted(spec: TensorSpec, values: object) -> tuple[NDArray[Any], bool]:
    """Return an input as the graph takes it, and whether it was one example without the batch dimension."""
    try:
        array = np.asarray(unmasked(values))
    except ValueError as exc:
        raise UsageError(f"Input {spec.name!r} is not an array: its rows have different lengths.") from exc
    except (TypeError, RuntimeError) as exc:  # A tensor that wants a gradient, or of a type that numpy lacks.
        raise UsageError(
            f"Input {spec.name!r} is no array for numpy: give it a numpy array ({exc})."
        ) from exc
    if array.dtype.kind not in "fiub" or (array.dtype.kind == "f" and not spec.dtype.startswith("float")):
        raise UsageError(f"Input {spec.name!r} holds {array.dtype}: give {spec.dtype}.")
    array = _cast(spec, array)
    if not spec.shape:  # one number, or a shape that the file does not tell
        return array, False
    example = spec.shape[1:]
    if array.ndim == len(spec.shape) and _fits(example, array.shape[1:]) and len(array):
        return array, False
    if _fits(example, array.shape):
        return array[np.newaxis], True
    if array.ndim == len(spec.shape) and not len(array):
        raise UsageError(f"Input {spec.name!r} is a batch of no example: give one or more.")
    raise UsageError(
        f"Input {spec.name!r} has shape {array.shape}: give one example of shape {_shape(spec, of=1)}, or a batch "
        "of them."
    )


def _cast(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array, np.dtype(spec.dtype)).reshape(array.shape)
    beyond = array.dtype.kind in "iu" and cast.dtype.kind in "iu" and not np.array_equal(cast, array)
    if array.dtype != cast.dtype and cast.dtype.kind == "f":
        beyond = bool((np.isinf(cast) & np.isfinite(array)).any())
    if beyond:
        raise UsageError(f"Input {spec.name!r} holds numbers beyond {spec.dtype}: give numbers of its range.")
    return cast


def _fits(expected: Sequence[int | str], actual: Sequence[int]) -> bool:
    return len(expected) == len(actual) and all(
        have == want or (isinstance(want, str) and have > 0)
        for want, have in zip(expected, actual, strict=True)
    )


def _shape(spec: TensorSpec, of: int = 0) -> str:
    return f"({', '.join(map(str, spec.shape[of:]))}{',' if len(spec.shape) == of + 1 else ''})"


def _filled(block: NDArray[Any], size: int) -> NDArray[Any]:
    missing = size - len(block)
    return np.concatenate([block, np.repeat(block[-1:], missing, axis=0)]) if missing else block


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float32] = raised / raised.sum(axis=1, keepdims=True)
    return shares

"""What a task is: a model with its data contract, labels or targets, and graphs, complete without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from umbel_proto.contract import DataContract
from umbel_proto.errors import UsageError
from umbel_proto.ids import ModelName, check_name
from umbel_proto.manifest import CLASSIFICATION, OUTPUTS, REGRESSION, Target
from umbel_proto.privacy.stated import check_stated

if TYPE_CHECKING:
    from torch import Tensor, nn


OwnMetric = Callable[[NDArray[np.float32], NDArray[Any]], float]
"""Maps what a model says of examples, and their right answers, to a figure."""
FIXED_METRICS = frozenset(
    {"examples", "accuracy", "log loss", "recall", "precision"}
    | {"mean squared error", "root mean squared error", "mean absolute error", "R2"}
)
"""What ``umbel_models.evaluation`` computes by itself."""


class Examples(NamedTuple):
    """Examples with their right answers.

    Args:
        x: Inputs, float32, shape (n, *example), in the contract's unit.
        y: Labels, int64, shape (n,); of a regression targets, float32, shape (n, *answer). A model that makes
            its input again has ``x`` here, the same array.
        cohort: Number of the cohort each belongs to, int64, shape (n,), for judging fairness; no model sees it.
        source: Who or what each was measured on, int64, shape (n,): examples of one source belong on one device.
    """

    x: NDArray[np.float32]
    y: NDArray[Any]
    cohort: NDArray[np.int64] | None = None
    source: NDArray[np.int64] | None = None

    def take(self, rows: NDArray[Any]) -> Examples:
        """Return the examples of some rows: their numbers, or a mask."""
        return Examples(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]


class Split(NamedTuple):
    """A data set in three parts that share no example.

    Args:
        train: What devices learn from.
        held_out: What accuracy is measured on, and nothing else.
        calibration: A few examples for quantization and golden vectors.
    """

    train: Examples
    held_out: Examples
    calibration: Examples


@dataclass(frozen=True, slots=True)
class About:
    """What a model card says and no program can find out.

    Args:
        purpose: What the model is for, in one sentence.
        data: Where its data comes from, with the source to cite.
        limits: What it must not be used for, and what it is known to get wrong.
        license: Of the data, an SPDX identifier where there is one.
        datasheet: More about the data, Markdown, for who wants to use it for something else.
    """

    purpose: str
    data: str
    limits: tuple[str, ...] = ()
    license: str = ""
    datasheet: str = ""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Task:
    """A task of the workbench: all that a package, its card and a federated run of it are made from.

    Nothing here imports torch before it is asked for a module.

    Args:
        model: Name of the model line it begins.
        module: Returns the network with its initial parameters: x, shape (batch, *example), -> logits, shape
            (batch, labels), or of a regression values, shape (batch, *answer). Called twice it returns equal ones.
        loss: Maps logits and labels y, int64 (batch,), or values and targets, both (batch, *answer), to one
            loss per example, shape (batch,).
        contract: What inputs must look like.
        data: Returns the task's data.
        about: For the model card.
        kind: What the model answers with: ``CLASSIFICATION`` or ``REGRESSION``.
        labels: Of a classification, name of each class, two or more.
        decision_threshold: Of a classification, confidence from which a prediction needs no review.
        label_thresholds: The same for single labels, by name, where it is another.
        telemetry_epsilon: By telemetry task (``labels``, ``confidence``, ``latency_us``, ``input``), with what devices
            randomize each event of it before they report it; what is not named is reported as it was counted.
        targets: Of a regression, what each number of an answer is, in row-major order; none where it has no name.
        trainable: Names of the parameters that training changes; all of them where there is none.
        cohorts: Name of each cohort of ``Examples.cohort``.
        columns: Name of each input, or of each channel of a series, for explanations; none where they have none.
        metrics: Figures of your own on held-out examples, by name, beside those of every task of its kind: each a function
            of what the model says, probabilities (n, labels) or values (n, *answer), float32, and of the labels (n,)
            or targets, to a number.
        shifted: Returns other labelled data to judge a model on, by name: what devices may meet later.
        committed: Returns the graphs and ``params.safetensors`` by name where they are kept beside the task, so that
            they need not be exported; they are compared with the module all the same when they are packed.
    """

    model: ModelName
    module: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    contract: DataContract
    data: Callable[[], Split]
    about: About
    kind: str = CLASSIFICATION
    labels: tuple[str, ...] = ()
    decision_threshold: float = 0.0
    label_thresholds: Mapping[str, float] = field(default_factory=dict)
    telemetry_epsilon: Mapping[str, float] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    trainable: tuple[str, ...] = ()
    cohorts: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    metrics: Mapping[str, OwnMetric] = field(default_factory=dict)
    shifted: Callable[[], Mapping[str, Examples]] | None = None
    committed: Callable[[], Mapping[str, bytes]] | None = None

    def __post_init__(self) -> None:
        check_name(self.model, "model")
        if not all(isinstance(label, str) for label in self.labels):
            raise UsageError(f"Task {self.model} names labels that are no text: give a name for each class.")
        for label, times in Counter(self.labels).items():
            if times > 1:
                raise UsageError(
                    f"Task {self.model} names the label {label!r} {times} times: give each class a name of its own."
                )
        if not all(isinstance(target, Target) for target in self.targets):
            raise UsageError(
                f"Task {self.model} names targets that are no Target: give Target(name, unit) for each number."
            )
        if self.kind not in OUTPUTS:
            raise UsageError(
                f"Task {self.model} is of kind {self.kind!r}: choose {' or '.join(sorted(OUTPUTS))}. Labels of every "
                "position are targets of a regression, each label a 1 among zeros."
            )
        if self.kind == CLASSIFICATION and len(self.labels) < 2:
            raise UsageError(
                f"Task {self.model} names {len(self.labels)} labels: name each class, or say kind=REGRESSION if the "
                "model answers with numbers."
            )
        if self.kind == CLASSIFICATION and self.targets:
            raise UsageError(f"Task {self.model} names targets: name labels, or say kind=REGRESSION.")
        if self.kind == REGRESSION and (self.labels or self.decision_threshold or self.label_thresholds):
            raise UsageError(
                f"Task {self.model} is a regression, which has no labels and no decision_threshold: leave them out, "
                "and name numbers in targets."
            )
        for name in self.metrics:
            if not name.strip() or name in FIXED_METRICS:
                raise UsageError(
                    f"Task {self.model} has a metric called {name!r}: give it a name of its own, as umbel computes "
                    f"{', '.join(sorted(FIXED_METRICS))} itself."
                )
        check_stated(self.telemetry_epsilon, classifies=self.kind == CLASSIFICATION)

    def require_labels(self, what: str) -> None:
        """Refuse a task that does not classify.

        Args:
            what: What asks, for the error's sentence: "The fairness report".

        Raises:
            UsageError: It is a regression.
        """
        if self.kind != CLASSIFICATION:
            raise UsageError(
                f"{what} needs a model that tells labels apart, and {self.model} answers with numbers."
            )


def squared_error(values: Tensor, y: Tensor) -> Tensor:
    """Return each example's mean squared error, shape (batch,), of two tensors (batch, *answer): a task's loss."""
    return (values - y).square().unsqueeze(-1).flatten(1).mean(1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross entropy of each example, shape (batch,), of logits (batch, classes): a task's loss."""
    from torch.nn import functional

    return functional.cross_entropy(logits, y, reduction="none")


TASKS = {
    "activity": "umbel_models.tasks.activity.task:ACTIVITY",
    "breast-cancer": "umbel_models.tasks.breast_cancer.task:BREAST_CANCER",
    "credit": "umbel_models.tasks.credit.task:CREDIT",
    "digits": "umbel_models.tasks.digits.task:DIGITS",
}
"""Where each task stands, by name: a task is imported when it is asked for, and no other."""


def find(name: str) -> Task:
    """Return the task called ``name``.

    Raises:
        UsageError: There is none.
    """
    if name not in TASKS:
        raise UsageError(
            f"There is no task {name!r}: choose one of {', '.join(sorted(TASKS))}, or give a Python file that ends in .py."
        )
    module, _, constant = TASKS[name].partition(":")
    task: Task = getattr(import_module(module), constant)
    return task

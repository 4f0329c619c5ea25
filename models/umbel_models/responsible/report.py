"""Everything that responsible training measures, in one call, as sections of a model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from umbel_models.calibration import Scores
from umbel_models.exported import parameters_sha256
from umbel_models.fit import predict
from umbel_models.responsible import explanations, mitigation
from umbel_models.responsible.agreement import agreement
from umbel_models.responsible.calibrate import Calibration, calibrate
from umbel_models.responsible.explanations import Slice, groups_of, importance, integrated_gradients
from umbel_models.responsible.fairness import cohorts, gaps, rates
from umbel_models.responsible.figures import Figures, Interval, Labels
from umbel_models.responsible.leakage import leakage
from umbel_models.responsible.mitigation import Outcome, Recipe, compare
from umbel_models.responsible.robustness import Robustness, robustness, world_of
from umbel_models.responsible.surrogate import imitate
from umbel_models.responsible.synthetic import fit_copula, validate
from umbel_models.task import Examples, Split, Task
from umbel_proto.errors import UsageError

ROWS = 1000  # Of a synthetic data set, and of the examples explained one by one: enough to judge, and quick.


@dataclass(frozen=True, slots=True, eq=False)
class Assessment:
    """What was found.

    Args:
        parameters: SHA-256 of the module's ``params.safetensors``, as a package's manifest has it.
        sections: Figures for the card by section: give both to ``pack.build(..., sections=.., sections_of=..)``.
        scores: What the module made of held-out data.
        calibration: Its calibration.
        robustness: Its robustness.
        importance: Accuracy lost without each input, the greatest first.
        slices: The same within each cohort, by its name; empty without cohorts.
        outcomes: What fairer training reaches, by its kind; empty if it was not asked for.
    """

    parameters: str
    sections: Mapping[str, Figures]
    scores: Scores
    calibration: Calibration
    robustness: Robustness
    importance: Mapping[str, Interval]
    slices: Mapping[str, Slice]
    outcomes: Mapping[str, Outcome]


def assess(
    task: Task,
    module: nn.Module,
    *,
    fairer: Recipe | None = None,
    by_cohort: bool = False,
    temperature: float = 1.0,
    ratings: ArrayLike | None = None,
    shifted: Mapping[str, Examples] | None = None,
    seed: int = 0,
    progress: Callable[[str], object] = lambda what: None,
) -> Assessment:
    """Measure a trained module of a task, and its data.

    What does not apply is left out: no fairness without cohorts, no agreement without ratings.

    Args:
        task: The task.
        module: Its module, trained.
        fairer: How to train it in fairer ways as well, to compare; None does not.
        by_cohort: Whether cohorts may be known at decision time: see ``calibrate``.
        temperature: What the module's package divides logits by: its confidence is what is judged.
        ratings: What several annotators said of the same units: see ``agreement``.
        shifted: Other data to measure it on, by name, besides the task's own.
        seed: What is drawn at random.
        progress: Told what is done now.

    Raises:
        UsageError: The task's data cannot be assessed; the message says why.
    """
    if len(task.contract.fields) != 1:
        raise UsageError(
            f"Task {task.model} has {len(task.contract.fields)} inputs: join them in one to assess it."
        )
    parts, contract = task.data(), task.contract.fields[0]
    held_out = parts.held_out
    scores = _scores(module, held_out, temperature)
    sections: dict[str, Figures] = {}
    outcomes: dict[str, Outcome] = {}
    if held_out.cohort is not None:
        sections["fairness"] = _fairness(task, scores.logits.argmax(1), held_out)
        if fairer is not None:
            outcomes = compare(task, parts, module, fairer, progress=progress)
            sections["fairer training"] = mitigation.figures(outcomes)

    progress("calibrating")
    calibration = calibrate(
        _scores(module, parts.calibration, temperature), scores, by_cohort=by_cohort, seed=seed
    )
    sections["calibration"] = calibration.figures()

    progress("looking for leaks")
    sections["leakage"] = leakage(parts).figures(task.columns)
    if ratings is not None:
        sections["annotators"] = agreement(ratings, seed=seed)
    progress("imitating the data")
    sections["synthetic data"] = _synthetic(parts, seed)

    progress("attacking and disturbing")
    world = world_of(parts.train, low=contract.minimum, high=contract.maximum)
    others = {**(task.shifted() if task.shifted else {}), **(shifted or {})}
    robust = robustness(module, task.loss, held_out, world, labels=task.labels, shifted=others, seed=seed)
    sections["robustness"] = robust.figures()

    progress("explaining")
    groups = groups_of(contract.shape, task.columns)
    lost = importance(module, held_out, groups, seed=seed)
    slices = explanations.by_cohort(module, held_out, groups, names=task.cohorts, seed=seed)
    some = held_out.take(np.arange(min(ROWS, len(held_out.y))))
    said: Labels = scores.logits[: len(some.y)].argmax(1)
    local = integrated_gradients(module, some.x, baseline=world.middle, target=said)
    sections["explanations"] = explanations.figures(lost, local, slices)
    tree = imitate(module, parts.train, held_out, labels=task.labels, columns=task.columns)
    sections["surrogate tree"] = tree.figures()
    return Assessment(
        parameters_sha256(module), sections, scores, calibration, robust, lost, slices, outcomes
    )


def _scores(module: nn.Module, examples: Examples, temperature: float) -> Scores:
    return Scores(predict(module, examples.x) / np.float32(temperature), examples.y, examples.cohort)


def _fairness(task: Task, said: Labels, held_out: Examples) -> Figures:
    cohort = cohorts(held_out)
    told = gaps(said, held_out.y, cohort).figures()
    for name, found in rates(said, held_out.y, cohort, names=task.cohorts, labels=task.labels).items():
        told |= {f"cohort {name}, {figure}": value for figure, value in found.items()}
    return told


def _synthetic(parts: Split, seed: int) -> Figures:
    made = fit_copula(parts.train).sample(min(ROWS, len(parts.train.y)), seed=seed)
    return validate(made, parts.train, parts.held_out, seed=seed).figures()

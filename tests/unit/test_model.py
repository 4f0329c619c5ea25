"""A model answers with label, confidence and decision, and tells telemetry without keeping anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model_packages import digits, first, opened, release, resigned
from umbel._model import Model, Prediction
from umbel.engines import load_engine
from umbel_proto.errors import UsageError


@dataclass
class Counts:
    """A telemetry window that remembers what it was told."""

    seen: list[tuple[float, int, float, tuple[int, ...]]] = field(default_factory=list)
    errors: int = 0

    def observe(
        self, *, latency_us: float, label: int, confidence: float, inputs: NDArray[Any] | None
    ) -> None:
        assert inputs is not None
        self.seen.append((latency_us, label, confidence, inputs.shape))

    def error(self) -> None:
        self.errors += 1


def model(window: Counts | None = None, variant: str = "fp32", data: bytes | None = None) -> Model:
    package = opened(data or release(2))
    return Model(package, load_engine(package, variant), window)


def one(answer: Prediction | list[Prediction]) -> Prediction:
    assert isinstance(answer, Prediction)
    return answer


def test_a_prediction_says_what_and_how_sure() -> None:
    x, y = digits().held_out[:2]
    row = int(model().predict_proba(x).max(axis=1).argmax())
    answer = one(model().predict(x[row]))
    assert answer.label == y[row]
    assert answer.name == str(y[row])
    assert answer.confidence == pytest.approx(answer.probabilities.max())
    assert answer.model_version == 2
    assert answer.decision == "automatic"


def test_an_unsure_model_asks_for_review() -> None:
    # Before training every class has about one chance in ten; the threshold is 0.8.
    assert one(model(data=first()).predict(digits().held_out.x[0])).decision == "review"


@pytest.mark.parametrize(("threshold", "decision"), [(0.0, "automatic"), (1.0, "review")])
def test_the_manifests_threshold_decides(threshold: float, decision: str) -> None:
    data = resigned(release(2), lambda body: body.update(decision_threshold=threshold))
    rows = digits().held_out.x[:40]
    answers = model(data=data).predict(rows)
    assert isinstance(answers, list)
    unsure = [answer for answer in answers if answer.confidence < 1.0]
    assert {answer.decision for answer in unsure} == {decision}


def test_a_batch_is_answered_in_order_with_an_id_each() -> None:
    x = digits().held_out.x[:20]
    answers = model().predict(x)
    assert isinstance(answers, list)
    assert [answer.label for answer in answers] == [one(model().predict(row)).label for row in x]
    assert len({answer.id for answer in answers}) == 20


def test_probabilities_come_without_being_counted() -> None:
    window = Counts()
    x = digits().held_out.x[:3]
    asked = model(window)
    assert asked.predict_proba(x).shape == (3, 10)
    assert asked.predict_proba(x[0]).shape == (10,)
    assert window.seen == []


def test_telemetry_hears_of_every_example_once() -> None:
    window = Counts()
    asked = model(window)
    answers = asked.predict(digits().held_out.x[:5])
    assert isinstance(answers, list)
    answers.append(one(asked.predict(digits().held_out.x[5])))
    assert [(label, confidence) for _, label, confidence, _ in window.seen] == [
        (answer.label, answer.confidence) for answer in answers
    ]
    assert all(latency > 0 and shape == (1, 8, 8) for latency, _, _, shape in window.seen)
    assert window.errors == 0


def test_a_refused_input_is_counted_and_raised() -> None:
    window = Counts()
    with pytest.raises(UsageError, match=r"over 16: give values in 0\.\.16 grey levels"):
        model(window).predict(np.full((1, 8, 8), 255.0))
    assert (window.errors, window.seen) == (1, [])


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_each_variant_recognizes_held_out_digits(variant: str) -> None:
    x, y = digits().held_out[:2]
    answers = model(variant=variant).predict(x)
    assert isinstance(answers, list)
    assert np.mean([answer.label for answer in answers] == y) > 0.94


def test_a_model_says_what_runs() -> None:
    asked = model(variant="int8")
    assert (asked.name, asked.version, asked.variant, asked.engine) == ("digits", 2, "int8", "onnx")
    assert asked.labels == tuple("0123456789")

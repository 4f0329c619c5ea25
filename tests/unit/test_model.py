"""A model answers with label, confidence and decision, and tells telemetry without keeping anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model_packages import digits, first, opened, release, resigned
from umbel._predict.model import Model, Prediction
from umbel._telemetry.log import ROW, Log
from umbel.engines import Seat, load_engine
from umbel_proto.errors import UmbelError, UsageError


@dataclass
class Counts:
    """A telemetry window that remembers what it was told."""

    seen: list[tuple[int, int | None, float | None, tuple[int, ...]]] = field(default_factory=list)
    errors: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def log(self) -> Log:
        log = Log(lambda example: self._told(log, example))
        log.due = 0
        return log

    def _told(self, log: Log, example: object) -> None:
        for latency_ns, confidence, label in np.frombuffer(log.taken()[0], ROW).tolist():
            self.seen.append((latency_ns, label, confidence, np.shape(example)))  # type: ignore[arg-type]

    def observe_batch(
        self,
        latency_ns: int,
        labels: Sequence[int | None],
        confidences: Sequence[float | None],
        batch: NDArray[Any],
    ) -> None:
        for label, confidence, example in zip(labels, confidences, batch, strict=True):
            self.seen.append((latency_ns, label, confidence, example.shape))

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

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


def same(one: Prediction, other: Prediction) -> bool:
    said = [(each.label, each.name, each.decision, each.model_version) for each in (one, other)]
    close = np.allclose(one.probabilities, other.probabilities, rtol=1e-4, atol=1e-6)
    return said[0] == said[1] and close and one.id != other.id


@pytest.mark.parametrize("variant", ["fp32", "int8"])
@pytest.mark.parametrize("few", [64, 1])
def test_an_example_is_answered_alike_in_every_form_that_it_may_have(
    variant: str, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More classes than `FEW` are told apart by numpy.
    monkeypatch.setattr("umbel._predict.place.FEW", few)
    asked = model(variant=variant)
    for row in digits().held_out.x[:20]:
        quick = one(asked.predict(row.copy()))
        assert quick.confidence == quick.probabilities.max()
        assert quick.label == quick.probabilities.argmax()
        forms = (row.tolist(), row.astype(np.float64), row.astype(np.uint8), row[::1, ::1], row.astype(">f4"))
        assert all(same(quick, one(asked.predict(form))) for form in forms)
        batch = asked.predict(row[None])
        assert isinstance(batch, list)
        assert same(quick, batch[0])


def test_an_input_may_be_given_by_its_name_everywhere() -> None:
    counts = Counts()
    asked, x = model(counts), digits().held_out.x[:2]
    name = asked.inputs[0].name
    assert one(asked.predict({name: x[0]})).label == one(asked.predict(x[0])).label
    assert [each.label for each in asked.predict({name: x})] == [each.label for each in asked.predict(x)]  # type: ignore[union-attr]
    np.testing.assert_array_equal(asked.predict_proba({name: x}), asked.predict_proba(x))
    np.testing.assert_array_equal(asked.explain({name: x}).attributions, asked.explain(x).attributions)
    assert len(counts.seen) == 6
    with pytest.raises(UsageError, match=f"Input '{name}' is all that is taken"):
        asked.predict({name: x, "other": x})
    assert (counts.errors, counts.counts) == (1, {f"contract.{name}.form": 1})


@pytest.mark.parametrize("few", [64, 1])
def test_what_a_prediction_says_stays_when_the_next_is_made(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("umbel._predict.place.FEW", few)
    asked, rows = model(), digits().held_out.x[:2]
    first_said = one(asked.predict(rows[0]))
    kept = first_said.probabilities.copy()
    asked.predict(rows[1])
    np.testing.assert_array_equal(first_said.probabilities, kept)
    late = one(asked.predict(rows[0]))
    asked.predict(rows[1])
    np.testing.assert_array_equal(late.probabilities, kept)


def test_what_broke_the_contract_is_counted_by_column_and_kind_and_never_by_value() -> None:
    window = Counts()
    asked, x = model(window), digits().held_out.x[0].copy()
    x[0, 0, :3] = (17.0, -1.0, np.nan)
    with pytest.raises(UsageError):
        asked.predict(x)
    assert window.counts == {"contract.x.above": 1, "contract.x.below": 1, "contract.x.missing": 1}
    assert (window.errors, window.seen) == (1, [])


class Broken:
    """An engine whose runtime fails, by itself or from its seats."""

    name = "onnx"
    variant = "fp32"

    def answers(self, x: NDArray[Any]) -> NDArray[np.float32]:
        raise MemoryError

    def outputs(self, x: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        raise MemoryError

    def seat(self) -> Seat:
        return Seat(np.zeros((1, 1, 8, 8), np.float32), np.zeros((1, 10), np.float32), self.fail)

    def fail(self) -> None:
        raise MemoryError


def test_a_runtime_that_fails_is_one_sentence_and_is_counted() -> None:
    window = Counts()
    asked, x = Model(opened(release(2)), Broken(), window), digits().held_out.x
    for given in (x[0].copy(), x[:3]):
        with pytest.raises(
            UmbelError, match=r"digits 2 \(fp32\) could not compute an answer \(MemoryError\)"
        ):
            asked.predict(given)
    assert (window.errors, window.seen, window.counts) == (2, [], {})

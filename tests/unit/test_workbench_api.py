"""The workbench from Python: its public names, a package with equal bytes, and metrics of a task's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from numpy.typing import NDArray

import umbel_models
from model_packages import RELEASE, opened
from umbel_models import show
from umbel_models.card import Card
from umbel_models.evaluation import evaluate_own
from umbel_models.pack import repack
from umbel_models.task import FIXED_METRICS
from umbel_models.tasks.digits.task import DIGITS
from umbel_proto.errors import UsageError
from umbel_proto.manifest import CARD

WRITTEN = Path(__file__).parents[2] / "docs" / "reference" / "tasks.md"


def even(said: np.ndarray, y: np.ndarray) -> float:
    """Return how often it is right whether a digit is even."""
    return float((said.argmax(1) % 2 == y % 2).mean())


OWN = replace(DIGITS, metrics={"right about even": even})


def test_the_public_names_are_sorted_documented_and_there() -> None:
    assert umbel_models.__all__ == sorted(umbel_models.__all__)
    page = WRITTEN.read_text("utf-8")
    for name in umbel_models.__all__:
        assert getattr(umbel_models, name).__doc__
        assert f"`{name}`" in page, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        umbel_models.nothing  # noqa: B018
    assert "return" in get_type_hints(umbel_models.export)


def test_importing_the_workbench_imports_none_of_its_libraries() -> None:
    code = "import sys, umbel_models; print([n for n in ('numpy', 'onnx', 'torch', 'onnxruntime') if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"


def test_a_task_exported_twice_gives_equal_bytes_and_a_file_that_opens(tmp_path: Path) -> None:
    built, again = (umbel_models.export(OWN, key=RELEASE) for _ in range(2))
    assert built.data == again.data
    built.write(tmp_path / "m.umbel")
    assert opened((tmp_path / "m.umbel").read_bytes()).sha256 == built.package.sha256


def test_a_metric_of_ones_own_stands_in_the_card_and_in_what_is_shown() -> None:
    built = umbel_models.export(OWN, key=RELEASE)
    card = Card.from_json(built.package.file(built.package.manifest.documents[CARD]))
    (told,) = [metric.value for metric in card.metrics if metric.kind == "right about even"]
    assert 0.2 < told < 0.8
    lines = show.lines(built.package.manifest, card, size=len(built.data), checked=True)
    assert [line for line in lines if line.startswith("right about even")]
    assert "right about even" in card.to_markdown()
    data = DIGITS.data()
    later = opened(
        repack(
            built.package,
            built.package.parameters(),
            calibration=data.calibration.x,
            version=2,
            key=RELEASE,
            held_out=data.held_out,
            metrics=OWN.metrics,
        )
    )
    again = Card.from_json(later.file(later.manifest.documents[CARD]))
    assert told in [metric.value for metric in again.metrics if metric.kind == "right about even"]


def test_a_metric_of_ones_own_is_of_what_the_model_says_and_changes_it_for_no_other() -> None:
    examples = DIGITS.data().held_out
    said = np.random.default_rng(4).random((len(examples.y), 10), dtype=np.float32)
    before = (said.copy(), examples.y.copy())

    def spoil(said: NDArray[np.float32], y: NDArray[np.int64]) -> float:
        said[:], y[:] = 0, 0
        return 1.0

    own = {"spoils": spoil, "right": lambda said, y: float((said.argmax(1) == y).mean())}
    found = {each.kind: each.value for each in evaluate_own(own, said, examples)}
    assert found == {"spoils": 1.0, "right": float((before[0].argmax(1) == before[1]).mean())}
    np.testing.assert_array_equal(said, before[0])
    np.testing.assert_array_equal(examples.y, before[1])


@pytest.mark.parametrize(
    ("metric", "sentence"),
    [
        (lambda said, y: said[99], "metric 'own' fails"),
        (lambda said, y: np.nan, "is nan on the held-out"),
        (lambda said, y: "much", "metric 'own' fails"),
    ],
)
def test_a_metric_that_gives_no_number_is_one_sentence(metric: Callable[..., Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        umbel_models.export(
            replace(DIGITS, metrics={"own": lambda said, y: metric(said[:9], y)}), key=RELEASE
        )


@pytest.mark.parametrize("name", [" ", *sorted(FIXED_METRICS)])
def test_a_name_that_umbel_uses_itself_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name of its own"):
        replace(DIGITS, metrics={name: even})

"""How devices share a task's data: every example on one device, as unevenly as asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from model_packages import digits
from umbel_models.cli import app
from umbel_models.federated import MIN_SHARD, by_label, by_source
from umbel_models.task import Examples
from umbel_proto.errors import UsageError


def numbered(y: list[int], source: list[int] | None = None) -> Examples:
    """Examples whose x is their own number."""
    x = np.arange(len(y), dtype=np.float32)[:, np.newaxis]
    return Examples(x, np.array(y), source=None if source is None else np.array(source))


def numbers(parts: list[Examples]) -> list[int]:
    return sorted(int(x) for part in parts for x in part.x[:, 0])


@given(st.integers(1, 5), st.integers(0, 99), st.sampled_from([0.3, 1.0, 100.0]))
def test_a_split_by_label_holds_every_example_once(devices: int, seed: int, alpha: float) -> None:
    examples = numbered([i % 10 for i in range(1000)], source=list(range(1000)))
    parts = by_label(examples, devices, alpha=alpha, seed=seed)
    assert len(parts) == devices
    assert numbers(parts) == list(range(1000))
    assert min(len(part.y) for part in parts) >= MIN_SHARD
    for part in parts:
        np.testing.assert_array_equal(part.source, part.x[:, 0])
        np.testing.assert_array_equal(part.y, part.x[:, 0] % 10)


@given(st.lists(st.integers(20, 60), min_size=5, max_size=30), st.integers(1, 5), st.integers(0, 99))
def test_a_split_by_source_holds_every_source_whole_on_one_device(
    sizes: list[int], devices: int, seed: int
) -> None:
    source = [number * 7 for number, size in enumerate(sizes) for _ in range(size)]
    parts = by_source(numbered([0] * len(source), source), devices, seed=seed)
    assert len(parts) == devices
    assert numbers(parts) == list(range(len(source)))
    owners = [set(part.source.tolist()) for part in parts if part.source is not None]
    assert sum(len(each) for each in owners) == len(set(source))
    loads = [len(part.y) for part in parts]
    assert max(loads) - min(loads) <= max(sizes)


@pytest.mark.parametrize("share", [partial(by_label, alpha=1.0), by_source])
def test_the_seed_says_who_gets_what(share: Callable[..., list[Examples]]) -> None:
    examples = numbered([i % 2 for i in range(400)], [i // 20 for i in range(400)])
    first, again, other = ([part.x.tobytes() for part in share(examples, 4, seed=seed)] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_small_alpha_makes_devices_differ_and_a_large_one_does_not() -> None:
    def unlike(alpha: float) -> float:
        parts = by_label(digits().train, 8, alpha=alpha, seed=1)
        shares = [np.bincount(part.y, minlength=10) / len(part.y) for part in parts]
        return float(np.mean([np.abs(share - 0.1).sum() / 2 for share in shares]))

    assert unlike(1000.0) < 0.08 < 0.3 < unlike(0.5)


@pytest.mark.parametrize(("devices", "alpha"), [(0, 1.0), (8, 0.0), (2000, 1.0)])
def test_a_split_by_label_that_cannot_be_made_is_refused(devices: int, alpha: float) -> None:
    with pytest.raises(UsageError):
        by_label(digits().train, devices, alpha=alpha, seed=0)


@pytest.mark.parametrize("devices", [0, 3])
def test_a_split_by_source_that_cannot_be_made_is_refused(devices: int) -> None:
    with pytest.raises(UsageError, match=r"make no sense|use fewer"):
        by_source(numbered([0] * 100, [i % 2 for i in range(100)]), devices, seed=0)


def test_examples_without_sources_are_not_split_by_source() -> None:
    with pytest.raises(UsageError, match="share them by label"):
        by_source(digits().train, 2, seed=0)


def split(out: Path, *arguments: str) -> None:
    result = CliRunner().invoke(app, ["split", *arguments, "--out", str(out)])
    if result.exception is not None:
        raise result.exception


def sizes(out: Path, devices: int) -> list[int]:
    return [len(np.load(out / f"shard-{number}.npz")["y"]) for number in range(devices)]


def test_the_command_splits_by_label_where_there_is_no_source(tmp_path: Path) -> None:
    split(tmp_path, "digits", "--devices", "3", "--seed", "2")
    expected = by_label(digits().train, 3, alpha=1.0, seed=2)
    assert sizes(tmp_path, 3) == [len(part.y) for part in expected]
    assert len(np.load(tmp_path / "heldout.npz")["y"]) == len(digits().held_out.y)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("digits", "--by", "source"), "name no sources"),
        (("digits", "--by", "source", "--alpha", "1"), "--by label"),
    ],
)
def test_a_split_that_makes_no_sense_writes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        split(tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()

"""Example files: plain arrays, and a sentence for everything else."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from umbel._data.examples import read_examples
from umbel_proto.errors import UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.npz"


def test_inputs_and_labels_come_back_in_the_types_that_training_takes(path: Path) -> None:
    np.savez(path, x=np.arange(6.0).reshape(3, 2), y=np.array([1, 0, 2], np.uint8), other=np.zeros(9))
    examples = read_examples(path)
    assert (examples.x.dtype, examples.x.shape, len(examples)) == (np.float32, (3, 2), 3)
    assert examples.y is not None
    assert (examples.y.dtype, examples.y.tolist()) == (np.int64, [1, 0, 2])


def test_targets_keep_their_shape_and_become_float32(path: Path) -> None:
    np.savez(path, x=np.zeros((3, 2)), y=np.arange(6.0).reshape(3, 2))
    examples = read_examples(path)
    assert examples.y is not None
    assert (examples.y.dtype, examples.y.tolist()) == (np.float32, [[0, 1], [2, 3], [4, 5]])


def test_labels_may_be_left_out_and_whole_numbers_stay_whole(path: Path) -> None:
    np.savez_compressed(path, x=np.zeros((2, 4), np.uint8))
    examples = read_examples(path)
    assert (examples.x.dtype, examples.y) == (np.uint8, None)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (str(Path("/tmp/umbel-trap")),))


def test_a_pickle_is_refused_and_not_run(path: Path, tmp_path: Path) -> None:
    np.savez(path, x=np.array([Trap()], object))
    with pytest.raises(UsageError, match="plain arrays"):
        read_examples(path)
    bare = tmp_path / "bare.npz"
    bare.write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(UsageError, match="plain arrays"):
        read_examples(bare)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no more", b"\x93NUMPY\x01\x00", b"text"])
def test_what_is_no_npz_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UsageError, match=str(path)):
        read_examples(path)


def test_a_single_array_is_no_npz_file(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros((3, 3)))
    with pytest.raises(UsageError, match="plain arrays"):
        read_examples(path)


def test_a_truncated_file_is_refused(path: Path) -> None:
    np.savez(path, x=np.zeros((100, 100)))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UsageError, match=r"data\.npz"):
        read_examples(path)


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no file"):
        read_examples(tmp_path / "nothing.npz")
    with pytest.raises(UsageError, match="cannot be read"):
        read_examples(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"y": np.zeros(3, np.int64)}, "no array called x"),
        ({"x": np.float32(1)}, "rows of numbers"),
        ({"x": np.zeros((0, 4))}, "rows of numbers"),
        ({"x": np.array(["a", "b"])}, "rows of numbers"),
        ({"x": np.zeros((3, 2), complex)}, "rows of numbers"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(2, np.int64)}, "numbers, for each of the 3 rows"),
        ({"x": np.zeros((3, 2)), "y": np.zeros((1, 3))}, "for each of the 3 rows"),
        ({"x": np.zeros((3, 2)), "y": np.array(["a", "b", "c"])}, "a label, or numbers"),
    ],
)
def test_arrays_that_are_no_examples_are_refused_with_the_reason(
    path: Path, arrays: dict[str, np.ndarray], why: str
) -> None:
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match=why):
        read_examples(path)

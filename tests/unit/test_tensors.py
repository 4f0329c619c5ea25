"""What the safetensors library writes is read to the same bytes; nothing is read that it would refuse."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from umbel_proto.errors import PackageError
from umbel_proto.tensors import load_tensors

DTYPES = ("<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "|i1", "<u8", "<u4", "<u2", "|u1", "|b1")
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
ARRAYS = st.dictionaries(
    st.text(min_size=1).filter(lambda name: name != "__metadata__"),
    st.sampled_from(DTYPES).flatmap(lambda dtype: arrays.arrays(dtype, SHAPES)),
    min_size=1,  # Of none, with metadata, the library writes what is no JSON.
    max_size=4,
)


def same(ours: dict[str, NDArray[Any]], theirs: dict[str, NDArray[Any]]) -> bool:
    return ours.keys() == theirs.keys() and all(
        (value.dtype, value.shape, value.tobytes())
        == (theirs[name].dtype, theirs[name].shape, theirs[name].tobytes())
        for name, value in ours.items()
    )


def file(header: object, content: bytes = b"") -> bytes:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + content


def entry(dtype: object = "U8", shape: object = (2,), first: object = 0, last: object = 2) -> object:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


@given(ARRAYS, st.dictionaries(st.text(), st.text(), max_size=2))
def test_what_the_library_writes_is_read(written: dict[str, NDArray[Any]], notes: dict[str, str]) -> None:
    raw = safetensors.numpy.save(written, notes)
    assert same(load_tensors(raw, "x"), written)


@given(ARRAYS, st.data())
def test_what_is_read_the_library_reads_alike(written: dict[str, NDArray[Any]], data: st.DataObject) -> None:
    broken = bytearray(safetensors.numpy.save(written))
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    raw = bytes(broken[: data.draw(st.sampled_from((None, -1, 9)))])
    try:
        ours = load_tensors(raw, "x")
    except PackageError:
        return
    assert same(ours, safetensors.numpy.load(raw))


@pytest.mark.parametrize("unaligned", [0, 1])
def test_the_arrays_are_the_callers_own(unaligned: int) -> None:
    raw = bytearray(unaligned) + safetensors.numpy.save({"a": np.arange(4, dtype=np.float32)})
    read = load_tensors(memoryview(raw)[unaligned:], "x")["a"]
    raw[:] = bytes(len(raw))
    read += 1
    assert read.flags.aligned
    assert read.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0" * 7,
        file(b"{}")[:-1],
        (1 << 63).to_bytes(8, "little") + b"{}",
        file(b""),
        file([]),
        file(b"\xff"),
        file(b" {}"),
        file(b"[" * 100_000),
        file(b'{"a":' * 100_000),
        file({}, b"\0"),
        file({"a": entry()}, b"\0"),
        file({"a": entry()}, b"\0\0\0"),
        file({"a": entry(first=1, last=3)}, b"\0\0\0"),
        file({"a": entry(), "b": entry(first=1, last=3)}, b"\0\0\0"),
        file({"a": entry(), "b": entry(first=3, last=5)}, b"\0\0\0\0\0"),
        file({"a": entry(shape=[1])}, b"\0\0"),
        file({"a": entry(shape=[-1, -2])}, b"\0\0"),
        file({"a": entry(shape=[2.0])}, b"\0\0"),
        file({"a": entry(shape=[True, 2])}, b"\0\0"),
        file({"a": entry(shape=2)}, b"\0\0"),
        file({"a": entry(shape=[10**15], last=10**15)}, b"\0\0"),
        file({"a": entry(shape=[0, 2**70], last=0)}),
        file({"a": entry(dtype="BF16", shape=[1])}, b"\0\0"),
        file({"a": entry(dtype=None)}, b"\0\0"),
        file({"a": entry(first=0.0)}, b"\0\0"),
        file({"a": entry(first=False)}, b"\0\0"),
        file({"a": entry(last=1)}, b"\0"),
        file({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2], "more": 1}}, b"\0\0"),
        file({"a": {"dtype": "U8", "shape": [2]}}, b"\0\0"),
        file({"a": 1}, b""),
        file({"\ud800": entry()}, b"\0\0"),
        file(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
        file({"__metadata__": {"a": 1}}),
        file({"__metadata__": []}),
    ],
)  # fmt: skip
def test_what_is_not_in_the_format_is_refused(raw: bytes) -> None:
    with pytest.raises(PackageError, match="x does not hold arrays in the safetensors format"):
        load_tensors(raw, "x")


def test_arrays_are_copied_unless_they_are_copied_on() -> None:
    raw = b"x" + safetensors.numpy.save({"a": np.arange(3, dtype=np.float32), "b": np.ones(())})
    content = np.frombuffer(raw, np.uint8)
    for copied in (True, False):  # Of an odd address, as in a package.
        arrays = load_tensors(memoryview(raw)[1:], "a file", copied=copied)
        assert [np.shares_memory(array, content) for array in arrays.values()] == [not copied] * 2
        assert [array.flags.writeable for array in arrays.values()] == [copied] * 2
        np.testing.assert_array_equal(arrays["a"], [0, 1, 2])

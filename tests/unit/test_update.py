"""An update file is of one package, and whole, or it is nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from model_packages import first, opened, release, training
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.update import KEY, is_update, read_update, write_update


def update() -> bytes:
    return write_update(opened(first()), training().parameters)


def facts() -> dict[str, Any]:
    raw = update()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    found: dict[str, Any] = json.loads(header["__metadata__"][KEY])
    return found


def with_facts(**metadata: str) -> bytes:
    arrays = opened(first()).manifest.split(training().parameters)
    return bytes(safetensors.numpy.save(arrays, metadata))


def refused(raw: bytes) -> str:
    with pytest.raises(PackageError) as caught:
        read_update(raw, opened(first()))
    return str(caught.value)


def test_an_update_gives_back_the_vector_and_repeats_to_the_byte() -> None:
    assert update() == update()
    np.testing.assert_array_equal(read_update(update(), opened(first())), training().parameters)


def test_any_safetensors_reader_reads_an_update() -> None:
    arrays = safetensors.numpy.load(update())
    assert list(arrays) != []
    np.testing.assert_array_equal(opened(first()).manifest.join(arrays), training().parameters)


def test_an_update_of_another_package_is_refused() -> None:
    with pytest.raises(PackageError, match="not made from this package of digits 2"):
        read_update(update(), opened(release(2)))


def test_no_changed_bit_changes_the_parameters() -> None:
    raw, source = update(), random.Random(3)
    header = 8 + int.from_bytes(raw[:8], "little")
    for position in [*range(header), *source.sample(range(header, len(raw)), 500)]:
        broken = bytearray(raw)
        broken[position] ^= 1 << source.randrange(8)
        try:
            vector = read_update(bytes(broken), opened(first()))
        except PackageError:
            continue
        # A space more or less in the header says the same.
        assert position < header
        np.testing.assert_array_equal(vector, training().parameters)


def test_no_cut_or_lengthened_update_is_read() -> None:
    raw = update()
    for end in [*range(0, len(raw), 97), len(raw) - 1]:
        refused(raw[:end])
    refused(raw + b"\0")


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(format=2),
        lambda body: body.update(base_version=True),
        lambda body: body.update(base_version=1.0),
        lambda body: body.update(model="letters"),
        lambda body: body.update(digest="0" * 64),
        lambda body: body.update(extra=1),
        lambda body: body.pop("model"),
    ],
)
def test_facts_that_do_not_fit_are_refused(change: Callable[[dict[str, Any]], None]) -> None:
    body = facts()
    change(body)
    assert "damaged" in refused(with_facts(**{KEY: json.dumps(body)}))


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "1", "{" * 9000, "[" * 9000, '{"format": 1, "format": 1}']
)
def test_facts_that_are_no_object_are_refused(text: str) -> None:
    assert "damaged" in refused(with_facts(**{KEY: text}))


def test_other_metadata_is_refused() -> None:
    assert "damaged" in refused(with_facts(**{KEY: json.dumps(facts()), "note": "hello"}))


def test_arrays_of_another_model_are_refused() -> None:
    arrays = {"weight": np.zeros(3, np.float32)}
    assert "names differ" in refused(safetensors.numpy.save(arrays, {KEY: json.dumps(facts())}))


def test_parameters_that_are_not_finite_make_no_update() -> None:
    vector = np.full_like(training().parameters, np.nan)
    with pytest.raises(UsageError, match="not finite"):
        write_update(opened(first()), vector)


@pytest.mark.parametrize("raw", [b"", b"\x02\0\0\0\0\0\0\0{}", b"\xff" * 40, b"\x04\0\0\0\0\0\0\0[[[["])
def test_a_file_that_is_no_update_is_known_as_none(raw: bytes) -> None:
    assert not is_update(raw)
    refused(raw)


def test_a_plain_file_of_arrays_is_no_update() -> None:
    assert is_update(update())
    assert not is_update(with_facts())
    refused(with_facts())

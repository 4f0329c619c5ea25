"""Deltas: what one makes of its base is the package, byte for byte, and no bytes make anything else happen."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from model_packages import RELEASE, digits, first, opened, release, resigned, training
from umbel_models.pack import repack
from umbel_proto.archive import write_archive
from umbel_proto.delta import BLOCK, MAGIC, Kind, difference, patched, worth_sending
from umbel_proto.errors import PackageError

RECORD = struct.Struct("<BIQII")
FROZEN = (
    "554d4401021f00000000000000000000001f0000000e0000000b4091d67f754114c4138149030002140000001f0000000000"
    "0000130000000b000000cb40112acf2fca49510400021f00000032000000000000001f0000000b0000000b409116ded4a58e"
    "220d00020c00000051000000000000000c000000060000006380b3131c0002740000005d00000000000000740000001a0000"
    "00433744ffd50551104f84383b853775a963b7d3189b9d71604900"
)


def made(delta: bytes, base: bytes, size: int) -> bytes:
    def read(at: int, length: int) -> bytes:
        assert at + length < 1 << 31  # What any system's files can be asked for.
        return base[at : at + length]

    return b"".join(patched(io.BytesIO(delta).read, read, size))


def deflated(data: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(data) + deflate.flush()


def record(kind: int, length: int, *, offset: int = 0, reach: int = 0, packed: bytes = b"") -> bytes:
    return RECORD.pack(kind, length, offset, reach, len(packed)) + packed


def after_a_round() -> bytes:
    """Digits 3: digits 2 with every weight a thousandth larger or smaller, as a round leaves them."""
    chance = np.random.default_rng(1)
    parameters = training().parameters * (1 + 1e-3 * chance.standard_normal(len(training().parameters)))
    return repack(
        opened(release(2)),
        parameters.astype(np.float32),
        calibration=digits().calibration.x,
        version=3,
        key=RELEASE,
    )


def weights(seed: int, count: int) -> bytes:
    chance = np.random.default_rng(seed)
    return safetensors.numpy.save({"w": chance.standard_normal(count).astype(np.float32)})


# What a delta is for


def test_another_version_of_a_model_is_made_of_the_one_before() -> None:
    for base, package in [(first(), release(2)), (release(2), release(3)), (release(2), after_a_round())]:
        delta = difference(base, package)
        assert delta is not None
        assert made(delta, base, len(package)) == package


def test_after_a_round_a_delta_is_a_third_of_the_package_and_of_a_new_card_a_hundredth() -> None:
    for package, share in [(after_a_round(), 1 / 3), (resigned(release(2), _older), 1 / 100)]:
        delta = difference(release(2), package)
        assert delta is not None
        assert len(delta) < share * len(package)


def _older(body: dict[str, object]) -> None:
    body["version"] = 3


def test_one_pair_of_packages_has_one_delta() -> None:
    assert difference(release(2), release(3)) == difference(release(2), bytes(bytearray(release(3))))


def test_a_package_that_has_nothing_of_the_other_is_sent_whole() -> None:
    base, package = (write_archive({"w": weights(seed, 10_000)}) for seed in (1, 2))
    assert difference(base, package) is None


def test_less_than_half_is_worth_sending() -> None:
    assert (worth_sending(49, 100), worth_sending(50, 100)) == (True, False)
    # And that is what is measured by: of two files of which one is new, the old one has to be the larger.
    noise = [np.random.default_rng(seed).bytes(40_000) for seed in range(3)]
    base = write_archive({"a": noise[0], "b": noise[1]})
    assert difference(base, write_archive({"a": noise[0], "b": noise[2]})) is None
    assert difference(base, write_archive({"a": noise[0], "b": noise[2][:39_000]})) is not None


@pytest.mark.parametrize("base", [b"", b"no package at all"])
def test_what_is_no_package_has_no_delta(base: bytes) -> None:
    with pytest.raises(PackageError):
        difference(base, release(2))


contents = st.binary(max_size=300) | st.builds(
    lambda seed, count, tail: (
        np.random.default_rng(seed).integers(0, 9, count).astype("<i4").tobytes() + tail
    ),
    st.integers(0, 2),
    st.integers(0, 80_000),
    st.binary(max_size=3),
)
packages = st.dictionaries(st.sampled_from(["a", "b", "c.onnx", "d"]), contents).map(write_archive)


@given(base=packages, package=packages)
def test_whatever_is_in_two_packages_a_delta_makes_one_of_the_other(base: bytes, package: bytes) -> None:
    delta = difference(base, package)
    if delta is not None:
        assert worth_sending(len(delta), len(package))
        assert made(delta, base, len(package)) == package


def test_words_are_made_as_the_specification_says() -> None:
    """4.4, in whole numbers of Python instead of arrays."""
    old = struct.pack("<4I", 0, 5, 0xFFFFFFFF, 1 << 31) + b"ab"
    new = struct.pack("<4I", 1, 4, 0, 0) + b"cd"
    folded = []
    for before, after in zip(struct.unpack("<4I", old[:16]), struct.unpack("<4I", new[:16]), strict=True):
        signed = (after - before + 2**31) % 2**32 - 2**31
        folded.append(2 * signed if signed >= 0 else -2 * signed - 1)
    assert folded[:3] == [2, 1, 2]
    planes = bytes((word >> 8 * place) & 255 for place in range(4) for word in folded) + b"cd"
    delta = MAGIC + record(Kind.WORDS, 18, offset=3, reach=18, packed=deflated(planes))
    assert made(delta, b"xyz" + old, 18) == new


def test_a_delta_of_today_is_read_for_ever() -> None:
    base = write_archive({"a": b"hello, hello, hello", "w": struct.pack("<3f", 1.0, 2.0, 3.0)})
    package = write_archive({"a": b"hello, hello, world!", "w": struct.pack("<3f", 1.0, 2.0, 3.5)})
    assert (
        hashlib.sha256(made(bytes.fromhex(FROZEN), base, len(package))).digest()
        == hashlib.sha256(package).digest()
    )


# Hostile bytes


@pytest.mark.parametrize(
    ("records", "why"),
    [
        (b"", "makes less"),
        (record(Kind.COPY, 10, reach=10), "makes less"),
        (record(Kind.COPY, 101, reach=101), "makes more"),
        (record(Kind.COPY, 0), "makes more"),
        (record(Kind.COPY, 100, offset=1, reach=100), "not there"),
        (record(Kind.COPY, 100, offset=1 << 63, reach=100), "not there"),
        (record(Kind.COPY, 100, reach=99), "no known kind"),
        (record(Kind.COPY, 100, reach=100, packed=b"more"), "no known kind"),
        (record(3, 100, reach=100), "no known kind"),
        (record(Kind.TEXT, 100, packed=deflated(bytes(99))), "not there"),
        (record(Kind.TEXT, 100, packed=b"\xff" * 20), "cannot be inflated"),
        (record(Kind.TEXT, 100, packed=deflated(bytes(range(100))))[:-5], "not there"),
        (record(Kind.TEXT, 100, offset=90, reach=11, packed=deflated(bytes(100))), "not there"),
        (record(Kind.TEXT, 100, reach=BLOCK + 1, packed=deflated(bytes(100))), "no known kind"),
        (RECORD.pack(Kind.TEXT, 100, 0, 0, 0xFFFFFFFF), "no known kind"),
        (record(Kind.WORDS, 100, reach=96, packed=deflated(bytes(100))), "another number"),
        (record(Kind.WORDS, 100, reach=100, packed=deflated(bytes(96))), "not there"),
        (record(Kind.COPY, 100, reach=100) + b"\0", "in the middle"),
    ],
)
def test_a_record_that_breaks_a_rule_is_refused(records: bytes, why: str) -> None:
    with pytest.raises(PackageError, match=why):
        made(MAGIC + records, bytes(100), 100)


@pytest.mark.parametrize("delta", [b"", MAGIC[:3], b"PK\x03\x04" + bytes(100)])
def test_what_is_no_delta_is_refused(delta: bytes) -> None:
    with pytest.raises(PackageError, match="does not begin as one"):
        made(delta, bytes(100), 100)


def test_a_thousand_altered_deltas_make_the_package_or_one_error_and_never_more_than_it_has() -> None:
    base, package = release(2), after_a_round()
    delta = difference(base, package)
    assert delta is not None
    right, chance, outcomes = hashlib.sha256(package).digest(), random.Random(1), set()
    for _ in range(1000):
        altered = bytearray(delta)
        change = chance.choice([_flip, _cut, _repeat, _garbage])
        change(altered, chance)
        seen = io.BytesIO()
        try:
            for piece in patched(
                io.BytesIO(altered).read, lambda at, length: base[at : at + length], len(package)
            ):
                seen.write(piece)
        except PackageError:
            outcomes.add("refused")
        else:
            same = hashlib.sha256(seen.getvalue()).digest() == right
            outcomes.add("right" if same else "caught by its hash")
        assert len(seen.getvalue()) <= len(package)
    assert {"refused", "caught by its hash"} <= outcomes


def _flip(delta: bytearray, chance: random.Random) -> None:
    # Half of them where a record of the small files begins, which is most of what there is to a delta.
    at = chance.randrange(chance.choice([2_000, len(delta)]))
    delta[at] ^= 1 << chance.randrange(8)


def _cut(delta: bytearray, chance: random.Random) -> None:
    del delta[chance.randrange(len(delta)) :]


def _repeat(delta: bytearray, chance: random.Random) -> None:
    begin = chance.randrange(len(delta))
    delta[begin:begin] = delta[begin : begin + chance.randrange(1, 400)]


def _garbage(delta: bytearray, chance: random.Random) -> None:
    begin = chance.randrange(len(delta))
    delta[begin : begin + 40] = chance.randbytes(40)


def test_what_inflates_without_end_is_cut_off_at_a_block() -> None:
    bomb = deflated(bytes(200 * BLOCK))
    peak = peak_of(lambda: made(MAGIC + record(Kind.TEXT, 100, packed=bomb), b"", 100))
    assert peak < 4 * BLOCK


def test_a_delta_cannot_let_a_device_read_its_base_for_ever() -> None:
    asked = []

    def base(at: int, length: int) -> bytes:
        asked.append(length)
        return bytes(length)

    many = record(Kind.TEXT, 1, reach=BLOCK, packed=deflated(b"x")) * 100_000
    with pytest.raises(PackageError, match="never"):
        list(patched(io.BytesIO(MAGIC + many).read, base, 100_000))
    assert len(asked) < 300


def test_making_a_package_takes_the_memory_of_a_few_blocks_whatever_its_size() -> None:
    size = 16 << 20
    old = np.random.default_rng(1).standard_normal(size // 4).astype(np.float32)
    base, package = (write_archive({"w": values.tobytes()}) for values in (old, old * np.float32(1.001)))
    delta = difference(base, package)
    assert delta is not None
    read, right = io.BytesIO(delta).read, hashlib.sha256(package).digest()
    digest = hashlib.sha256()

    def make() -> None:
        for piece in patched(read, lambda at, length: base[at : at + length], len(package)):
            digest.update(piece)

    assert peak_of(make) < 16 * BLOCK < size // 2
    assert digest.digest() == right


def peak_of(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        with contextlib.suppress(PackageError):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

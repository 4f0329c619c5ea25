"""What a package differs by from another: a delta, from which and the other one it is made again.

A delta is a magic number, then records in the order of the result. Each makes some bytes of it from a stretch of the
other package, its *base*; neither side holds more than a few blocks of anything but what it was given.

Training changes every weight, most of them by little. Two floats that are close are close as whole numbers, too: of
their difference mostly the low bytes are not 0. With all low bytes side by side, then all that are next, deflate takes
the rest away.

Source: docs/spec/delivery.md.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from umbel_proto.archive import HEADER_BYTES, MAX_ARCHIVE_BYTES, MAX_ENTRIES, read_archive
from umbel_proto.errors import PackageError

MAGIC = b"UMD\x01"
BLOCK = 1 << 18
"""Bytes of the result that a record makes at most, unless it copies."""
WINDOW = 32_000
"""Bytes of the base that a text is deflated with at most: as far as deflate looks back, but for 768."""
_RECORD = struct.Struct("<BIQII")
_LEVEL = 6
_RAW = -zlib.MAX_WBITS  # Without zlib's checksum: the package's hash tells whether all is right.

Read = Callable[[int], bytes]
"""Returns the next bytes, as many as asked for; fewer at the end."""
ReadAt = Callable[[int, int], bytes]
"""Returns the bytes from an offset on, as many as asked for; fewer at the end."""


class Kind(IntEnum):
    """How a record makes its part of the result."""

    COPY = 0  # It is a stretch of the base.
    WORDS = 1  # Its words of 32 bits differ from those of a stretch of the base, each by a number.
    TEXT = 2  # Deflated, with a stretch of the base to look back at.


class _Stretch(NamedTuple):
    """A stretch of a package, and the one of the base that it is compared with."""

    begin: int
    end: int
    base_begin: int
    base_end: int


def worth_sending(delta_bytes: int, package_bytes: int) -> bool:
    """Return whether a delta is smaller than half of its package."""
    return 2 * delta_bytes < package_bytes


def difference(base: bytes, package: bytes) -> bytes | None:
    """Return the delta that makes a package of its base, always the same one; None if it is not worth sending.

    Raises:
        PackageError: One of them is no package.
    """
    old, new = memoryview(base), memoryview(package)
    delta = bytearray(MAGIC)
    copy = (0, 0)  # What is to be copied and may go on: begin and end in the base.
    for begin, end, base_begin, base_end in _blocks(base, package):
        if new[begin:end] == old[base_begin:base_end]:
            if copy[1] != base_begin:
                delta += _copy(*copy)
                copy = (base_begin, base_begin)
            copy = (copy[0], base_end)
            continue
        delta += _copy(*copy)
        copy = (0, 0)
        delta += _change(bytes(old[base_begin:base_end]), base_begin, bytes(new[begin:end]))
        if not worth_sending(len(delta), len(package)):
            return None
    delta += _copy(*copy)
    return bytes(delta) if worth_sending(len(delta), len(package)) else None


def patched(read: Read, base: ReadAt, size: int) -> Iterator[bytes]:
    """Yield a package's bytes, made of a delta and its base. They are to be trusted no more than the delta.

    Args:
        read: Reads on in the delta.
        base: Reads anywhere in the base.
        size: How long the package is, bytes: nothing is yielded beyond it.

    Raises:
        PackageError: It is no delta, or not one of this base that makes so many bytes.
    """
    if read(len(MAGIC)) != MAGIC:
        raise _damaged("it does not begin as one")
    left, records = size, 0
    while header := read(_RECORD.size):
        records += 1
        # Each may read a block of the base for a single byte of the package.
        if len(header) < _RECORD.size or records > 4 * MAX_ENTRIES + size // BLOCK:
            raise _damaged("it ends in the middle, or never")
        kind, length, offset, reach, packed = _RECORD.unpack(header)
        if not 0 < length <= left:
            raise _damaged("it makes more than the package")
        if offset > MAX_ARCHIVE_BYTES:
            raise _damaged("it names bytes that are not there")
        left -= length
        if kind == Kind.COPY and (reach, packed) == (length, 0):
            yield from _copied(base, offset, length)
        elif kind in (Kind.WORDS, Kind.TEXT) and max(length, reach, packed // 2) <= BLOCK:
            yield _made(kind, length, _exactly(base(offset, reach), reach), _exactly(read(packed), packed))
        else:
            raise _damaged("it has a record of no known kind")
    if left:
        raise _damaged("it makes less than the package")


def _blocks(base: bytes, package: bytes) -> Iterator[_Stretch]:
    """Yield what a package is made of, in order, a block at a time."""
    before = {name: (begin, end) for name, begin, end in _parts(base)}
    for name, begin, end in _parts(package):
        base_begin, base_end = before.get(name, (0, 0))
        # In a file of another length no word has its place: it is a text.
        reach = BLOCK if end - begin == base_end - base_begin else WINDOW
        for at in range(begin, end, BLOCK):
            where = min(base_begin + at - begin, base_end)
            yield _Stretch(at, min(at + BLOCK, end), where, min(where + reach, base_end))


def _parts(package: bytes) -> Iterator[tuple[str, int, int]]:
    """Yield the name, begin and end of each of a package's parts, in order."""
    at = 0
    for name, content in read_archive(package).items():
        begin = at + HEADER_BYTES + len(name)
        yield f"header of {name}", at, begin
        at = begin + len(content)
        yield name, begin, at
    yield "", at, len(package)  # What lists them all.


def _copy(begin: int, end: int) -> bytes:
    return _RECORD.pack(Kind.COPY, end - begin, begin, end - begin, 0) if begin < end else b""


def _change(old: bytes, offset: int, new: bytes) -> bytes:
    """Return the smaller of the records that make a block."""
    texts = old[:WINDOW]
    found = (
        [(Kind.TEXT, texts, _deflated(new, texts))] if len(new) <= 2 * WINDOW or len(old) != len(new) else []
    )
    if len(old) == len(new):
        found.append((Kind.WORDS, old, _deflated(_differences(old, new))))
    kind, used, packed = min(found, key=lambda each: len(each[2]))
    return _RECORD.pack(kind, len(new), offset, len(used), len(packed)) + packed


def _copied(base: ReadAt, offset: int, length: int) -> Iterator[bytes]:
    for at in range(0, length, BLOCK):
        piece = min(BLOCK, length - at)
        yield _exactly(base(offset + at, piece), piece)


def _made(kind: int, length: int, old: bytes, packed: bytes) -> bytes:
    if kind == Kind.TEXT:
        return _inflated(packed, length, old)
    if len(old) != length:
        raise _damaged("it has words of another number")
    return _sums(old, _inflated(packed, length))


def _differences(old: bytes, new: bytes) -> bytes:
    """Return what is to be added to words: low bytes first, small numbers of both signs as small ones."""
    words = len(new) // 4
    delta = np.frombuffer(new, "<u4", words) - np.frombuffer(old, "<u4", words)
    folded = (delta << 1) ^ -(delta >> 31)
    planes: bytes = folded.astype("<u4").view(np.uint8).reshape(words, 4).T.tobytes()
    return planes + new[4 * words :]


def _sums(old: bytes, differences: bytes) -> bytes:
    words = len(old) // 4
    planes = np.frombuffer(differences, np.uint8, 4 * words).reshape(4, words)
    folded = np.ascontiguousarray(planes.T).view("<u4")[:, 0]
    delta = (folded >> 1) ^ -(folded & 1)
    new = np.frombuffer(old, "<u4", words) + delta
    made: bytes = new.astype("<u4").tobytes()
    return made + differences[4 * words :]


def _deflated(data: bytes, dictionary: bytes = b"") -> bytes:
    deflate = zlib.compressobj(
        _LEVEL, zlib.DEFLATED, _RAW, zlib.DEF_MEM_LEVEL, zlib.Z_DEFAULT_STRATEGY, dictionary
    )
    return deflate.compress(data) + deflate.flush()


def _inflated(packed: bytes, length: int, dictionary: bytes = b"") -> bytes:
    inflate = zlib.decompressobj(_RAW, dictionary)
    try:
        data = inflate.decompress(packed, length)
    except zlib.error as exc:
        raise _damaged("it cannot be inflated") from exc
    return _exactly(data, length)


def _exactly(data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise _damaged("it names bytes that are not there")
    return data


def _damaged(why: str) -> PackageError:
    return PackageError(f"The delta is damaged, or of another package: {why}.")

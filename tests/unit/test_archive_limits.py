"""A package has at most so many files, bytes and characters of a name: neither is more written, nor read from anybody."""

from __future__ import annotations

import mmap

import pytest

from umbel_proto import archive
from umbel_proto.archive import MAX_ARCHIVE_BYTES, MAX_ENTRIES, MAX_NAME_BYTES, read_archive, write_archive
from umbel_proto.errors import PackageError
from umbel_proto.manifest import MAX_MANIFEST_BYTES
from umbel_proto.manifest_json import parse_manifest


def files(count: int) -> dict[str, bytes]:
    return {f"file-{number}": b"x" for number in range(count)}


def test_a_package_has_as_many_files_as_the_limit_and_none_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(read_archive(write_archive(files(MAX_ENTRIES)))) == MAX_ENTRIES
    with pytest.raises(PackageError, match=f"at most {MAX_ENTRIES} files"):
        write_archive(files(MAX_ENTRIES + 1))
    # Somebody else's writer knows no limit.
    monkeypatch.setattr(archive, "MAX_ENTRIES", MAX_ENTRIES + 1)
    larger = write_archive(files(MAX_ENTRIES + 1))
    monkeypatch.undo()
    with pytest.raises(PackageError, match="list of files"):
        read_archive(larger)


def test_a_name_is_as_long_as_the_limit_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = "n" * MAX_NAME_BYTES
    assert list(read_archive(write_archive({longest: b""}))) == [longest]
    with pytest.raises(PackageError, match="short ASCII"):
        write_archive({longest + "n": b""})
    monkeypatch.setattr(archive, "MAX_NAME_BYTES", MAX_NAME_BYTES + 1)
    longer = write_archive({longest + "n": b""})
    monkeypatch.undo()
    with pytest.raises(PackageError, match="list of files"):
        read_archive(longer)


def test_a_package_larger_than_the_limit_is_refused_before_it_is_read() -> None:
    with (
        mmap.mmap(-1, MAX_ARCHIVE_BYTES + 1) as nothing,  # No page of it is ever touched.
        pytest.raises(PackageError, match=f"more than {MAX_ARCHIVE_BYTES >> 20} MiB"),
    ):
        read_archive(nothing)  # type: ignore[arg-type]  # As bytes it would be a gibibyte of memory.


def test_a_manifest_larger_than_the_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(PackageError, match=f"more than {MAX_MANIFEST_BYTES}"):
        parse_manifest(b"[" * (MAX_MANIFEST_BYTES + 1))

"""A device's quota: old packages go first, what is in use stays, and what does not fit is never begun."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from model_packages import RELEASE, first, opened, release, resigned
from umbel._home.settings import DeviceSettings, read_settings
from umbel._releases.packages import Installed
from umbel._releases.shelf import Shelf
from umbel_proto.errors import RefusedError, UsageError

SIZE = max(len(first()), len(release(2))) + 2000
"""A package and its record."""


def shelf(root: Path, quota_bytes: int | None) -> Shelf:
    return Shelf(root / "shelf", RELEASE.public, quota_bytes=quota_bytes)


def install(on_shelf: Shelf, data: bytes) -> Installed:
    return on_shelf.install(data, clock=itertools.count().__next__)


def letters(version: int) -> bytes:
    return resigned(release(2), lambda body: body.update(model="letters", version=version))


def test_two_versions_fit_into_the_room_of_two(tmp_path: Path) -> None:
    on_shelf = shelf(tmp_path, 2 * SIZE)
    for data in (first(), release(2), release(3)):
        install(on_shelf, data)
        assert on_shelf.used_bytes() <= 2 * SIZE
    assert [each.version for each in on_shelf.installed()] == [2, 3]


def test_the_previous_package_that_is_oldest_goes_first(tmp_path: Path) -> None:
    on_shelf = shelf(tmp_path, 4 * SIZE)
    for data in (first(), release(2), letters(1), letters(2)):
        install(on_shelf, data)
    assert len(on_shelf.installed()) == 4
    install(on_shelf, letters(3))
    assert on_shelf.used_bytes() <= 4 * SIZE
    assert on_shelf.previous("digits") is None
    previous = on_shelf.previous("letters")
    assert previous is not None
    assert previous.version == 2


@pytest.mark.parametrize("quota_bytes", [1, len(first()) - 1])
def test_a_package_larger_than_the_quota_is_refused_and_nothing_of_it_is_written(
    tmp_path: Path, quota_bytes: int
) -> None:
    on_shelf = shelf(tmp_path, quota_bytes)
    with pytest.raises(
        RefusedError, match=r"does not fit into the quota of .*: raise quota_mib in device\.toml"
    ):
        install(on_shelf, first())
    assert not [path for path in (tmp_path / "shelf").rglob("*") if path.stat().st_size and path.is_file()]


def test_what_is_in_use_never_makes_room(tmp_path: Path) -> None:
    on_shelf = shelf(tmp_path, int(1.5 * SIZE))
    one = install(on_shelf, first())
    with pytest.raises(RefusedError, match="that are in use"):
        install(on_shelf, release(2))
    assert on_shelf.active("digits") == one
    assert on_shelf.package(one).sha256 == opened(first()).sha256
    # It has not failed: with more room it is taken.
    assert install(shelf(tmp_path, None), release(2)).version == 2


def test_room_is_made_before_a_package_is_fetched(tmp_path: Path) -> None:
    on_shelf = shelf(tmp_path, 2 * SIZE)
    install(on_shelf, first())
    install(on_shelf, release(2))
    on_shelf.make_room(SIZE)
    assert on_shelf.used_bytes() <= SIZE
    assert [each.version for each in on_shelf.installed()] == [2]
    with pytest.raises(RefusedError):
        on_shelf.make_room(2 * SIZE)


# Where the quota stands


def test_without_a_file_there_is_no_quota(tmp_path: Path) -> None:
    assert read_settings(tmp_path / "device.toml") == DeviceSettings(quota_bytes=None)


@pytest.mark.parametrize(
    ("text", "quota_bytes"), [("quota_mib = 512", 512 << 20), ("quota_mib = 0.5", 1 << 19), ("", None)]
)
def test_the_quota_is_read_in_mib(tmp_path: Path, text: str, quota_bytes: int | None) -> None:
    (tmp_path / "device.toml").write_text(text)
    assert read_settings(tmp_path / "device.toml").quota_bytes == quota_bytes


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"quota_mib = 0", "a number of MiB above 0"),
        (b"quota_mib = -1", "a number of MiB above 0"),
        (b"quota_mib = nan", "a number of MiB above 0"),
        (b"quota_mib = inf", "a number of MiB above 0"),
        (b"quota_mib = true", "a number of MiB above 0"),
        (b'quota_mib = "512"', "a number of MiB above 0"),
        (b"quota = 512", "a setting 'quota'"),
        (b"quota_mib", "is not TOML"),
        (b"\xff", "is not TOML"),
    ],
)
def test_a_wrong_setting_is_a_sentence(tmp_path: Path, raw: bytes, why: str) -> None:
    (tmp_path / "device.toml").write_bytes(raw)
    with pytest.raises(UsageError, match=why):
        read_settings(tmp_path / "device.toml")

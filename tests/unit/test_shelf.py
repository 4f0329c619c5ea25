"""The shelf holds whole, verified packages, and never goes back by itself."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import shutil
from pathlib import Path

import pytest

from model_packages import RELEASE, digits, first, opened, release, resigned, shelf, training
from umbel._releases.shelf import Shelf
from umbel_models.pack import repack
from umbel_proto.errors import PackageError, RefusedError, StorageError, UsageError
from umbel_proto.keys import SigningKey, VerifyKey


def names(root: Path) -> set[str]:
    return {path.name for path in (root / "shelf" / "packages").iterdir()}


def test_an_installed_package_is_active_and_reads_back(tmp_path: Path) -> None:
    installed = shelf(tmp_path).install(first())
    again = shelf(tmp_path)
    assert again.active("digits") == installed
    assert again.previous("digits") is None
    assert again.package(installed).manifest == opened(first()).manifest
    assert (installed.model, installed.version, installed.size) == ("digits", 1, len(first()))
    assert installed.latency_us.keys() == {"fp32", "int8"}
    assert installed.latency_us[installed.variant] == min(installed.latency_us.values())


def test_an_empty_shelf_has_nothing_active(tmp_path: Path) -> None:
    assert shelf(tmp_path).active("digits") is None
    assert shelf(tmp_path).installed() == []


def test_a_newer_version_becomes_active_and_the_one_before_stays(tmp_path: Path) -> None:
    on_shelf = shelf(tmp_path)
    one, two, three = (on_shelf.install(data) for data in (first(), release(2), release(3)))
    assert on_shelf.active("digits") == three
    assert on_shelf.previous("digits") == two
    assert on_shelf.installed() == [two, three]
    assert one.sha256 not in names(tmp_path)


def test_installing_the_active_package_again_changes_nothing(tmp_path: Path) -> None:
    on_shelf = shelf(tmp_path)
    on_shelf.install(first())
    two = on_shelf.install(release(2))
    assert on_shelf.install(release(2)) == two
    previous = on_shelf.previous("digits")
    assert previous is not None
    assert previous.version == 1


def test_an_older_version_is_refused(tmp_path: Path) -> None:
    on_shelf = shelf(tmp_path)
    on_shelf.install(release(2))
    with pytest.raises(RefusedError, match="older than the active 2"):
        on_shelf.install(first())
    active = on_shelf.active("digits")
    assert active is not None
    assert active.version == 2


def test_the_same_version_with_other_contents_is_refused(tmp_path: Path) -> None:
    on_shelf = shelf(tmp_path)
    on_shelf.install(release(2))
    other = repack(
        opened(first()),
        training().parameters,
        calibration=digits().calibration.x,
        version=2,
        key=RELEASE,
        lineage={"run": "other"},
    )
    with pytest.raises(RefusedError, match="under a new version"):
        on_shelf.install(other)


def test_two_models_stand_side_by_side(tmp_path: Path) -> None:
    on_shelf = shelf(tmp_path)
    on_shelf.install(release(3))
    letters = on_shelf.install(resigned(first(), lambda body: body.update(model="letters")))
    assert on_shelf.active("letters") == letters
    assert [package.model for package in on_shelf.installed()] == ["digits", "letters"]


def test_a_package_of_another_fleet_leaves_the_shelf_as_it_was(tmp_path: Path) -> None:
    foreign = Shelf(tmp_path / "shelf", SigningKey.generate().public)
    with pytest.raises(PackageError, match="not signed by this fleet"):
        foreign.install(first())
    assert names(tmp_path) == set()


def test_a_package_that_misses_its_golden_vectors_leaves_the_shelf_as_it_was(tmp_path: Path) -> None:
    on_shelf = shelf(tmp_path)
    one = on_shelf.install(first())
    wrong = resigned(
        release(2), lambda body: None, **{"int8.safetensors": opened(first()).file("int8.safetensors")}
    )
    with pytest.raises(PackageError, match="golden"):
        on_shelf.install(wrong)
    assert on_shelf.active("digits") == one
    assert names(tmp_path) == {one.sha256}


@pytest.mark.parametrize("position", [0, 5_000, -1])
def test_one_flipped_byte_on_the_disk_is_noticed(tmp_path: Path, position: int) -> None:
    on_shelf = shelf(tmp_path)
    installed = on_shelf.install(first())
    path = tmp_path / "shelf" / "packages" / installed.sha256 / "package.umbel"
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(PackageError, match="damaged or gone: install it again"):
        on_shelf.package(installed)
    assert on_shelf.install(first()).sha256 == installed.sha256
    on_shelf.package(installed)


def test_another_genuine_package_in_the_place_of_one_is_noticed(tmp_path: Path) -> None:
    on_shelf = shelf(tmp_path)
    installed = on_shelf.install(release(2))
    (tmp_path / "shelf" / "packages" / installed.sha256 / "package.umbel").write_bytes(first())
    with pytest.raises(PackageError, match="damaged"):
        on_shelf.package(installed)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"active": "../../etc", "previous": null}', b'{"active": 5, "previous": null}'],
)
def test_a_damaged_pointer_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    on_shelf = shelf(tmp_path)
    on_shelf.install(first())
    (tmp_path / "shelf" / "models" / "digits.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"digits\.json is damaged: remove it and install"):
        on_shelf.active("digits")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"model": 1}'])
def test_a_damaged_record_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    on_shelf = shelf(tmp_path)
    installed = on_shelf.install(first())
    (tmp_path / "shelf" / "packages" / installed.sha256 / "record.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"record\.json is damaged"):
        on_shelf.active("digits")


def test_a_record_of_another_package_is_damage(tmp_path: Path) -> None:
    on_shelf = shelf(tmp_path)
    installed = on_shelf.install(first())
    path = tmp_path / "shelf" / "packages" / installed.sha256 / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": "0" * 64}))
    with pytest.raises(StorageError, match="damaged"):
        on_shelf.active("digits")


def test_a_pointer_to_nothing_is_a_sentence(tmp_path: Path) -> None:
    on_shelf = shelf(tmp_path)
    installed = on_shelf.install(first())
    shutil.rmtree(tmp_path / "shelf" / "packages" / installed.sha256)
    with pytest.raises(StorageError, match="missing"):
        on_shelf.active("digits")


def test_what_an_interrupted_installation_left_is_cleared_away(tmp_path: Path) -> None:
    on_shelf = shelf(tmp_path)
    left = tmp_path / "shelf" / "packages" / ".new-dead"
    left.mkdir()
    (left / "package.umbel").write_bytes(b"half")
    assert on_shelf.installed() == []
    installed = on_shelf.install(first())
    assert names(tmp_path) == {installed.sha256}


def test_a_package_placed_before_a_crash_is_taken_up_by_the_next_installation(tmp_path: Path) -> None:
    on_shelf = shelf(tmp_path)
    installed = on_shelf.install(first())
    (tmp_path / "shelf" / "models" / "digits.json").unlink()
    assert on_shelf.active("digits") is None
    assert on_shelf.install(first()).sha256 == installed.sha256
    assert on_shelf.active("digits") is not None


def test_a_name_that_is_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a name"):
        shelf(tmp_path).active("../digits")


def _read(root: str, key: bytes, found: multiprocessing.Queue[str]) -> None:
    on_shelf = Shelf(Path(root), VerifyKey(key))
    version = 0
    while version < 4:
        active = on_shelf.active("digits")
        assert active is not None
        # Only a reader two installations behind may find its package gone, and it is told so.
        with contextlib.suppress(PackageError):
            package = on_shelf.package(active)
            assert package.manifest.version >= version
            version = package.manifest.version
    found.put("done")


def test_another_process_reads_whole_packages_while_this_one_installs(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    on_shelf = shelf(tmp_path)
    on_shelf.install(first())
    found: multiprocessing.Queue[str] = context.Queue()
    reader = context.Process(target=_read, args=(str(tmp_path / "shelf"), RELEASE.public.raw, found))
    reader.start()
    try:
        for version in (2, 3, 4):
            on_shelf.install(release(version))
        assert found.get(timeout=30) == "done"
        reader.join(10)
        assert reader.exitcode == 0
    finally:
        reader.kill()
        reader.join()


def test_files_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    shelf(tmp_path).install(first())
    for path in (tmp_path / "shelf").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path

"""Files that changed on the disk: a device loads a package as it was installed, or says in one sentence that it is not.

Law: of 1,000 variants of an installed package none loads, and none ends in anything but ``PackageError``. Of 300
variants of the shelf's own files each ends in an error of umbel's, or in a model that answers as before.
"""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model_packages import RELEASE, digits, first, release
from umbel._releases.follow import Follower
from umbel._releases.packages import Installed
from umbel._releases.shelf import Shelf
from umbel._telemetry.window import PredictionWindow
from umbel_proto.archive import read_archive, write_archive
from umbel_proto.errors import PackageError, UmbelError

Variant = Callable[[bytes, random.Random], bytes]


def one_bit(data: bytes, source: random.Random) -> bytes:
    changed = bytearray(data)
    changed[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return bytes(changed)


def cut(data: bytes, source: random.Random) -> bytes:
    return data[: source.randrange(len(data))]


def page(data: bytes, source: random.Random) -> bytes:
    """A block of the disk that came back as zeros, or as another block of the file."""
    begin, other = (source.randrange(0, len(data), 4096) for _ in range(2))
    block = data[other : other + 4096] if source.random() < 0.5 else bytes(4096)
    changed = data[:begin] + block[: len(data[begin : begin + 4096])] + data[begin + 4096 :]
    return changed if changed != data else one_bit(data, source)


def longer(data: bytes, source: random.Random) -> bytes:
    return data + source.randbytes(source.choice((1, 4096)))


def rewritten(data: bytes, source: random.Random) -> bytes:
    """An archive in which all is well, but for one file's contents: what somebody changes, not a disk."""
    files = {name: bytes(view) for name, view in read_archive(data).items()}
    name = source.choice(sorted(files))
    files[name] = one_bit(files[name], source)
    return write_archive(files)


class Windows:
    """Telemetry that nobody reads."""

    def window(
        self, *, model: str, version: int, variant: str, engine: str, scope: object = None
    ) -> PredictionWindow:
        return PredictionWindow(model=model, version=version, variant=variant, engine=engine, now_s=0.0)


def installed(root: Path) -> tuple[Shelf, Installed]:
    shelf = Shelf(root, RELEASE.public)
    shelf.install(first(), clock=itertools.count().__next__)
    return shelf, shelf.install(release(2), clock=itertools.count().__next__)


@pytest.mark.parametrize(
    ("variant", "count"), [(one_bit, 500), (cut, 200), (page, 150), (longer, 50), (rewritten, 100)]
)
def test_no_variant_of_an_installed_package_loads(tmp_path: Path, variant: Variant, count: int) -> None:
    shelf, two = installed(tmp_path / "shelf")
    path = tmp_path / "shelf" / "packages" / two.sha256 / "package.umbel"
    whole = path.read_bytes()
    source = random.Random(5)
    for _ in range(count):
        path.write_bytes(variant(whole, source))
        with pytest.raises(PackageError, match="damaged or gone: install it again"):
            shelf.package(two)
    path.write_bytes(whole)
    assert shelf.package(two).manifest.version == 2


@pytest.mark.parametrize("variant", [one_bit, cut, longer])
@pytest.mark.parametrize("name", ["models/digits.json", "packages/*/record.json", "marks/*"])
def test_a_variant_of_the_shelfs_own_files_is_an_error_or_changes_no_answer(
    tmp_path: Path, name: str, variant: Variant
) -> None:
    shelf, _ = installed(tmp_path / "whole")
    x = digits().held_out.x[:4]
    source = random.Random(7)
    here = Follower(shelf, Windows(), clock=lambda: 0.0)
    held = here.model("digits", "fp32")  # Its mark is among the files.
    right = {2: held.predict_proba(x)}
    spare = Follower(installed_first(tmp_path / "first"), Windows(), clock=lambda: 0.0)
    right[1] = spare.model("digits", "fp32").predict_proba(x)
    said: list[str] = []
    for number in range(33):
        root = tmp_path / f"{number}"
        shutil.copytree(tmp_path / "whole", root)
        for path in root.glob(name):
            path.write_bytes(variant(path.read_bytes(), source))
        try:
            model = Follower(Shelf(root, RELEASE.public), Windows(), clock=lambda: 0.0).model(
                "digits", "fp32"
            )
        except UmbelError as exc:
            said.append(str(exc))
        else:
            assert np.array_equal(model.predict_proba(x), right[model.version])
        shutil.rmtree(root)
    assert all(len(each.splitlines()) == 1 for each in said)


def installed_first(root: Path) -> Shelf:
    shelf = Shelf(root, RELEASE.public)
    shelf.install(first(), clock=itertools.count().__next__)
    return shelf

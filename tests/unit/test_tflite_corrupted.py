"""Damage to a TFLite file that a signature covers all the same: who notices it, and what is left.

Hashes notice any damage after signing; here the damaged file was signed, as by a faulty build machine.
"""

from __future__ import annotations

import functools
import multiprocessing
import struct
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from numpy.random import Generator

import model_packages as packages
import umbel
from umbel._releases.package import verify_golden
from umbel.engines import load_engine
from umbel_models.pack import build, repack
from umbel_models.tasks.digits.task import DIGITS
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.keys import SigningKey
from umbel_proto.package import read_package, write_package

FILES = 200
HALF_A_POINT = 0.005


@functools.cache
def lite() -> bytes:
    """Return trained digits with TFLite variants."""
    calibration = packages.digits().calibration.x
    first = build(DIGITS, key=packages.RELEASE, calibration=calibration, lite=True)
    parameters = packages.training().parameters
    base = packages.opened(first)
    return repack(base, parameters, calibration=calibration, version=2, key=packages.RELEASE)


def damaged(file: bytes, rng: Generator) -> bytes:
    """Return a file with a bit flipped, a byte replaced, some bytes overwritten, or its end cut off."""
    raw, at = bytearray(file), int(rng.integers(len(file)))
    match rng.integers(4):
        case 0:
            raw[at] ^= 1 << int(rng.integers(8))
        case 1:
            raw[at] = (raw[at] + int(rng.integers(1, 256))) % 256
        case 2:
            end = min(at + int(rng.integers(2, 64)), len(raw))
            raw[at:end] = rng.bytes(end - at)
        case _:
            del raw[at:]
    return bytes(raw)


def verdicts(told: Connection, package: bytes, pem: bytes, variant: str) -> None:
    """Tell what becomes of each damaged file, and how many labels it leaves right where nothing notices.

    Runs in a process of its own: a damaged file may take it along.
    """
    key = SigningKey.from_pem(pem)
    whole = read_package(package, release_key=key.public)
    contents = {name: whole.file(name) for name in whole.manifest.files}
    file = whole.manifest.variants[variant].file
    x = packages.digits().held_out.x
    labels = load_engine(whole, variant).answers(x).argmax(axis=1)
    found = []
    for seed in range(FILES):
        bad = contents | {file: damaged(contents[file], np.random.default_rng(seed))}
        opened = read_package(write_package(whole.manifest, bad, key), release_key=key.public)
        try:
            engine = load_engine(opened, variant)
        except PackageError:
            found.append(("refused", 1.0))
            continue
        try:
            verify_golden(opened, engine)
        except PackageError:
            found.append(("golden", 1.0))
            continue
        agree = float((engine.answers(x).argmax(axis=1) == labels).mean())
        found.append(("silent", agree))
    told.send(found)


def apart(package: bytes, variant: str) -> list[tuple[str, float]]:
    """Return what becomes of each damaged file. What hangs on one ends with the test."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=verdicts, args=(theirs, package, packages.RELEASE.to_pem(), variant))
    child.start()
    theirs.close()
    try:
        found: list[tuple[str, float]] = ours.recv()  # raises where the process died
        return found
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("variant", ["tflite", "tflite-int8"])
def test_damage_is_noticed_or_does_almost_nothing(variant: str) -> None:
    found = apart(lite(), variant)
    counted = Counter(verdict for verdict, _ in found)
    other = sum(agree < 1 for _, agree in found)
    many = sum(agree < 1 - HALF_A_POINT for _, agree in found)
    print(f"{variant}: {dict(counted)}, another label {other}, more than half a point {many}")
    assert counted["refused"] + counted["golden"] >= FILES // 2, counted
    assert many <= FILES // 50, counted


@pytest.mark.parametrize("variant", ["tflite", "tflite-int8"])
@pytest.mark.parametrize("size", [1 << 23, (1 << 31) - 1])
def test_tensors_that_no_device_has_room_for_are_refused_before_they_are_allocated(
    variant: str, size: int, tmp_path: Path
) -> None:
    package = read_package(lite(), release_key=packages.RELEASE.public)
    contents = {name: package.file(name) for name in package.manifest.files}
    file = package.manifest.variants[variant].file
    shape = struct.pack("<5i", 4, 1, 8, 8, 16)  # How long it is, and what the first convolution gives.
    assert contents[file].count(shape) == 1
    bad = contents[file].replace(shape, struct.pack("<5i", 4, size, 8, 8, 16))
    key = packages.RELEASE
    opened = read_package(
        write_package(package.manifest, contents | {file: bad}, key), release_key=key.public
    )
    with pytest.raises(PackageError, match="LiteRT cannot run") as refused:
        load_engine(opened, variant)
    assert "bytes together" in str(refused.value.__cause__)
    (tmp_path / "bad.tflite").write_bytes(bad)
    with pytest.raises(UsageError, match="LiteRT cannot open") as bare:
        umbel.load(tmp_path / "bad.tflite")
    assert "bytes together" in str(bare.value.__cause__)

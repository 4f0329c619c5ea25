"""Packages for tests: the digits model before and after some training, signed with a key made here."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from umbel._releases.shelf import Shelf
from umbel.train import TrainPlan, TrainResult
from umbel.train.onnx import OnnxTrainer
from umbel_models.pack import build, repack
from umbel_models.task import Split
from umbel_models.tasks.digits.data import split
from umbel_models.tasks.digits.task import DIGITS
from umbel_proto.archive import read_archive, write_archive
from umbel_proto.keys import SigningKey
from umbel_proto.package import LABEL, MANIFEST, SIGNATURE, Package, read_package

RELEASE = SigningKey.generate()


@functools.cache
def digits() -> Split:
    return split()


@functools.cache
def first() -> bytes:
    """Digits 1: the committed graphs with their initial parameters."""
    return build(DIGITS, key=RELEASE, calibration=digits().calibration.x)


@functools.cache
def training() -> TrainResult:
    trainer = OnnxTrainer(opened(first()))
    return trainer.train(
        opened(first()).parameters(),
        digits().train.x,
        digits().train.y,
        TrainPlan(epochs=12, batch_size=32, learning_rate=0.05, momentum=0.9, seed=1),
    )


@functools.cache
def release(version: int) -> bytes:
    """Digits of a later version, trained: about 0.97 accurate on held-out digits."""
    return repack(
        opened(first()),
        training().parameters,
        calibration=digits().calibration.x,
        version=version,
        key=RELEASE,
        lineage={"run": "test"},
    )


@functools.cache
def opened(data: bytes) -> Package:
    return read_package(data, release_key=RELEASE.public)


def shelf(root: Path) -> Shelf:
    return Shelf(root / "shelf", RELEASE.public)


def resigned(data: bytes, change: Callable[[dict[str, Any]], None], **files: bytes) -> bytes:
    """Return a package with its manifest changed and files replaced, signed anew by the release key."""
    contents = {name: bytes(view) for name, view in read_archive(data).items()} | files
    body = json.loads(contents.pop(MANIFEST))
    del contents[SIGNATURE]
    body["files"] = {
        name: {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)} for name, raw in contents.items()
    }
    change(body)
    manifest = json.dumps(body).encode()
    return write_archive(
        {MANIFEST: manifest, SIGNATURE: RELEASE.sign(LABEL, manifest), **dict(sorted(contents.items()))}
    )

"""Does a package compute here what it computed where it was made, and which variant is fastest here?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from umbel._home.files import read_file
from umbel.engines import Engine, load_engine
from umbel_proto.answers import checked_answers
from umbel_proto.errors import MissingExtraError, PackageError
from umbel_proto.keys import VerifyKey
from umbel_proto.package import GOLDEN, Package, read_package

if TYPE_CHECKING:
    from umbel._data.examples import Examples
    from umbel._releases.choice import Choice, Clock


def load_package(path: Path, *, release_key: VerifyKey) -> Package:
    """Read a package file and verify its signature and hashes.

    Raises:
        StorageError: The file cannot be read.
        PackageError: It is not what the fleet released.
    """
    return read_package(read_file(path), release_key=release_key)


def verify_golden(package: Package, engine: Engine) -> None:
    """Run the golden inputs through an engine.

    Hashes prove that the bytes are the released ones; this proves that they mean the same here. A graph
    can load and compute nonsense on another processor or runtime without a word.

    Raises:
        PackageError: An output is farther from the golden one than the variant's tolerance.
    """
    manifest = package.manifest
    tolerance = manifest.variants[engine.variant].tolerance
    golden = package.tensors(GOLDEN)
    try:
        x, _ = manifest.contract.check(golden["x"])
        outputs = engine.outputs(x)
    except Exception as exc:  # whatever a runtime raises: the device cannot run this package
        raise PackageError(f"{_name(package, engine)} fails on its golden inputs: do not use it.") from exc
    for spec in manifest.outputs:
        expected, actual = golden[f"{engine.variant}.{spec.name}"], outputs[spec.name]
        if actual.shape != expected.shape:
            raise PackageError(
                f"{_name(package, engine)} gives {spec.name} of shape {actual.shape}: do not use it."
            )
        error, scale = float(np.abs(actual - expected).max()), float(np.abs(expected).max())
        if not error <= tolerance * scale:  # also where either is NaN
            raise PackageError(
                f"{_name(package, engine)} misses its golden {spec.name} by {error:.2g}, and "
                f"{tolerance * scale:.2g} is allowed: this device cannot run it rightly."
            )


def choose_variant(
    package: Package, *, held_back: Examples | None = None, clock: Clock = time.perf_counter
) -> Choice:
    """Check every variant that can run here against its golden vectors, time each, and name the one to run.

    Int8 is not always the faster one: on small models the conversions cost more than they save.

    Args:
        package: The package.
        held_back: Samples of this device to compare the variants on; by default the golden inputs.
        clock: What variants are timed with, seconds.

    Raises:
        UsageError: The samples break the data contract.
        PackageError: A variant fails its golden vectors; then no other one is trusted either.
    """
    from umbel._releases.choice import choose

    manifest = package.manifest
    engines = {}
    for name in sorted(manifest.variants):
        try:
            engines[name] = load_engine(package, name)
        except MissingExtraError:
            if name == manifest.default_variant:
                raise
            continue
        verify_golden(package, engines[name])
    samples = package.tensors(GOLDEN)["x"] if held_back is None else held_back.x
    x, _ = manifest.contract.check(samples)
    right = None if held_back is None else held_back.y
    y = None if right is None else checked_answers(manifest, right, len(x))
    return choose(engines, x, y, reference=manifest.default_variant, kind=manifest.kind, clock=clock)


def _name(package: Package, engine: Engine) -> str:
    return f"Model {package.manifest.model} {package.manifest.version} ({engine.variant})"

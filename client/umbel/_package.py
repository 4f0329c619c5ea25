"""Does a package compute here what it computed where it was made, and which variant is fastest here?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umbel._files import read_file
from umbel.engines import Engine, load_engine
from umbel_proto.errors import PackageError
from umbel_proto.keys import VerifyKey
from umbel_proto.package import GOLDEN, Package, read_package

TIMING_S = 0.03
MIN_RUNS = 20

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Choice:
    """The variant a device runs, and why.

    Args:
        variant: The one whose median latency was least.
        latency_us: Median time of one prediction by variant, microseconds, on this device at that moment.
    """

    variant: str
    latency_us: Mapping[str, float]


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
        outputs = engine.outputs(x)._asdict()
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


def choose_variant(package: Package, *, clock: Clock = time.perf_counter) -> Choice:
    """Check every variant against its golden vectors, time each for 30 ms, and name the fastest.

    Int8 is not always the faster one: on small models the conversions cost more than they save.

    Raises:
        PackageError: A variant fails its golden vectors; then no other one is trusted either.
    """
    latency_us = {}
    for name in sorted(package.manifest.variants):
        engine = load_engine(package, name)
        verify_golden(package, engine)
        latency_us[name] = _latency_us(package, engine, clock)
    return Choice(min(latency_us, key=lambda name: latency_us[name]), latency_us)


def _latency_us(package: Package, engine: Engine, clock: Clock) -> float:
    x, _ = package.manifest.contract.check(package.tensors(GOLDEN)["x"][:1])
    for _ in range(MIN_RUNS // 4):
        engine.probabilities(x)
    seconds: list[float] = []
    end = clock() + TIMING_S
    while len(seconds) < MIN_RUNS or clock() < end:
        begin = clock()
        engine.probabilities(x)
        seconds.append(clock() - begin)
    return 1e6 * statistics.median(seconds)


def _name(package: Package, engine: Engine) -> str:
    return f"Model {package.manifest.model} {package.manifest.version} ({engine.variant})"

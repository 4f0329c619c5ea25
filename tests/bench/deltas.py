"""Deltas of packages: how much of a package travels after a round, after its last layer was trained, and for a new card.

Beside each is what deflate makes of the whole package; bsdiff4 and zstandard are measured too where they are installed
(`pip install bsdiff4 zstandard`), with the old package as zstandard's dictionary.

Usage: python tests/bench/deltas.py
"""

from __future__ import annotations

import importlib.util
import io
import zlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import safetensors.numpy
from harness import Report, often, seconds
from networks import NETWORKS, examples, packed

from umbel.train import TrainPlan
from umbel.train.onnx import OnnxTrainer
from umbel_models.pack import build, repack
from umbel_models.task import Examples, find
from umbel_proto.delta import difference, patched
from umbel_proto.keys import SigningKey
from umbel_proto.manifest import FloatVector
from umbel_proto.package import PARAMETERS, Package, read_package, write_package

KEY = SigningKey.generate()
TASKS = {"digits": (6, 0.05), "activity": (1, 0.02)}
"""Epochs and learning rate before the round that is looked at."""
LARGE = "letters-6.6m"
DEVICES = 8
SHARE = 20
"""Of the data that a device has: one in so many."""
FOREIGN = {name for name in ("bsdiff4", "zstandard") if importlib.util.find_spec(name)}


def opened(data: bytes) -> Package:
    return read_package(data, release_key=KEY.public)


def trained(package: Package, start: FloatVector, data: Examples, epochs: int, rate: float) -> FloatVector:
    plan = TrainPlan(epochs=epochs, batch_size=32, learning_rate=rate, momentum=0.9, seed=1)
    return OnnxTrainer(package).train(start, data.x, data.y, plan).parameters


def after_a_round(package: Package, start: FloatVector, data: Examples) -> FloatVector:
    """Return the mean of what devices make of the parameters in one epoch over little data."""
    chance = np.random.default_rng(0)
    updates = []
    for _ in range(DEVICES):
        rows = chance.choice(len(data.x), len(data.x) // SHARE, replace=False)
        few = data._replace(x=data.x[rows], y=data.y[rows])
        updates.append(trained(package, start, few, 1, 0.005))
    mean: FloatVector = np.mean(updates, axis=0, dtype=np.float32)
    return mean


def last_layer(package: Package, old: FloatVector, new: FloatVector) -> FloatVector:
    """Return the old parameters with the last weight and bias of the new ones."""
    size = sum(int(np.prod(each.shape)) for each in package.manifest.parameters[-2:])
    return np.concatenate([old[:-size], new[-size:]])


def of_a_task(name: str, *, lite: bool) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield pairs of packages of a reference task: what happened between them, the older and the newer."""
    task, (epochs, rate) = find(name), TASKS[name]
    data = task.data()

    def packed_as(version: int, base: Package, parameters: FloatVector) -> bytes:
        return repack(
            base,
            parameters,
            calibration=data.calibration.x,
            calibration_y=data.calibration.y,
            version=version,
            key=KEY,
            held_out=data.held_out,
        )

    first = opened(build(task, key=KEY, lite=lite))
    start = trained(first, first.parameters(), data.train, epochs, rate)
    base = packed_as(2, first, start)
    after = after_a_round(opened(base), start, data.train)
    yield "a round", base, packed_as(3, opened(base), after)
    yield "a last layer", base, packed_as(3, opened(base), last_layer(first, start, after))
    yield "a new card", base, packed_as(3, opened(base), start)


def of_the_large_one() -> Iterator[tuple[str, bytes, bytes]]:
    network = NETWORKS[LARGE]()
    base = packed(LARGE, network, KEY)
    package = opened(base)
    x, y = examples(network, 320)
    start = package.parameters()
    after = trained(package, start, Examples(x, y), 1, 0.01)
    for name, parameters in [
        ("a round", after),
        ("a last layer", last_layer(package, start, after)),
        ("a new card", start),
    ]:
        files = {file: package.file(file) for file in package.manifest.files}
        files[PARAMETERS] = safetensors.numpy.save(package.split(parameters))
        yield name, base, write_package(replace(package.manifest, version=2), files, KEY)


def foreign(name: str, base: bytes, package: bytes) -> int:
    """Return how large another library's delta is, bytes."""
    if name == "bsdiff4":
        import bsdiff4

        return len(bsdiff4.diff(base, package))
    import zstandard

    dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, window_log=26, enable_ldm=True, dict_size=len(base), source_size=len(package)
    )
    return len(
        zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters).compress(package)
    )


def measure(report: Report, name: str, base: bytes, package: bytes) -> None:
    whole = 100 / len(package)
    delta = difference(base, package)
    size = len(package) if delta is None else len(delta)
    at_most = 50.0 if name.endswith("a round") else 5.0
    deflated = whole * len(zlib.compress(package))
    report.value(f"{name}, share sent", whole * size, unit="%", at_most=at_most, baseline=deflated)
    for each in sorted(FOREIGN):
        report.value(f"{name}, by {each}", whole * foreign(each, base, package), unit="%")
    if delta is None or len(package) < 10 << 20:
        return
    report.value(
        f"{name}, to make", min(seconds(lambda: difference(base, package)) for _ in range(often(3))), unit="s"
    )

    def make() -> None:
        for _ in patched(io.BytesIO(delta).read, lambda at, length: base[at : at + length], len(package)):
            pass

    report.value(f"{name}, to apply", min(seconds(make) for _ in range(often(3))), unit="s")


def main() -> None:
    report = Report("deltas")
    for task in TASKS:
        for lite in (False, True):
            name = f"{task} with TFLite" if lite else task
            with report.part(name):
                for what, base, package in of_a_task(task, lite=lite):
                    measure(report, f"{name} ({len(package) >> 10} KiB): {what}", base, package)
    with report.part(LARGE):
        for what, base, package in of_the_large_one():
            measure(report, f"{LARGE} ({len(package) >> 10} KiB): {what}", base, package)
    report.finish()


if __name__ == "__main__":
    main()

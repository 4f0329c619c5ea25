"""Training on a device against torch and Opacus: a step of SGD and of DP-SGD, batch 32, one thread.

Ours is ``OnnxTrainer.train``: an epoch of full batches, divided by their number, so the contract's check, the
shuffle, the copy into batches, the optimizer, and with privacy the draws, the noise and its rounding count.
torch runs the same network eagerly, over tensors it already has, in an order drawn once an epoch; Opacus the
same with a draw of fixed size, by hooks and by ghost clipping, each beside ours; the target is of the faster of
the two. All read the loss of every step. Before anything is timed, one step of ours and of torch's must agree.

Memory is the peak resident set (VmHWM) of a process that imports what it needs and trains an epoch: of ours the
one that a device trains in, the median of three. The process that it trains for stands in a row of its own, beside one
that reads the package and trains by itself: while a device trains it holds both.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from harness import Report, often, seconds
from ways import WAYS, Epoch, with_onnx, with_torch

from umbel_proto.keys import SigningKey
from umbel_proto.package import Package, read_package

RUNS = 9
SMALL = 150_000
"""Parameters below which a step must be faster than torch's, and not only as fast."""


def in_turn(package: Package, steps: int) -> dict[str, float]:
    """Return the median time of a step by each way that can train the network, ms."""
    epochs: dict[str, Epoch] = {}
    for way, make in WAYS.items():
        try:
            epochs[way] = make(package, steps)
            epochs[way]()  # Caches and lazy imports are not what is measured.
        except Exception as exc:
            if not way.startswith("opacus"):
                raise
            print(f"{package.manifest.model}: {way} cannot train it ({type(exc).__name__}).")
            epochs.pop(way, None)
    times: dict[str, list[float]] = {way: [] for way in epochs}
    for _ in range(often(RUNS)):
        for way, epoch in epochs.items():
            times[way].append(1e3 * seconds(epoch) / steps)
    return {way: statistics.median(each) for way, each in times.items()}


MOST_MB = {"digits": 70.0, "letters-6.6m": 280.0}
OPACUS = {"opacus": "Opacus", "opacus ghost": "Opacus ghost"}


def main() -> None:
    from networks import NETWORKS

    warnings.simplefilter("ignore")
    report = Report("training")
    for name in NETWORKS:
        with report.part(name):
            measured(report, name)
    report.finish()


def measured(report: Report, name: str) -> None:
    """Add the figures of one network."""
    from networks import NETWORKS, packed

    key, network = SigningKey.generate(), NETWORKS[name]()
    data = packed(name, network, key)
    package = read_package(data, release_key=key.public)
    one_step = (with_onnx(package, 1)(), with_torch(package, 1)())
    if not np.allclose(*one_step, rtol=1e-4, atol=1e-5):
        raise RuntimeError("The two train differently: nothing to compare.")
    dim = package.manifest.dim
    report.value(f"{name}, parameters", dim, unit="")
    times = in_turn(package, often(40 if dim < SMALL else 8))
    at_most = 0.8 if dim < SMALL else 1.05
    report.ratio(f"{name}, SGD, torch beside it", times["onnx"], times["torch"], unit="ms", at_most=at_most)
    private = times["onnx private"]
    theirs = {way: times[way] for way in OPACUS if way in times}
    for way, taken in theirs.items():
        at_most = 0.55 if network.one_pass and taken == min(theirs.values()) else None
        report.ratio(f"{name}, DP-SGD, {OPACUS[way]} beside it", private, taken, unit="ms", at_most=at_most)
    if not theirs:
        report.value(f"{name}, DP-SGD, Opacus beside it", private, unit="ms")
    memory(report, name, data, key, network.one_pass, list(theirs))


def memory(
    report: Report, name: str, data: bytes, key: SigningKey, one_pass: bool, theirs: list[str]
) -> None:
    """Add the peak memory of training processes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "package.umbel"
        file.write_bytes(data)
        ways = str(Path(__file__).with_name("ways.py"))

        def peaks(way: str, runs: int = 1) -> tuple[float, float]:
            command = [sys.executable, ways, way, str(file), key.public.raw.hex(), str(often(8))]
            ran = [
                subprocess.run(command, capture_output=True, check=True, text=True)
                for _ in range(often(runs))
            ]
            each = zip(*(map(float, one.stdout.split()) for one in ran), strict=True)
            trains, has_trained = (statistics.median(of) for of in each)
            return trains, has_trained

        def peak(way: str, runs: int = 1) -> float:
            return peaks(way, runs)[0]

        (ours, beside), private = peaks("apart", runs=3), peak("apart private", runs=3)
        what = f"{name}, peak RSS, torch beside it"
        report.value(what, ours, unit="MB", at_most=MOST_MB.get(name), baseline=peak("torch"))
        what = f"{name}, peak RSS of the process that it trains for, of one that trains itself beside it"
        report.ratio(what, beside, peak("onnx", runs=3), unit="MB")
        what = f"{name}, peak RSS of DP-SGD, of SGD beside it"
        report.ratio(what, private, ours, unit="MB", at_most=1.3 if one_pass else None)
        for way in theirs:
            what = f"{name}, peak RSS of DP-SGD, {OPACUS[way]} beside it"
            report.ratio(what, private, peak(way), unit="MB")


if __name__ == "__main__":
    main()

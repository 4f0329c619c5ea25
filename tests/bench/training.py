"""Training on a device against torch and Opacus: a step of SGD and of DP-SGD, batch 32, one thread.

Ours is ``OnnxTrainer.train``: an epoch of full batches, divided by their number, so the contract's check, the
shuffle, the copy into batches, the optimizer, and with privacy the draws, the noise and its rounding count.
torch runs the same network eagerly, over tensors it already has, in an order drawn once an epoch; Opacus the
same with a draw of fixed size, by hooks and by ghost clipping, each beside ours; the target is of the faster of
the two. All read the loss of every step. Each way has a process of its own, and they take turns: what one leaves in
the allocator, gigabytes with hooks, is no matter of the next. Before anything is timed, one step of ours and of
torch's must agree.

Memory is the peak resident set (VmHWM) of the process that trains an epoch, private or not, beside one that trains
with torch or Opacus; the median of three. Targets are of that process: the design measured processes which train and do
nothing else (issue 4 has them). A device holds more while it trains, as what it trains for is a process of its own: both
together, in which pages of files that both have count once, stand in a row without a target. So does the peak of the
second, beside that of one process which reads the package and trains by itself.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from harness import Report, often
from ways import WAYS, with_onnx, with_torch

from umbel_proto.keys import SigningKey, VerifyKey
from umbel_proto.package import read_package

if TYPE_CHECKING:
    from networks import Network

RUNS = 9
WAYS_FILE = str(Path(__file__).with_name("ways.py"))
SMALL = 150_000
"""Parameters below which a step must be faster than torch's, and not only as fast."""


class Runner:
    """A process that trains one way, an epoch whenever it is told."""

    def __init__(self, way: str, file: Path, key: VerifyKey, steps: int) -> None:
        command = [sys.executable, WAYS_FILE, "--by-turns", way, str(file), key.raw.hex(), str(steps)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def starts(self) -> bool:
        """Wait until it has trained once; return whether it could."""
        assert self._process.stdout is not None
        return self._process.stdout.readline() == "ready\n"

    def step_ms(self) -> float:
        """Train an epoch; return how long a step took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def end(self) -> str:
        """End it; return the last that it complained of."""
        _, told = self._process.communicate()
        return told.strip().rpartition("\n")[2]


def in_turn(name: str, file: Path, key: VerifyKey, steps: int) -> dict[str, float]:
    """Return the median time of a step by each way that can train the network, ms."""
    runners: dict[str, Runner] = {}
    try:
        for way in WAYS:
            runner = Runner(way, file, key, steps)
            if runner.starts():
                runners[way] = runner
                continue
            why = runner.end()
            if not way.startswith("opacus"):
                raise RuntimeError(f"{way} cannot train it: {why}")
            print(f"{name}: {way} cannot train it ({why}).")
        times: dict[str, list[float]] = {way: [] for way in runners}
        for _ in range(often(RUNS)):
            for way, runner in runners.items():
                times[way].append(runner.step_ms())
        return {way: statistics.median(each) for way, each in times.items()}
    finally:
        for runner in runners.values():
            runner.end()


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
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "package.umbel"
        file.write_bytes(data)
        theirs = speed(report, name, network, file, key.public, dim)
        memory(report, name, network, file, key.public, theirs)


def speed(
    report: Report, name: str, network: Network, file: Path, key: VerifyKey, dim: int
) -> tuple[str, ...]:
    """Add how long a step takes; return the ways of Opacus that can train the network."""
    times = in_turn(name, file, key, often(40 if dim < SMALL else 8))
    at_most = 0.8 if dim < SMALL else 1.05
    report.ratio(f"{name}, SGD, torch beside it", times["onnx"], times["torch"], unit="ms", at_most=at_most)
    private = times["onnx private"]
    theirs = {way: times[way] for way in OPACUS if way in times}
    for way, taken in theirs.items():
        at_most = 0.55 if network.one_pass and taken == min(theirs.values()) else None
        report.ratio(f"{name}, DP-SGD, {OPACUS[way]} beside it", private, taken, unit="ms", at_most=at_most)
    if not theirs:
        report.value(f"{name}, DP-SGD, Opacus beside it", private, unit="ms")
    return tuple(theirs)


def memory(
    report: Report, name: str, network: Network, file: Path, key: VerifyKey, theirs: tuple[str, ...]
) -> None:
    """Add the peak memory of training processes."""

    def peaks(way: str, runs: int = 1) -> tuple[float, ...]:
        command = [sys.executable, WAYS_FILE, way, str(file), key.raw.hex(), str(often(8))]
        ran = [
            subprocess.run(command, capture_output=True, check=True, text=True) for _ in range(often(runs))
        ]
        each = zip(*(map(float, one.stdout.split()) for one in ran), strict=True)
        return tuple(statistics.median(of) for of in each)

    def peak(way: str, runs: int = 1) -> float:
        return peaks(way, runs)[0]

    (ours, beside, both), private = peaks("apart", runs=3), peak("apart private", runs=3)
    what = f"{name}, peak RSS of the process that trains, torch beside it"
    report.value(what, ours, unit="MB", at_most=MOST_MB.get(name), baseline=peak("torch"))
    report.value(f"{name}, peak RSS of the device's two processes together", both, unit="MB")
    what = f"{name}, peak RSS of the process that it trains for, of one that trains itself beside it"
    report.ratio(what, beside, peak("onnx", runs=3), unit="MB")
    what = f"{name}, peak RSS of DP-SGD, of SGD beside it"
    report.ratio(what, private, ours, unit="MB", at_most=1.3 if network.one_pass else None)
    for way in theirs:
        what = f"{name}, peak RSS of DP-SGD, {OPACUS[way]} beside it"
        report.ratio(what, private, peak(way), unit="MB")


if __name__ == "__main__":
    main()

"""Training on a device against torch and Opacus: a step of SGD and of DP-SGD, batch 32, one thread.

Ours is ``OnnxTrainer.train``: an epoch of full batches, divided by their number, so the contract's check, the
shuffle, the copy into batches, the optimizer, and with privacy the draws, the noise and its rounding count.
torch runs the same network eagerly, over tensors it already has, in an order drawn once an epoch; Opacus the
same with a draw of fixed size, by hooks and by ghost clipping, and the faster of the two is the baseline. All
read the loss of every step. Before anything is timed, one step of ours and of torch's must agree.

Memory is the peak resident set (VmHWM) of a process that imports what it needs and trains an epoch.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from harness import Report, seconds
from numpy.typing import NDArray

from umbel_proto.errors import PackageError, UsageError
from umbel_proto.keys import SigningKey, VerifyKey
from umbel_proto.package import Package, read_package

BATCH = 32
RATE, MOMENTUM = 0.05, 0.9
CLIP, NOISE = 1.0, 1.1
RUNS = 9
SMALL = 150_000
"""Parameters below which a step must be faster than torch's, and not only as fast."""

Vector = NDArray[np.float32]
Epoch = Callable[[], Vector]
"""Trains one epoch from the initial parameters and returns the new ones."""


def examples(package: Package, count: int) -> tuple[Vector, NDArray[np.int64]]:
    chance = np.random.default_rng(1)
    (field,), classes = package.manifest.contract.fields, len(package.manifest.labels)
    low, high = max(field.minimum, -2.0), min(field.maximum, 2.0)
    x = chance.uniform(low, high, (count, *field.shape)).astype(np.float32)
    return x, chance.integers(0, classes, count)


def with_onnx(package: Package, steps: int, *, private: bool = False) -> Epoch:
    from umbel.train import ExamplePrivacy, TrainPlan
    from umbel.train.onnx import OnnxTrainer

    trainer, start, (x, y) = OnnxTrainer(package), package.parameters(), examples(package, BATCH * steps)
    plan = TrainPlan(1, BATCH, RATE, MOMENTUM, 1, ExamplePrivacy(CLIP, NOISE) if private else None)
    return lambda: trainer.train(start, x, y, plan).parameters


def with_torch(package: Package, steps: int, *, way: str = "sgd") -> Epoch:
    """An epoch by torch, or by Opacus one way or the other: ``sgd``, ``hooks`` or ``ghost``."""
    import torch
    from networks import NETWORKS

    torch.set_num_threads(1)
    network = NETWORKS[package.manifest.model]()
    x, y = (torch.from_numpy(array) for array in examples(package, BATCH * steps))
    arrays = package.split(package.parameters())
    start = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    net = network.make()
    module, descent, criterion = made_private(net, way) if way != "sgd" else plain(net)

    def epoch() -> Vector:
        with torch.no_grad():
            for name, value in net.named_parameters():
                value.copy_(start[name])
        descent.state.clear()
        total = 0.0
        for rows in torch.randperm(len(y)).split(BATCH):
            descent.zero_grad()
            mean = criterion(module(x[rows]), y[rows])
            mean.backward()
            descent.step()
            total += mean.item() * len(rows)
        trained = dict(net.named_parameters())
        return package.manifest.join({name: trained[name].detach().numpy() for name in arrays})

    return epoch


def plain(net):  # type: ignore[no-untyped-def]
    import torch

    descent = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)
    return net.train(), descent, torch.nn.CrossEntropyLoss()


def made_private(net, way: str):  # type: ignore[no-untyped-def]
    import torch
    from opacus import GradSampleModule
    from opacus.grad_sample import GradSampleModuleFastGradientClipping as Ghost
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    descent = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)
    criterion = torch.nn.CrossEntropyLoss()
    settings = {"noise_multiplier": NOISE, "max_grad_norm": CLIP, "expected_batch_size": BATCH}
    if way == "hooks":
        return GradSampleModule(net.train()), DPOptimizer(descent, **settings), criterion
    module = Ghost(net.train(), max_grad_norm=CLIP, use_ghost_clipping=True)
    optimizer = DPOptimizerFastGradientClipping(descent, **settings)
    return module, optimizer, DPLossFastGradientClipping(module, optimizer, criterion)


WAYS: dict[str, Callable[[Package, int], Epoch]] = {
    "onnx": with_onnx,
    "onnx private": lambda package, steps: with_onnx(package, steps, private=True),
    "torch": with_torch,
    "opacus": lambda package, steps: with_torch(package, steps, way="hooks"),
    "opacus ghost": lambda package, steps: with_torch(package, steps, way="ghost"),
}


def peak_mb() -> float:
    """Return this process's peak resident set, MB of 10**6 bytes.

    Not getrusage's: that one begins with what the parent held when it forked.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def child(way: str, package: Path, key: bytes, steps: int) -> None:
    """Train one epoch in this process and print its peak memory."""
    warnings.simplefilter("ignore")
    WAYS[way](read_package(package.read_bytes(), release_key=VerifyKey(key)), steps)()
    sys.stdout.write(f"{peak_mb()}\n")


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
    for _ in range(RUNS):
        for way, epoch in epochs.items():
            times[way].append(1e3 * seconds(epoch) / steps)
    return {way: statistics.median(each) for way, each in times.items()}


def main() -> None:
    from networks import NETWORKS, packed

    warnings.simplefilter("ignore")
    report, key = Report("training"), SigningKey.generate()
    for name, make in NETWORKS.items():
        network = make()
        try:
            data = packed(name, network, key)
        except (PackageError, UsageError) as exc:
            print(f"{name} is not timed: {exc}")
            continue
        package = read_package(data, release_key=key.public)
        one_step = (with_onnx(package, 1)(), with_torch(package, 1)())
        if not np.allclose(*one_step, rtol=1e-4, atol=1e-5):
            raise SystemExit(f"The two train {name} differently: nothing to compare.")
        dim = package.manifest.dim
        times = in_turn(package, 40 if dim < SMALL else 8)
        at_most = 0.8 if dim < SMALL else 1.05
        report.ratio(
            f"{name}, SGD, torch beside it", times["onnx"], times["torch"], unit="ms", at_most=at_most
        )
        theirs = [times[way] for way in ("opacus", "opacus ghost") if way in times]
        if theirs:
            report.ratio(
                f"{name}, DP-SGD, the better Opacus beside it",
                times["onnx private"],
                min(theirs),
                unit="ms",
                at_most=0.55 if network.one_pass else None,
            )
        else:
            report.value(f"{name}, DP-SGD, which Opacus cannot", times["onnx private"], unit="ms")
        memory(report, name, data, key, network.one_pass)
        report.write()  # It takes minutes, and may be interrupted.
    report.finish()


MOST_MB = {"digits": 70.0, "letters-6.6m": 280.0}


def memory(report: Report, name: str, data: bytes, key: SigningKey, one_pass: bool) -> None:
    """Add the peak memory of training processes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "package.umbel"
        file.write_bytes(data)

        def peak(way: str) -> float:
            command = [sys.executable, __file__, way, str(file), key.public.raw.hex()]
            runs = [subprocess.run(command, capture_output=True, check=True, text=True) for _ in range(3)]
            return statistics.median(float(ran.stdout) for ran in runs)

        ours, private = peak("onnx"), peak("onnx private")
        report.value(
            f"{name}, peak RSS, torch beside it",
            ours,
            unit="MB",
            at_most=MOST_MB.get(name),
            baseline=peak("torch"),
        )
        report.ratio(
            f"{name}, peak RSS of DP-SGD, of SGD beside it",
            private,
            ours,
            unit="MB",
            at_most=1.3 if one_pass else None,
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(sys.argv[1], Path(sys.argv[2]), bytes.fromhex(sys.argv[3]), steps=8)
    else:
        main()

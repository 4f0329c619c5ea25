"""Training on a device against torch: one step of SGD with momentum on the digits CNN, batch 32.

Ours is ``OnnxTrainer.train``: an epoch of ``STEPS`` full batches, divided by their number, so the
contract's check, the shuffle and the copy into batches count. torch runs the same network eagerly on one
thread with ``torch.optim.SGD``, over tensors it already has, in an order drawn once an epoch. Both read
the loss of every step. Before anything is timed, one step of both from the same parameters must agree.

Memory is the peak resident set (VmHWM) of a process that imports what it needs and trains one epoch.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from harness import Report, alternate, seconds
from numpy.typing import NDArray

from umbel_proto.keys import SigningKey, VerifyKey
from umbel_proto.package import Package, read_package

BATCH, STEPS = 32, 40
RATE, MOMENTUM = 0.05, 0.9
RUNS = 25

Vector = NDArray[np.float32]
Epoch = Callable[[], Vector]
"""Trains one epoch from the initial parameters and returns the new ones."""


def examples(count: int) -> tuple[Vector, NDArray[np.int64]]:
    chance = np.random.default_rng(1)
    return chance.integers(0, 17, (count, 1, 8, 8)).astype(np.float32), chance.integers(0, 10, count)


def with_onnx(package: Package, count: int) -> Epoch:
    from umbel.train import TrainPlan
    from umbel.train.onnx import OnnxTrainer

    trainer, start, (x, y) = OnnxTrainer(package), package.parameters(), examples(count)

    def epoch() -> Vector:
        return trainer.train(start, x, y, TrainPlan(1, BATCH, RATE, MOMENTUM, 1)).parameters

    return epoch


def with_torch(package: Package, count: int) -> Epoch:
    import torch

    from umbel_models.task import cross_entropy as loss
    from umbel_models.tasks.digits.module import DigitsNet

    torch.set_num_threads(1)
    x, y = (torch.from_numpy(array) for array in examples(count))
    arrays = package.split(package.parameters())
    start = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}

    def epoch() -> Vector:
        net = DigitsNet()
        net.load_state_dict(start)
        descent = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)
        total = 0.0
        for rows in torch.randperm(count).split(BATCH):
            descent.zero_grad()
            mean = loss(net(x[rows]), y[rows]).mean()
            mean.backward()
            descent.step()
            total += mean.item() * len(rows)
        trained = dict(net.named_parameters())
        return package.manifest.join({name: trained[name].detach().numpy() for name in arrays})

    return epoch


WITH = {"onnx": with_onnx, "torch": with_torch}


def peak_mb() -> float:
    """Return this process's peak resident set, MB of 10**6 bytes.

    Not getrusage's: that one begins with what the parent held when it forked.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def child(name: str, package: Path, key: bytes) -> None:
    """Train one epoch in this process and print its peak memory."""
    WITH[name](read_package(package.read_bytes(), release_key=VerifyKey(key)), BATCH * STEPS)()
    sys.stdout.write(f"{peak_mb()}\n")


def main() -> None:
    from umbel_models.pack import build
    from umbel_models.task import find

    key = SigningKey.generate()
    data = build(find("digits"), key=key, version=1, lineage={})
    package = read_package(data, release_key=key.public)
    one_step = (with_onnx(package, BATCH)(), with_torch(package, BATCH)())
    if not np.allclose(*one_step, rtol=1e-4, atol=1e-6):
        raise SystemExit("The two train differently: nothing to compare.")

    report = Report("training")
    epochs = with_onnx(package, BATCH * STEPS), with_torch(package, BATCH * STEPS)
    ours, baseline = alternate(*(lambda e=epoch: 1e3 * seconds(e) / STEPS for epoch in epochs), runs=RUNS)
    report.ratio("one step, batch 32, torch beside it", ours, baseline, unit="ms", at_most=1.05)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "digits-1.umbel"
        file.write_bytes(data)
        command = [sys.executable, __file__]

        def peak(name: str) -> float:
            arguments = [name, str(file), key.public.raw.hex()]
            return float(subprocess.run(command + arguments, capture_output=True, check=True).stdout)

        ours, baseline = alternate(lambda: peak("onnx"), lambda: peak("torch"), runs=3)
    report.ratio("peak RSS of a training process", ours, baseline, unit="MB")
    report.finish()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(sys.argv[1], Path(sys.argv[2]), bytes.fromhex(sys.argv[3]))
    else:
        main()

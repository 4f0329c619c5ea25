"""The ways to train a network that are timed, each in a process of its own.

Its own imports are part of what is measured: none here that training does not need.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from umbel_proto.encoding import digest
from umbel_proto.keys import VerifyKey
from umbel_proto.package import Package, read_package
from umbel_proto.prg import Keystream

BATCH = 32
RATE, MOMENTUM = 0.05, 0.9
CLIP, NOISE = 1.0, 1.1
Vector = NDArray[np.float32]
Epoch = Callable[[], Vector]
"""Trains one epoch from the initial parameters and returns the new ones."""


def examples(package: Package, count: int) -> tuple[Vector, NDArray[np.int64]]:
    # By a keystream, which training needs anyway: numpy's generators are another 2 MB.
    chance = Keystream(digest("bench/training"))
    (field,), classes = package.manifest.contract.fields, len(package.manifest.labels)
    low, high = max(field.minimum, -2.0), min(field.maximum, 2.0)
    x = np.empty((count, *field.shape), np.float32)
    for row in x:
        row[...] = (low + (high - low) * 2.0**-64 * chance.uint64(row.size)).reshape(row.shape)
    return x, (chance.uint64(count) % np.uint64(classes)).astype(np.int64)


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


APART = {"apart": False, "apart private": True}
"""As a device does it: in a process of its own. By way, whether examples are kept private."""


def apart(package: Package, steps: int, *, private: bool) -> tuple[float, float, float]:
    """Train one epoch as a device does.

    Returns:
        The peak memory of the process that trains, of this one, and of both together, in which pages of one file
        that both have count once.
    """
    from umbel.train import ExamplePrivacy, TrainPlan
    from umbel.train.apart import ApartTrainer

    trainer, (x, y) = ApartTrainer(package), examples(package, BATCH * steps)
    plan = TrainPlan(1, BATCH, RATE, MOMENTUM, 1, ExamplePrivacy(CLIP, NOISE) if private else None)
    trainer.train(package.parameters(), x, y, plan)
    trains = Path(f"/proc/self/task/{os.getpid()}/children").read_text().strip()
    of_it, of_this = peak_mb(trains), peak_mb()
    together = of_it + of_this - twice_mb(trains, "self")
    trainer.close()
    return of_it, of_this, together


def twice_mb(one: str, other: str) -> float:
    """Return how much of two processes' resident sets are pages of files that both have, MB.

    Of each file the lesser of what the two have of it unchanged: what the system counts for each of them, and has once.
    Of two alone this is what makes their proportional set sizes less than their resident ones; those
    (``/proc/PID/smaps_rollup``) also fall with every other program that runs from the same files.
    """
    left, right = unchanged_kib(one), unchanged_kib(other)
    return sum(min(size, right.get(place, 0)) for place, size in left.items()) * 1024 / 1e6


def unchanged_kib(process: str) -> dict[str, int]:
    """Return what a process has of each part of each file in memory and has not written to, KiB, by file and offset."""
    sizes: dict[str, int] = {}
    place = ""
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        head = line.split()
        if not head[0].endswith(":"):  # ADDRESSES PERMISSIONS OFFSET DEVICE INODE FILE
            place = f"{head[5]} {head[2]}" if len(head) > 5 and head[5].startswith("/") else ""
        elif place and head[0] in ("Shared_Clean:", "Private_Clean:"):
            sizes[place] = sizes.get(place, 0) + int(head[1])
    return sizes


def peak_mb(process: str = "self") -> float:
    """Return a process's peak resident set, MB of 10**6 bytes.

    Not getrusage's: that one begins with what the parent held when it forked.
    """
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def child(way: str, package: Path, key: bytes, steps: int) -> None:
    """Train one epoch and print the peak memory of the process that did, of the one that had it done, and of both."""
    opened = read_package(package.read_bytes(), release_key=VerifyKey(key))
    if way in APART:
        say("{} {} {}".format(*apart(opened, steps, private=APART[way])))
        return
    WAYS[way](opened, steps)()
    say(f"{peak_mb()} 0 0")


def by_turns(way: str, package: Path, key: bytes, steps: int) -> None:
    """Train an epoch, say so, and then one for every line that comes: print how long a step took, ms."""
    epoch = WAYS[way](read_package(package.read_bytes(), release_key=VerifyKey(key)), steps)
    epoch()  # Caches and lazy imports are not what is measured.
    say("ready")
    for _ in sys.stdin:
        begin = time.perf_counter()
        epoch()
        say(repr(1e3 * (time.perf_counter() - begin) / steps))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    does = by_turns if sys.argv[1:2] == ["--by-turns"] else child
    way, package, key, steps = sys.argv[-4:]
    does(way, Path(package), bytes.fromhex(key), int(steps))

"""From a torch module to graphs, and what a device then has to open, hold and install.

- Export: all graphs of a module with their verification against torch, and calib and int8 with theirs against
  onnxruntime's quantizer, once, in a process of its own, so that the first trace's imports count too; beside it the import
  of torch alone.
- Opening: the median of several sessions: inference and explanation with their parameters as on a device, training, and
  the graphs that quantize and are quantized.
- Install: the files of a distribution and of all that it needs, by their own records (``RECORD``), on this
  machine; beside it the same for torch and Opacus. Compiled caches are not counted. MB are 10**6 bytes. Of
  umbel all files of the device's wheel count. torch is the one built for CPUs.
- Imports: from an interpreter's start to having imported what trains on a device, files in the page cache;
  beside it torch and Opacus.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
from harness import Report, alternate, often, seconds
from packaging.requirements import Requirement

if TYPE_CHECKING:
    from torch.nn import Module

EXPORT = """
import sys, time
begin = time.perf_counter()
from umbel_models.graphs.export import export
from umbel_models.quantize import skeletons
from umbel_models.task import find
task = find(sys.argv[1])
data, module = task.data(), task.module()
graphs = export(module, task.loss, task.contract.fields[0].shape)
values = {name: value.detach().numpy() for name, value in module.named_parameters()}
skeletons(graphs.infer, values, task.contract.check(data.calibration.x)[0])
print(time.perf_counter() - begin)
"""
TASKS = ("digits", "activity", "credit", "breast-cancer")
RUNS = 15


OURS, THEIRS = "import umbel, umbel.train.onnx", "import torch, opacus"
ROOMS = ("umbel", "umbel_proto")


def child(code: str, *arguments: str) -> float:
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, timeout=600
    )
    return float(ran.stdout.split()[-1])


def exports(report: Report) -> None:
    bare = child("import time\nbegin = time.perf_counter()\nimport torch\nprint(time.perf_counter() - begin)")
    for name in TASKS:
        with report.part(f"export {name}"):
            report.value(
                f"export and verify all graphs of {name}, import torch beside it",
                child(EXPORT, name),
                unit="s",
                baseline=bare,
                at_most=20 if name == "digits" else None,
            )


def openings(report: Report) -> None:
    """Time sessions of the digits CNN and of a network of 6.6 million parameters."""
    from torch import nn

    from umbel_models.task import find

    digits = find("digits")
    large = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 2048), nn.ReLU(), nn.Linear(2048, 62),
    )  # fmt: skip
    for name, module, shape in (
        ("digits", digits.module(), digits.contract.fields[0].shape),
        ("6.6 M parameters", large, (1, 28, 28)),
    ):
        with report.part(f"open {name}"):
            opening(report, name, module, shape)


def opening(report: Report, name: str, module: Module, shape: tuple[int, ...]) -> None:
    from umbel_models.graphs.export import export
    from umbel_models.quantize import skeletons
    from umbel_models.runtime import Session
    from umbel_models.task import cross_entropy
    from umbel_proto.quantization import quantize

    graphs = export(module, cross_entropy, shape)
    values = {key: value.detach().numpy() for key, value in module.named_parameters()}
    source = np.random.default_rng(0)
    inputs = source.standard_normal((64, *shape)).astype(np.float32)
    made = skeletons(graphs.infer, values, inputs)
    calibration = Session(made.calib, values, optimized=False)
    filled = quantize(calibration.run, made.mapping, values, inputs)
    assert graphs.explain is not None
    for what, graph, weights in (
        ("inference", graphs.infer, values),
        ("training", graphs.gradient, {}),
        ("private training", graphs.clipped, {}),
        ("explanation", graphs.explain, values),
        ("calibration", made.calib, values),
        ("int8", made.int8, filled),
    ):

        def opened(graph: bytes = graph, weights: dict[str, np.ndarray] = weights) -> None:
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            if weights:
                options.add_external_initializers(
                    list(weights), [ort.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
                )
            ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

        opened()
        median = statistics.median(seconds(opened) for _ in range(often(RUNS)))
        report.value(f"open {what}, {name}", 1e3 * median, unit="ms", at_most=50)
        report.value(f"  its graph, {what}, {name}", len(graph) / 1e3, unit="kB")


def needed(name: str, extras: frozenset[str], seen: set[str]) -> Iterator[str]:
    """Yield a distribution and all that it needs here, by name."""
    key = name.lower().replace("_", "-")
    if key in seen:
        return
    try:
        requirements = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return  # For another system.
    seen.add(key)
    yield key
    for line in requirements:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""})):
            yield from needed(requirement.name, frozenset(requirement.extras), seen)


def megabytes(names: Iterator[str]) -> float:
    return sum(size(Path(str(file.locate()))) for name in names for file in metadata.files(name) or ()) / 1e6


def size(file: Path) -> int:
    return file.stat().st_size if file.suffix != ".pyc" and file.is_file() else 0


def wheel_megabytes() -> float:
    """Return the size of umbel's own files, which the record of an editable install leaves out."""
    folders = [Path(folder) for room in ROOMS for folder in find_spec(room).submodule_search_locations or ()]
    return sum(size(file) for folder in folders for file in folder.rglob("*")) / 1e6


def footprint(report: Report) -> None:
    seen: set[str] = set()
    torch = megabytes(name for root in ("torch", "opacus") for name in needed(root, frozenset(), seen))
    own = wheel_megabytes()
    report.value("umbel's own files", own, unit="MB")
    for what, extras in (("a device that predicts and trains", ""), ("one that joins rounds", "learn")):
        whole = own + megabytes(needed("umbel", frozenset({extras}), set()))
        report.ratio(f"installed for {what}, torch and Opacus beside it", whole, torch, unit="MB")


def imports(report: Report) -> None:
    def taken(code: str) -> float:
        command = [sys.executable, "-W", "ignore", "-c", code]
        return seconds(lambda: subprocess.run(command, check=True, timeout=600))

    ours, theirs = alternate(lambda: taken(OURS), lambda: taken(THEIRS))
    report.ratio("start and import what trains, torch and Opacus beside it", ours, theirs, unit="s")


def main() -> None:
    report = Report("export")
    for part in (footprint, imports, openings, exports):
        with report.part(part.__name__):
            part(report)
    report.finish()


if __name__ == "__main__":
    main()

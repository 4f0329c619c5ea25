"""What umbel costs before it does anything: an import, and a device at rest.

- ``import umbel`` in a new process, files in the page cache, against ``import numpy``. Both times are
  taken inside the process around the import, so that the interpreter's own start counts for neither.
- From the interpreter's start to the first answer of an installed model, against the shortest script that
  runs the same graph with onnxruntime alone, without signature, golden vectors, contract or telemetry. Online the
  gateway does not answer. The whole process includes closing the device: the report is sealed and on the disk.
  Every process finds its modules compiled, as pip leaves them, and in the page cache.
- Peak resident memory (VmHWM) of a real ``umbel run``: enrolled over TLS at a running gateway, the release
  fetched, verified and installed, then at rest. No SuperLink runs: the node keeps trying to reach one.
  The baseline is an interpreter that has imported numpy, onnxruntime and flwr.app and does nothing.
- Peak resident memory of an application that has asked an installed model once, against the shortest script
  that runs the same graph with onnxruntime alone.
- What ``pip install umbel`` puts on the disk, in a fresh environment with the newest of all that it requires: the files
  as shipped, and beside it the same with the bytecode that pip compiles unless it is told ``--no-compile``. This part
  asks the package index.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path

from harness import Report, alternate, seconds

from umbel._home.directory import DeviceHome
from umbel._releases.shelf import Shelf
from umbel_models.pack import build
from umbel_models.task import find
from umbel_proto.credentials import FleetPolicy
from umbel_proto.ids import FleetId
from umbel_server.fleet.create import create_fleet
from umbel_server.fleet.invite import invite
from umbel_server.fleet.publish import publish
from umbel_server.gateway.server import Gateway

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = ("flwr", "grpc", "h2", "torch")
OF_THE_ENVIRONMENT = ("pip", "setuptools")
FLEET = FleetId("bench")
POLICY = FleetPolicy(FLEET, 0.1, 0.2, True, 3, 0.0, 8.0, 1e-6)
REST_S = 8.0
"""How long a device rests after its release is installed: its node retries meanwhile."""
PATIENCE_S = 60.0

IMPORT = "import time; begin = time.perf_counter(); import {}; print(time.perf_counter() - begin)"
LOADED = "import sys, umbel; print(*{name.partition('.')[0] for name in sys.modules})"
BARE = "import numpy, onnxruntime, flwr.app; print(open('/proc/self/status').read())"
PREDICT = """
import sys, time, umbel
with umbel.Device.open(sys.argv[1], online=sys.argv[2:] == ["online"]) as device:
    device.model("digits", variant="fp32").predict([[[0.0] * 8] * 8])
    print(time.monotonic())
"""
STATUS = "print(open('/proc/self/status').read())"
RUN_GRAPH = """
import sys, time, numpy as np, onnxruntime as ort
session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(["probabilities"], {"x": np.zeros((1, 1, 8, 8), np.float32)})
print(time.monotonic())
"""

ENVIRONMENT = dict(os.environ)
"""Of the processes that are measured."""


def python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT).stdout


def answered_s(code: str, *arguments: str) -> float:
    """Return how long a process takes until it prints the clock, which all processes share."""
    begin = time.monotonic()
    return float(python(code, *arguments)) - begin


def peak_mb(status: str) -> float:
    """Return VmHWM of a /proc/PID/status, MB of 10**6 bytes."""
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def installed_mb() -> tuple[float, float, str]:
    """Install umbel where nothing is installed, the newest of all that it requires with it.

    Returns:
        The size of its files without and with bytecode, MB of 10**6 bytes, and onnxruntime's version, which decides it.
    """
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", str(ROOT)], check=True)
        (site,) = Path(folder).glob("lib/python*/site-packages")
        found = {each.name: each for each in distributions(path=[str(site)])}
        files = [
            Path(str(file.locate()))
            for name, each in found.items()
            if name not in OF_THE_ENVIRONMENT
            for file in each.files or ()
        ]
        kept = {file.resolve() for file in files if file.is_file()}
        plain = sum(file.stat().st_size for file in kept if file.suffix != ".pyc")
        compiled = sum(file.stat().st_size for file in kept if file.suffix == ".pyc")
        return plain / 1e6, (plain + compiled) / 1e6, found["onnxruntime"].version


@contextmanager
def resting(root: Path) -> Iterator[tuple[subprocess.Popen[bytes], DeviceHome]]:
    """Run a device of a real fleet and yield it once it has enrolled and installed the release."""
    fleet = create_fleet(root / "fleet", name=FLEET, policy=POLICY)
    home = DeviceHome(root / "device")
    with fleet.open_store() as store, Gateway(fleet, store), (root / "log").open("wb") as log:
        publish(fleet, store, build(find("digits"), key=fleet.release_signer(), version=1, lineage={}))
        environment = {**os.environ, "UMBEL_TOKEN": invite(fleet, store, device="dev-1").to_text()}
        command = [sys.executable, "-m", "umbel", "run", "--home", str(home.path)]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not (home.enrolled and Shelf(home.shelf, home.release_authority()).active("digits")):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"The device did not come up:\n{(root / 'log').read_text()}")
                time.sleep(0.2)
            yield process, home
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)


def main() -> None:
    with tempfile.TemporaryDirectory() as compiled:
        ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)
        ENVIRONMENT["PYTHONPYCACHEPREFIX"] = compiled
        measure(Report("startup"))


def measure(report: Report) -> None:
    """Measure, and write the figures."""
    ours, baseline = alternate(
        lambda: float(python(IMPORT.format("umbel"))), lambda: float(python(IMPORT.format("numpy"))), runs=15
    )
    report.value("import umbel, import numpy beside it", ours, unit="s", at_most=0.25, baseline=baseline)
    heavy = set(FORBIDDEN).intersection(python(LOADED).split())
    report.value(f"imported of {', '.join(FORBIDDEN)}", len(heavy), unit="modules", at_most=0)
    with report.part("pip install umbel"):
        plain, compiled, runtime = installed_mb()
        report.value(
            f"pip install umbel, with onnxruntime {runtime}: files as shipped, with bytecode beside it",
            plain,
            unit="MB",
            at_most=160,
            baseline=compiled,
        )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with resting(root) as (process, home):
            time.sleep(REST_S)
            device = peak_mb(Path(f"/proc/{process.pid}/status").read_text())
        bare = peak_mb(python(BARE))
        report.value(
            "device at rest, peak RSS, bare imports beside it", device, unit="MB", at_most=150, baseline=bare
        )
        graph = root / "graph.onnx"
        graph.write_bytes(inlined(home))
        first, bare_first = alternate(
            lambda: answered_s(PREDICT, str(home.path)), lambda: answered_s(RUN_GRAPH, str(graph)), runs=15
        )
        online, bare_online = alternate(
            lambda: answered_s(PREDICT, str(home.path), "online"), lambda: answered_s(RUN_GRAPH, str(graph))
        )
        whole, bare_whole = alternate(
            lambda: seconds(lambda: python(PREDICT, str(home.path))),
            lambda: seconds(lambda: python(RUN_GRAPH, str(graph))),
        )
        asked = peak_mb(python(PREDICT + STATUS, str(home.path)))
        alone = peak_mb(python(RUN_GRAPH + STATUS, str(graph)))
    report.value(
        "one small model, asked once, peak RSS, onnxruntime alone beside it",
        asked,
        unit="MB",
        at_most=110,
        baseline=alone,
    )
    name = "process start to first prediction, onnxruntime alone beside it"
    report.value(name, first, unit="s", at_most=0.2, baseline=bare_first)
    report.value("the same online", online, unit="s", baseline=bare_online)
    report.value("the whole process, its report sealed", whole, unit="s", baseline=bare_whole)
    report.finish()


def inlined(home: DeviceHome) -> bytes:
    """Return the installed fp32 graph with its parameters inside, as other programs expect it."""
    import onnx
    from onnx import numpy_helper

    shelf = Shelf(home.shelf, home.release_authority())
    installed = shelf.active("digits")
    assert installed is not None
    package = shelf.package(installed)
    model = onnx.load_from_string(package.file("infer.onnx"))
    values = package.split(package.parameters())
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return model.SerializeToString()


if __name__ == "__main__":
    main()

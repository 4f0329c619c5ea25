"""What umbel costs before it does anything: an import, and a device at rest.

- ``import umbel`` in a new process, files in the page cache, against ``import numpy``. Both times are
  taken inside the process around the import, so that the interpreter's own start counts for neither.
- From the interpreter's start to the first answer of an installed model, against the shortest script that
  runs the same graph with onnxruntime alone, without signature, golden vectors, contract or telemetry.
- Peak resident memory (VmHWM) of a real ``umbel run``: enrolled over TLS at a running gateway, the release
  fetched, verified and installed, then at rest. No SuperLink runs: the node keeps trying to reach one.
  The baseline is an interpreter that has imported numpy, onnxruntime and flwr.app and does nothing.
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
from pathlib import Path

from harness import Report, alternate, seconds

from umbel._home import DeviceHome
from umbel._shelf import Shelf
from umbel_models.pack import build
from umbel_models.task import find
from umbel_proto.credentials import FleetPolicy
from umbel_proto.ids import FleetId
from umbel_server.fleet.create import create_fleet
from umbel_server.fleet.invite import invite
from umbel_server.fleet.publish import publish
from umbel_server.gateway.server import Gateway

FORBIDDEN = ("flwr", "grpc", "torch")
FLEET = FleetId("bench")
POLICY = FleetPolicy(FLEET, 0.1, 0.2, True, 3, 0.0, 8.0, 1e-6)
REST_S = 8.0
"""How long a device rests after its release is installed: its node retries meanwhile."""
PATIENCE_S = 60.0

IMPORT = "import time; begin = time.perf_counter(); import {}; print(time.perf_counter() - begin)"
LOADED = "import sys, umbel; print(*{name.partition('.')[0] for name in sys.modules})"
BARE = "import numpy, onnxruntime, flwr.app; print(open('/proc/self/status').read())"
PREDICT = """
import sys, umbel
with umbel.Device.open(sys.argv[1], online=False) as device:
    device.model("digits", variant="fp32").predict([[[0.0] * 8] * 8])
"""
RUN_GRAPH = """
import sys, numpy as np, onnxruntime as ort
session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(["probabilities"], {"x": np.zeros((1, 1, 8, 8), np.float32)})
"""


def python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def peak_mb(status: str) -> float:
    """Return VmHWM of a /proc/PID/status, MB of 10**6 bytes."""
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


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
    report = Report("startup")
    ours, baseline = alternate(
        lambda: float(python(IMPORT.format("umbel"))), lambda: float(python(IMPORT.format("numpy"))), runs=15
    )
    report.value("import umbel, import numpy beside it", ours, unit="s", at_most=0.25, baseline=baseline)
    heavy = set(FORBIDDEN).intersection(python(LOADED).split())
    report.value(f"imported of {', '.join(FORBIDDEN)}", len(heavy), unit="modules", at_most=0)
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
        ours, baseline = alternate(
            lambda: seconds(lambda: python(PREDICT, str(home.path))),
            lambda: seconds(lambda: python(RUN_GRAPH, str(graph))),
        )
    report.ratio("process start to first prediction", ours, baseline, unit="s")
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

"""What the memory of a training process is made of: the peak resident set after each step of the way there.

Each step is a process of its own that takes all steps before it, too, and says its peak (VmHWM): the difference to
the one before is what a step takes. The network is digits; the last step is umbel's own training of the package.
Files are in the page cache. The median of five.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import Report, often
from startup import STATUS, peak_mb

from umbel_models.pack import build
from umbel_models.task import find
from umbel_proto.keys import SigningKey
from umbel_proto.manifest import GRADIENT
from umbel_proto.package import read_package

STEPS = {
    "the interpreter": "import sys",
    "numpy": "import numpy as np",
    "onnxruntime": "import onnxruntime as ort",
    "a session of the gradient graph": """
options = ort.SessionOptions()
options.intra_op_num_threads, options.enable_mem_pattern = 1, False
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
""",
    "eight batches of 32": """
given = {}
for each in session.get_inputs():
    kind = np.int64 if each.type == "tensor(int64)" else np.float32
    given[each.name] = np.ones([size if isinstance(size, int) else 32 for size in each.shape], kind)
for _ in range(8):
    session.run(None, given)
""",
    "cryptography": """
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
Ed25519PublicKey.from_public_bytes(bytes.fromhex(sys.argv[2]))
""",
    "hashlib": "import hashlib; hashlib.sha256(b'')",
}
WAYS = str(Path(__file__).with_name("ways.py"))


def main() -> None:
    report, key = Report("memory"), SigningKey.generate()
    with tempfile.TemporaryDirectory() as folder:
        whole, graph = Path(folder) / "digits.umbel", Path(folder) / "grad.onnx"
        whole.write_bytes(build(find("digits"), key=key))
        package = read_package(whole.read_bytes(), release_key=key.public)
        graph.write_bytes(package.file(package.manifest.graphs[GRADIENT]))
        public, before, code = key.public.raw.hex(), 0.0, ""

        def ran(*command: str) -> list[str]:
            run = [sys.executable, *command]
            return [
                subprocess.run(run, capture_output=True, text=True, check=True).stdout
                for _ in range(often(5))
            ]

        for name, step in STEPS.items():
            code += f"{step}\n"
            peak = statistics.median(map(peak_mb, ran("-c", code + STATUS, str(graph), public)))
            report.value(f"{name}, all until there beside it", peak - before, unit="MB", baseline=peak)
            before = peak
        peak = statistics.median(map(float, ran(WAYS, "onnx", str(whole), public, "8")))
        name = "safetensors, the package, the trainer"
        report.value(f"{name}, all until there beside it", peak - before, unit="MB", baseline=peak)
    report.finish()


if __name__ == "__main__":
    main()

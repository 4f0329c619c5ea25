"""Run the benchmarks beside this file, one after the other, each in a process of its own.

Usage: python tests/bench/run.py [NAME or GROUP]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NOT_BENCHMARKS = {"run", "harness", "networks", "secagg_plot"}
GROUPS = {"models": ("export", "training", "inference", "quantized", "tflite", "compression")}


def main() -> int:
    names = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NOT_BENCHMARKS)
    wanted = [name for word in sys.argv[1:] for name in GROUPS.get(word, (word,))] or names
    for name in wanted:
        if name not in names:
            print(f"There is no benchmark {name!r}: choose one of {', '.join([*names, *GROUPS])}.")
            return 2
    # A missed target is printed and fails nothing; a benchmark that cannot run does.
    return max(
        subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=False).returncode for name in wanted
    )


if __name__ == "__main__":
    raise SystemExit(main())

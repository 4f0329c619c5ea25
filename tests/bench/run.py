"""Run the benchmarks beside this file, one after the other, each in a process of its own.

One that fails, or takes longer than LIMIT_S, costs no other its figures; Ctrl-C ends them all, and what was
measured until then is written.

Usage: python tests/bench/run.py [--quick] [NAME or GROUP]...     --quick only shows that they run
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "build"
NOT_BENCHMARKS = {
    *("run", "harness", "networks", "tables", "secagg_plot", "models_plot", "ways"),
    *("fleet_month", "console_operators", "console_paint"),
}
GROUPS = {
    "models": ("export", "training", "inference", "quantized", "tflite", "compression"),
    "device": ("sdk", "sdk_switch", "explain", "quantized", "startup"),
    "service": ("service", "soak_service", "store", "rollouts"),
    "console": ("console", "drift"),
}
LIMIT_S = 1800.0
"""No benchmark takes half of it on a quiet machine."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a benchmark took, in seconds; CPU time says it on a busy machine too."""

    code: int
    wall_s: float
    cpu_s: float


def measured(name: str, environment: dict[str, str]) -> Run:
    """Run one benchmark."""
    print(f"{name} ...", flush=True)
    begin, before = time.perf_counter(), children_s()
    try:
        command = [sys.executable, str(HERE / f"{name}.py")]
        code = subprocess.run(command, check=False, timeout=LIMIT_S, env=environment).returncode
    except subprocess.TimeoutExpired:
        print(f"{name} was stopped after {LIMIT_S:.0f} s: what it had measured is written.")
        code = 1
    return Run(code, time.perf_counter() - begin, children_s() - before)


def children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def told(name: str, run: Run, folder: Path) -> str:
    """Say what came of a benchmark."""
    file = folder / f"{name}.json"
    if not file.exists():
        return f"{name}: no figures"
    report = json.loads(file.read_text())
    judged = [row for row in report["rows"] if row["met"] is not None]
    missed = [row["name"] for row in judged if not row["met"]]
    line = f"{name}: {len(judged) - len(missed)} of {len(judged)} targets met, "
    line += f"{run.wall_s:.0f} s ({run.cpu_s:.0f} s of CPU)"
    line += "" if run.code == 0 else ", NOT COMPLETE"
    return line + "".join(f"\n  missed: {each}" for each in missed)


def main(words: list[str]) -> int:
    names = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NOT_BENCHMARKS)
    environment = dict(os.environ) | ({"UMBEL_BENCH_QUICK": "1"} if "--quick" in words else {})
    words = [word for word in words if word != "--quick"]
    wanted = [name for word in words for name in GROUPS.get(word, (word,))] or names
    for name in wanted:
        if name not in names:
            print(f"There is no benchmark {name!r}: choose one of {', '.join([*names, *GROUPS])}.")
            return 2
    runs: dict[str, Run] = {}
    try:
        for name in wanted:
            runs[name] = measured(name, environment)
    except KeyboardInterrupt:
        print(f"Stopped; measured before: {', '.join(runs) or 'nothing'}.")
        return 130
    finally:
        folder = OUT / ("bench-quick" if environment.get("UMBEL_BENCH_QUICK") else "bench")
        print(*(told(name, run, folder) for name, run in runs.items()), sep="\n")
    # A missed target is printed and fails nothing; a benchmark that cannot run does.
    return max(abs(run.code) for run in runs.values())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

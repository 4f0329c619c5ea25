"""The whole demo, once: a fleet of eight processes, eight private rounds, a delivery, every report.

One run, since it is long: its seconds carry the noise of the machine. They are what the demo itself
measures, from its first statement; the last row is what a shell sees, the interpreter's start and the
writing of the picture included. The baseline of the bytes is a plain FedAvg message of the same model
in Flower's own encoding, weighed by the demo.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import Report, seconds

UMBEL = Path(sys.executable).with_name("umbel")
DEVICES = 8


def main() -> None:
    report = Report("demo")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        command = [str(UMBEL), "demo", "--out", str(out)]
        whole = seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
        summary = json.loads((out / "summary.json").read_text())
    spent, accuracy, size = summary["seconds"], summary["accuracy"], summary["bytes"]
    report.value("first round's result", spent["first_round"], unit="s", at_most=15)
    report.value("whole demo", spent["total"], unit="s", at_most=90)
    for phase, duration in spent["by_phase"].items():
        report.value(f"a round: {phase}", duration, unit="s")
    report.value(
        "accuracy after, FedAvg without privacy beside it",
        accuracy["after"],
        unit="",
        at_least=0.88,
        baseline=accuracy["plain_fedavg"],
    )
    report.value(
        "up per device and round, plain FedAvg beside it",
        size["up_per_device_round"],
        unit="B",
        baseline=size["flower_fedavg_up_per_device_round"],
    )
    reporting = sum(count > 0 for count in summary["reports"].values())
    report.value("devices whose reports arrived", reporting, unit="devices", at_least=DEVICES)
    report.value("from the shell and back", whole, unit="s")
    report.finish()


if __name__ == "__main__":
    main()

"""Programs that a service starts cost none of its calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SERVICE = Path(__file__).resolve().parents[1] / "forking_service.py"


def test_a_service_that_starts_programs_goes_on_with_its_calls() -> None:
    ran = subprocess.run(
        [sys.executable, str(SERVICE)], capture_output=True, text=True, check=False, timeout=120
    )
    assert (ran.returncode, ran.stdout.split()) == (0, ["0", "True"]), ran.stderr[-2000:]

"""The oldest onnxruntime that a package is written for, in a folder of its own beside the installed one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

OLDEST = ("onnxruntime==1.17.3", "numpy==1.26.4")
"""It was built before numpy 2. Neither has wheels for Python 3.13."""


def fetch_oldest(folder: Path) -> Path:
    """Return a folder for PYTHONPATH in which they are: taken from the package index once, 100 MB.

    Args:
        folder: Where to keep it. A test that asks is skipped with a Python that they were not built for.
    """
    if sys.version_info >= (3, 13):
        # Nobody built wheels of it for newer ones. CI has an older one, and must run this.
        assert "CI" not in os.environ, f"CI needs a Python that {OLDEST[0]} was built for"
        pytest.skip(f"There is no {OLDEST[0]} for Python 3.13: a device with it has a newer one.")
    place = folder / "-".join(OLDEST).replace("==", "-")
    if not place.exists():
        with tempfile.TemporaryDirectory(dir=folder) as empty:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            where = ["--no-deps", "--only-binary=:all:", "--target", f"{empty}/all"]
            done = subprocess.run([*command, *where, *OLDEST], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"pip does not give {' and '.join(OLDEST)}: {done.stderr}"
            Path(empty, "all").rename(place)
    return place


def environment(place: Path | None) -> dict[str, str]:
    """Return the variables of a process that finds the libraries of ``place`` before the installed ones."""
    if place is None:
        return dict(os.environ)
    path = os.pathsep.join(filter(None, [str(place), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}

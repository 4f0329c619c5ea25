"""A disk of few megabytes, which a test can fill: commands that mount one, in a namespace of their own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def on_small_disk(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run shell commands that mount a tmpfs, with arguments from ``$1`` on; skip where nobody may."""
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *arguments], capture_output=True, text=True, check=False
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        # Some machines let no user mount anything. CI does, and must run this.
        assert "CI" not in os.environ, done.stderr
        pytest.skip("this machine lets nobody mount a small disk")
    return done

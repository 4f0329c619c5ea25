"""``umbel demo``: a whole fleet on this machine, from enrollment to telemetry."""

from __future__ import annotations

from umbel_server.demo.command import app

__all__ = ["app"]

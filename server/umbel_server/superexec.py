"""The processes of Flower's that a fleet runs beside its SuperLink: how they are started, and where.

Flower itself is imported in none of this: whoever starts a process needs its command only.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from umbel_server.fleet.layout import FleetDir

LOOPBACK = "127.0.0.1"


def superexec_command(fleet: FleetDir) -> list[str]:
    """Return the command of the process that starts a run's ServerApp."""
    return [
        sys.executable,
        "-c",
        "from flwr.supercore.cli.flower_superexec import flower_superexec; flower_superexec()",
        f"--runtime-api-address={LOOPBACK}:{fleet.settings.ports.control}",
        f"--root-certificates={fleet.ca_pem}",
        f"--superexec-auth-secret-file={fleet.superexec_secret}",
    ]


def flower_environment(fleet: FleetDir) -> dict[str, str]:
    """Return the environment for a fleet's Flower processes."""
    return {
        **os.environ,
        "FLWR_HOME": str(fleet.superlink / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
        # Flower starts the ServerApp by its command's name.
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]),  # noqa: PTH120
    }

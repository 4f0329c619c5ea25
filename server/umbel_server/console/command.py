"""``umbel serve console``: the fleet in a browser until SIGTERM or SIGINT."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from umbel_proto.errors import UsageError
from umbel_server.fleet.layout import FleetDir
from umbel_server.signals import StopSignals


def serve_console(
    directory: Annotated[
        Path, typer.Option("--fleet", envvar="UMBEL_FLEET", help="The fleet's directory.", show_default=False)
    ],
) -> None:
    """Serve the console over HTTPS. Prints `ready console ADDRESS`."""
    from umbel_server.services.logs import configure_logs
    from umbel_server.services.ready import ready

    with StopSignals() as signals:
        from umbel_server.console.server import ConsoleServer

        fleet = FleetDir.open(directory)
        if not fleet.settings.console.port:
            raise UsageError("The console has no port: choose one, port in [console] of fleet.toml.")
        configure_logs(fleet.settings.log)
        logging.getLogger("uvicorn").setLevel(logging.WARNING)  # That it starts and stops is said already.
        with fleet.open_store() as store, ConsoleServer(fleet, store) as running:
            ready(f"console {running.address}")
            signals.wait()

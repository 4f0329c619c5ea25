"""``umbel serve api``: the REST API until SIGTERM or SIGINT."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from umbel_server.fleet.layout import FleetDir
from umbel_server.signals import StopSignals


def serve_api(
    directory: Annotated[
        Path, typer.Option("--fleet", envvar="UMBEL_FLEET", help="The fleet's directory.", show_default=False)
    ],
) -> None:
    """Serve the REST API over HTTPS. Prints `ready api ADDRESS`."""
    from umbel_server.services.logs import configure_logs
    from umbel_server.services.ready import ready

    with StopSignals() as signals:
        from umbel_server.api.server import ApiServer

        fleet = FleetDir.open(directory)
        configure_logs(fleet.settings.log)
        logging.getLogger("uvicorn").setLevel(logging.WARNING)  # That it starts and stops is said already.
        with fleet.open_store() as store, ApiServer(fleet, store) as running:
            ready(f"api {running.address}")
            signals.wait()

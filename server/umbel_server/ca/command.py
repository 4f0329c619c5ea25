"""``umbel serve ca``: the fleet's authority."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from umbel_server.fleet.layout import FleetDir
from umbel_server.signals import StopSignals


def ca(
    directory: Annotated[
        Path, typer.Option("--fleet", envvar="UMBEL_FLEET", help="The fleet's directory.", show_default=False)
    ],
) -> None:
    """Serve the fleet's authority, which alone has its keys. Prints `ready ca PATH`."""
    with StopSignals() as signals:
        from umbel_server.ca.registrar import Registrar
        from umbel_server.ca.service import AuthorityService
        from umbel_server.clock import system_clock
        from umbel_server.services.logs import configure_logs
        from umbel_server.services.ready import ready

        fleet = FleetDir.open(directory)
        configure_logs(fleet.settings.log)
        with fleet.open_store() as store:
            registrar = Registrar.open(fleet, store, clock=system_clock)
            with AuthorityService(fleet, registrar) as running:
                ready(f"ca {running.path}")
                signals.wait()

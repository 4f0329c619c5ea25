"""``umbel serve`` without a service's name: all of them, or ``--init`` for the directory that they need."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from umbel_proto.errors import UsageError
from umbel_server.fleet.table import Table, setting

if TYPE_CHECKING:
    from umbel_server.fleet.layout import FleetDir
    from umbel_server.fleet.settings import FleetSettings
    from umbel_server.services.supervise import Service
    from umbel_server.signals import StopSignals

ORDER = (
    "ca",
    "superlink",
    "superexec",
    "runs",
    "gateway",
    "opener",
    "rollouts",
    "alerts",
    "api",
    "console",
    "health",
    "otlp",
)
"""The services, where this umbel has them: each is a command of ``umbel serve``."""
_FIRST = frozenset({"ca"})


@dataclass(frozen=True, slots=True)
class Services(Table):
    """Which services ``umbel serve`` runs.

    Args:
        without: Names of services that run elsewhere, or not at all, with spaces between them.
    """

    TABLE: ClassVar[str] = "services"
    NOTE: ClassVar[str] = "what umbel serve runs; each also runs alone, as umbel serve gateway"

    without: str = setting('but not these, such as "superlink superexec": they run elsewhere', "")

    def __post_init__(self) -> None:
        for name in self.without.split():
            if name not in ORDER:
                raise UsageError(f"without of [services] names {name!r}: there are {', '.join(ORDER)}.")


def serve_all(
    context: typer.Context,
    directory: Annotated[
        Path | None,
        typer.Option("--fleet", envvar="UMBEL_FLEET", help="The fleet's directory.", show_default=False),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Make a fleet in this directory, and leave it at that.", show_default=False),
    ] = None,
    name: Annotated[str, typer.Option(help="With --init: the fleet's name, for good.")] = "",
    host: Annotated[str, typer.Option(help="With --init: where devices reach the services.")] = "127.0.0.1",
    listen: Annotated[str, typer.Option(help="With --init: the address the services bind.")] = "127.0.0.1",
) -> None:
    """Run all services of a fleet until SIGTERM or SIGINT, or one of them by its name."""
    if context.invoked_subcommand is not None:
        return
    if init is not None:
        _init(init, name, host, listen)
        return
    if directory is None:
        raise UsageError(
            "Which fleet? Name its directory with --fleet, or make one with  umbel serve --init."
        )
    _run(directory)


def _init(directory: Path, name: str, host: str, listen: str) -> None:
    from umbel_server.cli import create

    if not name:
        raise UsageError("A fleet needs a name: give it with --name.")
    create(directory=directory, name=name, host=host, listen=listen)


def _run(directory: Path) -> None:
    from umbel_server.fleet.layout import FleetDir
    from umbel_server.services.logs import configure_logs
    from umbel_server.services.ready import notify, ready
    from umbel_server.services.supervise import Supervisor
    from umbel_server.signals import StopSignals

    with StopSignals() as stop:
        fleet = FleetDir.open(directory)
        configure_logs(fleet.settings.log)
        fleet.open_store().close()  # Brought up to date here, once, and not by all of them at a time.
        supervisor = Supervisor(
            services_of(fleet),
            os.environ,
            on_line=_print,
            on_ready=lambda: ready("umbel"),
        )
        try:
            supervisor.run(stop)
        finally:
            notify("STOPPING=1")


def services_of(fleet: FleetDir) -> list[Service]:
    """Return what to run for a fleet."""
    from umbel_server.serve import serve
    from umbel_server.services.supervise import Service

    there = {
        command.name or str(getattr(command.callback, "__name__", ""))
        for command in serve.registered_commands
    }
    without = fleet.settings.services.without.split()
    return [
        Service(name, serve_command(name, fleet.path), first=name in _FIRST)
        for name in ORDER
        if name in there and name not in without and _asked_for(name, fleet.settings)
    ]


def _asked_for(name: str, settings: FleetSettings) -> bool:
    match name:
        case "ca":
            return settings.ca.apart
        case "health":
            return settings.health.port != 0
        case "otlp":
            return bool(settings.otlp.endpoint)
        case "console":
            return settings.console.port != 0
    return True


def serve_command(name: str, directory: Path, *options: str) -> tuple[str, ...]:
    """Return the command of one service."""
    return (sys.executable, "-m", "umbel", "serve", name, "--fleet", str(directory), *options)


def serve_gateways(fleet: FleetDir, stop: StopSignals) -> None:
    """Run several gateways on the same ports until SIGTERM or SIGINT.

    Raises:
        UnavailableError: A port is taken, or one of them did not start.
    """
    from umbel_server.fleet.settings import address
    from umbel_server.gateway.ports import HeldPorts
    from umbel_server.services.ready import ready
    from umbel_server.services.supervise import Service, Supervisor

    workers = [
        Service(f"gateway-{number + 1}", serve_command("gateway", fleet.path, "--worker", str(number)))
        for number in range(fleet.settings.intake.processes)
    ]
    where = address(fleet.settings.listen, fleet.settings.ports.gateway)
    with HeldPorts(fleet.settings):
        Supervisor(
            workers,
            os.environ,
            on_line=lambda line: None,  # One line for all of them, once all are ready.
            on_ready=lambda: ready(f"gateway {where}"),
        ).run(stop)


def _print(line: str) -> None:
    print(line, flush=True)

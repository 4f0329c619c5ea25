"""``umbel serve``: all services of a fleet under one, or one by its name.

What a command needs is imported when it runs: ``umbel serve gateway --help`` loads no gRPC.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any

import typer
from click import Context
from typer.core import TyperGroup

from umbel_proto.errors import UnavailableError
from umbel_server.api.command import serve_api
from umbel_server.ca.command import ca as serve_ca
from umbel_server.clock import system_clock
from umbel_server.console.command import serve_console
from umbel_server.files import DiskFullError
from umbel_server.fleet.layout import FleetDir
from umbel_server.keep import keep_running
from umbel_server.monitor.alerts.command import serve_alerts
from umbel_server.rollouts.command import serve_rollouts
from umbel_server.services.command import serve_all, serve_gateways
from umbel_server.services.logs import configure_logs
from umbel_server.services.metrics import count_into
from umbel_server.services.ready import ready
from umbel_server.signals import StopSignals


class _Services(TyperGroup):
    """Commands that are started again when they end: a full disk passes, as a database that is away does."""

    def invoke(self, ctx: Context) -> Any:
        try:
            return super().invoke(ctx)
        except DiskFullError as exc:
            raise UnavailableError(str(exc)) from exc


# As of the fleet's commands: Typer would print local variables, keys and tokens among them, with a traceback.
serve = typer.Typer(
    cls=_Services,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    callback=serve_all,
)

serve.command("rollouts")(serve_rollouts)
serve.command("alerts")(serve_alerts)
serve.command("api")(serve_api)
serve.command("console")(serve_console)
serve.command("ca")(serve_ca)

FleetOption = Annotated[
    Path, typer.Option("--fleet", envvar="UMBEL_FLEET", help="The fleet's directory.", show_default=False)
]


@serve.command()
def gateway(
    directory: FleetOption,
    worker: Annotated[
        int | None,
        typer.Option(min=0, help="Be this one, from 0, of several on the same ports.", show_default=False),
    ] = None,
) -> None:
    """Serve enrollment, membership, delivery and telemetry. Prints `ready gateway ADDRESS`."""
    with StopSignals() as signals:
        opened = _service(directory)
        settings = opened.settings.intake
        if settings.processes > 1 and worker is None:
            serve_gateways(opened, signals)
            return
        from umbel_server.gateway.core import finish_first, keep_to_one_core, spare_collector
        from umbel_server.gateway.server import Gateway

        if settings.one_core:
            # Gateways of several fleets on a machine have different ports.
            keep_to_one_core(opened.settings.ports.gateway + (worker or 0))
        finish_first()
        with (
            opened.open_store() as store,
            Gateway(opened, store, shared=worker is not None) as running,
        ):
            spare_collector()
            ready(f"gateway {running.address}")
            signals.wait()


@serve.command("health")
def health(directory: FleetOption) -> None:
    """Say over HTTPS how the services are: /healthz, /readyz and /metrics. Prints `ready health ADDRESS`."""
    from umbel_server.services.health import serve_health

    opened = _service(directory)
    with opened.open_store() as store:
        serve_health(opened, store)


@serve.command()
def otlp(directory: FleetOption) -> None:
    """Push what /metrics tells to an OTLP receiver, over HTTPS. Prints `ready otlp`."""
    with StopSignals() as signals:
        from umbel_server.services.otlp import serve_otlp

        opened = _service(directory)
        with opened.open_store() as store:
            serve_otlp(opened, store, signals.came, on_ready=lambda: ready("otlp"))


@serve.command()
def opener(
    directory: FleetOption,
    poll_s: Annotated[float, typer.Option(help="How often to look for batches, seconds.", min=0.01)] = 0.2,
) -> None:
    """Open telemetry as it arrives, and keep its sums. Prints `ready opener`."""
    with StopSignals() as signals:
        from umbel_server.monitor.opener import Opener

        opened = _service(directory)
        with opened.open_store() as store:
            running = Opener(
                store,
                opened.telemetry_private(),
                others=opened.telemetry_privates,
                retention=opened.settings.retention,
            )
            ready("opener")
            running.run(signals.came, poll_s=poll_s)


@serve.command()
def superlink(directory: FleetOption) -> None:
    """Run Flower's SuperLink behind the fleet's gate. Prints `ready superlink ADDRESS`."""
    from umbel_proto.errors import MissingExtraError

    opened = _service(directory)
    try:
        from umbel_server.superlink import serve_superlink
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("umbel"):
            raise
        raise MissingExtraError("server", "The SuperLink") from exc
    from umbel_server.fleet.create import renew_server_certificate

    renew_server_certificate(opened, now_s=system_clock())
    serve_superlink(opened)


@serve.command()
def runs(
    directory: FleetOption,
    poll_s: Annotated[float, typer.Option(help="How often to look for work, seconds.", min=0.01)] = 1.0,
) -> None:
    """Begin scheduled runs, and drive on those whose server was lost. Prints `ready runs`."""
    with StopSignals() as signals:
        from umbel_server.learning.begin import superlink as speak
        from umbel_server.learning.keeper import Keeper
        from umbel_server.learning.lock import keeping

        opened = _service(directory)
        with keeping(opened.runs), opened.open_store() as store, speak(opened) as control:
            ready("runs")
            Keeper(opened, store, control).run(signals.came, poll_s=poll_s)


@serve.command()
def superexec(directory: FleetOption) -> None:
    """Run Flower's SuperExec, which starts the server process of each run that `umbel rounds` asks for; again if it ends."""
    from umbel_proto.errors import MissingExtraError
    from umbel_server.superexec import flower_environment, superexec_command

    if importlib.util.find_spec("flwr") is None:
        raise MissingExtraError("server", "The SuperExec")
    opened = _service(directory)
    ready("superexec")
    # Flower's ends where one connection to the SuperLink fails, as while that starts again.
    keep_running(
        "superexec",
        superexec_command(opened),
        {**flower_environment(opened), "UMBEL_FLEET": str(opened.path)},
    )


def _service(directory: Path) -> FleetDir:
    """Open the fleet of a service, which logs as the fleet's settings say."""
    opened = FleetDir.open(directory)
    configure_logs(opened.settings.log)
    count_into(opened.metrics)
    return opened

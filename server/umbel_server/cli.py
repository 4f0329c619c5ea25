"""The operator's commands: ``umbel fleet`` and ``umbel serve``.

What a command needs is imported when it runs: ``umbel serve gateway --help`` loads no gRPC.
"""

from __future__ import annotations

import enum
import json
import logging
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel_proto.errors import StorageError, UsageError
from umbel_proto.ids import DeviceId, FleetId, check_name
from umbel_server.clock import system_clock
from umbel_server.fleet.layout import FleetDir
from umbel_server.keep import keep_running
from umbel_server.signals import StopSignals

if TYPE_CHECKING:
    from umbel_proto.histogram import Histogram
    from umbel_server.monitor.report import DeviceLine, ModelLine, TelemetryLine

# Typer would print local variables, keys and tokens among them, with a traceback.
fleet = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make a fleet, let devices in, watch them, release packages.",
)
serve = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run a service of a fleet until SIGTERM or SIGINT.",
)

FleetOption = Annotated[
    Path, typer.Option("--fleet", envvar="UMBEL_FLEET", help="The fleet's directory.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

UNBROKEN_COLUMNS = 10_000
"""No table is wider: a reason on record is a few sentences."""


class Trust(enum.StrEnum):
    """What devices assume about the server."""

    MALICIOUS = "malicious"
    CURIOUS = "curious"


@fleet.command()
def create(
    directory: FleetOption,
    name: Annotated[str, typer.Option(help="The fleet's name, for good.")],
    host: Annotated[str, typer.Option(help="Where devices reach the services.")] = "127.0.0.1",
    listen: Annotated[str, typer.Option(help="The address the services bind.")] = "127.0.0.1",
    gateway_port: Annotated[int, typer.Option(help="0: a free one.")] = 0,
    enroll_port: Annotated[int, typer.Option(help="0: a free one.")] = 0,
    superlink_port: Annotated[int, typer.Option(help="0: a free one.")] = 0,
    control_port: Annotated[int, typer.Option(help="0: a free one.")] = 0,
    server: Annotated[Trust, typer.Option(help="What devices assume of the server.")] = Trust.MALICIOUS,
    corrupt_fraction: Annotated[float, typer.Option(help="Devices assumed to collude.")] = 0.1,
    dropout_fraction: Annotated[float, typer.Option(help="Devices that may vanish in a round.")] = 0.2,
    min_cohort: Annotated[int, typer.Option(help="Fewest devices a sum may have.")] = 16,
    noise_floor: Annotated[float, typer.Option(help="Least noise multiplier of a round.")] = 0.5,
    budget_epsilon: Annotated[float, typer.Option(help="What a device may spend over its life.")] = 8.0,
    budget_delta: Annotated[float, typer.Option(help="The delta that goes with it.")] = 1e-6,
    example_budget_epsilon: Annotated[
        float, typer.Option(help="What may be spent on one example of a device.", show_default="no limit")
    ] = math.inf,
    as_json: JsonOption = False,
) -> None:
    """Make a fleet: its directory, keys, policy and store."""
    from umbel_proto.credentials import FleetPolicy
    from umbel_server.fleet.create import create_fleet

    policy = FleetPolicy(
        fleet=FleetId(check_name(name, "fleet")),
        corrupt_fraction=corrupt_fraction,
        dropout_fraction=dropout_fraction,
        server_malicious=server is Trust.MALICIOUS,
        min_cohort=min_cohort,
        noise_floor=noise_floor,
        budget_epsilon=budget_epsilon,
        budget_delta=budget_delta,
        example_budget_epsilon=example_budget_epsilon,
    )
    made = create_fleet(
        directory,
        name=name,
        policy=policy,
        host=host,
        listen=listen,
        gateway_port=gateway_port,
        enroll_port=enroll_port,
        superlink_port=superlink_port,
        control_port=control_port,
    )
    settings = made.settings
    if as_json:
        _print_json(
            {
                "fleet": settings.name,
                "directory": str(made.path),
                "gateway": settings.gateway,
                "enrollment": settings.enrollment,
                "superlink": settings.superlink,
            }
        )
        return
    typer.echo(f"Fleet {settings.name} is in {made.path}.")
    typer.echo(f"  gateway     {settings.gateway}")
    typer.echo(f"  enrollment  {settings.enrollment}")
    typer.echo(f"  superlink   {settings.superlink}")
    typer.echo("Next, each in a terminal or a service of its own:")
    for service in ("gateway", "opener", "superlink", "superexec"):
        typer.echo(f"  umbel serve {service} --fleet {made.path}")


@fleet.command()
def token(
    directory: FleetOption,
    name: Annotated[str | None, typer.Option(help="The name its device gets.", show_default=False)] = None,
    uses: Annotated[int, typer.Option(help="How many devices it lets in.")] = 1,
    hours: Annotated[float, typer.Option(help="How long it may be used.")] = 24.0,
    as_json: JsonOption = False,
) -> None:
    """Print a new enrollment token. It is shown once: the store keeps only a hash."""
    from umbel_server.fleet.invite import invite

    opened = FleetDir.open(directory)
    with opened.open_store() as store:
        text = invite(opened, store, device=name, uses=uses, valid_s=hours * 3600).to_text()
    if as_json:
        _print_json({"token": text, "name": name, "uses": uses, "expires_s": system_clock() + hours * 3600})
    else:
        typer.echo(text)


@fleet.command()
def devices(directory: FleetOption, as_json: JsonOption = False) -> None:
    """List the devices: who they are, when they were heard of, what they run."""
    from umbel_server.monitor.report import devices as report

    now_s = system_clock()
    with FleetDir.open(directory).open_store() as store:
        lines = report(store, now_s=now_s)
    if as_json:
        _print_json([_device_json(line) for line in lines])
        return
    print_table(
        ("device", "status", "last seen", "certificate", "models", "node", "rounds"),
        [
            (
                line.device.id,
                line.status,
                f"{_duration(now_s - line.device.last_seen_s)} ago",
                _until(line.device.certificate_not_after_s, now_s),
                " ".join(f"{model}@{version}" for model, version in line.models.items()) or "-",
                "-" if line.device.node_id is None else str(line.device.node_id),
                str(line.rounds) + (f" (missed {line.rounds_missed})" if line.rounds_missed else ""),
            )
            for line in lines
        ],
    )


@fleet.command()
def telemetry(directory: FleetOption, as_json: JsonOption = False) -> None:
    """List what the devices reported, by model, version and variant."""
    from umbel_server.monitor.report import telemetry as report

    with FleetDir.open(directory).open_store() as store:
        lines = report(store)
    if as_json:
        _print_json([_telemetry_json(line) for line in lines])
        return
    now_s = system_clock()
    rows = []
    for line in lines:
        batches = f"{line.opened}" + (f" (+{line.sealed})" if line.sealed else "")
        batches += f" ({line.rejected} rejected)" if line.rejected else ""
        last = "-" if line.last_received_s is None else f"{_duration(now_s - line.last_received_s)} ago"
        for model in line.models or (None,):
            rows.append((line.device, batches, last, *_model_cells(model)))
            batches = last = ""
    print_table(
        ("device", "batches", "last", "model", "predictions", "errors", "p50 us", "p90 us", "confidence"),
        rows,
    )


@fleet.command()
def privacy(directory: FleetOption, as_json: JsonOption = False) -> None:
    """Show what each device was charged in each run, and what that costs, as far as the fleet knows."""
    from umbel_server.monitor.spending import spending

    opened = FleetDir.open(directory)
    policy = opened.policy()
    with opened.open_store() as store:
        lines = spending(store, opened.runs, policy.budget_delta)
    finite = math.isfinite(policy.budget_epsilon)
    if as_json:
        budget = {"epsilon": policy.budget_epsilon if finite else None, "delta": policy.budget_delta}
        _print_json({"budget": budget, "devices": [line.to_json() for line in lines]})
        return
    rows: list[tuple[str, ...]] = []
    for line in lines:
        name, total = str(line.device), _epsilon(line.epsilon)
        for run in line.runs:
            rows.append((name, run.run, str(run.participations), _epsilon(run.epsilon), total))
            name = total = ""
    limit = f"{policy.budget_epsilon:g}" if finite else "no limit"
    print_table(("device", "run", "charged", "epsilon", f"in all, of {limit}"), rows)
    print(
        f"At delta {policy.budget_delta:g}, against the server. Each device's own ledger decides: umbel privacy."
    )


@fleet.command()
def revoke(device: str, directory: FleetOption, as_json: JsonOption = False) -> None:
    """Refuse every further call of a device. Its name is never given out again."""
    with FleetDir.open(directory).open_store() as store:
        store.devices.revoke(DeviceId(device))
    if as_json:
        _print_json({"device": device, "status": "revoked"})
    else:
        typer.echo(f"Device {device} is revoked.")


@fleet.command()
def publish(package: Path, directory: FleetOption, as_json: JsonOption = False) -> None:
    """Release a package: verify it against the fleet's release key and offer it to the devices."""
    from umbel_server.fleet.publish import publish as release

    try:
        data = package.read_bytes()
    except OSError as exc:
        raise UsageError(f"The package {package} cannot be read: {exc.strerror}.") from exc
    opened = FleetDir.open(directory)
    with opened.open_store() as store:
        out = release(opened, store, data)
    if as_json:
        _print_json(
            {"model": out.model, "version": out.version, "sha256": out.sha256.hex(), "size": out.size}
        )
    else:
        typer.echo(f"Released {out.model}@{out.version}, {out.size} bytes, {out.sha256.hex()}.")


@serve.command()
def gateway(directory: FleetOption) -> None:
    """Serve enrollment, membership, delivery and telemetry. Prints `ready gateway ADDRESS`."""
    with StopSignals() as signals:
        from umbel_server.gateway.server import Gateway

        _log()
        opened = FleetDir.open(directory)
        with opened.open_store() as store, Gateway(opened, store) as running:
            _ready(f"gateway {running.address}")
            signals.wait()


@serve.command()
def opener(
    directory: FleetOption,
    poll_s: Annotated[float, typer.Option(help="How often to look for batches, seconds.", min=0.01)] = 0.2,
) -> None:
    """Open telemetry as it arrives, and keep its sums. Prints `ready opener`."""
    with StopSignals() as signals:
        from umbel_server.monitor.opener import Opener

        _log()
        opened = FleetDir.open(directory)
        with opened.open_store() as store:
            running = Opener(store, opened.telemetry_private())
            _ready("opener")
            running.run(signals.came, poll_s=poll_s)


@serve.command()
def superlink(directory: FleetOption) -> None:
    """Run Flower's SuperLink behind the fleet's gate. Prints `ready superlink ADDRESS`."""
    from umbel_proto.errors import MissingExtraError

    _log()
    try:
        from umbel_server.flower import serve_superlink
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("umbel"):
            raise
        raise MissingExtraError("server", "The SuperLink") from exc
    from umbel_server.fleet.create import renew_server_certificate

    opened = FleetDir.open(directory)
    renew_server_certificate(opened, now_s=system_clock())
    serve_superlink(opened)


@serve.command()
def superexec(directory: FleetOption) -> None:
    """Run Flower's SuperExec, which starts the server process of each run that `umbel rounds` asks for; again if it ends."""
    from umbel_proto.errors import MissingExtraError

    try:
        from umbel_server.flower import flower_environment, superexec_command
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("umbel"):
            raise
        raise MissingExtraError("server", "The SuperExec") from exc
    opened = FleetDir.open(directory)
    _log()
    # Flower's ends where one connection to the SuperLink fails, as while that starts again.
    keep_running(
        "superexec",
        superexec_command(opened),
        {**flower_environment(opened), "UMBEL_FLEET": str(opened.path)},
    )


def _log() -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    logging.Formatter.converter = time.gmtime
    for chatty in ("alembic", "sqlalchemy"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _ready(what: str) -> None:
    try:
        print(f"ready {what}", flush=True)
    except OSError as exc:
        raise StorageError(f"Standard output cannot be written: {exc.strerror}.") from exc


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table: closer together where the terminal is narrow, and unbroken where there is none."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    table = Table(*header, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    console = Console()
    wide = Measurement.get(console, console.options.update(width=UNBROKEN_COLUMNS), table).maximum
    if not console.is_terminal:
        console.width = wide
    elif wide > console.width:
        table.padding = 0
    console.print(table)


def _device_json(line: DeviceLine) -> dict[str, Any]:
    device = line.device
    return {
        "id": device.id,
        "status": line.status,
        "enrolled_s": device.enrolled_s,
        "last_seen_s": device.last_seen_s,
        "certificate_not_after_s": device.certificate_not_after_s,
        # Text: a JSON number of 64 bits loses digits in many readers.
        "node_id": None if device.node_id is None else str(device.node_id),
        "models": dict(line.models),
        "rounds": line.rounds,
        "rounds_missed": line.rounds_missed,
    }


def _telemetry_json(line: TelemetryLine) -> dict[str, Any]:
    return {
        "device": line.device,
        "batches": {"opened": line.opened, "sealed": line.sealed, "rejected": line.rejected},
        "last_received_s": line.last_received_s,
        "predictions": line.predictions,
        "models": [
            {
                "model": model.model,
                "version": model.version,
                "variant": model.variant,
                "engine": model.engine,
                "until_s": model.until_s,
                "predictions": model.predictions,
                "errors": model.errors,
                "labels": dict(model.labels),
                "latency_us": _quantiles(model.latency_us),
                "confidence_mean": None if model.confidence is None else model.confidence.mean,
            }
            for model in line.models
        ],
    }


def _epsilon(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.4g}" if math.isfinite(value) else "infinite"


def _quantiles(histogram: Histogram | None) -> dict[str, float | None] | None:
    return None if histogram is None else {"p50": histogram.quantile(0.5), "p90": histogram.quantile(0.9)}


def _model_cells(model: ModelLine | None) -> tuple[str, ...]:
    if model is None:
        return ("-",) * 6
    latency = _quantiles(model.latency_us) or {}
    mean = None if model.confidence is None else model.confidence.mean
    return (
        f"{model.model}@{model.version} {model.variant} {model.engine}",
        str(model.predictions),
        str(model.errors),
        *("-" if (value := latency.get(q)) is None else f"{value:.0f}" for q in ("p50", "p90")),
        "-" if mean is None else f"{mean:.3f}",
    )


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _until(moment_s: float, now_s: float) -> str:
    return "expired" if moment_s <= now_s else f"{_duration(moment_s - now_s)} left"

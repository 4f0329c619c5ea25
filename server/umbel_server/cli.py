"""The operator's commands: ``umbel fleet``, and ``umbel serve`` by the name that the package's metadata has for it.

What a command needs is imported when it runs: ``umbel fleet publish --help`` loads no gRPC.
"""

from __future__ import annotations

import enum
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel_proto.errors import UsageError
from umbel_proto.ids import FleetId, check_name
from umbel_server.clock import system_clock
from umbel_server.fleet import admission_command, groups_command
from umbel_server.fleet.backup_command import backup, restore
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.policy_command import policy as show_policy
from umbel_server.fleet.rotate_command import rotate
from umbel_server.fleet.wanted import (
    TABLE_ROWS,
    GroupOption,
    StatusOption,
    TagOption,
    VersionOption,
    wanted_of,
)
from umbel_server.monitor.command import telemetry as show_telemetry
from umbel_server.registry.command import AsOption
from umbel_server.remote.login_command import show_fingerprint
from umbel_server.remote.place import FleetOption as PlaceOption
from umbel_server.remote.place import ServerOption
from umbel_server.remote.subjects import fleet_at
from umbel_server.reviews.command import app as review_commands
from umbel_server.serve import serve as serve
from umbel_server.store.command import store as store_commands
from umbel_server.terminal import JsonOption, duration, print_json, print_table
from umbel_server.trust.command import trust

if TYPE_CHECKING:
    from umbel_proto.credentials import FleetPolicy

# Typer would print local variables, keys and tokens among them, with a traceback.
fleet = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make a fleet, let devices in, watch them, release packages.",
)
fleet.command("policy")(show_policy)
fleet.command()(rotate)
fleet.command()(backup)
fleet.command()(restore)
admission_command.register(fleet)
groups_command.register(fleet)
fleet.command("fingerprint")(show_fingerprint)
fleet.command("telemetry")(show_telemetry)
fleet.add_typer(review_commands, name="review")
fleet.add_typer(trust, name="trust")
fleet.add_typer(store_commands, name="store")

FleetOption = Annotated[
    Path, typer.Option("--fleet", envvar="UMBEL_FLEET", help="The fleet's directory.", show_default=False)
]


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
    api_port: Annotated[int, typer.Option(help="0: a free one.")] = 0,
    console_port: Annotated[int, typer.Option(help="0: a free one.")] = 0,
    health_port: Annotated[int, typer.Option(help="0: a free one.")] = 0,
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
    approvals: Annotated[
        int, typer.Option(help="How many accounts must approve of a version before its release.", min=0)
    ] = 2,
    if_missing: Annotated[
        bool,
        typer.Option("--if-missing", help="Leave it as it is if the directory holds this fleet already."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a fleet: its directory, keys, policy and store."""
    if if_missing and (directory / "fleet.toml").exists():
        _require_same(FleetDir.open(directory), name, as_json=as_json)
        return
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
        api_port=api_port,
        console_port=console_port,
        health_port=health_port,
        ca_apart=True,
        approvals=approvals,
    )
    _begin_record(made, policy)
    settings = made.settings
    if as_json:
        print_json(
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
    typer.echo(f"Keep {made.root_key} and {made.targets_key} where no network reaches, with a copy:")
    typer.echo("the first is for when another key is lost, the second for the first release of a model.")
    typer.echo("Next, all services, or each by its name in a terminal or a unit of its own:")
    typer.echo(f"  umbel serve --fleet {made.path}")
    for service in ("ca", "gateway", "opener", "superlink", "superexec"):
        typer.echo(f"  umbel serve {service} --fleet {made.path}")


def _begin_record(made: FleetDir, policy: FleetPolicy) -> None:
    from dataclasses import asdict

    from umbel_server.access.actor import local_actor
    from umbel_server.access.chain import keep_checkpoint

    told = {name: None if value == math.inf else value for name, value in asdict(policy).items()}
    with made.open_store() as store:
        store.audit.record(
            local_actor(), action="fleet.create", object=f"fleet:{made.name}", after={"policy": told}
        )
        keep_checkpoint(made, store)


def _require_same(found: FleetDir, name: str, *, as_json: bool) -> None:
    if found.name != name:
        raise UsageError(f"{found.path} holds the fleet {found.name}: choose another directory for {name}.")
    if as_json:
        print_json({"fleet": found.name, "directory": str(found.path)})
    else:
        typer.echo(f"Fleet {found.name} is in {found.path} already.")


@fleet.command()
def token(
    directory: PlaceOption = None,
    server: ServerOption = None,
    name: Annotated[str | None, typer.Option(help="The name its device gets.", show_default=False)] = None,
    uses: Annotated[int, typer.Option(help="How many devices it lets in.")] = 1,
    hours: Annotated[float, typer.Option(help="How long it may be used.")] = 24.0,
    approval: Annotated[
        bool,
        typer.Option("--approval", help="An operator approves each of its devices: umbel fleet pending."),
    ] = False,
    replaces: Annotated[
        bool,
        typer.Option(
            "--replaces",
            help="With --name: its device takes the place of the one that has the name and lost it.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print a new enrollment token. It is shown once: the store keeps only a hash."""
    with fleet_at(directory, server) as at:
        made = at.invite(device=name, uses=uses, hours=hours, approval=approval, replaces=replaces)
    if as_json:
        print_json({"token": made["token"], "name": name, "uses": uses, "expires_s": made["expires_s"]})
    else:
        typer.echo(made["token"])


@fleet.command()
def devices(
    directory: PlaceOption = None,
    server: ServerOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many; 100 in a table.", show_default=False)
    ] = None,
    after: Annotated[str, typer.Option(help="Those after this name.", show_default=False)] = "",
    status: StatusOption = None,
    version: VersionOption = None,
    tag: TagOption = None,
    group: GroupOption = None,
    as_json: JsonOption = False,
) -> None:
    """List devices, all or some: who they are, when they were heard of, what they run."""
    wanted = wanted_of(status, version, tag)
    most = TABLE_ROWS if limit is None and not as_json else limit
    with fleet_at(directory, server) as at:
        lines = at.devices(
            limit=most,
            after=after,
            status=wanted.status,
            tag=tag,
            model=wanted.model,
            version=wanted.version,
            group=group,
        )
    if as_json:
        print_json(lines)
        return
    _print_devices(lines)
    if len(lines) == most:
        typer.echo(f"There may be more:  --after {lines[-1]['id']}", err=True)


@fleet.command()
def device(
    name: Annotated[str, typer.Argument(help="The device's id, as umbel fleet devices shows it.")],
    directory: PlaceOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one device, as the list of them does."""
    with fleet_at(directory, server) as at:
        line = at.device(name)
    if as_json:
        print_json(line)
    else:
        _print_devices([line])


@fleet.command()
def privacy(
    directory: PlaceOption = None,
    server: ServerOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many devices; 100 in a table.", show_default=False)
    ] = None,
    after: Annotated[str, typer.Option(help="Devices after this name.", show_default=False)] = "",
    as_json: JsonOption = False,
) -> None:
    """Show what each device was charged in each run, and what that costs, as far as the fleet knows."""
    with fleet_at(directory, server) as at:
        most = TABLE_ROWS if limit is None and not as_json else limit
        policy, lines = at.policy(), at.spending(limit=most, after=after)
    epsilon, delta = policy["budget_epsilon"], policy["budget_delta"]
    if as_json:
        print_json({"budget": {"epsilon": epsilon, "delta": delta}, "devices": lines})
        return
    rows: list[tuple[str, ...]] = []
    for line in lines:
        named, total = line["device"], _epsilon(line["epsilon"], known=True)
        for run in line["runs"]:
            told = _epsilon(run["epsilon"], known=run["known"])
            rows.append((named, run["run"], str(run["participations"]), told, total))
            named = total = ""
    budget = "no limit" if epsilon is None else f"{epsilon:g}"
    print_table(("device", "run", "charged", "epsilon", f"in all, of {budget}"), rows)
    print(f"At delta {delta:g}, against the server. Each device's own ledger decides: umbel privacy.")
    if len(lines) == most:
        typer.echo(f"There may be more:  --after {lines[-1]['device']}", err=True)


@fleet.command()
def revoke(
    device: Annotated[str, typer.Argument(help="The device's id, as umbel fleet devices shows it.")],
    directory: PlaceOption = None,
    server: ServerOption = None,
    reason: Annotated[str, typer.Option(help="Why, for the audit log.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Refuse every further call of a device. Its name is never given out again."""
    with fleet_at(directory, server) as at:
        at.revoke(device, reason)
    if as_json:
        print_json({"device": device, "status": "revoked"})
    else:
        typer.echo(f"Device {device} is revoked.")


@fleet.command()
def publish(
    package: Annotated[Path, typer.Argument(help="The signed package to deliver.")],
    directory: PlaceOption = None,
    server: ServerOption = None,
    key: Annotated[
        Path | None,
        typer.Option(help="The release key; by default the fleet's own.", show_default=False),
    ] = None,
    as_: AsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Release a package: verify it, sign that devices may install it, and offer it to them."""
    from umbel_proto.keys import SigningKey
    from umbel_server.files import read_file

    try:
        data = package.read_bytes()
    except OSError as exc:
        raise UsageError(f"The package {package} cannot be read: {exc.strerror}.") from exc
    signing = None if key is None else SigningKey.from_pem(read_file(key, "release key"))
    with fleet_at(directory, server, token_file=as_) as at:
        out = at.publish(data, key=signing)
    if as_json:
        print_json(out)
    else:
        typer.echo(f"Released {out['model']}@{out['version']}, {out['size']} bytes, {out['sha256']}.")


def _print_devices(lines: list[dict[str, Any]]) -> None:
    now_s = system_clock()
    print_table(
        ("device", "status", "last seen", "certificate", "models", "node", "rounds"),
        [
            (
                line["id"],
                line["status"],
                f"{duration(now_s - line['last_seen_s'])} ago",
                _until(line["certificate_not_after_s"], now_s),
                " ".join(f"{model}@{version}" for model, version in line["models"].items()) or "-",
                line["node_id"] or "-",
                str(line["rounds"]) + (f" (missed {line['rounds_missed']})" if line["rounds_missed"] else ""),
            )
            for line in lines
        ],
    )


def _epsilon(value: float | None, *, known: bool) -> str:
    if not known:
        return "unknown"
    return "infinite" if value is None else f"{value:.4g}"


def _until(moment_s: float, now_s: float) -> str:
    return "expired" if moment_s <= now_s else f"{duration(moment_s - now_s)} left"

"""The settings of a fleet: the few an operator chooses, in a TOML file with comments."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from dataclasses import dataclass, field
from typing import Any, ClassVar

from umbel_proto.errors import UsageError
from umbel_proto.ids import FleetId, check_name
from umbel_server.access.oidc_settings import OidcSettings
from umbel_server.api.settings import ApiSettings
from umbel_server.ca.settings import Ca, Enrollment
from umbel_server.console.settings import ConsoleSettings
from umbel_server.fleet.table import Table, literal, refuse_unknown, setting, typed
from umbel_server.gateway.settings import GatewaySettings
from umbel_server.monitor.alerts.settings import AlertSettings
from umbel_server.monitor.prices import Prices
from umbel_server.registry.settings import Registry
from umbel_server.services.command import Services
from umbel_server.services.health_settings import HealthSettings
from umbel_server.services.logs import Log
from umbel_server.services.otlp_settings import OtlpSettings
from umbel_server.store.settings import RetentionPolicy, StoreSettings

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|[0-9A-Fa-f:]{2,39}")
RETURN_DAYS = 30
MAX_RETURN_DAYS = 3650
MAX_TRUST_DAYS = 3650

_HEAD = """\
# Settings of an umbel fleet. Restart the services after a change.

name = {name}     # fixed: every certificate and credential carries it
host = {host}     # where devices reach the services; the server certificate names it
listen = {listen}   # the address the services bind
return_days = {return_days}    # a device whose certificate expired comes back by itself for so long; 0: never
"""


@dataclass(frozen=True, slots=True)
class Ports(Table):
    """The ports of the services.

    Args:
        gateway: gRPC with mutual TLS, for membership, delivery and telemetry.
        enrollment: gRPC with TLS, for devices that bring a token.
        superlink: Flower's Fleet API.
        control: Flower's Control and Runtime API, on loopback only.
    """

    TABLE: ClassVar[str] = "ports"

    gateway: int = setting("gRPC with mutual TLS: membership, delivery, telemetry")
    enrollment: int = setting("gRPC with TLS: devices that bring a token")
    superlink: int = setting("HTTPS: Flower's Fleet API")
    control: int = setting("HTTPS: Flower's Control and Runtime API, on loopback only")

    def __post_init__(self) -> None:
        ports = dataclasses.astuple(self)
        for each, port in zip(dataclasses.fields(self), ports, strict=True):
            if not 0 < port < 65536:
                raise UsageError(f"The {each.name} port is {port}: choose one from 1 to 65535.")
        if len(set(ports)) != len(ports):
            raise UsageError(f"The ports {', '.join(map(str, ports))} are not all different.")


@dataclass(frozen=True, slots=True)
class Trust(Table):
    """How long signed metadata of releases holds.

    Args:
        root_days: The statement of whom devices trust with releases.
        targets_days: Lists of releases.
        snapshot_days: The statement of which lists belong together.
        timestamp_days: The statement of what is newest.
    """

    TABLE: ClassVar[str] = "trust"
    NOTE: ClassVar[str] = (
        "for how long signed metadata of releases holds: afterwards devices install nothing new"
    )

    root_days: int = setting("whom devices trust with releases", 365, between=(1, MAX_TRUST_DAYS))
    targets_days: int = setting("lists of releases", 90, between=(1, MAX_TRUST_DAYS))
    snapshot_days: int = setting("the gateway signs it anew at half its life", 7, between=(1, MAX_TRUST_DAYS))
    timestamp_days: int = setting("so this", 1, between=(1, MAX_TRUST_DAYS))


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """What an operator chooses about a fleet.

    Args:
        name: The fleet's id; fixed, as every certificate and credential carries it.
        host: Where devices reach the services: a DNS name or an IP address.
        listen: The address the services bind.
        ports: The services' ports.
        return_days: For how many days a device whose certificate has expired may come back without a token.
        trust: How long signed metadata holds.
        ca: Where the authority's keys are.
        admission: On what terms devices are let in.
        registry: What it takes to release a version.
        services: Which services run.
        api: Where the API listens, and what it takes.
        console: Where the console listens.
        oidc: Where people sign in elsewhere.
        intake: How much the gateway takes on.
        health: Where the services say how they are.
        otlp: Where that is pushed to.
        log: How they log.
        alerts: Where the rules of alerts are.
        store: Where the store is.
        retention: For how long what devices report is kept.
        prices: What energy and traffic cost.
    """

    name: FleetId
    host: str
    listen: str
    ports: Ports
    return_days: int = RETURN_DAYS
    # A table of your own is one line here, and its class in the module that uses it.
    trust: Trust = field(default=Trust())
    ca: Ca = field(default=Ca())
    admission: Enrollment = field(default=Enrollment())
    registry: Registry = field(default=Registry())
    services: Services = field(default=Services())
    intake: GatewaySettings = field(default=GatewaySettings())
    health: HealthSettings = field(default=HealthSettings())
    otlp: OtlpSettings = field(default=OtlpSettings())
    log: Log = field(default=Log())
    api: ApiSettings = field(default=ApiSettings())
    console: ConsoleSettings = field(default=ConsoleSettings())
    oidc: OidcSettings = field(default=OidcSettings())
    alerts: AlertSettings = field(default=AlertSettings())
    store: StoreSettings = field(default=StoreSettings())
    retention: RetentionPolicy = field(default=RetentionPolicy())
    prices: Prices = field(default=Prices())

    def __post_init__(self) -> None:
        check_name(self.name, "fleet")
        for what, host in (("host", self.host), ("listen", self.listen)):
            if not _HOST.fullmatch(host):
                raise UsageError(f"{what} {host[:80]!r} is neither a DNS name nor an IP address.")
        if not 0 <= self.return_days <= MAX_RETURN_DAYS:
            raise UsageError(f"return_days is {self.return_days}: choose 0 to {MAX_RETURN_DAYS}.")

    @property
    def gateway(self) -> str:
        """``host:port`` of the gateway, as devices dial it."""
        return address(self.host, self.ports.gateway)

    @property
    def enrollment(self) -> str:
        """``host:port`` of enrollment, as devices dial it."""
        return address(self.host, self.ports.enrollment)

    @property
    def superlink(self) -> str:
        """``host:port`` of Flower's Fleet API, as devices dial it."""
        return address(self.host, self.ports.superlink)

    def to_toml(self) -> str:
        """Return the settings as a TOML file that explains itself."""
        head = _HEAD.format(
            name=literal(self.name),
            host=literal(self.host),
            listen=literal(self.listen),
            return_days=self.return_days,
        )
        return "\n".join([head, *(getattr(self, attribute).to_toml() for attribute in _TABLES)])

    @classmethod
    def from_toml(cls, text: str) -> FleetSettings:
        """Read what ``to_toml`` writes, edited by hand or not.

        A table that is missing, as from a file of before, has its defaults.

        Raises:
            UsageError: Not TOML, or a key is missing, unknown or of the wrong type.
        """
        try:
            raw = tomllib.loads(text)
        except tomllib.TOMLDecodeError as exc:
            raise UsageError(f"fleet.toml is not TOML: {exc}.") from exc
        if "ports" not in raw:
            raise UsageError("fleet.toml has no table [ports].")
        refuse_unknown(raw, [*_TOP, *(kind.TABLE for kind in _TABLES.values())])
        raw.setdefault("return_days", RETURN_DAYS)  # Fleets of before have none.
        top = {name: typed(raw.get(name), name, kind) for name, kind in _TOP.items()}
        tables: dict[str, Any] = {
            attribute: kind.read(raw[kind.TABLE]) for attribute, kind in _TABLES.items() if kind.TABLE in raw
        }
        return cls(**top, **tables)


_TOP = {"name": "str", "host": "str", "listen": "str", "return_days": "int"}

# Every field above that has a table for its default is a table of the file, in that order.
_TABLES: dict[str, type[Table]] = {"ports": Ports} | {
    each.name: type(each.default)
    for each in dataclasses.fields(FleetSettings)
    if isinstance(each.default, Table)
}


def address(host: str, port: int) -> str:
    """Return ``host:port``, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

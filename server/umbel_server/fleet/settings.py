"""The settings of a fleet: the few an operator chooses, in a TOML file with comments."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import TypeVar

from umbel_proto.errors import UsageError
from umbel_proto.ids import FleetId, check_name

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|[0-9A-Fa-f:]{2,39}")
_T = TypeVar("_T", str, int)
_PORTS = ("gateway", "enrollment", "superlink", "control")

_TEMPLATE = """\
# Settings of an umbel fleet. Restart the services after a change.

name = "{name}"     # fixed: every certificate and credential carries it
host = "{host}"     # where devices reach the services; the server certificate names it
listen = "{listen}"   # the address the services bind

[ports]
gateway = {gateway}       # gRPC with mutual TLS: membership, delivery, telemetry
enrollment = {enrollment}    # gRPC with TLS: devices that bring a token
superlink = {superlink}     # HTTPS: Flower's Fleet API
control = {control}       # HTTPS: Flower's Control and Runtime API, on loopback only
"""


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """What an operator chooses about a fleet.

    Args:
        name: The fleet's id; fixed, as every certificate and credential carries it.
        host: Where devices reach the services: a DNS name or an IP address.
        listen: The address the services bind.
        gateway_port: gRPC with mutual TLS, for membership, delivery and telemetry.
        enroll_port: gRPC with TLS, for devices that bring a token.
        superlink_port: Flower's Fleet API.
        control_port: Flower's Control and Runtime API, on loopback only.
    """

    name: FleetId
    host: str
    listen: str
    gateway_port: int
    enroll_port: int
    superlink_port: int
    control_port: int

    def __post_init__(self) -> None:
        check_name(self.name, "fleet")
        for what, host in (("host", self.host), ("listen", self.listen)):
            if not _HOST.fullmatch(host):
                raise UsageError(f"{what} {host[:80]!r} is neither a DNS name nor an IP address.")
        ports = (self.gateway_port, self.enroll_port, self.superlink_port, self.control_port)
        for what, port in zip(_PORTS, ports, strict=True):
            if not 0 < port < 65536:
                raise UsageError(f"The {what} port is {port}: choose one from 1 to 65535.")
        if len(set(ports)) != len(ports):
            raise UsageError(f"The ports {', '.join(map(str, ports))} are not all different.")

    @property
    def gateway(self) -> str:
        """``host:port`` of the gateway, as devices dial it."""
        return address(self.host, self.gateway_port)

    @property
    def enrollment(self) -> str:
        """``host:port`` of enrollment, as devices dial it."""
        return address(self.host, self.enroll_port)

    @property
    def superlink(self) -> str:
        """``host:port`` of Flower's Fleet API, as devices dial it."""
        return address(self.host, self.superlink_port)

    def to_toml(self) -> str:
        """Return the settings as a TOML file that explains itself."""
        return _TEMPLATE.format(
            name=self.name,
            host=self.host,
            listen=self.listen,
            gateway=self.gateway_port,
            enrollment=self.enroll_port,
            superlink=self.superlink_port,
            control=self.control_port,
        )

    @classmethod
    def from_toml(cls, text: str) -> FleetSettings:
        """Read what ``to_toml`` writes, edited by hand or not.

        Raises:
            UsageError: Not TOML, or a key is missing, unknown or of the wrong type.
        """
        try:
            raw = tomllib.loads(text)
        except tomllib.TOMLDecodeError as exc:
            raise UsageError(f"fleet.toml is not TOML: {exc}.") from exc
        ports = raw.pop("ports", None)
        if not isinstance(ports, dict):
            raise UsageError("fleet.toml has no table [ports].")
        texts = _fields(raw, ("name", "host", "listen"), str)
        numbers = _fields(ports, _PORTS, int)
        return cls(FleetId(texts[0]), texts[1], texts[2], *numbers)


def address(host: str, port: int) -> str:
    """Return ``host:port``, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _fields(table: dict[str, object], names: tuple[str, ...], kind: type[_T]) -> list[_T]:
    unknown = sorted(table.keys() - set(names))
    if unknown:
        raise UsageError(f"fleet.toml: {unknown[0]!r} is not a setting; there are {', '.join(names)}.")
    values = []
    for name in names:
        value = table.get(name)
        if type(value) is not kind:
            raise UsageError(f"fleet.toml: {name!r} must be {'a number' if kind is int else 'text'}.")
        values.append(value)
    return values

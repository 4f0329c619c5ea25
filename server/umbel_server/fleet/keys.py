"""The keys of a fleet: which there are, who has the private half, since when, and what changes them.

No private key is read here: whether its file is there is all that is asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umbel_proto.errors import StorageError, UmbelError
from umbel_server.ca.settings import COMMAND
from umbel_server.files import read_file
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.rotate_command import KEEP_DAYS
from umbel_server.services.vitals import expiries

HERE, ELSEWHERE, PROGRAM, APART = "here", "elsewhere", "a program", "the authority's process"
ROTATE = "umbel fleet trust rotate"
_DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a fleet.

    Args:
        name: What it is called.
        purpose: What it is for.
        id: What the public half is told by, hexadecimal; empty: it is not in a file of its own.
        held: Who has the private half: ``HERE``, ``ELSEWHERE``, ``PROGRAM`` or ``APART``.
        since_s: Since when its public half is as it is, Unix seconds; None: it is not here.
        ends_s: When what it stands for ends, Unix seconds; None: never.
        change: The command that changes it; empty: there is none.
    """

    name: str
    purpose: str
    id: str
    held: str
    since_s: float | None
    ends_s: float | None
    change: str

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {name: getattr(self, name) for name in Key.__slots__}


def keys(fleet: FleetDir) -> tuple[Key, ...]:
    """Return the keys of a fleet."""
    ends = dict(expiries(fleet))
    settings = fleet.settings.ca
    authority = PROGRAM if settings.signer == COMMAND else APART if settings.apart else None
    audit = fleet.path / "keys" / "audit.key"
    return tuple(
        Key(
            name,
            purpose,
            _id(fleet, name, public),
            signer or _held(private),
            _changed_s(public),
            ends.get(name),
            change,
        )
        for name, purpose, public, private, signer, change in (
            ("ca", "signs certificates", fleet.ca_pem, fleet.ca_key, authority, ""),
            (
                "authority",
                "signs credentials and policy",
                fleet.authority_pub,
                fleet.authority_key,
                authority,
                "",
            ),
            ("server", "is shown by the services (TLS)", fleet.server_pem, fleet.server_key, None, ""),
            (
                "release",
                "signs packages",
                fleet.release_pub,
                fleet.release_key,
                None,
                f"{ROTATE} MODEL --new NEW --sign TARGETS",
            ),
            (
                "targets",
                "says who signs for which model",
                None,
                fleet.targets_key,
                None,
                f"{ROTATE} targets --new NEW --sign ROOT",
            ),
            (
                "root",
                "says whom devices trust",
                None,
                fleet.root_key,
                None,
                f"{ROTATE} root --new NEW --sign ROOT",
            ),
            (
                "telemetry",
                "opens what devices report",
                fleet.telemetry_pub,
                fleet.telemetry_key,
                None,
                "umbel fleet rotate",
            ),
            ("audit", "signs how far the audit log goes", audit.with_suffix(".pub"), audit, None, ""),
        )
    )


def retired(fleet: FleetDir) -> Iterator[tuple[str, float, float]]:
    """Yield the telemetry keys that devices seal to no more: id, since when, and from when rotating deletes them."""
    for path in fleet.retired_telemetry_keys():
        since_s = path.stat().st_mtime
        yield path.stem.removeprefix("telemetry-"), since_s, since_s + KEEP_DAYS * _DAY_S


def _id(fleet: FleetDir, name: str, public: Path | None) -> str:
    if public is None:
        return ""
    try:
        if name == "telemetry":
            return fleet.telemetry_public().key_id
        return hashlib.sha256(read_file(public, f"public {name} key")).hexdigest()[:16]
    except UmbelError:
        return ""


def _held(private: Path) -> str:
    try:
        return HERE if private.exists() else ELSEWHERE
    except OSError as exc:  # A directory that is not ours to look into.
        raise StorageError(f"{private.parent} cannot be looked into: {exc.strerror}.") from exc


def _changed_s(public: Path | None) -> float | None:
    try:
        return None if public is None else public.stat().st_mtime
    except OSError:
        return None

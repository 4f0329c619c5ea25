"""Kill the authority before each statement and commit of an enrollment, and let the device ask again.

    python tests/crashing_enrollment.py FLEET new | approved | replaced

It prints one line, JSON, for each instant at which it was killed: what the store held then, and what the device got that
asked again with the same request.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event, func, select

from crashing import countdown, instants
from service_fleet import PlainDevice
from umbel_server.access.actor import local_actor
from umbel_server.ca.registrar import Registrar
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.admission import WaitingError
from umbel_server.store.tables import devices, tokens
from umbel_server.store.tables_audit import audit

NOW_S = 1_800_000_000.0


def now_s() -> float:
    return NOW_S


def prepared(fleet: FleetDir, how: str) -> PlainDevice:
    """Bring a fleet to where one more request lets a device in, and return the device, whose token it has."""
    device = PlainDevice()
    with fleet.open_store(clock=now_s) as store:
        if how == "replaced":
            old = PlainDevice()
            request = old.enroll_request(store.tokens.issue(valid_s=60), name="rose")
            Registrar.open(fleet, store, clock=now_s).enroll(request)
        token = store.tokens.issue(
            valid_s=60, device="rose", replaces=how == "replaced", approval=how == "approved"
        )
        if how == "approved":
            application = device.application(token)
            try:
                store.devices.enroll(application, certificate_life_s=60)
            except WaitingError:
                (waiting,) = store.applications.pending()
                store.applications.approve(waiting.id, fingerprint=waiting.fingerprint, actor=local_actor())
    device.certificate = token  # Nowhere else to keep it; it has none yet.
    return device


def asks(fleet: FleetDir, device: PlainDevice) -> str:
    with fleet.open_store(clock=now_s) as store:
        return (
            Registrar.open(fleet, store, clock=now_s).enroll(device.enroll_request(device.certificate)).device
        )


def kill_at(number: int) -> None:
    """Let this process be killed before its n-th statement or commit."""
    step = countdown(number)
    for name in ("before_cursor_execute", "commit"):
        event.listen(Engine, name, step)


def state(fleet: FleetDir) -> dict[str, Any]:
    with fleet.open_store(clock=now_s) as store, store.database.read() as connection:
        rows = connection.execute(select(devices.c.id, devices.c.identity_key)).all()
        return {
            "devices": {row.id: row.identity_key.hex() for row in rows},
            "uses_left": connection.execute(select(func.sum(tokens.c.uses_left))).scalar_one(),
            "entered": connection.execute(
                select(func.count()).where(audit.c.action == "device.enroll")
            ).scalar_one(),
        }


def main() -> None:
    source, how = FleetDir.open(Path(sys.argv[1])), sys.argv[2]
    device = prepared(source, how)
    for place, _, killed in instants(source.path, lambda copy: asks(FleetDir.open(copy), device), kill_at):
        fleet = FleetDir.open(place)
        before = state(fleet)
        got = asks(fleet, device)
        line = {"killed": killed, "before": before, "got": got, "after": state(fleet)}
        print(json.dumps({**line, "key": device.identity.public.raw.hex()}))


main()

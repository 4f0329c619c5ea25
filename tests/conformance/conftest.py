"""A gateway and a fleet that tests of several files ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cable import Cable
from device_world import World, make_world, through
from gateway_world import Served
from hostile_server import Hostile
from service_fleet import ManualClock, PlainDevice, make_fleet, running
from umbel._home.directory import DeviceHome


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    clock = ManualClock()
    fleet = make_fleet(tmp_path / "garden", clock=clock)
    with running(fleet, clock=clock) as (_, store):
        yield fleet, store, clock


@pytest.fixture
def member(served: Served) -> PlainDevice:
    fleet, store, clock = served
    device = PlainDevice()
    device.admit(fleet, store, name="rose", now_s=clock.now_s)
    return device


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    clock = ManualClock()
    fleet = make_world(tmp_path, clock)
    with running(fleet, clock=clock) as (_, store):
        yield World(fleet, store, clock, tmp_path)


@pytest.fixture
def hostile(world: World) -> Iterator[Hostile]:
    server = Hostile(world)
    yield server
    server.close()


@pytest.fixture
def guest(world: World, hostile: Hostile) -> DeviceHome:
    """A device whose gateway is the hostile server."""
    home = world.device("d1")
    through(home, hostile.address)
    return home


@pytest.fixture
def unused() -> str:
    with Cable("127.0.0.1:1") as cable:
        return cable.address

"""The units' own command lines, run as systemd runs them: their environment and no other, ready, and stopped in time."""

from __future__ import annotations

import contextlib
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service_fleet import make_fleet, running
from umbel_server.fleet.invite import invite
from umbel_server.fleet.layout import FleetDir
from umbel_server.services.command import ORDER

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
INSTALLED = "/opt/umbel/bin/umbel"
START_S = 60


def setting(unit: str, name: str) -> str:
    (found,) = re.findall(rf"^{name}=(.*)$", (UNITS / unit).read_text(), re.M)
    return str(found)


@contextlib.contextmanager
def started(
    unit: str, state: Path, *, instance: str = "", **file: str
) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """Run a unit's ExecStart, as the user that runs the tests.

    Args:
        unit: The unit's file.
        state: What ``%S`` stands for.
        instance: What ``%i`` stands for.
        file: What the unit's EnvironmentFile has.
    """

    def expanded(text: str) -> str:
        return text.replace("%S", str(state)).replace("%i", instance)

    program, *words = shlex.split(expanded(setting(unit, "ExecStart")))
    assert program == INSTALLED
    variable, _, value = expanded(setting(unit, "Environment")).partition("=")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(state / "notify"))
        manager.settimeout(START_S)
        environment = {
            "PATH": "/usr/bin:/bin",
            variable: value,
            "NOTIFY_SOCKET": str(state / "notify"),
            **file,
        }
        process = subprocess.Popen(
            [Path(sys.executable).with_name("umbel"), *words],
            cwd="/",
            env=environment,
            umask=int(setting(unit, "UMask"), 8),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process, manager
        finally:
            process.kill()
            process.communicate()
            (state / "notify").unlink()


def runs_and_stops(unit: str, state: Path, **more: str) -> str:
    """Check that a unit's command becomes ready and stops within its time; return what it printed."""
    with started(unit, state, **more) as (process, manager):
        assert manager.recv(100) == b"READY=1"
        process.terminate()
        out, err = process.communicate(timeout=int(setting(unit, "TimeoutStopSec")))
        assert (process.returncode, "Traceback" in err) == (0, False), err
    return out


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDir:
    (tmp_path / "umbel-service").mkdir()
    made = make_fleet(tmp_path / "umbel-service" / "fleet")
    file = made.path / "fleet.toml"
    without = " ".join(name for name in ORDER if name not in ("gateway", "opener"))
    file.write_text(file.read_text().replace('without = ""', f'without = "{without}"'))
    return FleetDir.open(made.path)


@pytest.mark.parametrize("service", ["ca", "gateway", "opener"])
def test_the_unit_of_one_service_runs_it(fleet: FleetDir, tmp_path: Path, service: str) -> None:
    out = runs_and_stops("umbel-serve@.service", tmp_path, instance=service)
    assert out.startswith(f"ready {service}")


def test_the_unit_of_the_service_runs_all_that_its_file_asks_for(fleet: FleetDir, tmp_path: Path) -> None:
    ready = runs_and_stops("umbel-serve.service", tmp_path).splitlines()
    assert {"ready opener", "ready umbel"} < set(ready)
    assert any(line.startswith("ready gateway") for line in ready)
    # Nothing that the service wrote may be read by others.
    assert {path.name for path in fleet.path.rglob("*.db*") if path.stat().st_mode & 0o077} == set()


def test_the_unit_of_a_device_enrolls_it_with_the_token_of_its_file(tmp_path: Path) -> None:
    made = make_fleet(tmp_path / "garden")
    with running(made) as (_, store):
        token = invite(made, store, device="rose").to_text()
        assert runs_and_stops("umbel.service", tmp_path, UMBEL_TOKEN=token) == "ready rose\n"
        assert [each.id for each in store.devices.all()] == ["rose"]
        # The token is spent: the next start is the same device's.
        assert runs_and_stops("umbel.service", tmp_path, UMBEL_TOKEN=token) == "ready rose\n"


def test_a_service_without_its_fleet_ends_with_a_code_that_is_not_tried_again(tmp_path: Path) -> None:
    with started("umbel-serve.service", tmp_path) as (process, _):
        _, err = process.communicate(timeout=START_S)
        assert err.count("\n") == 1
        assert str(process.returncode) in setting("umbel-serve.service", "RestartPreventExitStatus").split()

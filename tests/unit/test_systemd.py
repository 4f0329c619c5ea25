"""The units of a device and of the service: what systemd itself says of them, and that they name what exists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from umbel_proto import errors
from umbel_server.services.supervise import DRAIN_S

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
UNIT = UNITS / "umbel.service"
# A template is looked at as one of what it makes.
ALL = {"umbel.service": "umbel.service", "umbel-serve.service": "umbel-serve.service"} | {
    "umbel-serve@gateway.service": "umbel-serve@.service"
}
EXPOSURE = 20
"""Tenths, as `systemd-analyze security` counts: it calls a service below 5 OK, and most have 96."""


def setting(name: str, unit: Path = UNIT) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), re.M)


@pytest.fixture(params=ALL)
def installed(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A unit as it would be installed here: with a program that exists."""
    if shutil.which("systemd-analyze") is None:
        # A system without systemd runs no units. CI installs it, and must run this.
        assert "CI" not in os.environ, "CI needs systemd-analyze"
        pytest.skip("systemd-analyze is not installed: only what the unit's text says is checked")
    path = tmp_path / str(request.param)
    umbel = Path(sys.executable).with_name("umbel")
    text = (UNITS / ALL[request.param]).read_text()
    path.write_text(text.replace("/opt/umbel/bin/umbel", str(umbel)))
    return path


def analyze(*words: object) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *map(str, words)]
    environment = os.environ | {"SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_systemd_has_nothing_to_say_against_the_unit(installed: Path) -> None:
    done = analyze("verify", "--man=no", installed)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "umbel" in line]
    assert said == []
    assert done.returncode == 0, done.stderr


def test_a_broken_unit_is_noticed(installed: Path) -> None:
    installed.write_text(installed.read_text().replace("Restart=on-failure", "Restart=sometimes"))
    done = analyze("verify", "--man=no", installed)
    assert "sometimes" in done.stdout + done.stderr


def test_systemd_calls_it_well_protected(installed: Path) -> None:
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", installed)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr


def test_it_runs_the_agent_in_its_own_directory() -> None:
    assert setting("ExecStart") == ["/opt/umbel/bin/umbel run"]
    assert setting("Environment") == ["UMBEL_HOME=%S/umbel"]
    assert setting("StateDirectory") == ["umbel"]
    assert setting("StateDirectoryMode") == ["0700"]


def test_systemd_is_told_that_it_is_ready_and_lives() -> None:
    assert setting("Type") == ["notify"]
    assert setting("NotifyAccess") == ["main"]
    assert int(setting("WatchdogSec")[0]) >= 60
    assert "AF_UNIX" in setting("RestrictAddressFamilies")[0]


def test_what_trying_again_does_not_cure_is_not_tried_again() -> None:
    codes = {int(code) for code in setting("RestartPreventExitStatus")[0].split()}
    assert codes == {
        errors.UsageError.exit_code,
        errors.RefusedError.exit_code,
        errors.CertificateError.exit_code,
    }
    passing = {errors.UnavailableError.exit_code, errors.StorageError.exit_code}
    assert not codes & passing


@pytest.mark.parametrize("name", ["umbel-serve.service", "umbel-serve@.service"])
def test_the_units_of_the_service_run_what_it_has_and_give_it_time_to_drain(name: str) -> None:
    unit = UNITS / name
    (start,) = setting("ExecStart", unit)
    assert start.startswith("/opt/umbel/bin/umbel serve")
    assert (setting("Type", unit), setting("NotifyAccess", unit)) == (["notify"], ["main"])
    assert setting("Environment", unit) == ["UMBEL_FLEET=%S/umbel-service/fleet"]
    assert int(setting("TimeoutStopSec", unit)[0]) > (2 if "@" not in name else 1) * DRAIN_S
    codes = {int(code) for code in setting("RestartPreventExitStatus", unit)[0].split()}
    assert codes == {errors.UsageError.exit_code, errors.StorageError.exit_code}
    # What a gateway asks of the scheduler (a refusal would end one that is to keep to a core), and the console: to yield.
    assert setting("SystemCallFilter", unit)[-1] == "sched_setscheduler sched_setaffinity setpriority"
    users = (UNITS / "umbel-serve.sysusers").read_text()
    assert f"u {setting('User', unit)[0]} " in users

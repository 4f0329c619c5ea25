"""All services under one: ready together, started again, drained together, and a start that fails says which."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from service_fleet import PlainDevice, batch, make_fleet, window
from umbel_server.fleet.backup import back_up, restore
from umbel_server.fleet.layout import FleetDir
from umbel_server.services.command import services_of

STOP_S = 30
LOCAL = "superlink superexec"
"""Left out where they add nothing to what is tested: Flower takes seconds to start."""


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDir:
    made = make_fleet(tmp_path / "garden")
    edit(made, 'without = ""', f'without = "{LOCAL} ca rollouts runs alerts api console health"')
    return FleetDir.open(made.path)


def edit(fleet: FleetDir, old: str, new: str) -> None:
    file = fleet.path / "fleet.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@contextlib.contextmanager
def served(fleet: FleetDir) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "umbel", "serve", "--fleet", str(fleet.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def lines_until(process: subprocess.Popen[str], last: str) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.strip())
        if lines[-1].startswith(last):
            break
    return lines


def children(pid: int) -> dict[str, int]:
    """The services that a process runs: name to process id, as Linux tells it."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        found[words[words.index(b"serve") + 1].decode()] = int(child)
    return found


def test_all_services_are_ready_before_the_whole_is_and_stop_with_it(fleet: FleetDir) -> None:
    with served(fleet) as process:
        said = lines_until(process, "ready umbel")
        assert sorted(said[:-1]) == [f"ready gateway {fleet.settings.gateway}", "ready opener"]
        pids = children(process.pid)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=STOP_S)
    assert (process.returncode, out, err) == (0, "", "")
    assert sorted(pids) == ["gateway", "opener"]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())


def test_a_service_that_is_killed_is_started_again(fleet: FleetDir) -> None:
    device = PlainDevice()
    with fleet.open_store() as store:
        device.admit(fleet, store)
    with served(fleet) as process:
        lines_until(process, "ready umbel")
        os.kill(children(process.pid)["gateway"], signal.SIGKILL)
        assert lines_until(process, "ready gateway")[-1] == f"ready gateway {fleet.settings.gateway}"
        assert list(device.check(fleet).releases) == []
        process.terminate()
        _, err = process.communicate(timeout=STOP_S)
    assert process.returncode == 0
    assert re.search(r"gateway ended with code -9: it is started again in 1 s$", err.strip())


def test_a_restored_fleet_is_served_though_nothing_ran_in_it_yet(tmp_path: Path) -> None:
    made = make_fleet(tmp_path / "garden")
    edit(made, 'without = ""', f'without = "{LOCAL} api console health"')
    back_up(made, tmp_path / "copy.tar")
    restore(tmp_path / "copy.tar", tmp_path / "again")
    with served(FleetDir.open(tmp_path / "again")) as process:
        said = lines_until(process, "ready umbel")
        process.terminate()
        _, err = process.communicate(timeout=STOP_S)
    assert (process.returncode, err) == (0, "")
    assert {"ready runs", "ready opener", "ready rollouts", "ready alerts", "ready umbel"} <= set(said)


def test_a_start_that_fails_stops_the_others_and_exits_as_the_service_did(fleet: FleetDir) -> None:
    with socket.create_server(("127.0.0.1", fleet.settings.ports.gateway)), served(fleet) as process:
        _, err = process.communicate(timeout=STOP_S)
    first, last = err.strip().splitlines()
    assert process.returncode == 5
    assert first.startswith(f"Error: The port of {fleet.settings.gateway} is taken")
    assert last.startswith("Error: gateway did not start")


def test_systemd_hears_once_and_from_the_whole_that_it_is_ready(
    fleet: FleetDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(STOP_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        with served(fleet) as process:
            assert manager.recv(100) == b"READY=1"
            process.terminate()
            assert manager.recv(100) == b"STOPPING=1"
            process.communicate(timeout=STOP_S)


def test_json_logs_are_an_object_a_line(fleet: FleetDir) -> None:
    edit(fleet, 'format = "text"', 'format = "json"')
    with served(fleet) as process:
        lines_until(process, "ready umbel")
        os.kill(children(process.pid)["opener"], signal.SIGKILL)
        lines_until(process, "ready opener")
        process.terminate()
        _, err = process.communicate(timeout=STOP_S)
    (line,) = map(json.loads, err.strip().splitlines())
    assert (line["level"], line["logger"]) == ("warning", "umbel_server.services.supervise")
    assert line["message"].startswith("opener ended with code -9")


def test_init_makes_a_fleet_with_a_file_that_explains_itself(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "umbel", "serve", "--init", str(tmp_path / "g"), "--name", "garden"]
    subprocess.run([*command, "--host", "fleet.example"], check=True, capture_output=True)
    made = FleetDir.open(tmp_path / "g")
    assert (made.settings.name, made.settings.host) == ("garden", "fleet.example")
    settings = re.findall(r"^\w+ = .*$", (made.path / "fleet.toml").read_text(), re.M)
    assert [line for line in settings if "#" not in line] == []


@pytest.mark.parametrize(
    ("words", "sentence"), [([], "Which fleet?"), (["--init", "new"], "A fleet needs a name")]
)
def test_a_missing_word_is_asked_for(words: list[str], sentence: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "UMBEL_FLEET"}
    done = subprocess.run(
        [sys.executable, "-m", "umbel", "serve", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert (done.returncode, sentence in done.stderr) == (2, True)


def test_several_gateways_share_the_ports_and_nobody_else_gets_in(fleet: FleetDir) -> None:
    edit(fleet, "processes = 1", "processes = 2")
    device = PlainDevice()
    with fleet.open_store() as store:
        device.admit(fleet, store)
    with served(fleet) as process:
        assert "ready gateway " + fleet.settings.gateway in lines_until(process, "ready umbel")
        workers = Path(f"/proc/{(pid := children(process.pid)['gateway'])}/task/{pid}/children").read_text()
        assert len(workers.split()) == 2
        # Each call is a connection of its own: with either process, the answer is the same.
        assert [list(device.check(fleet).releases) for _ in range(8)] == [[]] * 8
        second = subprocess.run(
            [sys.executable, "-m", "umbel", "serve", "gateway", "--fleet", str(fleet.path)],
            capture_output=True,
            text=True,
            check=False,
        )
        process.terminate()
        assert process.wait(STOP_S) == 0
    assert (second.returncode, "is taken" in second.stderr) == (5, True)


def fetch(fleet: FleetDir, path: str, token: bytes = b"") -> tuple[int, str]:
    context = ssl.create_default_context(cafile=str(fleet.ca_pem))
    request = urllib.request.Request(f"https://127.0.0.1:{fleet.settings.health.port}{path}")
    if token:
        request.add_header("Authorization", f"Bearer {token.decode()}")
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(request, timeout=STOP_S) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


def test_health_and_metrics_tell_what_goes_on(fleet: FleetDir) -> None:
    edit(fleet, "api console health", "api console")
    device = PlainDevice()
    with fleet.open_store() as store:
        device.admit(fleet, store, name="rose")
    with served(fleet) as process:
        lines_until(process, "ready umbel")
        sealed = device.sealed(fleet, plaintext=batch(window(), window(model="other")))
        device.upload(fleet, [sealed])
        device.upload(fleet, [sealed])
        assert fetch(fleet, "/healthz") == (200, "ok\n")
        assert fetch(fleet, "/readyz") == (200, "ready\n")
        token = (fleet.path / "keys" / "metrics.token").read_bytes()
        assert [fetch(fleet, "/metrics", wrong)[0] for wrong in (b"", b"x", token[:-1])] == [401] * 3
        until = time.monotonic() + STOP_S
        while "umbel_opener_windows_total 2.0" not in (text := fetch(fleet, "/metrics", token)[1]):
            assert time.monotonic() < until
        assert 'umbel_gateway_calls_total{code="OK",method="Upload"} 2.0' in text
        assert 'umbel_gateway_batches_total{outcome="new"} 1.0' in text
        assert 'umbel_gateway_batches_total{outcome="repeated"} 1.0' in text
        assert 'umbel_devices{status="online"} 1.0' in text
        assert "rose" not in text
        os.kill(children(process.pid)["gateway"], signal.SIGSTOP)  # It stands still, and its ports are open.
        assert fetch(fleet, "/readyz") == (503, "not ready\n")
        os.kill(children(process.pid)["gateway"], signal.SIGCONT)
        process.terminate()
        _, err = process.communicate(timeout=STOP_S)
    assert (process.returncode, err) == (0, "")
    tool = shutil.which("promtool")
    if tool is not None:
        checked = subprocess.run(
            [tool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_no_log_holds_a_secret_or_what_a_device_sent(fleet: FleetDir) -> None:
    edit(fleet, 'level = "info"', 'level = "debug"')
    edit(fleet, 'format = "text"', 'format = "json"')
    device = PlainDevice()
    with fleet.open_store() as store:
        device.admit(fleet, store, name="rose")
    planted = secrets.token_hex(16)
    with served(fleet) as process:
        lines_until(process, "ready umbel")
        with contextlib.suppress(grpc.RpcError):
            PlainDevice().enroll(fleet, planted.encode())
        with contextlib.suppress(grpc.RpcError):
            device.upload(fleet, [device.sealed(fleet, plaintext=planted.encode(), device_id="tulip")])
        process.terminate()
        _, err = process.communicate(timeout=STOP_S)
    lines = [json.loads(line) for line in err.splitlines()]
    assert {line.get("method") for line in lines} >= {"Enroll", "Upload"}
    assert {line["device"] for line in lines if line.get("method") == "Upload"} == {"rose"}
    assert all(len(line["request"]) == 12 for line in lines if "method" in line)
    keys = [*fleet.path.glob("*/*.key"), *fleet.path.glob("*/*.secret")]
    assert len(keys) >= 6
    hidden = [planted, planted.encode().hex(), *(file.read_text(errors="replace").strip() for file in keys)]
    assert [secret for secret in hidden if secret in err] == []


def test_every_service_is_run_once(tmp_path: Path) -> None:
    services = [service.name for service in services_of(make_fleet(tmp_path / "garden"))]
    assert len(services) == len(set(services))
    assert {
        "superlink",
        "superexec",
        "runs",
        "gateway",
        "opener",
        "rollouts",
        "alerts",
        "api",
        "console",
        "health",
    } <= set(services)

"""Law: the SuperLink of a fleet answers nobody without authentication, and says in a sentence why it cannot start."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service_fleet import make_fleet
from umbel_proto.errors import UnavailableError
from umbel_server.fleet.layout import FleetDir
from umbel_server.flower import Control
from umbel_server.gate import CONTROL_HEADER

pytestmark = pytest.mark.e2e

SERVE = [sys.executable, "-m", "umbel", "serve", "superlink", "--fleet"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetDir]:
    made = make_fleet(tmp_path_factory.mktemp("superlink") / "fleet")
    with subprocess.Popen(
        [*SERVE, str(made.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"ready superlink")
        yield made
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.fixture
def client(fleet: FleetDir) -> Iterator[httpx.Client]:
    context = ssl.create_default_context(cafile=str(fleet.ca_pem))
    with httpx.Client(verify=context) as made:
        yield made


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-nodes",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/docs",
        "/openapi.json",
        "/",
    ],
)
def test_devices_reach_the_fleet_api_and_nothing_else(
    fleet: FleetDir, client: httpx.Client, path: str
) -> None:
    url = f"https://127.0.0.1:{fleet.settings.superlink_port}{path}"
    given = {CONTROL_HEADER: fleet.control_secret.read_text().strip()}
    assert client.post(url, headers=given).status_code == 404


@pytest.mark.parametrize("given", ["", "0" * 64])
def test_the_control_api_asks_for_its_secret(fleet: FleetDir, client: httpx.Client, given: str) -> None:
    url = f"https://127.0.0.1:{fleet.settings.control_port}/v1/control/list-nodes"
    assert client.post(url, headers={CONTROL_HEADER: given}).status_code == 401
    with contextlib.closing(Control(fleet)) as control:
        assert control.online() == set()


def test_an_unsigned_call_of_the_fleet_api_is_refused(fleet: FleetDir, client: httpx.Client) -> None:
    url = f"https://127.0.0.1:{fleet.settings.superlink_port}/v1/fleet/pull-messages"
    answer = client.post(url, content=b"", headers={"content-type": "application/protobuf"})
    assert answer.status_code in {400, 401, 415}


def test_nothing_answers_without_tls(fleet: FleetDir) -> None:
    for port in (fleet.settings.superlink_port, fleet.settings.control_port):
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/health")


def test_a_port_that_is_taken_is_one_sentence_and_exit_code_5(tmp_path: Path) -> None:
    made = make_fleet(tmp_path / "fleet")
    with socket.create_server(("127.0.0.1", made.settings.superlink_port)):
        done = subprocess.run(
            [*SERVE, str(made.path)], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == UnavailableError.exit_code
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"Error: Port {made.settings.superlink_port} of 127.0.0.1 is taken")
    assert "Traceback" not in done.stderr

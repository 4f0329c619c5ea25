"""Law: the SuperLink of a fleet answers nobody without authentication, and says in a sentence why it cannot start."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service_fleet import PlainDevice, make_fleet
from umbel_proto.errors import UnavailableError
from umbel_server.control import Control
from umbel_server.fleet.layout import FleetDir
from umbel_server.gate import CONTROL_HEADER
from umbel_server.learning.begin import register
from umbel_server.learning.link import NodeId
from umbel_server.shut_out import NODE_KEY_HEADER

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
    url = f"https://127.0.0.1:{fleet.settings.ports.superlink}{path}"
    given = {CONTROL_HEADER: fleet.control_secret.read_text().strip()}
    assert client.post(url, headers=given).status_code == 404


@pytest.mark.parametrize("given", ["", "0" * 64])
def test_the_control_api_asks_for_its_secret(fleet: FleetDir, client: httpx.Client, given: str) -> None:
    url = f"https://127.0.0.1:{fleet.settings.ports.control}/v1/control/list-nodes"
    assert client.post(url, headers={CONTROL_HEADER: given}).status_code == 401
    with contextlib.closing(Control(fleet)) as control:
        assert control.online() == set()


def test_an_unsigned_call_of_the_fleet_api_is_refused(fleet: FleetDir, client: httpx.Client) -> None:
    url = f"https://127.0.0.1:{fleet.settings.ports.superlink}/v1/fleet/pull-messages"
    answer = client.post(url, content=b"", headers={"content-type": "application/protobuf"})
    assert answer.status_code in {400, 401, 415}


def test_devices_that_are_shut_out_are_refused_by_their_node_keys(
    fleet: FleetDir, client: httpx.Client
) -> None:
    """Whatever Flower knows of the node: the answer is the gate's, 403, and not Flower's 401 for an unsigned call."""
    url = f"https://127.0.0.1:{fleet.settings.ports.superlink}/v1/fleet/pull-messages"
    revoked, quarantined, replaced, kept = devices = [PlainDevice() for _ in range(4)]

    def answer(device: PlainDevice) -> int:
        key = device.node.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        headers = {NODE_KEY_HEADER.decode(): base64.b64encode(key).decode()}
        return client.post(url, headers=headers, timeout=60).status_code

    with fleet.open_store() as store:
        for device in devices:
            device.admit(fleet, store)
        before = answer(kept)
        store.devices.revoke(revoked.id)
        store.devices.quarantine(quarantined.id, reason="odd answers")
        token = store.tokens.issue(valid_s=60, device=replaced.id, replaces=True)
        store.devices.enroll(PlainDevice().application(token), certificate_life_s=60)
    give_up_s = time.monotonic() + 60
    while (answers := [answer(device) for device in devices]).count(403) < 3:
        assert time.monotonic() < give_up_s
    assert (before == 403, answers) == (False, [403, 403, 403, before])


def test_flower_forgets_the_node_of_a_device_that_was_replaced(fleet: FleetDir) -> None:
    control = Control(fleet)
    old, new = PlainDevice(), PlainDevice()
    try:
        with fleet.open_store() as store:
            name = old.admit(fleet, store).id
            register(store, control)
            token = store.tokens.issue(valid_s=60, device=name, replaces=True)
            store.devices.enroll(new.application(token), certificate_life_s=60)
            ((_, node),) = store.devices.retired()
            register(store, control)
            assert store.devices.retired() == []
            assert store.devices.admit(name).node_id not in (None, node)
            control.unregister(NodeId(node))  # Killed before it was noted: once more is no error.
    finally:
        control.close()


def test_nothing_answers_without_tls(fleet: FleetDir) -> None:
    for port in (fleet.settings.ports.superlink, fleet.settings.ports.control):
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/health")


def test_a_port_that_is_taken_is_one_sentence_and_exit_code_5(tmp_path: Path) -> None:
    made = make_fleet(tmp_path / "fleet")
    with socket.create_server(("127.0.0.1", made.settings.ports.superlink)):
        done = subprocess.run(
            [*SERVE, str(made.path)], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == UnavailableError.exit_code
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"Error: Port {made.settings.ports.superlink} of 127.0.0.1 is taken")
    assert "Traceback" not in done.stderr

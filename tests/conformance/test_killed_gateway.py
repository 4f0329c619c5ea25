"""Law: a gateway that is killed while the authority apart makes papers costs a device one more question, and nothing else.

Authority, gateways and the enrolling device are real processes. Between gateway and authority a test carries what they
say, so that the gateway dies at a known moment.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from service_fleet import policy
from umbel._fleet.channel import Gateway
from umbel._fleet.enroll import come_back, renew
from umbel._home.directory import DeviceHome
from umbel_proto.errors import UnavailableError
from umbel_server.access.chain import verify
from umbel_server.ca.messages import receive, send
from umbel_server.ca.registrar import key_hash
from umbel_server.ca.remote import short_path, socket_path
from umbel_server.fleet.create import create_fleet
from umbel_server.fleet.invite import invite
from umbel_server.fleet.layout import FleetDir

WAIT_S = 60
MOMENTS = ["never heard", "heard", "answered", "heard twice at once"]


class Between:
    """Carries requests and answers between gateways and the authority, and holds them where it is told to."""

    def __init__(self, fleet: FleetDir) -> None:
        path = socket_path(fleet)
        self._real = path.with_name("real.sock")
        path.rename(self._real)
        self._listener = socket.socket(socket.AF_UNIX)
        with short_path(path) as short:
            self._listener.bind(short)
        self._listener.listen()
        self._held = threading.Semaphore(0)
        self._go = threading.Event()
        self._where = ""
        self._lost = False
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, where: str) -> None:
        """Keep what comes from now on: a ``request`` before the authority has it, or its ``answer``."""
        self._go.clear()
        self._where, self._lost = where, False

    def wait(self) -> None:
        """Wait until something more is held."""
        assert self._held.acquire(timeout=WAIT_S)

    def let_go(self, *, lost: bool = False) -> None:
        """Carry on with everything that is held, or lose it."""
        self._where, self._lost = "", lost
        self._go.set()

    def close(self) -> None:
        self.let_go()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(connection,), daemon=True).start()

    def _carry(self, connection: socket.socket) -> None:
        # Whoever hears no answer any more is what this is about.
        with contextlib.suppress(OSError), connection, socket.socket(socket.AF_UNIX) as further:
            request = receive(connection)
            if self._keep("request"):
                return
            with short_path(self._real) as short:
                further.connect(short)
            send(further, request)
            answer = receive(further)
            if not self._keep("answer"):
                send(connection, answer)

    def _keep(self, where: str) -> bool:
        if self._where != where:
            return False
        self._held.release()
        self._go.wait(WAIT_S)
        return self._lost


class World:
    """A fleet whose authority is a process of its own, and a gateway that is killed and started."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fleet = create_fleet(path / "garden", name="garden", policy=policy(), ca_apart=True)
        self.log = path / "ca.log"
        with self.log.open("w") as log:
            self._authority = self._serve("ca", log.fileno())
        self.between = Between(self.fleet)
        self.start_gateway()

    def _serve(self, name: str, log: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "umbel", "serve", name, "--fleet", str(self.fleet.path)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"ready {name}")
        return process

    def start_gateway(self) -> None:
        self._gateway = self._serve("gateway")

    def kill_gateway(self) -> None:
        self._gateway.kill()
        self._gateway.communicate()

    def close(self) -> None:
        self.between.close()
        self.kill_gateway()
        self._authority.send_signal(signal.SIGTERM)
        self._authority.communicate(timeout=WAIT_S)

    def token(self, **terms: object) -> str:
        with self.fleet.open_store() as store:
            return invite(self.fleet, store, **terms).to_text()  # type: ignore[arg-type]

    def enrolls(self, name: str, token: str, *options: str) -> subprocess.Popen[str]:
        words = [
            sys.executable,
            "-m",
            "umbel",
            "enroll",
            "--home",
            str(self.path / name),
            "--name",
            name,
            *options,
        ]
        return subprocess.Popen(
            words,
            env={**os.environ, "UMBEL_TOKEN": token},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def home(self, name: str) -> DeviceHome:
        return DeviceHome(self.path / name)

    def issued(self) -> list[tuple[str, int]]:
        """Whose papers the authority's log says it made, and until when they hold."""
        found = re.findall(r"issued device=(\S+) not_after_s=(\d+)", self.log.read_text())
        return [(device, int(until)) for device, until in found]

    def entered(self, name: str) -> list[str]:
        with self.fleet.open_store() as store:
            entries = [each for each in store.audit.all() if each.object == f"device:{name}"]
            verify(self.fleet, store)
        return [each.action for each in entries]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("killed"))
    yield made
    made.close()


def killed(world: World, moment: str, ask: Callable[[], Callable[[], bool]]) -> None:
    """Let a device ask, kill its gateway at a moment, start another, and let the device ask again.

    Args:
        world: The fleet.
        moment: How far the first question came.
        ask: Begins to ask; what it returns waits for the end, and says whether the device got its papers.
    """
    world.between.hold("answer" if moment == "answered" else "request")
    first = ask()
    world.between.wait()
    world.kill_gateway()
    if moment == "heard twice at once":
        assert not first()
        world.start_gateway()
        second = ask()
        world.between.wait()
        world.between.let_go()
        assert second()
        return
    world.between.let_go(lost=moment == "never heard")
    assert not first()
    world.start_gateway()
    assert ask()()


def is_one(world: World, name: str, issues: list[tuple[str, int]], *, entries: int) -> None:
    """Check that a device has one identity, the same on both sides, and that its papers are those on record."""
    home = world.home(name)
    leaf = x509.load_pem_x509_certificates(home.tls_certificate.read_bytes())[0]
    until = int(leaf.not_valid_after_utc.timestamp())
    with world.fleet.open_store() as store:
        (row,) = [each for each in store.devices.all() if each.identity_key == home.signing_key().public]
    assert (row.id, row.active, home.identity.device) == (name, True, name)
    assert row.tls_key_hash == key_hash(leaf.public_key())  # type: ignore[arg-type]
    assert [device for device, _ in issues] == [name] * len(issues)
    assert abs(row.certificate_not_after_s - issues[-1][1]) < 2
    assert until in [each for _, each in issues]
    assert world.entered(name).count("device.enroll") == entries
    assert home.open_credential(time.time()).device == name
    with Gateway(home, now_s=time.time()) as gateway:
        renew(home, gateway, now_s=time.time())


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_device_that_enrolls_is_let_in_once(world: World, moment: str) -> None:
    name = f"rose-{MOMENTS.index(moment)}"
    token, before = world.token(), len(world.issued())

    def ask() -> Callable[[], bool]:
        process = world.enrolls(name, token)

        def ended() -> bool:
            _, err = process.communicate(timeout=WAIT_S)
            assert process.returncode in (0, 5), err  # 5: the gateway cannot be reached; nothing is lost.
            return process.returncode == 0

        return ended

    killed(world, moment, ask)
    issues = world.issued()[before:]
    assert len(issues) == (1 if moment == "never heard" else 2)
    is_one(world, name, issues, entries=1)
    late = world.enrolls("late", token)
    _, err = late.communicate(timeout=WAIT_S)
    assert (late.returncode, "already used" in err) == (3, True)
    assert world.entered("late") == []


def in_thread(
    world: World, name: str, doing: Callable[[DeviceHome], None]
) -> Callable[[], Callable[[], bool]]:
    """Return what lets a device of this process ask in a thread."""

    def ask() -> Callable[[], bool]:
        ends: list[bool] = []

        def run() -> None:
            try:
                doing(world.home(name))
                ends.append(True)
            except UnavailableError:
                ends.append(False)

        thread = threading.Thread(target=run)
        thread.start()

        def ended() -> bool:
            thread.join(WAIT_S)
            return ends == [True]

        return ended

    return ask


def renews(home: DeviceHome) -> None:
    with Gateway(home, now_s=time.time()) as gateway:
        renew(home, gateway, now_s=time.time())


def returns(home: DeviceHome) -> None:
    come_back(home, now_s=time.time())


@pytest.mark.parametrize("doing", [renews, returns], ids=["renews", "comes-back"])
def test_a_device_that_renews_or_comes_back_keeps_its_papers_until_it_has_new_ones(
    world: World, doing: Callable[[DeviceHome], None]
) -> None:
    name = f"tulip-{doing.__name__}"
    process = world.enrolls(name, world.token())
    assert process.communicate(timeout=WAIT_S)[1] == ""
    papers, before = world.home(name).tls_certificate.read_bytes(), len(world.issued())
    time.sleep(1)  # A certificate's end is in whole seconds.
    world.between.hold("answer")
    first = in_thread(world, name, doing)()
    world.between.wait()
    world.kill_gateway()
    world.between.let_go()
    assert not first()
    assert world.home(name).tls_certificate.read_bytes() == papers
    world.start_gateway()
    is_one(world, name, world.issued()[before - 1 :], entries=1)  # The earlier papers hold; this renews them.
    assert world.home(name).tls_certificate.read_bytes() != papers
    assert in_thread(world, name, doing)()()
    is_one(world, name, world.issued()[before:], entries=1)


def test_a_device_that_enrolls_again_is_itself_with_one_key(world: World) -> None:
    name = "lily"
    process = world.enrolls(name, world.token())
    assert process.communicate(timeout=WAIT_S)[1] == ""
    old, identity = world.home(name).tls_key.read_bytes(), world.home(name).signing_key().public
    token, before = world.token(), len(world.issued())

    def ask() -> Callable[[], bool]:
        process = world.enrolls(name, token, "--again")
        return lambda: (process.communicate(timeout=WAIT_S), process.returncode == 0)[1]

    killed(world, "answered", ask)
    assert world.home(name).signing_key().public == identity
    assert world.home(name).tls_key.read_bytes() != old
    is_one(world, name, world.issued()[before:], entries=2)

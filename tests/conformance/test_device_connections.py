"""A device's connections to the real gateway: kept, made anew, forked, used by threads, and let go of."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from cable import Cable
from device_world import World, make_world, through
from service_fleet import ManualClock, running
from umbel._fleet.answer import MAX_MESSAGE_BYTES
from umbel._fleet.channel import Gateway, call, enrollment
from umbel._fleet.connection import MAX_CALLS
from umbel._fleet.status import CallError, Status
from umbel._home.directory import DeviceHome
from umbel_proto.errors import StorageError, UmbelError, UnavailableError, UsageError
from umbel_proto.wire import delivery_pb2, enrollment_pb2, telemetry_pb2

BEGIN = """
import gc, os, sys, threading, time
from pathlib import Path
from umbel._fleet.channel import Gateway, call
from umbel._home.directory import DeviceHome
from umbel_proto.wire.delivery_pb2 import CheckRequest

home = DeviceHome(Path(sys.argv[1]))

def check(gateway):
    return call(gateway.delivery.Check, CheckRequest(), gateway.address)

def open_files():
    return len(os.listdir("/proc/self/fd"))
"""
FORK = """
gateway = Gateway(home, now_s=time.time())
check(gateway)
if not (child := os.fork()):
    check(gateway)
    gateway.close()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
check(gateway)
gateway.close()
"""
RECONNECT = """
def memory():
    gc.collect()
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024

def reconnect(times):
    for _ in range(times):
        with Gateway(home, now_s=time.time()) as gateway:
            check(gateway)

reconnect(100)
before, bytes_before = open_files(), memory()
reconnect(1000)
assert open_files() == before
assert len(os.listdir("/proc/self/task")) == 1
print(memory() - bytes_before)
"""
EXIT = """
gateway = Gateway(home, now_s=time.time())
threading.Thread(target=check, args=(gateway,), daemon=True).start()
while not gateway._channel._busy:
    time.sleep(0.01)
"""
NO_FILES = """
import resource
from umbel_proto.errors import UnavailableError

gateway = Gateway(home, now_s=time.time())
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 4096))
try:
    check(gateway)
except UnavailableError:
    pass
else:
    raise AssertionError
"""


def run(code: str, home: DeviceHome, *, timeout_s: float = 100.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "dev", "-c", BEGIN + code, str(home.path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)


def check(gateway: Gateway) -> delivery_pb2.CheckReply:
    reply: delivery_pb2.CheckReply = call(
        gateway.delivery.Check, delivery_pb2.CheckRequest(), gateway.address
    )
    return reply


def test_a_forked_process_has_connections_of_its_own(world: World) -> None:
    done = run(FORK, world.device("d1"))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_thousand_connections_leave_nothing_behind(world: World) -> None:
    done = run(RECONNECT, world.device("d1"))
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) < 1 << 20


def test_a_process_ends_at_once_while_a_call_waits(world: World) -> None:
    home = world.device("d1")
    with Cable(world.fleet.settings.gateway) as cable:
        cable.go_silent()
        through(home, cable.address)
        done = run(EXIT, home, timeout_s=10.0)  # The call would wait 20 seconds.
    assert (done.returncode, done.stderr) == (0, "")


def test_a_gateway_that_was_restarted_is_reached_by_the_next_call(tmp_path: Path) -> None:
    clock = ManualClock()
    fleet = make_world(tmp_path, clock)
    with running(fleet, clock=clock) as (_, store):
        home = World(fleet, store, clock, tmp_path).device("d1")
    with running(fleet, clock=clock):
        gateway = Gateway(home, now_s=time.time())
        check(gateway)
    with running(fleet, clock=clock), gateway:
        check(gateway)


def test_a_device_that_calls_more_often_than_a_connection_takes_does_not_notice(world: World) -> None:
    with Gateway(world.device("d1"), now_s=time.time()) as gateway:
        check(gateway)
        [first] = gateway._channel._idle
        first._calls = MAX_CALLS - 1
        check(gateway)
        assert gateway._channel._idle == []
        check(gateway)


def test_a_message_larger_than_a_gateway_takes_is_not_sent(world: World) -> None:
    batch = telemetry_pb2.SealedBatch(ciphertext=bytes(MAX_MESSAGE_BYTES))
    with Gateway(world.device("d1"), now_s=time.time()) as gateway:
        with pytest.raises(CallError) as caught:
            gateway.telemetry.Upload(telemetry_pb2.UploadRequest(batches=[batch]))
        assert caught.value.status is Status.RESOURCE_EXHAUSTED
        assert not gateway._channel._idle


def test_a_message_that_the_server_refuses_before_it_has_heard_all_is_an_error_of_ours(world: World) -> None:
    ca_certificate = world.fleet.ca_pem.read_bytes()
    request = enrollment_pb2.EnrollRequest(token=bytes(MAX_MESSAGE_BYTES - 100))
    with (
        enrollment(world.fleet.settings.enrollment, ca_certificate) as stub,
        pytest.raises(UnavailableError, match="more to do than it can"),
    ):
        call(stub.Enroll, request, world.fleet.settings.enrollment)


def test_closing_ends_the_calls_of_every_thread(world: World) -> None:
    home = world.device("d1")
    ended: list[UmbelError] = []
    with Cable(world.fleet.settings.gateway) as cable:
        through(home, cable.address)
        with Gateway(home, now_s=time.time()) as gateway:
            check(gateway)
            cable.mute()

            def ask() -> None:
                try:
                    check(gateway)
                except UmbelError as exc:
                    ended.append(exc)

            threads = [threading.Thread(target=ask) for _ in range(3)]
            for thread in threads:
                thread.start()
            while len(gateway._channel._busy) < 3:
                time.sleep(0.01)
        for thread in threads:
            thread.join(5)
    assert [str(exc).endswith("was closed.") for exc in ended] == [True] * 3
    with pytest.raises(UnavailableError, match="was closed"):
        check(gateway)


def test_a_process_without_files_to_open_is_told_so_in_a_sentence_of_ours(world: World) -> None:
    done = run(NO_FILES, world.device("d1"))
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupted_call_leaves_no_connection_and_the_next_works(world: World) -> None:
    home = world.device("d1")
    with Cable(world.fleet.settings.gateway) as cable:
        through(home, cable.address)
        with Gateway(home, now_s=time.time()) as gateway:
            check(gateway)
            cable.mute()
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                check(gateway)
            assert not gateway._channel._busy
            assert not gateway._channel._idle
            cable.cut()
            check(gateway)


@pytest.mark.parametrize("state", ["encrypted", "garbage", "missing"])
def test_a_key_that_cannot_be_read_is_named_and_nobody_is_asked_for_a_password(
    world: World, state: str
) -> None:
    home = world.device("d1")
    key = serialization.load_pem_private_key(home.tls_key.read_bytes(), None)
    match state:
        case "encrypted":
            lock = serialization.BestAvailableEncryption(b"secret")
            pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
            home.tls_key.write_bytes(key.private_bytes(pem, pkcs8, lock))
        case "garbage":
            home.tls_key.write_bytes(b"garbage")
        case _:
            home.tls_key.unlink()
    with pytest.raises(StorageError, match=r"tls\.key"):
        Gateway(home, now_s=time.time())


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("nonsense", UsageError),
        ("fleet.example", UsageError),
        (":8443", UsageError),
        ("fleet.example:99999", UsageError),
        (".:8443", UnavailableError),
        (".a..b:8443", UnavailableError),
        ("[:::]:8443", UnavailableError),
    ],
)
def test_a_gateway_that_cannot_be_is_told_in_a_sentence_of_ours(
    world: World, address: str, kind: type[UmbelError]
) -> None:
    home = world.device("d1")
    through(home, address)
    with pytest.raises(kind, match=re.escape(address)), Gateway(home, now_s=time.time()) as gateway:
        check(gateway)

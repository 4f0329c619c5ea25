"""A device that is away for long reports everything it counted, once; no clock and no gateway makes it lose any."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service_fleet import DAY_S, ManualClock, make_fleet, running
from umbel import Device
from umbel._fleet.enroll import enroll
from umbel._fleet.uplink import Uplink, upload
from umbel._home.directory import DeviceHome, Identity
from umbel._telemetry.rhythm import LONG_S, LONGEST_S, MEDIUM_S, SHORT_S, window_s
from umbel._telemetry.spool import MAX_BYTES, Depth, Sealed, Spool
from umbel._telemetry.telemetry import Telemetry
from umbel._telemetry.window import PredictionWindow
from umbel_proto.errors import RemoteProtocolError, UmbelError, UnavailableError, UsageError
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.report import open_batch
from umbel_proto.seal import SealPrivateKey
from umbel_proto.wire import telemetry_pb2 as pb
from umbel_server.fleet.invite import invite
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.opener import Opener
from umbel_server.monitor.windows import read_report
from umbel_server.store.store import Store

MINUTE_S, YEAR_S = 60, 365 * DAY_S
KEY = SealPrivateKey(bytes(range(32)))


@dataclass(slots=True)
class Time:
    """Two clocks: the one on the wall, which may be set, and the one that only goes on."""

    wall: ManualClock
    elapsed: ManualClock = field(default_factory=lambda: ManualClock(0.0))

    def advance(self, seconds: float) -> None:
        self.wall.advance(seconds)
        self.elapsed.advance(seconds)


def enrolled(root: Path, address: str = "127.0.0.1:1") -> DeviceHome:
    """A home without a fleet: enough to count and to seal."""
    home = DeviceHome(root)
    home.make()
    home.write_identity(Identity(FleetId("garden"), DeviceId("d1"), address, ""))
    home.write_telemetry_key(KEY.public)
    return home


def window_of(telemetry: Telemetry) -> PredictionWindow:
    return telemetry.window(model="digits", version=1, variant="fp32", engine="onnx")


def reported(spool: Spool) -> list[pb.Window]:
    """Every window of a model in a spool."""
    batches = spool.oldest(max_batches=10**6, max_bytes=10**9)
    return [
        window
        for batch in batches
        for window in open_batch(KEY, batch.header, batch.ciphertext).windows
        if window.model
    ]


def sums(store: Store, fleet: FleetDir) -> Counter[str]:
    """What the opener finds, over all hours."""
    opener = Opener(store, fleet.telemetry_private())
    while opener.run_once():
        pass
    found: Counter[str] = Counter()
    for rollup in store.rollups.all():
        if rollup.model:
            found.update(rollup.counters)
            found["latency_us"] += sum(rollup.histograms["latency_us"].counts)
    return found


# A month


def test_thirty_days_without_the_gateway_arrive_whole_and_once(tmp_path: Path) -> None:
    wall = ManualClock()
    fleet, home = make_fleet(tmp_path / "garden", clock=wall), DeviceHome(tmp_path / "d1")
    wall.advance(-30 * DAY_S)
    with running(fleet, clock=wall) as (_, store):
        enroll(home, invite(fleet, store).to_text(), name="d1", now_s=wall())
    away, counted = Time(wall), Counter[str]()
    with Device.open(home.path, online=False, clock=wall) as device:
        telemetry = Telemetry(home, device._spool, clock=wall, elapsed=away.elapsed)
        uplink = Uplink(
            home,
            spool=device._spool,
            telemetry=telemetry,
            delivery=None,
            poll_s=10 * MINUTE_S,
            clock=wall,
            elapsed=away.elapsed,
        )
        window = window_of(telemetry)
        while away.elapsed() < 30 * DAY_S:
            label = int(away.elapsed()) % 10
            window.observe(80_000, label, 0.9)
            counted.update(("predictions", "latency_us", f"label.{label}"))
            away.advance(max(uplink.turn(), 1.0))
        telemetry.flush()
        held = device.status()
        assert (held.dropped_batches, held.spooled_bytes < MAX_BYTES / 2) == (0, True)
        assert held.spooled_batches < 1000
    with running(fleet, clock=wall) as (_, store):
        # Its certificate ended 29 days ago: it comes back by itself.
        with Device.open(home.path, online=False, clock=wall) as device:
            device.sync()
            status = device.status()
            assert (status.spooled_batches, status.dropped_batches) == (0, 0)
        found = sums(store, fleet)
        del found["input_sampled"]
        assert found == counted
        [delivery] = store.batches.deliveries()
        assert (delivery.opened, delivery.rejected) == (held.spooled_batches, 0)


def test_windows_last_longer_while_more_waits_and_a_minute_when_nothing_does() -> None:
    rhythm = [window_s(Depth(batches, 3000 * batches, 0)) for batches in (0, 59, 60, 239, 240, 5000)]
    assert rhythm == [SHORT_S, SHORT_S, MEDIUM_S, MEDIUM_S, LONG_S, LONGEST_S]
    assert window_s(Depth(3, MAX_BYTES // 2, 0)) == LONGEST_S


@given(size=st.integers(1200, 64 << 10))
def test_a_month_of_batches_of_any_size_up_to_64_kib_fits(size: int) -> None:
    batches, elapsed_s = 0, 0.0
    while elapsed_s < 30 * DAY_S:
        elapsed_s += window_s(Depth(batches, size * batches, 0))
        batches += 1
    assert size * batches <= MAX_BYTES


def test_after_contact_windows_are_short_again(tmp_path: Path) -> None:
    home, away = enrolled(tmp_path), Time(ManualClock())
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=away.wall, elapsed=away.elapsed)
        uplink = Uplink(
            home, spool=spool, telemetry=telemetry, delivery=None, clock=away.wall, elapsed=away.elapsed
        )
        for number in range(240):
            spool.append(Sealed(number.to_bytes(16, "big"), b"h", b"c"))
        uplink.turn()
        window_of(telemetry).observe(80_000, 1, 0.9)
        away.advance(5 * MINUTE_S)
        uplink.turn()
        assert spool.made() == 0
        spool.acknowledge([number.to_bytes(16, "big") for number in range(240)], now_s=away.wall())
        uplink.turn()
        assert spool.made() == 1


# Clocks


@settings(max_examples=30)
@given(jumps=st.lists(st.sampled_from([0, -YEAR_S, YEAR_S, -3000 * YEAR_S, 10**12]), max_size=6))
def test_a_clock_that_is_set_loses_nothing_and_makes_no_window_that_cannot_be(
    jumps: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = enrolled(tmp_path_factory.mktemp("home"))
    away, predicted, waits = Time(ManualClock(1.8e9)), 0, []
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=away.wall, elapsed=away.elapsed)
        uplink = Uplink(
            home, spool=spool, telemetry=telemetry, delivery=None, clock=away.wall, elapsed=away.elapsed
        )
        for jump in (*jumps, 0):
            window_of(telemetry).observe(80_000, 1, 0.9)
            predicted += 1
            away.wall.advance(jump)
            away.advance(SHORT_S)
            waits.append(uplink.turn())
        windows = reported(spool)
    assert sum(window.counters["predictions"] for window in windows) == predicted
    assert max(window.end_s - window.start_s for window in windows) <= SHORT_S + 1
    # The server takes every one of them, whatever year it is of.
    assert len(read_report(DeviceId("d1"), pb.Batch(windows=windows)).windows) == len(windows)
    assert max(waits) <= SHORT_S


@pytest.mark.parametrize("jump_s", [-YEAR_S, YEAR_S])
def test_reports_of_another_year_are_taken_and_counted(tmp_path: Path, jump_s: int) -> None:
    wall = ManualClock()
    fleet, home = make_fleet(tmp_path / "garden", clock=wall), DeviceHome(tmp_path / "d1")
    with running(fleet, clock=wall) as (_, store):
        enroll(home, invite(fleet, store).to_text(), name="d1", now_s=wall())
        off = ManualClock(wall() + jump_s)
        with Device.open(home.path, online=False, clock=off) as device:
            window_of(device._telemetry).observe(80_000, 1, 0.9)
            device._telemetry.flush()
            off.advance(-jump_s)
            device.sync()
        assert sums(store, fleet)["predictions"] == 1


# Gateways that are none


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A TCP server that does one thing with every connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def close(_: socket.socket) -> None:
    pass


def speak_http(connection: socket.socket) -> None:
    connection.recv(100)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def babble(connection: socket.socket) -> None:
    connection.sendall(bytes(range(256)) * 64)


@pytest.mark.parametrize("answer", [close, speak_http, babble])
def test_a_server_that_is_no_gateway_is_one_sentence_and_loses_nothing(
    tmp_path: Path, answer: Callable[[socket.socket], None]
) -> None:
    wall = ManualClock()
    fleet, home = make_fleet(tmp_path / "garden", clock=wall), DeviceHome(tmp_path / "d1")
    with running(fleet, clock=wall) as (_, store):
        enroll(home, invite(fleet, store).to_text(), name="d1", now_s=wall())
        right = home.identity
        with listening(answer) as address:
            home.write_identity(dataclasses.replace(right, gateway=address))
            with Device.open(home.path, online=False, clock=wall) as device:
                window_of(device._telemetry).observe(80_000, 1, 0.9)
                with pytest.raises(UnavailableError, match=rf"{address} takes .* check that") as caught:
                    device.sync()
                assert "\n" not in str(caught.value)
                assert device.status().spooled_batches == 1
        home.write_identity(right)
        with Device.open(home.path, online=False, clock=wall) as device:
            device.sync()
        assert sums(store, fleet)["predictions"] == 1


class Answers:
    """A gateway in memory that answers uploads in turn; an error is raised."""

    address = "here:1"

    def __init__(self, answer: Callable[[pb.UploadRequest], pb.UploadReply]) -> None:
        self.telemetry = self
        self._answer = answer
        self.uploads = 0

    def Upload(self, request: pb.UploadRequest, *, timeout: float) -> pb.UploadReply:  # noqa: N802 - gRPC's name
        del timeout
        self.uploads += 1
        return self._answer(request)


def send(spool: Spool, answer: Callable[[pb.UploadRequest], pb.UploadReply]) -> float:
    return upload(Answers(answer), spool, now_s=lambda: 5.0)  # type: ignore[arg-type]


def answer_with(reply: pb.UploadReply, _: pb.UploadRequest) -> pb.UploadReply:
    return reply


def filled(path: Path, count: int) -> Spool:
    spool = Spool(path)
    for number in range(count):
        spool.append(Sealed(number.to_bytes(16, "big"), b"h%d" % number, b"c"))
    return spool


def test_acknowledging_what_was_never_sent_is_an_error_and_forgets_nothing(tmp_path: Path) -> None:
    with filled(tmp_path / "spool.db", 3) as spool:
        ids = [batch.batch_id for batch in spool.oldest(max_batches=9, max_bytes=10**6)]
        for acknowledged in ([bytes(15) + b"\x63"], [*ids, b"short"], [*ids, b"\xff" * 16]):
            reply = pb.UploadReply(acknowledged=acknowledged)
            with pytest.raises(RemoteProtocolError, match="batches that it did not have"):
                send(spool, functools.partial(answer_with, reply))
        assert spool.depth().batches == 3


def test_a_gateway_cannot_put_reports_off_for_more_than_an_hour(tmp_path: Path) -> None:
    with filled(tmp_path / "spool.db", 1) as spool:
        assert send(spool, lambda _: pb.UploadReply(retry_after_s=2**32 - 1)) == 3600.0
        assert spool.depth().batches == 1


@pytest.mark.parametrize("count", [1, 200])
def test_a_gateway_that_calls_everything_malformed_is_what_is_wrong(tmp_path: Path, count: int) -> None:
    uploads = itertools.count()

    def refuse(_: pb.UploadRequest) -> pb.UploadReply:
        next(uploads)
        raise UsageError("A batch has schema 1, and this gateway takes 2.")

    with filled(tmp_path / "spool.db", count) as spool:
        with pytest.raises(RemoteProtocolError, match="calls every report malformed"):
            send(spool, refuse)
        assert spool.depth() == Depth(count, spool.depth().bytes, 0)
    assert next(uploads) <= 64 + 6 + 16  # One by one, down to that from 64 at once, and some by chance.


MANY = set(range(64))


@pytest.mark.parametrize(
    "bad",
    [{0}, {0, 1, 2}, {4}, {1, 3, 199}, MANY, MANY | {199}, set(range(150)), MANY | set(range(150, 200))],
)
def test_only_what_is_malformed_is_given_up_and_counted(tmp_path: Path, bad: set[int]) -> None:
    stored: list[bytes] = []

    def take(request: pb.UploadRequest) -> pb.UploadReply:
        if any(batch.header == b"h%d" % number for batch in request.batches for number in bad):
            raise UsageError("A batch's header is malformed.")
        headers = [batch.header for batch in request.batches]
        stored.extend(headers)
        return pb.UploadReply(acknowledged=[int(h[1:]).to_bytes(16, "big") for h in headers])

    with filled(tmp_path / "spool.db", 200) as spool:
        assert send(spool, take) == 0.0
        assert spool.depth() == Depth(0, 0, len(bad))
    good = [b"h%d" % number for number in range(200) if number not in bad]
    # What is tried behind so many comes first; that all 16 are bad has a chance below 1e-6.
    assert sorted(stored) == sorted(good) if len(bad) >= 64 else stored == good


def test_without_the_gateway_what_is_on_the_disk_is_looked_at_every_minute(tmp_path: Path) -> None:
    home, away, looks = enrolled(tmp_path), Time(ManualClock()), itertools.count()
    with Spool(home.spool) as spool:
        uplink = Uplink(
            home,
            spool=spool,
            telemetry=Telemetry(home, spool, clock=away.wall, elapsed=away.elapsed),
            delivery=None,
            follow=functools.partial(next, looks, 0),
            clock=away.wall,
            elapsed=away.elapsed,
        )
        waits = []
        while away.elapsed() < 3 * 3600:
            waits.append(uplink.turn())
            away.advance(waits[-1])
    assert max(waits) <= MINUTE_S
    assert 180 <= next(looks) == len(waits)


def test_an_uplink_survives_every_error_of_its_gateway(tmp_path: Path) -> None:
    home, away = enrolled(tmp_path), Time(ManualClock())
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=away.wall, elapsed=away.elapsed)

        def fail() -> None:
            raise next(errors)

        errors: Iterator[Exception] = itertools.cycle([UmbelError("ours"), ValueError("a bug")])
        uplink = Uplink(
            home,
            spool=spool,
            telemetry=telemetry,
            delivery=None,
            follow=fail,
            clock=away.wall,
            elapsed=away.elapsed,
        )
        assert all(0 <= uplink.turn() <= 300 for _ in range(10))


# The end


def test_a_fault_of_the_last_report_leaves_it_in_the_spool_and_the_application_in_peace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Uplink, "_connect", broken)
    home = enrolled(tmp_path / "d1")
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=ManualClock())
        uplink = Uplink(
            home, spool=spool, telemetry=telemetry, delivery=None, poll_s=10 * MINUTE_S, clock=ManualClock()
        )
        uplink.start()
        window_of(telemetry).observe(80_000, 3, 0.9)
        uplink.close()
        [window] = reported(spool)
        assert window.counters["predictions"] == 1
    assert "last report failed" in caplog.text

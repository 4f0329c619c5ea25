"""The opener: sealed batches become sums, each once."""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service_fleet import PlainDevice, batch, make_fleet, window
from umbel_proto.errors import UsageError
from umbel_proto.histogram import CONFIDENCE, LATENCY_US, Histogram
from umbel_proto.ids import DeviceId
from umbel_proto.report import MAX_WINDOWS, PACKED, PLAIN, pack, unpack
from umbel_proto.seal import generate_keypair
from umbel_proto.wire import telemetry_pb2 as pb
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.opener import BATCHES_PER_PASS, Opener
from umbel_server.monitor.report import devices as device_report
from umbel_server.monitor.report import telemetry as telemetry_report
from umbel_server.monitor.windows import read_report
from umbel_server.store import rollups
from umbel_server.store.batches import Arrival
from umbel_server.store.store import Store

Fleet = tuple[FleetDir, Store, PlainDevice]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    directory = make_fleet(tmp_path / "garden")
    with directory.open_store() as store:
        device = PlainDevice()
        device.admit(directory, store, name="rose")
        yield directory, store, device


def arrive(fleet: Fleet, sealed: pb.SealedBatch, *, header: bytes = b"", ciphertext: bytes = b"") -> None:
    """Put a batch into the store as the gateway does, altered on the way or not."""
    named = pb.BatchHeader.FromString(sealed.header)
    arrival = Arrival(named.batch_id, named.key_id, header or sealed.header, ciphertext or sealed.ciphertext)
    fleet[1].batches.append(fleet[2].id, [arrival])


def deliver(fleet: Fleet, plaintext: bytes) -> None:
    arrive(fleet, fleet[2].sealed(fleet[0], plaintext=plaintext))


def opener(fleet: Fleet) -> Opener:
    directory, store, _ = fleet
    return Opener(store, directory.telemetry_private())


def states(store: Store) -> list[tuple[str, str | None]]:
    with store.database.read() as connection:
        rows = connection.exec_driver_sql("SELECT state, reason FROM batches ORDER BY id").all()
    return [(row.state, row.reason) for row in rows]


def test_who_reads_a_key_that_opens_reports_is_on_record(fleet: Fleet) -> None:
    directory, store, _ = fleet
    turns = iter([False, True])
    opener(fleet).run(lambda _: next(turns), poll_s=0)
    key = directory.telemetry_private().public.key_id
    read = [entry.object for entry in store.audit.all() if entry.action == "telemetry-key.read"]
    assert read == [f"telemetry-key:{key}"]


def test_what_a_device_reported_becomes_sums(fleet: Fleet) -> None:
    _, store, device = fleet
    deliver(fleet, batch(window(), window(start_s=7300)))
    deliver(fleet, batch(window(start_s=10800)))
    assert opener(fleet).run_once() == 2
    first, second = store.rollups.all()
    assert (first.device, first.hour_s, first.windows, first.until_s) == (device.id, 7200, 2, 7360)
    assert (second.hour_s, second.windows) == (10800, 1)
    assert first.counters == {"label.3": 2, "label.7": 2, "predictions": 4}
    assert first.histograms["latency_us"] == Histogram.empty("latency_us", LATENCY_US).observe(
        [90.0, 300.0, 90.0, 300.0]
    )


def test_batches_of_old_and_of_new_devices_become_the_same_sums(fleet: Fleet) -> None:
    told = batch(window(), window(counters={"predictions": 9, "label.2": 9, "contract.x.below": 1}))
    opened = []
    for sealed in (
        fleet[2].sealed(fleet[0], plaintext=told, schema=PLAIN),
        fleet[2].sealed(fleet[0], plaintext=pack(pb.Batch.FromString(told)), schema=PACKED),
    ):
        before = Counter(fleet[1].rollups.all()[0].counters) if opened else Counter()
        arrive(fleet, sealed)
        assert opener(fleet).run_once() == 1
        opened.append(Counter(fleet[1].rollups.all()[0].counters) - before)
    assert (
        opened[0]
        == opened[1]
        == {"predictions": 11, "label.2": 9, "label.3": 1, "label.7": 1, "contract.x.below": 1}
    )
    assert states(fleet[1]) == [("opened", None)] * 2


def test_what_a_newer_device_adds_is_ignored_and_the_rest_counts(fleet: Fleet) -> None:
    """Fields that this version does not know, in the batch, its windows and their histograms."""
    numbers = (b"\xba\x3e\x03new", b"\xc0\x3e\x07")  # Field 999 as a text, field 1000 as a number.
    told = pb.Batch.FromString(batch(window()))
    (one,) = told.windows
    for each in (*one.histograms, one, told):
        each.MergeFromString(b"".join(numbers))
    newer = told.SerializeToString()
    assert len(newer) > len(batch(window())) + 2 * len(b"".join(numbers))
    deliver(fleet, batch(window()))
    deliver(fleet, newer)
    arrive(fleet, fleet[2].sealed(fleet[0], plaintext=pack(told), schema=PACKED))
    assert opener(fleet).run_once() == 3
    assert states(fleet[1]) == [("opened", None)] * 3
    (row,) = fleet[1].rollups.all()
    assert row.counters == {"label.3": 3, "label.7": 3, "predictions": 6}
    assert row.windows == 3


def test_a_batch_that_is_not_of_its_schema_is_rejected(fleet: Fleet) -> None:
    told = batch(window())
    arrive(fleet, fleet[2].sealed(fleet[0], plaintext=told, schema=PACKED))
    arrive(fleet, fleet[2].sealed(fleet[0], plaintext=pack(pb.Batch.FromString(told)), schema=PLAIN))
    assert opener(fleet).run_once() == 2
    assert all(state == "rejected" and "malformed" in str(why) for state, why in states(fleet[1]))


def test_there_may_be_nothing_to_open(fleet: Fleet) -> None:
    assert opener(fleet).run_once() == 0


def test_many_batches_take_several_passes(fleet: Fleet) -> None:
    for _ in range(BATCHES_PER_PASS + 3):
        deliver(fleet, batch(window()))
    running = opener(fleet)
    assert [running.run_once() for _ in range(3)] == [BATCHES_PER_PASS, 3, 0]
    (line,) = fleet[1].rollups.all()
    assert line.windows == BATCHES_PER_PASS + 3


def other_key(fleet: Fleet) -> None:
    arrive(fleet, fleet[2].sealed(fleet[0], key=generate_keypair()[1]))


def changed_header(fleet: Fleet) -> None:
    sealed = fleet[2].sealed(fleet[0], plaintext=batch(window()))
    other = pb.BatchHeader.FromString(sealed.header)
    other.sequence += 1
    arrive(fleet, sealed, header=other.SerializeToString())


def changed_ciphertext(fleet: Fleet) -> None:
    sealed = fleet[2].sealed(fleet[0], plaintext=batch(window()))
    arrive(fleet, sealed, ciphertext=sealed.ciphertext[:-1] + bytes([sealed.ciphertext[-1] ^ 1]))


def nonsense(fleet: Fleet) -> None:
    deliver(fleet, b"\xff\xff\xff")


@pytest.mark.parametrize(
    ("send", "reason"),
    [
        (other_key, "does not hold"),
        (changed_header, "does not open"),
        (changed_ciphertext, "does not open"),
        (nonsense, "malformed"),
    ],
)
def test_a_batch_that_does_not_open_is_rejected_with_the_reason_and_stops_nobody(
    fleet: Fleet, send: Any, reason: str
) -> None:
    send(fleet)
    deliver(fleet, batch(window()))
    assert opener(fleet).run_once() == 2
    (state, why), other = states(fleet[1])
    assert (state, other) == ("rejected", ("opened", None))
    assert reason in str(why)
    assert opener(fleet).run_once() == 0


HISTOGRAM = Histogram.empty("latency_us", LATENCY_US).to_wire()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model": "Digits"}, "not a name"),
        ({"model": ""}, "not a name"),
        ({"variant": "../x"}, "not a name"),
        ({"engine": "x" * 64}, "not a name"),
        ({"version": 0}, "version 0"),
        ({"end_s": 7199}, "lasts from 7200 to 7199"),
        ({"start_s": 2**63, "end_s": 2**63}, "lasts from"),
        ({"counters": {"Bad Name": 1}}, "not a name"),
        ({"counters": {"predictions": 2**63}}, "outside 0 to"),
        ({"counters": {f"c{n}": 1 for n in range(5000)}}, "More than 4096 counters"),
        ({"histograms": [HISTOGRAM, HISTOGRAM]}, "two histograms of one name"),
        ({"histograms": [pb.Histogram(name="h", edges=[1.0], counts=[1])]}, "has 1 counts, not 2"),
        ({"histograms": [pb.Histogram(name="h", edges=[2.0, 1.0], counts=[0, 0, 0])]}, "do not ascend"),
        ({"histograms": [pb.Histogram(name="h", edges=[float("nan")], counts=[0, 0])]}, "not a finite"),
        ({"histograms": [pb.Histogram(name="h", edges=[1.0], counts=[0, 0], sum=float("inf"))]}, "finite"),
    ],
)
def test_a_window_that_cannot_be_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        read_report(DeviceId("rose"), unpack(PLAIN, batch(window(), window(**fields))))


def test_a_batch_has_a_limit_of_windows() -> None:
    short = pb.Window(model="digits", version=1, variant="int8", engine="onnx")
    most = unpack(PLAIN, batch(*[short] * MAX_WINDOWS))
    assert len(read_report(DeviceId("rose"), most).windows) == MAX_WINDOWS
    with pytest.raises(UsageError, match="more than 4096"):
        unpack(PLAIN, batch(*[short] * (MAX_WINDOWS + 1)))


def test_two_openers_at_once_count_every_batch_once(fleet: Fleet) -> None:
    for _ in range(150):
        deliver(fleet, batch(window()))

    def work(_: int) -> None:
        running = opener(fleet)
        while running.run_once():
            pass

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    (line,) = fleet[1].rollups.all()
    assert line.windows == 150


def test_an_opener_that_dies_before_its_commit_leaves_the_batches_to_the_next(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(fleet, batch(window()))
    deliver(fleet, batch(window()))

    def dies(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rollups, "add_deliveries", dies)  # The last thing that it writes.
        with pytest.raises(KeyboardInterrupt):
            opener(fleet).run_once()
    assert states(fleet[1]) == [("sealed", None)] * 2
    assert fleet[1].rollups.all() == ()
    assert fleet[1].device_days.totals([fleet[2].id]) == ()
    opener(fleet).run_once()
    (line,) = fleet[1].rollups.all()
    assert line.windows == 2


def test_the_opener_works_until_it_is_told_to_stop(fleet: Fleet) -> None:
    stop, arrived = threading.Event(), threading.Event()
    deliver(fleet, batch(window()))

    def stopped(wait_s: float) -> bool:
        if wait_s:  # It found nothing more to do.
            arrived.set()
        return stop.wait(wait_s)

    worker = threading.Thread(target=opener(fleet).run, args=(stopped,), kwargs={"poll_s": 0.01})
    worker.start()
    assert arrived.wait(30)
    stop.set()
    worker.join(30)
    assert not worker.is_alive()
    assert states(fleet[1]) == [("opened", None)]


def test_the_operator_reads_what_every_device_reported(fleet: Fleet) -> None:
    _, store, device = fleet
    deliver(fleet, batch(window(), window(start_s=90_000, counters={"predictions": 1, "errors": 4})))
    deliver(fleet, batch(window(version=2, variant="fp32")))
    deliver(fleet, b"\xff")
    opener(fleet).run_once()
    deliver(fleet, batch(window()))
    PlainDevice().admit(fleet[0], store, name="lily")
    silent, line = telemetry_report(store, store.devices.all())
    assert (silent.device, silent.opened, silent.last_received_s, silent.models) == ("lily", 0, None, ())
    assert (line.device, line.opened, line.sealed, line.rejected) == (device.id, 2, 1, 1)
    assert line.predictions == 5
    assert line.last_received_s is not None
    first, second = line.models
    assert (first.model, first.version, first.variant, first.engine) == ("digits", 1, "int8", "onnx")
    assert (first.predictions, first.errors, first.labels) == (3, 4, {"3": 1, "7": 1})
    assert (second.version, second.variant, second.predictions) == (2, "fp32", 2)
    assert first.latency_us is not None
    assert first.confidence is not None
    assert first.latency_us.quantile(0.25) == pytest.approx(90, rel=0.34)
    assert first.latency_us.quantile(0.9) == pytest.approx(300, rel=0.34)
    assert first.confidence.mean == pytest.approx(0.75)


def test_hours_with_other_edges_do_not_stop_the_report(fleet: Fleet) -> None:
    _, store, _ = fleet
    old = Histogram.empty("latency_us", (1.0, 2.0)).observe([1.5])
    confidence = Histogram.empty("confidence", CONFIDENCE).observe([0.5])
    deliver(fleet, batch(window(start_s=0, histograms=[old.to_wire(), confidence.to_wire()]), window()))
    opener(fleet).run_once()
    (line,) = telemetry_report(store, store.devices.all())
    (model,) = line.models
    assert model.predictions == 4
    assert model.latency_us is not None
    assert model.confidence is not None
    assert (model.latency_us.edges, model.latency_us.count, model.confidence.count) == (LATENCY_US, 2, 3)


@pytest.mark.parametrize(
    ("silent_s", "status"),
    [(0, "online"), (119, "online"), (120, "stale"), (86_399, "stale"), (86_400, "offline")],
)
def test_a_devices_status_follows_from_when_it_was_last_seen(
    fleet: Fleet, silent_s: float, status: str
) -> None:
    _, store, device = fleet
    seen_s = store.devices.admit(device.id).enrolled_s + 1
    store.devices.seen({device.id: seen_s})
    now_s = seen_s + silent_s
    (line,) = device_report(store, store.devices.all(), now_s=now_s)
    assert line.status == status
    store.devices.quarantine(device.id, reason="odd answers")
    (line,) = device_report(store, store.devices.all(), now_s=now_s)
    assert line.status == "quarantined"
    store.devices.revoke(device.id)
    (line,) = device_report(store, store.devices.all(), now_s=now_s)
    assert line.status == "revoked"


@pytest.mark.parametrize(
    ("silent_s", "status"), [(119, "online"), (120, "never seen"), (86_400, "never seen")]
)
def test_a_device_that_enrolled_and_never_called_was_never_seen(
    fleet: Fleet, silent_s: float, status: str
) -> None:
    _, store, device = fleet
    (line,) = device_report(
        store, store.devices.all(), now_s=store.devices.admit(device.id).enrolled_s + silent_s
    )
    assert line.status == status


def test_the_report_of_devices_names_the_newest_version_each_reported(fleet: Fleet) -> None:
    _, store, _ = fleet
    for version in (2, 10, 9):
        deliver(fleet, batch(window(version=version, start_s=secrets.randbelow(10**6))))
    opener(fleet).run_once()
    (line,) = device_report(store, store.devices.all(), now_s=0)
    assert line.models == {"digits": 10}

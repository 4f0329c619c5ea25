"""Windows count predictions without keeping one, and reach the disk sealed only."""

from __future__ import annotations

import hashlib
import math
import threading
from pathlib import Path

import numpy as np
import pytest

from umbel._home.directory import DeviceHome, Identity
from umbel._telemetry.spool import Spool
from umbel._telemetry.telemetry import MAX_BATCH_BYTES, Telemetry
from umbel._telemetry.window import MAX_LABELS, PredictionWindow
from umbel_proto.errors import StorageError
from umbel_proto.histogram import Histogram
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.report import open_batch
from umbel_proto.seal import SealPrivateKey, open_sealed
from umbel_proto.wire import telemetry_pb2 as pb

KEY = SealPrivateKey(bytes(range(32)))


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    home = DeviceHome(tmp_path)
    home.make()
    home.write_identity(Identity(FleetId("garden"), DeviceId("d1"), "127.0.0.1:1", ""))
    home.write_telemetry_key(KEY.public)
    return home


def new_window() -> PredictionWindow:
    return PredictionWindow(model="digits", version=3, variant="int8", engine="onnx", now_s=1000.0)


def taken(window: PredictionWindow) -> tuple[dict[str, int], dict[str, Histogram]]:
    message = window.take(1060.0)
    assert message is not None
    return dict(message.counters), {h.name: Histogram.from_wire(h) for h in message.histograms}


def opened(spool: Spool) -> list[tuple[pb.BatchHeader, pb.Batch]]:
    return [
        (pb.BatchHeader.FromString(b.header), open_batch(KEY, b.header, b.ciphertext))
        for b in spool.oldest(max_batches=1000, max_bytes=10**9)
    ]


def of_models(batch: pb.Batch) -> list[pb.Window]:
    return [window for window in batch.windows if window.model]


def test_a_window_counts_what_was_predicted() -> None:
    window = new_window()
    for label, confidence in ((7, 0.9), (7, 0.99), (1, 0.4)):
        window.observe(100_000, label, confidence, np.full((8, 8), 2.0, np.float32))
    window.error()
    counters, histograms = taken(window)
    assert counters == {"predictions": 3, "label.7": 2, "label.1": 1, "errors": 1, "input_sampled": 3}
    assert {name: h.count for name, h in histograms.items()} == {
        "latency_us": 3,
        "confidence": 3,
        "input": 3 * 64,
        "input_mean": 3,
    }
    assert histograms["latency_us"].mean == 100.0
    assert histograms["input"].mean == histograms["input_mean"].mean == 2.0


def test_a_window_says_whose_it_is_and_when() -> None:
    window = new_window()
    window.observe(1000, 0, 1.0)
    message = window.take(1060.9)
    assert message is not None
    assert (message.model, message.version, message.variant, message.engine) == ("digits", 3, "int8", "onnx")
    assert (message.start_s, message.end_s) == (1000, 1060)
    window.observe(1000, 0, 1.0)
    following = window.take(1100.0)
    assert following is not None
    assert (following.start_s, following.end_s) == (1060, 1100)


def test_a_window_in_which_nothing_happened_is_not_reported() -> None:
    window = new_window()
    assert window.take(1060.0) is None
    window.observe(1000, 0, 1.0)
    assert window.take(1070.0) is not None
    assert window.take(1080.0) is None


def test_a_window_adds_up_as_histograms_do() -> None:
    values = np.random.default_rng(1).lognormal(size=500)
    window = new_window()
    times_ns = (1e6 * values).astype(int).tolist()
    for time_ns in times_ns:
        window.observe(time_ns, 0, 0.5)
    _, histograms = taken(window)
    times_us = np.array(times_ns) / 1000
    reference = Histogram.empty("latency_us", histograms["latency_us"].edges).observe(times_us)
    assert histograms["latency_us"].counts == reference.counts
    assert histograms["latency_us"].sum == pytest.approx(reference.sum)


def test_values_that_are_no_numbers_spoil_nothing() -> None:
    window = new_window()
    for _ in range(20):
        window.observe(1000, 0, math.nan, np.array([1.0, math.nan, math.inf, -math.inf]))
        window.observe(1000, 0, 0.5, np.array([]))
    counters, histograms = taken(window)
    assert counters["input_not_finite"] == 3 * histograms["input"].count
    assert histograms["input"].mean == 1.0
    assert (histograms["confidence"].count, histograms["confidence"].sum) == (20, 10.0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int64", "bool"])
def test_inputs_of_every_type_are_counted(dtype: str) -> None:
    window = new_window()
    window.observe(1000, 0, 1.0, np.ones((4, 4), dtype))
    assert taken(window)[1]["input"].mean == 1.0


def test_of_a_large_input_evenly_spaced_values_are_counted() -> None:
    window = new_window()
    window.observe(1000, 0, 1.0, np.arange(3_000_000, dtype=np.float32))
    counted = taken(window)[1]["input"]
    assert 450 <= counted.count <= 500
    assert counted.mean == pytest.approx(1_500_000, rel=0.01)


@pytest.mark.parametrize("shape", [(128, 9), (501, 2), (1, 28, 28), (600, 1)])
def test_of_a_large_series_every_channel_is_counted_alike(shape: tuple[int, ...]) -> None:
    window = new_window()
    channels = np.arange(shape[-1], dtype=np.float32)
    window.observe(1000, 0, 1.0, np.broadcast_to(channels, shape))
    counted = taken(window)[1]["input"]
    assert 100 <= counted.count <= 500
    assert counted.mean == pytest.approx(channels.mean(), rel=0.02, abs=0.02)


def test_labels_beyond_the_bound_are_counted_together() -> None:
    window = new_window()
    for label in range(MAX_LABELS + 500):
        window.observe(1000, label, 1.0)
    counters, _ = taken(window)
    assert len(counters) <= MAX_LABELS + 1
    assert sum(n for name, n in counters.items() if name.startswith("label.")) == MAX_LABELS + 500


def test_threads_lose_no_prediction_between_windows() -> None:
    window, total = new_window(), 0

    def predict() -> None:
        for _ in range(1000):
            window.observe(1000, 0, 1.0)

    threads = [threading.Thread(target=predict) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (message := window.take(0.0)) is not None:
            total += message.counters["predictions"]
    if (message := window.take(0.0)) is not None:
        total += message.counters["predictions"]
    assert total == 4000


def test_closed_windows_are_sealed_to_the_fleet_with_a_header_that_names_them(home: DeviceHome) -> None:
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=Clock())
        for version in (1, 2):
            telemetry.window(model="digits", version=version, variant="fp32", engine="onnx").observe(
                5000, 1, 1.0
            )
        assert telemetry.flush() == 1
        [(header, batch)] = opened(spool)
    assert sorted(window.version for window in of_models(batch)) == [1, 2]
    assert (header.schema, header.suite, header.key_id) == (2, 1, KEY.public.key_id)
    assert (header.fleet_id, header.device_id) == ("garden", "d1")
    assert (header.sequence, header.created_s, len(header.batch_id)) == (1, 1000, 16)


def test_nothing_readable_touches_the_disk(home: DeviceHome) -> None:
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=Clock())
        telemetry.window(model="very-secret-model", version=1, variant="fp32", engine="onnx").observe(
            5000, 1, 1.0
        )
        telemetry.flush()
        content = b"".join(file.read_bytes() for file in home.path.iterdir() if file.is_file())
    assert b"garden" in content
    assert b"very-secret-model" not in content
    assert b"label.1" not in content


def test_batch_ids_are_random_and_sequences_grow(home: DeviceHome) -> None:
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=Clock())
        window = telemetry.window(model="m", version=1, variant="fp32", engine="onnx")
        for _ in range(5):
            window.observe(1000, 0, 1.0)
            telemetry.flush()
        headers = [header for header, _ in opened(spool)]
    assert [header.sequence for header in headers] == [1, 2, 3, 4, 5]
    assert len({header.batch_id for header in headers}) == 5


def test_the_same_names_give_the_same_window(home: DeviceHome) -> None:
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=Clock())
        first, second, other = (
            telemetry.window(model="m", version=version, variant="fp32", engine="onnx")
            for version in (1, 1, 2)
        )
    assert first is second is not other


def test_flushing_nothing_writes_nothing(home: DeviceHome) -> None:
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=Clock())
        telemetry.window(model="m", version=1, variant="fp32", engine="onnx")
        assert telemetry.flush() == 0
        assert spool.depth().batches == 0


def test_on_a_full_disk_windows_wait_in_memory(home: DeviceHome) -> None:
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=Clock())
        window = telemetry.window(model="m", version=1, variant="fp32", engine="onnx")
        pages = spool._connection.execute("PRAGMA page_count").fetchone()[0]
        spool._connection.execute(f"PRAGMA max_page_count = {pages}")
        for number in range(MAX_LABELS):  # Names that nothing makes shorter.
            window.observe(1000, number, 1.0)
            window.count(hashlib.sha256(bytes([number & 255, number >> 8])).hexdigest()[:40])
        with pytest.raises(StorageError, match="No space"):
            telemetry.flush()
        for _ in range(500):  # More often than windows could be kept one by one.
            window.observe(1000, 0, 1.0)
            with pytest.raises(StorageError, match="No space"):
                telemetry.flush()
        spool._connection.execute("PRAGMA max_page_count = 100000")
        window.observe(1000, 0, 1.0)
        assert telemetry.flush() == 2
        closed = [window for _, batch in opened(spool) for window in of_models(batch)]
    assert [window.counters["predictions"] for window in closed] == [MAX_LABELS, 501]


def test_many_windows_are_spread_over_batches_that_the_gateway_takes(home: DeviceHome) -> None:
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=Clock())
        for version in range(40):
            window = telemetry.window(model="m", version=version, variant="fp32", engine="onnx")
            for label in range(MAX_LABELS):
                window.observe(1000 * label, label, 0.5)
        assert telemetry.flush() > 1
        batches = spool.oldest(max_batches=1000, max_bytes=10**9)
        assert max(len(batch.ciphertext) for batch in batches) <= MAX_BATCH_BYTES + 2000
        assert sum(len(of_models(batch)) for _, batch in opened(spool)) == 40


def test_a_rotated_telemetry_key_is_used_from_the_next_batch_on(home: DeviceHome) -> None:
    other = SealPrivateKey(bytes(32))
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=Clock())
        window = telemetry.window(model="m", version=1, variant="fp32", engine="onnx")
        home.write_telemetry_key(other.public)
        window.observe(1000, 0, 1.0)
        telemetry.flush()
        [batch] = spool.oldest(max_batches=9, max_bytes=10**6)
    assert pb.BatchHeader.FromString(batch.header).key_id == other.public.key_id
    assert open_sealed(other, batch.header, batch.ciphertext)

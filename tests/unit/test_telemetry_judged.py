"""Labels that arrive are counted by how sure the model was, in few bytes; and what reports cost is reported.

Laws: right and wrong add up to ``feedback``; what hides confidences hides these; a sealed batch with them stays under
two kilobytes; nothing is sent for the spool's sake alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from umbel._home.directory import DeviceHome, Identity
from umbel._telemetry.scope import Scope
from umbel._telemetry.spool import Spool
from umbel._telemetry.telemetry import Telemetry
from umbel._telemetry.window import PredictionWindow
from umbel_proto.histogram import CONFIDENCE, Histogram
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.report import open_batch
from umbel_proto.seal import SealPrivateKey
from umbel_proto.wire import telemetry_pb2 as pb

KEY = SealPrivateKey(bytes(range(32)))


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    made = DeviceHome(tmp_path)
    made.make()
    made.write_identity(Identity(FleetId("garden"), DeviceId("d1"), "127.0.0.1:1", ""))
    made.write_telemetry_key(KEY.public)
    return made


def window(scope: Scope | None = None) -> PredictionWindow:
    made = PredictionWindow(model="digits", version=3, variant="none", engine="none", now_s=0.0)
    if scope is not None:
        made.mind(scope)
    return made


def told(message: pb.Window | None) -> tuple[dict[str, int], dict[str, Histogram]]:
    assert message is not None
    return dict(message.counters), {each.name: Histogram.from_wire(each) for each in message.histograms}


def opened(spool: Spool) -> list[list[pb.Window]]:
    return [
        list(open_batch(KEY, each.header, each.ciphertext).windows)
        for each in spool.oldest(max_batches=100, max_bytes=10**9)
    ]


def test_labels_that_arrive_are_counted_by_how_sure_the_model_was_and_whether_it_was_right() -> None:
    made = window()
    for agreed, confidence in ((True, 0.9), (True, 0.6), (False, 0.6), (False, None)):
        made.judged(agreed=agreed, confidence=confidence)
    counters, histograms = told(made.take(1.0))
    assert counters == {"feedback": 4, "feedback.agreed": 2}
    assert histograms == {
        "feedback.right": Histogram.empty("feedback.right", CONFIDENCE).observe([0.9, 0.6]),
        "feedback.wrong": Histogram.empty("feedback.wrong", CONFIDENCE).observe([0.6]),
    }
    assert made.take(2.0) is None


def test_what_hides_confidences_hides_those_of_labeled_predictions() -> None:
    made = window(Scope(2, {"confidence": 0.5}))
    for _ in range(2000):
        made.judged(agreed=True, confidence=0.999)
    _, histograms = told(made.take(1.0))
    right = histograms["feedback.right"]
    assert (right.count, right.sum, right.epsilon) == (2000, 0.0, 0.5)
    assert right.counts[-1] < 1000  # In its own cell an event is told with a chance of 6.7 %.


def test_labels_of_every_confidence_take_four_hundred_bytes_however_many_arrive() -> None:
    made, rng = window(), np.random.default_rng(1)
    for number, confidence in enumerate(rng.random(20_000).tolist()):
        made.judged(agreed=number % 3 > 0, confidence=confidence)
    for name in ("user", "expert", "sensor", "outcome", "rule", "other"):
        made.count(f"feedback.from.{name}", 3000)
    message = made.take(1.0)
    assert message is not None
    assert message.ByteSize() <= 400


def test_a_sealed_batch_of_a_busy_minute_with_labels_is_under_two_kilobytes(home: DeviceHome) -> None:
    rng = np.random.default_rng(1)
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=lambda: 1.8e9)
        made = telemetry.window(model="digits", version=30, variant="int8", engine="onnx")
        labels, sure = rng.integers(0, 6, 250).tolist(), rng.random(250).tolist()
        made.observe_batch(10**6, labels, sure, rng.random((1, 64)))
        judged = telemetry.window(model="digits", version=30, variant="none", engine="none")
        for number, confidence in enumerate(sure[:20]):
            judged.judged(agreed=number % 3 > 0, confidence=confidence)
        judged.count("feedback.from.user", 20)
        telemetry.flush()
        [sealed] = spool.oldest(max_batches=9, max_bytes=10**9)
    assert sealed.size <= 2048


def test_a_report_tells_how_long_the_oldest_batch_has_waited(home: DeviceHome) -> None:
    now_s = 1.8e9
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=lambda: now_s)
        for wait_s in (0, 60, 540, -5000):  # At last somebody sets the clock back.
            now_s += wait_s
            telemetry.count("purchase")
            telemetry.flush()
        ages = [told(windows[0])[1].get("spool_age_s") for windows in opened(spool)]
        assert [each and each.sum for each in ages] == [None, 60, 600, 0]
        assert all(sum(each.counts) == 1 for each in ages if each)
        for batch in spool.oldest(max_batches=9, max_bytes=10**9):
            spool.acknowledge([batch.batch_id], now_s=now_s)
        telemetry.count("purchase")
        telemetry.flush()
        [alone] = opened(spool)
        assert "spool_age_s" not in told(alone[0])[1], "nothing waited"


def test_a_report_tells_how_much_waits_and_what_the_last_one_took(home: DeviceHome) -> None:
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=lambda: 1.8e9)
        for _ in range(3):
            telemetry.count("purchase")
            telemetry.flush()
        sizes = [each.size for each in spool.oldest(max_batches=9, max_bytes=10**9)]
        batches = [told(windows[0]) for windows in opened(spool)]
        assert [counters.get("report.bytes") for counters, _ in batches] == [None, *sizes[:-1]]
        assert [counters.get("spool.waiting") for counters, _ in batches] == [None, 1, 2]
        # What was sealed last is told with the next thing that happens, and never for its own sake.
        assert telemetry.flush() == 0
        telemetry.count("purchase")
        telemetry.flush()
        assert told(opened(spool)[-1][0])[0]["report.bytes"] == sizes[-1]

"""What /metrics tells is pushed to a receiver of OTLP, over TLS and no other way."""

from __future__ import annotations

import gzip
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from alert_receivers import Received, https_receiver
from live_fleet import umbel
from service_fleet import make_fleet
from umbel_proto.errors import StorageError, UnavailableError, UsageError
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.settings import FleetSettings
from umbel_server.services.metrics import registry_of
from umbel_server.services.otlp import Pusher, read_headers
from umbel_server.services.otlp_settings import OtlpSettings
from umbel_server.services.vitals import Vitals
from umbel_server.store.store import Store

COUNT = """
import sys
from pathlib import Path
from umbel_server.services.metrics import count_into, meters
count_into(Path(sys.argv[1]))
for seconds in (0.003, 0.003, 0.2, 60.0):
    meters().answered("Send", "OK", seconds)
meters().answered("Send", "UNAVAILABLE", 0.01)
meters().stored(7, 2)
"""
MISSING = """
import sys
sys.modules["opentelemetry"] = None
from umbel.cli import main
sys.argv[1:] = ["serve", "otlp", *sys.argv[1:]]
main()
"""


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDir:
    made = make_fleet(tmp_path / "garden")
    made.metrics.mkdir()
    return made


@pytest.fixture
def store(fleet: FleetDir) -> Iterator[Store]:
    with fleet.open_store() as opened:
        yield opened


@pytest.fixture
def received(fleet: FleetDir) -> Iterator[Received]:
    with https_receiver(fleet) as receiver:
        yield receiver


def told(fleet: FleetDir, received: Received, **changes: Any) -> FleetDir:
    """The fleet, which is to tell the receiver."""
    to = OtlpSettings(**{"endpoint": received.url, "ca_file": str(fleet.ca_pem), "interval_s": 1, **changes})
    settings = replace(fleet.settings, otlp=to)
    (fleet.path / "fleet.toml").write_text(settings.to_toml())
    return FleetDir.open(fleet.path)


def counted(fleet: FleetDir) -> None:
    subprocess.run([sys.executable, "-c", COUNT, str(fleet.metrics)], check=True)


def pushed(received: Received, which: int = -1) -> pb.ResourceMetrics:
    path, headers, body = received.requests[which]
    assert path == "/v1/metrics"
    assert headers["Content-Type"] == "application/x-protobuf"
    assert headers["Content-Encoding"] == "gzip"
    (found,) = service.ExportMetricsServiceRequest.FromString(gzip.decompress(body)).resource_metrics
    return found


def attributes(of: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in of}


def samples(metrics: pb.ResourceMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What was pushed as a Prometheus would write it."""
    found = {}
    for metric in metrics.scope_metrics[0].metrics:
        kind = str(metric.WhichOneof("data"))
        for point in getattr(metric, kind).data_points:
            labels = attributes(point.attributes)
            if kind != "histogram":
                found[metric.name, tuple(sorted(labels.items()))] = point.as_double
                continue
            below = 0
            for edge, count in zip([*point.explicit_bounds, float("inf")], point.bucket_counts, strict=True):
                below += count
                key = tuple(sorted({**labels, "le": "+Inf" if edge == float("inf") else f"{edge}"}.items()))
                found[f"{metric.name}_bucket", key] = below
            found[f"{metric.name}_count", tuple(sorted(labels.items()))] = point.count
            found[f"{metric.name}_sum", tuple(sorted(labels.items()))] = point.sum
    return found


def test_what_is_pushed_is_what_metrics_tells(fleet: FleetDir, store: Store, received: Received) -> None:
    counted(fleet)
    fleet = told(fleet, received)
    assert Pusher(fleet, store, {}).push() == 0
    text = generate_latest(registry_of(fleet.metrics, Vitals(fleet, store))).decode()
    shown = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples(pushed(received)) == pytest.approx(shown)
    assert shown["umbel_gateway_calls_total", (("code", "OK"), ("method", "Send"))] == 4
    assert shown["umbel_gateway_call_seconds_bucket", (("le", "0.005"), ("method", "Send"))] == 2


def test_counters_are_sums_and_gauges_are_not(fleet: FleetDir, store: Store, received: Received) -> None:
    counted(fleet)
    Pusher(told(fleet, received), store, {}).push()
    found = pushed(received)
    named = {each.name: each for each in found.scope_metrics[0].metrics}
    calls, seconds, up = (
        named[each] for each in ("umbel_gateway_calls_total", "umbel_gateway_call_seconds", "umbel_store_up")
    )
    assert calls.sum.is_monotonic
    assert calls.sum.aggregation_temporality == pb.AGGREGATION_TEMPORALITY_CUMULATIVE
    assert (seconds.unit, attributes(seconds.metadata)) == ("s", {"prometheus.type": "histogram"})
    assert up.gauge.data_points[0].start_time_unix_nano == 0
    assert attributes(found.resource.attributes)["service.name"] == "umbel"
    assert attributes(found.resource.attributes)["service.instance.id"].startswith("garden@")


def test_sums_have_one_beginning_until_something_counted_is_forgotten(
    fleet: FleetDir, store: Store, received: Received
) -> None:
    def begun() -> tuple[int, int]:
        pusher.push()
        named = {each.name: each for each in pushed(received).scope_metrics[0].metrics}
        point = named["umbel_gateway_batches_total"].sum.data_points[0]
        return point.start_time_unix_nano, point.time_unix_nano

    counted(fleet)
    pusher = Pusher(told(fleet, received), store, {})
    first, at = begun()
    assert first == at
    counted(fleet)
    second, later = begun()
    assert second == first < later
    next(iter(sorted(fleet.metrics.glob("counter_*.db")))).unlink()
    third, last = begun()
    assert third == last > later


@pytest.mark.parametrize("where", ["headers_file", "headers_env"])
def test_headers_are_sent_and_never_logged(
    fleet: FleetDir, store: Store, received: Received, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    lines = "Authorization: Bearer hush-hush\n\nX-Scope-OrgID: garden\n"
    (fleet.path / "collector").write_text(lines)
    pusher = Pusher(told(fleet, received, **{where: "collector"}), store, {"collector": lines})
    pusher.push()
    sent = received.requests[-1][1]
    assert (sent["Authorization"], sent["X-Scope-OrgID"]) == ("Bearer hush-hush", "garden")
    received.answers = [500]
    with pytest.raises(UnavailableError, match="500") as failed:
        pusher.push()
    assert "hush" not in caplog.text + str(failed.value)


def test_a_receiver_that_the_certificates_do_not_vouch_for_is_told_nothing(
    fleet: FleetDir, store: Store, received: Received
) -> None:
    with pytest.raises(UnavailableError, match="certificate"):
        Pusher(told(fleet, received, ca_file=""), store, {}).push()
    assert received.requests == []


def test_a_redirect_is_not_followed(fleet: FleetDir, store: Store, received: Received) -> None:
    received.answers = [307]
    with pytest.raises(UnavailableError, match="307"):
        Pusher(told(fleet, received), store, {}).push()
    assert len(received.requests) == 1


def test_a_receiver_that_is_busy_is_left_alone_for_as_long_as_it_says(
    fleet: FleetDir, store: Store, received: Received
) -> None:
    pusher = Pusher(told(fleet, received), store, {})
    for said, pause_s in (("120", 120), ("99999999", 3600), ("soon", 0)):
        received.answers, received.headers = [429], {"Retry-After": said}
        assert pusher.push() == pause_s


def test_points_that_the_receiver_left_out_are_logged(
    fleet: FleetDir, store: Store, received: Received, caplog: pytest.LogCaptureFixture
) -> None:
    answer = service.ExportMetricsServiceResponse()
    answer.partial_success.rejected_data_points = 3
    answer.partial_success.error_message = "too\nmany"
    received.body = answer.SerializeToString()
    Pusher(told(fleet, received), store, {}).push()
    assert "left out 3 points: too many" in caplog.text
    received.body = b"x" * 70_000
    with pytest.raises(UnavailableError, match="65536"):
        Pusher(told(fleet, received), store, {}).push()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"endpoint": "http://127.0.0.1:4318"}, "https"),
        ({"endpoint": "https://user:secret@collector"}, "user or password"),
        ({"endpoint": "https://collector:4318/v1/metrics"}, "end before /v1/metrics"),
        ({"headers_file": "a", "headers_env": "b"}, "keep one"),
        ({"interval_s": 0}, "1 to 3600"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        OtlpSettings(**settings)


@pytest.mark.parametrize(
    "line", ["hush", "hush: ", "a b: hush", "x: h\x00ush", "Content-Length: 3", "x: hüsh"]
)
def test_a_line_that_is_no_header_is_refused_by_its_number(line: str) -> None:
    with pytest.raises(UsageError, match="Line 2") as refused:
        read_headers(f"a: b\n{line}\n")
    assert "sh" not in str(refused.value)


def test_a_file_that_is_not_there_is_named_before_anything_is_pushed(
    fleet: FleetDir, store: Store, received: Received
) -> None:
    for settings in ({"headers_file": "nowhere"}, {"ca_file": "nowhere"}):
        with pytest.raises(StorageError, match="nowhere"):
            Pusher(told(fleet, received, **settings), store, {})


def test_the_service_pushes_until_it_is_told_to_stop(fleet: FleetDir, received: Received) -> None:
    received.answers = [503, 500]
    words = umbel("serve", "otlp", "--fleet", told(fleet, received).path)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready otlp\n"
        until_s = time.monotonic() + 60
        while len(received.requests) < 4 and time.monotonic() < until_s:
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=30)
    assert (running.returncode, len(received.requests) >= 4) == (0, True), said
    assert said.count("nothing was pushed") == 1
    assert "umbel_store_up" in {each.name for each in pushed(received).scope_metrics[0].metrics}


def test_without_the_extra_a_sentence_names_it(fleet: FleetDir, received: Received) -> None:
    path = told(fleet, received).path
    done = subprocess.run(
        [sys.executable, "-c", MISSING, "--fleet", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == UsageError.exit_code
    assert done.stderr == (
        "Error: Pushing metrics to OpenTelemetry needs an optional part of umbel: run  pip install 'umbel[otlp]'.\n"
    )


def test_the_table_is_read_back_as_it_was_written(fleet: FleetDir) -> None:
    settings = replace(fleet.settings, otlp=OtlpSettings("https://collector:4318", headers_env="COLLECTOR"))
    assert FleetSettings.from_toml(settings.to_toml()) == settings

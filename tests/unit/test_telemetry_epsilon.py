"""Where a package states an epsilon, no event of that task leaves the device as it was; without one, nothing changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import umbel
from model_packages import RELEASE, digits, first, opened, resigned, shelf
from regression_tasks import DIABETES
from umbel._home.directory import DeviceHome, Identity
from umbel._rounds.ledger import Ledger
from umbel._telemetry.scope import MAX_LABELS, NOTHING, Scope
from umbel._telemetry.spool import Spool
from umbel._telemetry.telemetry import Telemetry
from umbel._telemetry.window import PredictionWindow
from umbel_models.pack import build
from umbel_models.show import lines
from umbel_models.tasks.digits.task import DIGITS
from umbel_proto.credentials import FleetPolicy, sign_policy
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.histogram import Histogram
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.keys import SigningKey
from umbel_proto.manifest_json import parse_manifest
from umbel_proto.privacy.response import Response
from umbel_proto.report import open_batch
from umbel_proto.seal import SealPrivateKey
from umbel_proto.wire import telemetry_pb2 as pb

KEY = SealPrivateKey(bytes(range(32)))
ALL = {"labels": 1.0, "confidence": 2.0, "latency_us": 4.0, "input": 0.5}


def stating(**epsilon: Any) -> bytes:
    return resigned(first(), lambda body: body.update(telemetry_epsilon=epsilon))


def new_window(scope: Scope = NOTHING) -> PredictionWindow:
    window = PredictionWindow(model="digits", version=1, variant="fp32", engine="onnx", now_s=0.0)
    window.mind(scope)
    return window


def filled(window: PredictionWindow, often: int, label: int = 3) -> pb.Window:
    window.observe_batch(90_000, [label] * often, [0.9] * often, np.full((1, 64), 2.0))
    taken = window.take(1.0)
    assert taken is not None
    return taken


def histograms(window: pb.Window) -> dict[str, Histogram]:
    return {each.name: Histogram.from_wire(each) for each in window.histograms}


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    home, authority = DeviceHome(tmp_path), SigningKey.generate()
    home.make()
    policy = FleetPolicy(FleetId("garden"), 0.1, 0.2, True, 3, 0.0, 8.0, 1e-6)
    home.write(home.authority_key, authority.public.raw, secret=False)
    home.write(home.policy, sign_policy(authority, policy), secret=False)
    home.write(home.release_key, RELEASE.public.raw, secret=False)
    Ledger.create(home.ledger).close()
    home.write_identity(Identity(FleetId("garden"), DeviceId("rose"), "127.0.0.1:1", ""))
    home.write_telemetry_key(KEY.public)
    return home


def reported(home: DeviceHome) -> pb.Window:
    """Predict 50 digits on a device, and return the window it seals of them."""
    with umbel.Device.open(home.path, online=False) as device:
        model = device.model("digits")
        for x in digits().train.x[:50]:
            model.predict(x)
    with Spool(home.spool) as spool:
        [sealed] = spool.oldest(max_batches=9, max_bytes=10**9)
    windows = open_batch(KEY, sealed.header, sealed.ciphertext).windows
    [window] = [each for each in windows if each.counters["predictions"]]
    return window


def test_a_device_reports_what_its_package_wants_randomized_in_no_other_way(home: DeviceHome) -> None:
    shelf(home.path).install(stating(**ALL))
    window = reported(home)
    found = histograms(window)
    assert {name: each.epsilon for name, each in found.items()} == {
        "label": 1.0, "confidence": 2.0, "latency_us": 4.0, "input": 0.5, "input_mean": 0.5,
    }  # fmt: skip
    assert not any(name.startswith("label.") for name in window.counters)
    assert all(each.sum == 0 for each in found.values())
    assert found["label"].count == found["confidence"].count == window.counters["predictions"] == 50
    assert len(found["label"].counts) == 10


def test_what_has_no_epsilon_is_reported_as_it_was_counted(home: DeviceHome) -> None:
    shelf(home.path).install(stating(labels=1.0))
    window = reported(home)
    assert [name for name, each in histograms(window).items() if each.epsilon is not None] == ["label"]
    assert all(each.sum for name, each in histograms(window).items() if name != "label")


def test_a_package_that_states_none_is_reported_with_the_same_bytes_as_ever(home: DeviceHome) -> None:
    assert Scope.of(opened(first())).epsilon == {}
    one, other = filled(new_window(), 500), filled(new_window(Scope.of(opened(first()))), 500)
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    assert one.counters["label.3"] == 500
    shelf(home.path).install(first())
    assert all(not each.epsilon for each in reported(home).histograms)


def test_whatever_window_of_a_version_is_asked_for_and_when_its_events_are_randomized(
    home: DeviceHome,
) -> None:
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=lambda: 1000.0)

        def count(version: int, variant: str, scope: Scope | None = None) -> None:
            window = telemetry.window(model="m", version=version, variant=variant, engine="onnx", scope=scope)
            window.observe(1000, 1, 0.5, None)

        count(1, "early")
        count(1, "fp32", Scope(3, {"labels": 1.0}))
        count(1, "quantized-here")
        count(2, "fp32")
        telemetry.flush()
        [sealed] = spool.oldest(max_batches=9, max_bytes=10**9)
    windows = open_batch(KEY, sealed.header, sealed.ciphertext).windows
    told = {(each.version, each.variant): "label" in histograms(each) for each in windows if each.model}
    assert told == {(1, "early"): True, (1, "fp32"): True, (1, "quantized-here"): True, (2, "fp32"): False}
    assert all(("label.1" in each.counters) == (each.version == 2) for each in windows if each.model)


def test_labels_move_to_all_classes_with_the_chances_that_are_stated() -> None:
    # Noise is from the operating system: a false alarm in one of a million runs.
    response, often = Response(10, 1.0), 50_000
    told = histograms(filled(new_window(Scope(10, {"labels": 1.0})), often))["label"].counts
    expected = np.full(10, response.other / 2**64)
    expected[3] = response.keep / 2**64
    assert stats.chisquare(told, often * expected).pvalue > 1e-6


def test_every_window_is_randomized_anew() -> None:
    window = new_window(Scope(10, {"labels": 0.1}))
    # Of 2,000 events equal counts twice are less likely than 1 in 1e15.
    assert histograms(filled(window, 2000)) != histograms(filled(window, 2000))


def test_which_labels_came_first_does_not_say_which_cell_is_theirs() -> None:
    window = new_window(Scope(MAX_LABELS + 500, {"labels": 20.0}))
    for label in (*range(MAX_LABELS + 499, MAX_LABELS - 1, -1), 7):
        window.observe(1000, label, 1.0)
    taken = window.take(1.0)
    assert taken is not None
    told = histograms(taken)["label"]
    assert len(told.counts) == MAX_LABELS + 1
    # At epsilon 20 one of 501 events moves with probability 0.001.
    assert (told.counts[7], told.counts[-1]) == pytest.approx((1, 500), abs=3)
    assert told.count == 501


def test_a_model_of_two_classes_and_a_regression_are_randomized_too() -> None:
    assert len(histograms(filled(new_window(Scope(2, {"labels": 1.0})), 10, label=1))["label"].counts) == 2
    window = new_window(Scope(0, {"latency_us": 1.0}))
    window.observe(1000, None, None)
    taken = window.take(1.0)
    assert taken is not None
    assert [(each.name, each.epsilon) for each in taken.histograms] == [("latency_us", 1.0)]


def test_a_manifest_keeps_its_epsilons() -> None:
    made = opened(stating(**ALL)).manifest
    assert made.telemetry_epsilon == ALL
    assert parse_manifest(made.to_json()) == made
    assert "telemetry_epsilon" not in json.loads(opened(first()).manifest.to_json())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda body: body.update(telemetry_epsilon={}), "none of them"),
        (lambda body: body.update(telemetry_epsilon={"label": 1.0}), "no telemetry task 'label'"),
        (lambda body: body.update(telemetry_epsilon={"labels": 1}), "an epsilon is int"),
        (lambda body: body.update(telemetry_epsilon={"labels": 0.0}), r"0\.01 to 20"),
        (lambda body: body.update(telemetry_epsilon={"input": 21.0}), r"0\.01 to 20"),
        (lambda body: body.update(telemetry_epsilon=1.0), "telemetry_epsilon"),
    ],
)
def test_epsilons_are_read_strictly(change: Callable[[dict[str, Any]], object], sentence: str) -> None:
    with pytest.raises(PackageError, match=sentence):
        opened(resigned(first(), lambda body: change(body) and None))


def test_a_task_states_an_epsilon_and_who_reads_the_package_sees_it() -> None:
    task = replace(DIGITS, telemetry_epsilon={"labels": 2.0, "input": 0.5})
    package = opened(build(task, key=RELEASE, calibration=DIGITS.data().calibration.x))
    assert package.manifest.telemetry_epsilon == {"labels": 2.0, "input": 0.5}
    text = "\n".join(lines(package.manifest, None, size=1, checked=True))
    assert "randomized: input with epsilon 0.5, labels with epsilon 2 an event" in text
    with pytest.raises(UsageError, match=r"no telemetry task 'label'.*labels, confidence"):
        replace(DIGITS, telemetry_epsilon={"label": 2.0})
    with pytest.raises(UsageError, match=r"'labels'.*latency_us, input"):
        replace(DIABETES, telemetry_epsilon={"labels": 2.0})


def test_a_device_says_in_plain_words_what_is_randomized_and_that_many_events_are_hidden_less(
    home: DeviceHome,
) -> None:
    with umbel.Device.open(home.path, online=False) as device:
        assert "randomize" not in str(device.privacy)
        shelf(home.path).install(first())
        assert "randomize" not in str(device.privacy)
        shelf(home.path).install(
            resigned(stating(labels=1.0, input=0.5), lambda body: body.update(version=2))
        )
        text = str(device.privacy)
    assert (
        "Reports of model digits randomize each label (epsilon 1), each value of an input (epsilon 0.5)"
        in text
    )
    # e / (1 + e) = 0.7311
    assert "at most 73.2 % sure" in text
    assert "n of them cost up to n times the epsilon" in text

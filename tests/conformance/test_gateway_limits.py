"""What one device may ask of a gateway: so much and no more, whoever else calls."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service_fleet import PlainDevice, make_fleet, running
from umbel_proto.ids import DeviceId
from umbel_server.fleet.layout import FleetDir
from umbel_server.gateway import allowance
from umbel_server.gateway.allowance import Allowance, TooOftenError
from umbel_server.gateway.rpc import RETRY_AFTER
from umbel_server.gateway.settings import GatewaySettings

ROSE, TULIP = DeviceId("rose"), DeviceId("tulip")


class Stopwatch:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def passes(bucket: Allowance, device: DeviceId) -> bool:
    try:
        bucket.take(device)
    except TooOftenError:
        return False
    return True


@given(
    st.lists(st.integers(0, 64), min_size=1, max_size=60),
    st.sampled_from([0.25, 1.0, 8.0]),
    st.integers(1, 5),
)
def test_no_stretch_of_time_sees_more_calls_than_the_burst_and_the_rate_allow(
    pauses: list[int], per_s: float, burst: int
) -> None:
    watch = Stopwatch()
    bucket = Allowance(per_s, burst, watch)
    passed: list[Fraction] = []
    for pause in pauses:
        watch.now_s += pause / 16
        if passes(bucket, ROSE):
            passed.append(Fraction(watch.now_s))
    for first, begin in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + Fraction(per_s) * (passed[last] - begin)


@given(st.sampled_from([0.25, 1.0, 8.0]), st.integers(1, 5))
def test_the_time_it_names_is_enough_and_no_less_would_be(per_s: float, burst: int) -> None:
    watch = Stopwatch()
    bucket = Allowance(per_s, burst, watch)
    assert [passes(bucket, ROSE) for _ in range(burst + 1)] == [True] * burst + [False]
    with pytest.raises(TooOftenError) as refused:
        bucket.take(ROSE)
    watch.now_s += refused.value.retry_after_s * 0.99
    assert not passes(bucket, ROSE)
    watch.now_s += refused.value.retry_after_s * 0.01 + 1e-9
    assert passes(bucket, ROSE)


def test_one_devices_calls_cost_another_nothing() -> None:
    bucket = Allowance(0.001, 1, Stopwatch())
    assert [passes(bucket, ROSE), passes(bucket, ROSE), passes(bucket, TULIP)] == [True, False, True]


def test_a_flood_of_names_takes_no_more_memory_than_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowance, "MOST_KEPT", 10)
    bucket = Allowance(0.001, 2, Stopwatch())
    for number in range(100):
        bucket.take(DeviceId(f"d{number}"))
    assert len(bucket._left) == 10


def limited(path: Path, **limits: float) -> FleetDir:
    made = make_fleet(path)
    settings = dataclasses.replace(made.settings, intake=GatewaySettings(**limits))  # type: ignore[arg-type]
    (made.path / "fleet.toml").write_text(settings.to_toml())
    return FleetDir.open(made.path)


def test_a_device_that_calls_too_often_is_told_when_to_call_again(tmp_path: Path) -> None:
    fleet = limited(tmp_path / "garden", calls_per_minute=0.5, burst=2)
    rose, tulip = PlainDevice(), PlainDevice()
    with running(fleet) as (_, store):
        rose.admit(fleet, store)
        tulip.admit(fleet, store)
        rose.upload(fleet)
        rose.check(fleet)
        with pytest.raises(grpc.RpcError) as refused:
            rose.upload(fleet, [rose.sealed(fleet)])
        tulip.upload(fleet)
        assert store.batches.deliveries() == ()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    waits_s = float(dict(refused.value.trailing_metadata())[RETRY_AFTER])
    assert waits_s == math.ceil(waits_s)
    assert 60 < waits_s <= 120

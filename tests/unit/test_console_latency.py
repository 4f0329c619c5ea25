"""A model's page tells how fast its versions are on each class of devices, as the screen of performance does."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import pytest

from console_world import ConsoleWorld, console_world, text_of
from model_packages import RELEASE
from monitor_world import DAY_S
from registry_world import ANNA, World
from umbel_server.access.actor import Role
from umbel_server.console.range import Window
from umbel_server.console.screens.models import MOST_VERSIONS, Speed, used_most
from umbel_server.console.seen.latency import latencies
from umbel_server.console.seen.performance import performed
from umbel_server.console.seen.watched import Watched
from umbel_server.console.words import size
from umbel_server.registry.versions import describe
from umbel_server.store.registry import Line, version_of
from watch_seed import COUNT, watch

NEAR = 0.1
"""A figure is known to the width of a cell, a third; within one values are taken as evenly spread."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("latency")) as made:
        made.fleet.release_key.write_bytes(RELEASE.to_pem())
        made.fleet.release_pub.write_bytes(RELEASE.public.raw)
        registry = World(made.fleet, made.store, made.clock)
        describe(made.store, Line("digits", "anna", "reads digits"), ANNA)  # type: ignore[arg-type]
        registry.add(1)
        devices = watch(made)
        few = watch(made, publish=False, version=2, kind="porch")
        # Of the porch's devices only nine of one class are left.
        for name in few.names[9:]:
            made.store.devices.revoke(name, actor=ANNA, reason="gone")
        assert len(devices.names) == COUNT
        yield made


def test_each_class_has_the_median_and_the_95th_of_what_its_own_devices_told(world: ConsoleWorld) -> None:
    (told,) = latencies(world.fleet, world.store, "digits", (1,))
    by_name = {each.name: each for each in told.classes}
    assert set(by_name) == {"aarch64-4g-onnx", "x86_64-4g-onnx"}
    one = by_name["x86_64-4g-onnx"]
    # Its times are lognormal around e**6 microseconds, with deviation 0.3.
    assert one.quantiles["p50"] == pytest.approx(math.exp(6), rel=NEAR)
    assert one.quantiles["p95"] == pytest.approx(math.exp(6 + 0.3 * 1.645), rel=NEAR)
    assert by_name["aarch64-4g-onnx"].quantiles["p50"] > 2 * one.quantiles["p50"]
    assert one.devices == len(range(0, COUNT, 3))


def test_they_are_the_figures_of_the_screen_of_performance(world: ConsoleWorld) -> None:
    until_s = world.clock()
    watched = Watched((("digits", 1),), "digits", 1, Window("7d", until_s - 7 * DAY_S, until_s), 7)
    (told,) = latencies(world.fleet, world.store, "digits", (1,))
    there = performed(world.fleet, world.store, watched).classes
    assert [(each.name, each.devices, each.predictions, each.quantiles["p50"]) for each in told.classes] == [
        (each.name, each.devices, each.predictions, each.quantiles["p50"]) for each in there
    ]


def test_the_page_shows_them_with_the_size_of_each_form_and_hides_small_classes(world: ConsoleWorld) -> None:
    latencies_shown = {each.version: each for each in latencies(world.fleet, world.store, "digits", (2, 1))}
    assert all(0 < each.devices < 10 and not each.quantiles for each in latencies_shown[2].classes)
    viewer, give_up_s = world.signed_in(Role.VIEWER), time.monotonic() + 60
    while "being summed" in (page := viewer.get("/models/digits").text):  # As a browser asks again by itself.
        assert 'hx-select="#by-class"' in page
        assert time.monotonic() < give_up_s
        time.sleep(0.05)
    told = text_of(page)
    with world.store.database.read() as connection:
        version = version_of(connection, "digits", 1)
    assert version is not None
    assert f"1 fp32 onnx {size(version.variants['fp32']['bytes'])}".replace("\N{NO-BREAK SPACE}", " ") in told
    assert "2 fp32 onnx no data" in told
    assert "1 aarch64-4g-onnx" in told
    assert told.count("hidden for privacy (n < 10)") == len(latencies_shown[2].classes)


def test_who_may_not_read_telemetry_is_told_so_and_sees_no_class(world: ConsoleWorld) -> None:
    told = text_of(world.signed_in(Role.CI).get("/models/digits").text)
    assert "not allowed" in told
    assert "aarch64" not in told


def test_of_many_versions_those_are_shown_that_devices_use_most() -> None:
    told = [Speed(version, "fp32", "onnx", 1.0, 1.0, 100 - version, None) for version in range(1, 9)]
    told += [Speed(8, "int8", "onnx", 1.0, 1.0, 100, None)]
    assert used_most(told) == (8, 3, 2, 1)
    assert MOST_VERSIONS == 4

"""The most that a device says of a model in a minute is sealed in two kilobytes, however often it was asked."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from umbel._home.directory import DeviceHome, Identity
from umbel._telemetry.columns import LABEL_ROOM, ROOM, Columns, watch
from umbel._telemetry.scope import Scope
from umbel._telemetry.spool import Spool
from umbel._telemetry.telemetry import Telemetry
from umbel_models.task import find
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.report import open_batch
from umbel_proto.seal import SealPrivateKey

BENCH = Path(__file__).resolve().parents[1] / "bench"
KEY = SealPrivateKey(bytes(range(32)))
MILLION = 1_000_000


@pytest.fixture
def full_window(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.delitem(sys.modules, "full_window", raising=False)
    return importlib.import_module("full_window")


@pytest.mark.parametrize("name", ["activity", "breast-cancer", "credit", "digits"])
def test_the_fullest_window_of_a_million_predictions_is_sealed_in_two_kilobytes(
    name: str, tmp_path: Path, full_window: ModuleType
) -> None:
    task, home, rng = find(name), DeviceHome(tmp_path), np.random.default_rng(1)
    home.make()
    home.write_identity(
        Identity(FleetId("a-fleet-of-a-name"), DeviceId("a-device-of-a-name"), "127.0.0.1:1", "")
    )
    home.write_telemetry_key(KEY.public)
    [field] = task.contract.fields
    room = ROOM - LABEL_ROOM * len(task.labels)
    scope = Scope(len(task.labels), {}, Columns(watch(field, {}), room))
    parts = field.columns or (field,)
    low, high = [each.minimum for each in parts], [each.maximum for each in parts]
    x = rng.uniform(low, high, (50, *field.shape)).astype(np.float32)
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=lambda: 1.8e9)
        broken = full_window.columns(field)[:1]
        full_window.fill(telemetry, field, scope, x, model=name, predictions=MILLION, broken=broken)
        telemetry.flush()
        [sealed] = spool.oldest(max_batches=9, max_bytes=10**9)
    windows = open_batch(KEY, sealed.header, sealed.ciphertext).windows
    assert [each.counters["predictions"] for each in windows] == [MILLION, MILLION, 0, 0]
    told = {each.name for window in windows for each in window.histograms}
    assert told >= {"latency_us", "confidence", "feedback.right", "feedback.wrong", "memory_mib"}
    assert any(each.startswith("column." if field.columns else "input") for each in told)
    assert all(
        len([each for each in windows[0].counters if each.startswith("label.")]) == len(task.labels)
        for _ in windows
    )
    assert sealed.size <= 2048

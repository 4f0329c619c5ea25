"""telemetry.json: what devices report is read as it stands there, also of devices that know less than this umbel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from umbel_proto.errors import UsageError
from umbel_proto.histogram import SCALES
from umbel_proto.ids import DeviceId
from umbel_proto.report import COUNTERS, DICTIONARY, HISTOGRAMS, PACKED, PLAIN, unpack
from umbel_proto.wire import telemetry_pb2 as pb
from umbel_server.monitor.windows import read_report

KNOWN: dict[str, Any] = json.loads((Path(__file__).resolve().parent / "telemetry.json").read_text())


def batch(case: dict[str, Any]) -> pb.Batch:
    window = pb.Window.FromString(bytes.fromhex(case["bytes"]))
    return unpack(PLAIN, pb.Batch(windows=[window]).SerializeToString())


@pytest.mark.parametrize("case", KNOWN["Window"], ids=[case["comment"] for case in KNOWN["Window"]])
def test_a_window_is_read_as_the_specification_says(case: dict[str, Any]) -> None:
    if "why" in case:
        with pytest.raises(UsageError, match=case["why"]):
            read_report(DeviceId("d1"), batch(case))
        return
    [rollup] = read_report(DeviceId("d1"), batch(case)).windows
    assert (rollup.model, rollup.version, rollup.hour_s) == ("digits", 3, 1_800_000_000)
    assert rollup.counters == case["counters"]
    assert [
        {
            "name": each.name,
            "scale": next(number for number, edges in SCALES.items() if edges == each.edges),
            "counts": list(each.counts),
            "sum": each.sum,
            "epsilon": each.epsilon or 0.0,
        }
        for each in rollup.histograms.values()
    ] == case["histograms"]


@pytest.mark.parametrize("case", KNOWN["Packed"], ids=[case["comment"] for case in KNOWN["Packed"]])
def test_a_packed_batch_is_read_as_the_specification_says(case: dict[str, Any]) -> None:
    packed = bytes.fromhex(case["bytes"])
    if "why" in case:
        with pytest.raises(UsageError, match=case["why"]):
            unpack(PACKED, packed)
        return
    [window] = unpack(PACKED, packed).windows
    assert dict(window.counters) == case["counters"]
    assert [(each.name, each.sum) for each in window.histograms] == [
        tuple(each) for each in case["histograms"]
    ]


def test_places_and_words_that_are_on_the_wire_stay() -> None:
    assert {
        "counters": list(COUNTERS),
        "histograms": list(HISTOGRAMS),
        "dictionary": DICTIONARY.hex(),
    } == KNOWN["Names"]


def test_the_vectors_are_what_makes_them() -> None:
    from vectors.make import text_of
    from vectors.make_telemetry import vectors

    assert (Path(__file__).resolve().parent / "telemetry.json").read_text() == text_of(vectors())

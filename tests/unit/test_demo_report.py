"""The demo's last table has what was measured, and says what the package had not."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from umbel_server.demo.report import RoundFigures, Summary, show

WHOLE = Summary(
    accuracy={
        "before": 0.1, "after": 0.93, "devices": 0.9, "devices_error": 0.02, "plain_fedavg": 0.95, "central": 0.96,
        "fp32": 0.931, "int8": 0.928,
    },
    latency_us={"fp32": 12.0, "int8": 19.0},
    bytes={
        "model_fp32": 66_000, "model_int8": 24_000, "up_per_device_round": 28_000, "down_per_device_round": 57_000,
        "flower_fedavg_up_per_device_round": 55_000,
    },
    epsilon={"server": 40.0, "release": 40.0, "delta": 1e-5},
    cohort_for_epsilon_4=4321,
    reports={"dev-1": 2},
    seconds={"first_round": 18.0, "total": 90.0, "by_phase": {"train": 1.5}},
    rounds=8,
    dropped=("dev-3",),
    joined_late=("dev-8",),
    history=(RoundFigures(1, 0.5, 9.0, 7, 0),),
)  # fmt: skip


def shown(summary: Summary) -> str:
    out = io.StringIO()
    show(summary, Console(file=out, width=200))
    return out.getvalue()


def test_both_forms_of_a_model_stand_beside_one_another() -> None:
    said = shown(WHOLE)
    assert "int8 | fp32 on a device" in said
    assert "accuracy 0.928 | 0.931" in said
    assert "latency 19 | 12 us" in said
    assert "left out" not in said


def test_a_package_without_int8_says_so() -> None:
    def without(figures: dict[str, float], name: str) -> dict[str, float]:
        return {key: value for key, value in figures.items() if key != name}

    said = shown(
        replace(
            WHOLE,
            accuracy=without({**WHOLE.accuracy}, "int8"),
            latency_us=without({**WHOLE.latency_us}, "int8"),
            bytes=without({**WHOLE.bytes}, "model_int8"),
        )
    )
    assert "fp32 on a device" in said
    assert "int8 |" not in said
    assert "accuracy 0.931,  " in said
    assert "latency 12 us" in said
    assert "int8 was left out of the package" in said

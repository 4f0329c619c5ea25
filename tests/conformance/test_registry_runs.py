"""A version of a run: it holds what the run trained, and its evidence what the fleet's own records say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model_packages import RELEASE, digits, first, opened
from registry_world import ANNA, PIPELINE, World, make_world, package
from umbel_models.pack import repack
from umbel_proto.errors import RefusedError
from umbel_proto.ids import DeviceId, ModelName, RunId
from umbel_proto.update import write_update
from umbel_server.learning.plan import Privacy, RunPlan, Training
from umbel_server.learning.run import TRAINED
from umbel_server.registry.asking import request
from umbel_server.registry.versions import add
from umbel_server.store.runs import Participation, RoundRecord

RUN = RunId("run-1")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A run of two rounds, the second of them tried twice, that has finished."""
    made = make_world(tmp_path, tmp_path / "store.db")
    base = opened(first())
    made.fleet.package(bytes.fromhex(base.sha256)).write_bytes(first())
    plan = RunPlan(
        model=ModelName("digits"),
        version=1,
        package_sha256=base.sha256,
        rounds=2,
        devices=8,
        training=Training(),
        privacy=Privacy(clip=1.0, noise_multiplier=1.0, delta=1e-5),
    )
    runs = made.store.runs
    runs.create(RUN, ModelName("digits"), plan.to_json())
    for number, attempt, state in ((1, 1, "opened"), (2, 1, "aborted"), (2, 2, "opened")):
        runs.begin_round(RUN, number, attempt)
        figures = {"epsilon_server": float(number), "epsilon_release": float("inf"), "participations": number}
        parts = (Participation(DeviceId("rose"), "summed"),)
        runs.end_round(
            RoundRecord(RUN, number, attempt, state, 1.0, 2.0, "", figures, parts)  # type: ignore[arg-type]
        )
    runs.finish(RUN, "finished", "")
    (made.fleet.runs / RUN).mkdir()
    (made.fleet.runs / RUN / TRAINED).write_bytes(write_update(base, trained()))
    yield made
    made.store.close()


def trained() -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return (opened(first()).parameters() * np.float32(1.25)).astype(np.float32)


def packed(parameters: np.ndarray[tuple[int], np.dtype[np.float32]]) -> bytes:
    return repack(
        opened(first()),
        parameters,
        calibration=digits().calibration.x,
        version=2,
        key=RELEASE,
        lineage={"run": RUN, "rounds": 2, "epsilon_server": 1.5},
        held_out=digits().held_out,
    )


def test_a_version_of_a_run_has_its_rounds_and_its_ledger_in_the_evidence(world: World) -> None:
    add(world.fleet, world.store, package(1), PIPELINE)
    made = add(world.fleet, world.store, packed(trained()), PIPELINE, run=RUN)
    assert (made.run, made.rounds, made.parent, made.task) == (RUN, 2, 1, "digits")
    request(world.fleet, world.store, "digits", 2, ANNA, comment="trained")
    from umbel_server.registry.overview import detail, detail_text

    found = detail(world.fleet, world.store, "digits", 2)
    privacy = found.to_json()["requests"][0]["evidence"]["privacy"]
    # What the package claims is beside what the fleet has on record, and does not replace it.
    assert privacy["claimed"]["epsilon_server"] == "1.5"
    assert privacy["run"] == {
        "run": RUN,
        "state": "finished",
        "rounds": 2,
        "attempts": 3,
        "delta": 1e-5,
        "epsilon_server": 2.0,
        "epsilon_release": None,
        "participations": 2,
    }
    text = detail_text(found.to_json())
    assert "1.5  (as the package says)" in text
    assert "2.0  (by the fleet's records)" in text


def test_a_package_that_holds_something_else_is_not_of_the_run(world: World) -> None:
    other = trained()
    other[0] += np.float32(0.5)
    with pytest.raises(RefusedError, match="does not hold what run run-1 trained"):
        add(world.fleet, world.store, packed(other), PIPELINE, run=RUN)

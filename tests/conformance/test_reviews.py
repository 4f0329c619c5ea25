"""Reviews on a device of a real fleet: what waits is kept and decided on by hand, and only counts reach the fleet."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from model_packages import RELEASE, digits, first, opened, resigned
from service_fleet import ManualClock, make_fleet, running
from umbel import Device, Prediction
from umbel._commands.review import app
from umbel._fleet.enroll import enroll
from umbel._home.directory import DeviceHome
from umbel._privacy import account
from umbel._releases.shelf import Shelf
from umbel_proto.errors import UsageError
from umbel_server.fleet.invite import invite
from umbel_server.monitor.opener import Opener


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Any]:
    clock = ManualClock()
    fleet = make_fleet(tmp_path / "garden", clock=clock)
    fleet.release_key.write_bytes(RELEASE.to_pem())
    fleet.release_pub.write_bytes(RELEASE.public.raw)
    with running(fleet, clock=clock) as (_, store):
        yield fleet, store, clock, tmp_path


@pytest.fixture
def home(fleet: Any) -> DeviceHome:
    directory, store, clock, root = fleet
    home = DeviceHome(root / "d1")
    enroll(home, invite(directory, store).to_text(), name="d1", now_s=clock.now_s)
    # Before any training no answer is sure.
    Shelf(home.shelf, RELEASE.public).install(first())
    return home


def ask(device: Device, row: int) -> Prediction:
    said = device.model("digits").predict(digits().held_out.x[row])
    assert isinstance(said, Prediction)
    assert said.decision == "review"
    return said


def run(home: DeviceHome, *words: str) -> Any:
    result = CliRunner().invoke(app, [*words, "--home", str(home.path), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_only_counts_of_reviews_reach_the_fleet(fleet: Any, home: DeviceHome) -> None:
    directory, store, _, _ = fleet
    with Device.open(home.path, online=False) as device:
        first_said, second = ask(device, 0), ask(device, 1)
        model = device.model("digits")
        batch = model.predict(digits().held_out.x[2:5])
        assert isinstance(batch, list)
        model.review.resolve(first_said.id, (first_said.label + 1) % 10, by="Ada", why="a closed loop")
        model.review.override(second, 4, by="Ada", why="the law says so")
        given = model.feedback(batch[0].id, label=batch[0].label, source="user")
        assert (given.agreed, given.kept) == (True, True)
        assert [case.id for case in model.review.pending()] == [said.id for said in batch]
        np.testing.assert_array_equal(model.review.pending()[2].x, digits().held_out.x[4])
        device.sync()
    opener = Opener(store, directory.telemetry_private())
    while opener.run_once():
        pass
    counters: dict[str, int] = {}
    for rollup in store.rollups.all():
        for name, count in rollup.counters.items():
            counters[name] = counters.get(name, 0) + count
    assert {name: n for name, n in counters.items() if name.startswith(("review", "feedback"))} == {
        "review.asked": 5,
        "review.resolved": 1,
        "review.changed": 1,
        "review.overridden": 1,
        "feedback": 1,
        "feedback.agreed": 1,
        "feedback.from.user": 1,
    }
    [judged] = [
        each
        for rollup in store.rollups.all()
        for each in rollup.histograms.values()
        if "feedback" in each.name
    ]
    assert (judged.name, judged.count) == ("feedback.right", 1)
    assert judged.sum == pytest.approx(batch[0].confidence)


def test_what_waits_outlives_the_process_and_is_decided_on_by_command(home: DeviceHome) -> None:
    with Device.open(home.path, online=False) as device:
        ids = [ask(device, row).id for row in range(3)]
    listed = run(home, "list")
    assert [case["id"] for case in listed] == ids
    assert "with their examples, encrypted: 3 of model digits" in str(account(home))
    assert {case["model"] for case in listed} == {"digits"}
    shown = run(home, "show", ids[1])
    assert shown["x"] == digits().held_out.x[1].tolist()
    made = run(home, "resolve", ids[1], "7", "--by", "Ada")
    assert (made["label"], made["said"], made["by"], made["override"]) == (
        7,
        listed[1]["label"],
        "Ada",
        False,
    )
    run(home, "override", "digits", ids[0], "2", "--by", "Eve", "--why", "a form")
    assert [case["id"] for case in run(home, "list")] == [ids[2]]
    assert [(each["id"], each["by"]) for each in run(home, "list", "--decided")] == [
        (ids[1], "Ada"),
        (ids[0], "Eve"),
    ]
    for words in (
        ("show", ids[1]),
        ("resolve", ids[1], "7", "--by", "Ada"),
        ("resolve", ids[2], "eleven", "--by", "A"),
    ):
        with pytest.raises(UsageError, match=r"umbel review list|choose one of"):
            run(home, *words)


def test_tables_are_for_people(home: DeviceHome) -> None:
    with Device.open(home.path, online=False) as device:
        said = ask(device, 0)
    for words in (["list"], ["show", said.id], ["list", "--decided"]):
        result = CliRunner().invoke(app, [*words, "--home", str(home.path)], catch_exceptions=False)
        assert result.exit_code == 0
        assert (said.id in result.output) == (words[-1] != "--decided")
    made = CliRunner().invoke(app, ["resolve", said.id, "7", "--by", "Ada", "--home", str(home.path)])
    assert made.output == f"{said.id} of digits: 7, by Ada.\n"


def test_a_flagged_input_is_reviewed_however_sure_the_model_is(home: DeviceHome) -> None:
    def with_flags(body: dict[str, Any]) -> None:
        body["version"] = 2
        body["decision_threshold"] = 0.0
        body["contract"][0] |= {"action": "flag", "max_age_s": 5.0, "stale": "flag", "columns": []}

    Shelf(home.shelf, RELEASE.public).install(resigned(first(), with_flags))
    with Device.open(home.path, online=False, clock=lambda: 1.8e9) as device:
        model = device.model("digits")
        odd = np.full((1, 8, 8), 17.0, np.float32)
        answers = [
            model.predict(digits().held_out.x[0], at=1.8e9 - 1),
            model.predict(odd, at=1.8e9),
            model.predict(digits().held_out.x[0], at=1.8e9 - 60),
        ]
        assert [answer.decision for answer in answers if isinstance(answer, Prediction)] == [
            "automatic",
            "review",
            "review",
        ]
        with pytest.raises(UsageError, match="say when it was measured"):
            model.predict(digits().held_out.x[0])
        np.testing.assert_array_equal(model.review.pending()[0].x, odd)
        window = device._telemetry.window(
            model="digits", version=2, variant=model.variant, engine=model.engine
        )
        counted = window.take(1.8e9)
    assert counted is not None
    assert {name: n for name, n in counted.counters.items() if name.startswith("contract")} == {
        "contract.x.above": 64,
        "contract.x.stale": 2,
    }


def test_nothing_of_an_example_is_in_the_clear_on_disk(home: DeviceHome) -> None:
    with Device.open(home.path, online=False) as device:
        ask(device, 0)
    secret = digits().held_out.x[0].tobytes()[64:128]
    assert len(set(secret)) > 4
    held = [Path(folder, name).read_bytes() for folder, _, names in os.walk(home.path) for name in names]
    assert any(b"digits" in raw for raw in held)
    assert not any(secret in raw for raw in held)


def test_a_model_without_a_device_says_where_reviews_are() -> None:
    from umbel._predict.model import Model
    from umbel.engines import load_engine

    model = Model(opened(first()), load_engine(opened(first()), "fp32"))
    with pytest.raises(UsageError, match="only models of a device have reviews"):
        _ = model.review

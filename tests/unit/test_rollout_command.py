"""``umbel rollout``: what people and programs are told, and what needs a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from rollout_world import World
from service_fleet import ManualClock, make_fleet
from umbel_proto.errors import RefusedError, UsageError
from umbel_server.rollouts.command import app

Run = Callable[..., Result]


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """Forty devices with digits 2, of which 3 is released and held back."""
    made = make_fleet(tmp_path / "garden")
    with made.open_store() as store:
        World.with_candidate(store, ManualClock())
    return made.path


@pytest.fixture
def run(fleet: Path) -> Run:
    def command(*words: object) -> Result:
        found = CliRunner().invoke(app, [*map(str, words), "--fleet", str(fleet)])
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        assert found.exit_code == 0, found.output
        return found

    return command


def test_a_rollout_from_its_plan_to_its_end(run: Run, tmp_path: Path) -> None:
    dry = json.loads(run("plan", "digits", 3, "--percent", 50, "--percent", 100, "--json").output)
    assert (dry["rollout"], [step["name"] for step in dry["steps"]]) == (
        "digits-3",
        ["50-percent", "100-percent"],
    )
    assert sum(len(step["devices"]) for step in dry["steps"]) == 40
    assert dry["doubt"] is None

    begun = run("start", "digits", 3, "--percent", 50, "--percent", 100, "--hours", 2, "--reason", "autumn")
    assert "Rollout digits-3 brings digits 3 to devices that have 2." in begun.output
    shown = json.loads(run("list", "--json").output)
    assert (shown["baselines"], shown["rollouts"][0]["plan"]["step"][0]["hours"]) == ({"digits": 2}, 2.0)

    assert "is paused in step 1" in run("pause", "digits-3", "--reason", "lunch").output
    assert "runs in step 1" in run("resume", "digits-3").output
    assert "was rolled back" in run("stop", "digits-3", "--roll-back", "--reason", "smoke").output
    told = json.loads(run("status", "digits-3", "--json").output)
    assert [event["event"] for event in told["events"]] == ["start", "pause", "resume", "rollback"]
    assert (told["state"], told["reason"]) == ("rolled-back", "smoke")
    assert "smoke" in run("status", "digits-3").output
    assert "autumn" in run("status", "digits-3").output


def test_a_list_that_was_cut_goes_on_after_its_last_name(run: Run) -> None:
    for name in ("winter", "autumn"):
        run("start", "digits", 3, "--percent", 50, "--percent", 100, "--name", name, "--reason", "season")
        run("stop", name, "--roll-back", "--reason", "smoke")

    def names(*words: object) -> list[str]:
        return [each["rollout"] for each in json.loads(run("list", *words, "--json").output)["rollouts"]]

    assert sorted(names()) == ["autumn", "winter"]
    assert names("--limit", 1) == ["autumn"]
    assert names("--after", "autumn") == ["winter"]
    assert names("--after", "winter", "--limit", 1) == []
    assert "There may be more:  --after autumn" in run("list", "--limit", 1).output
    assert "There may be more" not in run("list", "--limit", 3).output


def test_the_usual_plan_says_why_it_cannot_work_in_a_small_fleet(run: Run) -> None:
    assert "It would not start: Step canary reaches 0 of 40 devices" in run("plan", "digits", 3).output
    with pytest.raises(UsageError, match="Step canary reaches 0 of 40 devices"):
        run("start", "digits", 3)
    run("start", "digits", 3, "--longest-hours", 4)


@pytest.mark.parametrize(
    "words",
    [
        ("pause", "digits-3"),
        ("stop", "digits-3", "--keep"),
        ("unhold", "digits"),
        ("pin", "device-001", "digits", 2),
    ],
    ids=lambda words: words[0],
)
def test_what_is_dangerous_needs_a_reason(run: Run, words: tuple[object, ...]) -> None:
    run("start", "digits", 3, "--longest-hours", 4)
    with pytest.raises(UsageError, match="Say why"):
        run(*words, "--reason", " ")


def test_a_stop_says_what_becomes_of_devices(run: Run) -> None:
    run("start", "digits", 3, "--longest-hours", 4)
    with pytest.raises(UsageError, match="--keep or --roll-back"):
        run("stop", "digits-3", "--reason", "why")


def test_pins_tags_and_holds_are_said_back(run: Run) -> None:
    assert (
        "device-001 stays at digits 2." in run("pin", "device-001", "digits", 2, "--reason", "study").output
    )
    assert "1 pinned devices stay" in run("plan", "digits", 3).output
    assert "what the others get" in run("unpin", "device-001", "digits").output
    assert "device-001: lab north" in run("tag", "device-001", "north", "lab").output
    assert "device-001: no tags" in run("tag", "device-001").output
    assert "Devices get digits 2; newer versions by" in run("hold", "digits").output
    assert "as soon as it is released" in run("unhold", "digits", "--reason", "small fleet").output


def test_what_is_not_there_is_said_in_a_sentence(run: Run) -> None:
    for words, sentence in (
        (("status", "spring"), "There is no rollout 'spring'"),
        (("start", "digits", 9), "Version 9 of digits is not released"),
        (("hold", "letters"), "No version of letters is released"),
        (("pin", "nobody", "digits", 2, "--reason", "x"), "There is no device 'nobody'"),
        (("pin", "device-001", "digits", 8, "--reason", "x"), "Version 8 of digits is not released"),
        (("tag", "nobody", "lab"), "There is no device 'nobody'"),
    ):
        with pytest.raises(UsageError, match=sentence):
            run(*words)
    run("start", "digits", 3, "--longest-hours", 4)
    with pytest.raises(RefusedError, match="is not possible now"):
        run("resume", "digits-3")


def test_a_plan_file_is_read_and_a_bad_one_refused(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text('rate = 3\n[[step]]\nname = "all"\npercent = 100\n')
    told = json.loads(run("start", "digits", 3, "--plan", file, "--json").output)
    assert (told["plan"]["rate"], [step["name"] for step in told["plan"]["step"]]) == (3, ["all"])
    file.write_text("rate = 'many'")
    with pytest.raises(UsageError, match="wrong type"):
        run("plan", "digits", 3, "--plan", file)
    with pytest.raises(UsageError, match="cannot be read"):
        run("plan", "digits", 3, "--plan", tmp_path / "nowhere.toml")

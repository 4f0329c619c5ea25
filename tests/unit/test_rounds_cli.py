"""``umbel rounds``: what it refuses before anything starts, and how it shows what is on record."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from model_packages import RELEASE, first
from service_fleet import make_fleet
from umbel import cli
from umbel_proto.ids import DeviceId, ModelName, RunId
from umbel_proto.privacy.auxiliary import WITHIN
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.publish import publish
from umbel_server.learning.plan import RunPlan
from umbel_server.learning.plot import draw
from umbel_server.store.runs import Participation, RoundRecord, RoundState, RunRecord

GOOD = """
model = "digits"
rounds = 2
devices = 8
[privacy]
clip = 1.0
noise_multiplier = 4.0
delta = 1e-6
"""


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDir:
    made = make_fleet(tmp_path / "garden")
    made.release_pub.write_bytes(RELEASE.public.raw)
    with made.open_store() as store:
        publish(made, store, first())
    return made


class Terminal:
    """The command, typed."""

    def __init__(
        self, patch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str], fleet: FleetDir
    ) -> None:
        self.patch, self.captured, self.fleet = patch, captured, fleet

    def __call__(self, *words: object) -> tuple[int, str, str]:
        self.patch.setattr("sys.argv", ["umbel", "rounds", *map(str, words), "--fleet", str(self.fleet.path)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = self.captured.readouterr()
        return int(ended.value.code or 0), out, err

    def json(self, *words: object) -> Any:
        code, out, err = self(*words, "--json")
        assert code == 0, err
        return json.loads(out)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fleet: FleetDir) -> Terminal:
    monkeypatch.setenv("COLUMNS", "200")
    return Terminal(monkeypatch, capsys, fleet)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return path


def test_a_good_plan_is_checked_and_said_what_it_costs(rounds: Terminal, tmp_path: Path) -> None:
    plan = written(tmp_path, GOOD)
    checked = rounds.json("start", plan, "--dry-run")
    assert (checked["run"], checked["started"], checked["delta"]) == ("digits-1", False, 1e-6)
    assert 0 < checked["epsilon_release"] <= checked["epsilon_server"] < 8
    code, out, _ = rounds("start", plan, "--dry-run")
    assert code == 0
    # Never one epsilon without the other, nor the second without what it assumes.
    assert "against the server" in out
    assert "drawn honestly and in secret" in out
    # What the metrics cost, too: each is a hundredth of the square of what noise is measured by.
    assert "The 2 quantities beside each update make the noise on it 1.0% larger." in out
    longer = written(tmp_path, GOOD + "[metrics]\nnorms = true\n")
    assert (
        "The 7 quantities beside each update make the noise on it 3.4% larger."
        in rounds("start", longer, "--dry-run")[1]
    )
    assert rounds.json("list") == []


@pytest.mark.parametrize(
    ("text", "says", "code"),
    [
        ("model = ", "not TOML", 2),
        ("rounds = " + "9" * 5000, "not TOML", 2),
        ("model = " + "[" * 5000, "not TOML", 2),
        (GOOD.replace('"digits"', '"iris"'), "published no such|released no such package", 2),
        ("version = 9\n" + GOOD, "version 9", 2),
        (GOOD.replace("rounds = 2", "rounds = 0"), "rounds is 0", 2),
        (GOOD.replace("devices = 8", ""), "devices", 2),
        ('heldout = "none.npz"\n' + GOOD, "none.npz", 2),
        (GOOD + "color = 1\n", "unknown field 'color'", 2),
        (GOOD.replace("noise_multiplier = 4.0", "noise_multiplier = 0.0"), "noise|epsilon", 3),
        (GOOD.replace("rounds = 2", "rounds = 9999"), "epsilon", 3),
        (GOOD + '[optimizer]\nkind = "adam"\n', "no optimizer 'adam'", 2),
        (GOOD + '[metrics]\nnames = ["age"]\n', "no metric 'age'", 2),
        (GOOD + "[clipping]\nquantile = 1.0\n", "quantile", 2),
        (GOOD.replace("rounds = 2", "rounds = 2.5"), "rounds is 2.5: write a whole number.", 2),
        (GOOD.replace("rounds = 2", "rounds = true"), "rounds is True: write a whole number.", 2),
        (GOOD.replace("clip = 1.0", 'clip = "1"'), "clip is '1': write a number.", 2),
        (GOOD + "[guard]\ngate = 0\n", "gate is 0: write true or false.", 2),
        (GOOD + '[metrics]\nnames = "loss"\n', "names is 'loss': write a list", 2),
    ],
)
def test_a_bad_plan_is_one_sentence_and_starts_nothing(
    rounds: Terminal, tmp_path: Path, text: str, says: str, code: int
) -> None:
    got, out, err = rounds("start", written(tmp_path, text))
    assert (got, out) == (code, "")
    assert any(part in err for part in says.split("|"))
    assert err.startswith("Error: ")
    assert len(err.strip().splitlines()) == 1
    assert rounds.json("list") == []


def test_a_plan_that_is_not_there_is_named(rounds: Terminal, tmp_path: Path) -> None:
    code, _, err = rounds("start", tmp_path / "none.toml")
    assert (code, "none.toml cannot be read" in err) == (2, True)


def test_an_unknown_run_is_one_sentence(rounds: Terminal) -> None:
    for command in ("show", "watch", "stop", "resume"):
        code, _, err = rounds(command, "nobody")
        assert (code, "There is no run 'nobody'" in err) == (2, True)


def recorded(fleet: FleetDir, *, epsilon: float) -> None:
    plan = RunPlan.from_mapping(
        {
            "model": "digits",
            "version": 1,
            "package_sha256": "0" * 64,
            "rounds": 2,
            "devices": 8,
            "privacy": {"clip": 1.0, "noise_multiplier": 1.0},
        }
    )
    with fleet.open_store() as store:
        store.runs.create(RunId("r1"), ModelName("digits"), plan.to_json())
        lost = Participation(DeviceId("rose"), "dropped", "the noise is below the policy's floor")
        figures = {
            "accuracy": 0.75,
            "clip": 2.0,
            "epsilon_server": epsilon,
            "epsilon_release": epsilon,
            "metrics": {"loss": {"mean": 0.5, "error": 0.1}},
        }
        for attempt, state in ((1, "aborted"), (2, "opened")):
            reason = "too few answered" if state == "aborted" else ""
            parts = (Participation(DeviceId("fern"), "summed"), lost)
            record = RoundRecord(RunId("r1"), 1, attempt, state, 10.0, 11.5, reason, figures, parts)  # type: ignore[arg-type]
            store.runs.begin_round(RunId("r1"), 1, attempt)
            store.runs.end_round(record)


@pytest.mark.parametrize(("epsilon", "shown"), [(3.25, "3.25"), (math.inf, "infinite"), (1234.5, "1,23")])
def test_a_run_is_shown_with_reasons_and_the_error_of_each_metric(
    rounds: Terminal, fleet: FleetDir, tmp_path: Path, epsilon: float, shown: str
) -> None:
    recorded(fleet, epsilon=epsilon)
    picture = tmp_path / "r1.png"
    code, out, _ = rounds("show", "r1", "--plot", picture)
    assert code == 0
    for part in (shown, "0.750", "0.500 +- 0.100", "too few answered", "1 (try 2)"):
        assert part in out
    assert "rose: the noise is below the policy's floor (2 times)" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    body = rounds.json("show", "r1")
    assert (body["rounds_done"], len(body["attempts"])) == (1, 2)
    assert body["epsilon_server"] == (None if math.isinf(epsilon) else epsilon)


def test_a_run_that_asked_for_norms_is_shown_with_the_lengths_of_its_updates(
    rounds: Terminal, fleet: FleetDir
) -> None:
    recorded(fleet, epsilon=3.25)
    assert "Length of the updates" not in rounds("show", "r1")[1]
    told = dict(zip(WITHIN, (0.0, 0.25, 0.75, 0.875, 1.0), strict=True))
    figures = {"metrics": {name: {"mean": mean, "error": 0.03} for name, mean in told.items()}}
    with fleet.open_store() as store:
        store.runs.begin_round(RunId("r1"), 2, 1)
        store.runs.end_round(RoundRecord(RunId("r1"), 2, 1, "opened", 20.0, 21.0, "", figures))
        store.runs.finish(RunId("r1"), "finished", "")
    out = rounds("show", "r1")[1]
    assert re.search(r"round +in sum +up to 1/4 +1/4 to 1/2 +1/2 to 1 +1 to 2 +2 to 4 +above 4", out)
    shares = ("0.000", "0.250", "0.500", "0.125", "0.125", "0.000")
    errors = ("0.030", *("0.042",) * 4, "0.030")
    cells = [rf"{share} \+- {error}" for share, error in zip(shares, errors, strict=True)]
    assert re.search(r"2 +0 +" + " +".join(cells), out)
    assert rounds.json("show", "r1")["within_clip"] == {"mean": 0.75, "error": 0.03}
    assert "within the clip 0.750 +- 0.030" in rounds("watch", "r1")[1]


def test_the_picture_of_a_run_that_asked_for_norms_shows_how_many_updates_were_how_long(
    tmp_path: Path,
) -> None:
    record = RunRecord(RunId("r1"), ModelName("digits"), "{}", "finished", "", 1.0, 2.0)

    def pixels(*shares: float) -> NDArray[np.float32]:
        told = {name: {"mean": mean, "error": 0.03} for name, mean in zip(WITHIN, shares, strict=False)}
        draw(
            record,
            [RoundRecord(RunId("r1"), 1, 1, "opened", 1.0, 2.0, "", {"metrics": told})],
            tmp_path / "r1.png",
        )
        return imread(tmp_path / "r1.png")

    plain, lower, higher = pixels(), pixels(0, 0, 0.5, 1, 1), pixels(0.5, 1, 1, 1, 1)
    assert lower.shape == higher.shape
    assert lower.shape[0] > plain.shape[0]
    # What the lengths say is in the lowest panel and nowhere else.
    differ = np.flatnonzero((lower != higher).any(axis=(1, 2)))
    assert differ.size > 0
    assert differ[0] > 0.75 * len(lower)


def test_an_attempt_under_way_does_not_make_epsilon_infinite(rounds: Terminal, fleet: FleetDir) -> None:
    recorded(fleet, epsilon=3.25)
    with fleet.open_store() as store:
        store.runs.begin_round(RunId("r1"), 2, 1)
    assert rounds.json("list")[0]["epsilon_server"] == 3.25
    assert "There may be more:  --after r1" in rounds("list", "--limit", 1)[2]
    assert "There may be more" not in rounds("list", "--limit", 2)[2]
    for command in ("show", "list"):
        assert "infinite" not in rounds(command, *(("r1",) if command == "show" else ()))[1]


def test_a_list_of_runs_is_of_their_last_attempts_and_reads_no_other(
    rounds: Terminal, fleet: FleetDir
) -> None:
    recorded(fleet, epsilon=3.25)
    with fleet.open_store() as store:
        for number, figures in (
            (2, {"accuracy": 0.875, "epsilon_server": 4.5, "epsilon_release": 4.0}),
            (3, {}),
        ):
            store.runs.begin_round(RunId("r1"), number, 1)
            state: RoundState = "opened" if figures else "aborted"
            store.runs.end_round(RoundRecord(RunId("r1"), number, 1, state, 20.0, 21.0, figures=figures))
        with store.database.write() as connection:
            connection.exec_driver_sql("UPDATE rounds SET figures = 'damaged' WHERE round = 1")
    (line,) = rounds.json("list")
    assert (line["rounds_done"], line["accuracy"]) == (2, 0.875)
    assert (line["epsilon_server"], line["epsilon_release"]) == (4.5, 4.0)


def test_a_run_that_the_superlink_is_not_there_to_start_is_on_record_as_failed(
    rounds: Terminal, tmp_path: Path
) -> None:
    code, out, err = rounds("start", written(tmp_path, GOOD))
    assert (code, out) == (5, "")
    assert err.startswith("Error: The SuperLink does not answer")
    (run,) = rounds.json("list")
    assert (run["state"], "was not started" in run["reason"]) == ("failed", True)


def test_a_run_is_shown_whole_to_a_pipe_and_on_eighty_columns(
    rounds: Terminal, fleet: FleetDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(fleet, epsilon=3.25)
    monkeypatch.setenv("COLUMNS", "40")
    _, piped, _ = rounds("show", "r1")
    assert "0.500 +- 0.100" in piped
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, seen, _ = rounds("show", "r1")
    assert "\u2026" not in seen
    for part in ("aborted", "0.750", "3.25"):
        assert part in seen


def test_a_plot_that_cannot_be_written_is_one_sentence(
    rounds: Terminal, fleet: FleetDir, tmp_path: Path
) -> None:
    recorded(fleet, epsilon=1.0)
    code, _, err = rounds("show", "r1", "--plot", tmp_path / "nowhere" / "r1.png")
    assert (code, "cannot be written" in err) == (6, True)


def test_a_stopped_run_stays_stopped_with_its_reason(rounds: Terminal, fleet: FleetDir) -> None:
    recorded(fleet, epsilon=1.0)
    assert rounds.json("stop", "r1", "--reason", "too costly") == {"run": "r1", "state": "stopped"}
    (line,) = rounds.json("list")
    assert (line["state"], line["reason"]) == ("stopped", "too costly")
    code, _, err = rounds("resume", "r1")
    assert (code, "Run r1 is stopped" in err) == (3, True)

"""``umbel data``: what it keeps, shows, writes and deletes."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from model_packages import RELEASE, digits, first, shelf
from umbel._data.examples import read_examples
from umbel._home.directory import DeviceHome, Identity
from umbel._rounds.conditions import Conditions, Rules
from umbel.cli import app
from umbel_proto.credentials import FleetPolicy, sign_policy
from umbel_proto.errors import RefusedError, StorageError, UmbelError, UsageError
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.keys import SigningKey


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("installed")
    shelf(root).install(first())
    return root


@pytest.fixture
def home(tmp_path: Path, installed: Path) -> DeviceHome:
    home = DeviceHome(tmp_path / "home")
    home.path.mkdir(0o700)
    home.shelf.symlink_to(installed / "shelf")
    home.make()
    authority = SigningKey.generate()
    policy = FleetPolicy(FleetId("garden"), 0.1, 0.2, True, 3, 0.0, 8.0, 1e-6)
    home.write(home.authority_key, authority.public.raw, secret=False)
    home.write(home.policy, sign_policy(authority, policy), secret=False)
    home.write(home.release_key, RELEASE.public.raw, secret=False)
    home.write_identity(Identity(FleetId("garden"), DeviceId("rose"), "127.0.0.1:1", ""))
    return home


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "examples.npz"
    part = digits().train
    np.savez(path, x=part.x[:50], y=part.y[:50])
    return path


def say(home: DeviceHome, *words: object) -> str:
    result = CliRunner().invoke(
        app, ["data", *map(str, words), "--home", str(home.path)], env={"COLUMNS": "200"}
    )
    if result.exception is not None:
        raise result.exception
    return result.stdout


def ask(home: DeviceHome, *words: object) -> Any:
    return json.loads(say(home, *words, "--json"))


def test_what_is_imported_is_listed_shown_and_exported_as_it_was(
    home: DeviceHome, file: Path, tmp_path: Path
) -> None:
    assert ask(home, "list") == []
    assert ask(home, "import", file, "--annotator", "ada") == {"model": "digits", "added": 50, "rows": 50}
    (held,) = ask(home, "list")
    assert (held["model"], held["rows"], held["retention"]["max_rows"]) == ("digits", 50, 100_000)
    shown = ask(home, "show")
    assert shown["sources"] == {"import": 50}
    assert sum(shown["labels"].values()) == shown["train"] + shown["test"] == 50
    rows = ask(home, "show", "--rows")["examples"]
    assert [row["labels"][0]["annotator"] for row in rows] == ["ada"] * 50
    assert "x" not in rows[0]
    out = tmp_path / "out.npz"
    assert ask(home, "export", out)["examples"] == 50
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    given, written = read_examples(file), read_examples(out)
    assert written.x.tobytes() == given.x.astype(np.float32).tobytes()
    assert written.y is not None
    assert given.y is not None
    assert written.y.tolist() == given.y.tolist()


def test_tables_and_sentences_are_for_people(home: DeviceHome, file: Path) -> None:
    assert "Added 50 examples of model digits; there are 50 now." in say(home, "import", file)
    assert "near copies" in say(home, "show", "--rows")
    assert "digits" in say(home, "list")
    assert "kept for 365 days, at most 100000 of them and 64 MiB" in say(home, "keep")
    assert say(home, "consent") == "Training: unasked.\n"
    assert "This device trains whenever a round asks." in say(home, "conditions")


def test_a_file_that_breaks_the_contract_adds_nothing(home: DeviceHome, tmp_path: Path) -> None:
    path = tmp_path / "wrong.npz"
    x = digits().train.x[:3].copy()
    x[2] = 99
    np.savez(path, x=x, y=[1, 2, 3])
    with pytest.raises(UsageError, match="over"):
        say(home, "import", path)
    assert ask(home, "list") == []


def test_examples_are_deleted_by_id_by_model_and_all(home: DeviceHome, file: Path) -> None:
    say(home, "import", file)
    ids = [row["id"] for row in ask(home, "show", "--rows")["examples"]]
    assert ask(home, "delete", ids[0], ids[7], "00" * 8) == {"deleted": 2}
    assert ask(home, "show")["rows"] == 48
    assert ask(home, "delete") == {"deleted": 48}
    say(home, "import", file)
    assert ask(home, "delete", "--all") == {"deleted": 50}
    assert not home.examples_key.exists()
    with pytest.raises(UsageError, match="leave out"):
        say(home, "delete", "--all", ids[0])


def test_a_lost_key_and_a_damaged_file_are_cured_by_what_the_sentence_says(
    home: DeviceHome, file: Path
) -> None:
    say(home, "import", file)
    home.examples_key.unlink()
    with pytest.raises(StorageError, match="umbel data delete --all"):
        say(home, "show")
    assert ask(home, "delete", "--all") == {"deleted": 50}
    say(home, "import", file)
    home.examples.write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="umbel data delete --all"):
        say(home, "list")
    say(home, "delete", "--all")
    assert ask(home, "import", file)["rows"] == 50


def test_what_is_over_a_new_bound_goes_at_once(home: DeviceHome, file: Path) -> None:
    say(home, "import", file)
    assert ask(home, "keep", "--max-rows", 20, "--max-days", 30)["max_rows"] == 20
    shown = ask(home, "show")
    assert (shown["rows"], shown["crowded"]) == (20, 30)
    assert ask(home, "keep") == {
        "model": "digits",
        "max_age_s": 30 * 86400.0,
        "max_rows": 20,
        "max_bytes": 64 * 1024 * 1024,
    }
    for wrong in (("--max-rows", 0), ("--max-days", 0), ("--max-mib", 0)):
        with pytest.raises(UsageError, match="Retention"):
            say(home, "keep", *wrong)


def test_consent_is_given_and_taken_back_with_everything(home: DeviceHome, file: Path) -> None:
    say(home, "import", file)
    assert ask(home, "consent", "--grant", "--by", "ada")["training"]["by"] == "ada"
    said = ask(home, "consent", "--revoke")
    assert (said["training"]["state"], said["deleted"]) == ("revoked", 50)
    with pytest.raises(RefusedError, match="took back consent"):
        say(home, "import", file)
    assert "the user took back consent to training" in say(home, "conditions")
    with pytest.raises(UsageError, match="not both"):
        say(home, "consent", "--grant", "--revoke")


def test_conditions_are_set_one_by_one_and_kept(home: DeviceHome) -> None:
    ask(home, "conditions", "--charging", "--min-battery", 0.5)
    said = ask(home, "conditions", "--unknown", "refuse", "--unmetered")
    assert Conditions(home).rules == Rules(charging=True, unmetered=True, min_battery=0.5, unknown="refuse")
    assert said["rules"]["charging"] is True
    assert said["trains"] is (said["reasons"] == [])
    assert ask(home, "conditions", "--no-charging", "--no-unmetered", "--min-battery", 0)["trains"] is True


def test_the_model_is_asked_for_where_it_is_not_clear(home: DeviceHome, file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No model 'other' is installed"):
        say(home, "show", "--model", "other")
    home.shelf.unlink()
    with pytest.raises(UsageError, match=r"it has none.*--model NAME"):
        say(home, "import", file)
    with pytest.raises(UmbelError, match="umbel enroll"):
        say(DeviceHome(tmp_path / "nobody"), "list")

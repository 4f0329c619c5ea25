"""`umbel user`, `umbel access` and `umbel audit`, and what the other commands leave on record."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from umbel_proto.errors import RefusedError, UsageError, VerificationError
from umbel_server.access.audit_command import app as audit
from umbel_server.access.command import access, user
from umbel_server.cli import fleet

RUNNER = CliRunner()
PASSWORD = "correct horse battery"


@pytest.fixture
def where(tmp_path: Path) -> Path:
    run(fleet, "create", tmp_path / "fleet", "--name", "garden")
    (tmp_path / "password").write_text(PASSWORD + "\nand what comes behind\n")
    return tmp_path / "fleet"


def run(app: typer.Typer, words: str, directory: Path, *more: object) -> str:
    """Run a command, and return what it printed; its error is raised here."""
    result = RUNNER.invoke(app, [*words.split(), "--fleet", str(directory), *map(str, more)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def entries(where: Path, *more: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(audit, "list", where, "--json", *more))
    return found


def test_an_account_signs_in_with_what_the_file_held_and_no_command_shows_it(where: Path) -> None:
    file = where.parent / "password"
    printed = run(user, "add ann --role operator --role reviewer", where, "--password-file", file)
    printed += run(user, "list", where) + run(user, "list", where, "--json") + run(audit, "export", where)
    assert "operator, reviewer" in printed
    assert PASSWORD not in printed
    assert "argon2" not in printed
    from umbel_server.access.sign_in import sign_in
    from umbel_server.fleet.layout import FleetDir

    with FleetDir.open(where).open_store() as store:
        assert sign_in(store.accounts, "ann", PASSWORD).name == "ann"
    assert all(PASSWORD.encode() not in each.read_bytes() for each in where.rglob("*") if each.is_file())


def test_without_a_terminal_a_password_needs_a_file(where: Path) -> None:
    with pytest.raises(UsageError, match="--password-file"):
        run(user, "add ann --role viewer", where)
    short = where.parent / "short"
    short.write_text("short\n")
    with pytest.raises(UsageError, match="12 to 256"):
        run(user, "add ann --role viewer", where, "--password-file", short)
    with pytest.raises(UsageError, match="not a role"):
        run(user, "add ann --role king --no-password", where)


def test_roles_and_activity_change_and_every_change_has_its_reason_on_record(where: Path) -> None:
    run(user, "add bot --role ci --no-password", where)
    run(user, "role bot viewer operator", where, "--reason", "more to do")
    run(user, "disable bot", where, "--reason", "leaked")
    assert json.loads(run(user, "enable bot", where, "--json"))["roles"] == ["operator", "viewer"]
    told = [(each["action"], each["reason"]) for each in entries(where, "--object", "user:bot")]
    assert told == [
        ("user.enable", ""),
        ("user.disable", "leaked"),
        ("user.role", "more to do"),
        ("user.add", ""),
    ]


def test_a_token_is_shown_once(where: Path) -> None:
    run(user, "add bot --role ci --no-password", where)
    made = json.loads(run(access, "token create bot --scope registry --days 2 --json", where))
    assert made["scopes"] == ["registry:read", "registry:write"]
    listed = run(access, "token list", where) + run(access, "token list --json", where)
    assert made["id"] in listed
    assert made["token"] not in listed
    assert made["token"].encode() not in (where / "store.db").read_bytes()
    run(access, f"token revoke {made['id']}", where, "--reason", "done")
    assert "revoked" in run(access, "token list --name bot", where)
    with pytest.raises(RefusedError, match="users:write"):
        run(access, "token create bot --scope users:write", where)


def test_what_operators_do_is_on_record_under_their_name(where: Path) -> None:
    run(fleet, "token", where)
    run(fleet, "policy --charging", where)
    run(fleet, "rotate", where)
    run(fleet, "telemetry --json", where)
    run(fleet, "policy", where)
    made = entries(where)
    assert [each["action"] for each in reversed(made)] == [
        "fleet.create",
        "enrollment.invite",
        "policy.change",
        "telemetry-key.rotate",
        "telemetry.export",
    ]
    assert {each["actor"].split(":")[0] for each in made} == {"local"}
    policy = next(each for each in made if each["action"] == "policy.change")
    assert (policy["before"]["charging"], policy["after"]["charging"]) == (False, True)


def test_an_export_holds_all_of_it_in_json_lines_and_in_csv(where: Path) -> None:
    run(user, "add bot --role ci --no-password", where, "--reason", "=1+1, for a pipeline")
    lines = [json.loads(line) for line in run(audit, "export", where).splitlines()]
    rows = list(csv.DictReader(io.StringIO(run(audit, "export --csv", where))))
    assert [each["sequence"] for each in lines] == [1, 2, 3]
    assert lines[2]["action"] == rows.pop()["action"] == "audit.export"  # Each export is in it.
    assert [(row["sequence"], row["hash"]) for row in rows] == [
        (str(each["sequence"]), each["hash"]) for each in lines
    ]
    assert lines[1]["reason"] == "=1+1, for a pipeline"
    assert rows[1]["reason"] == "'=1+1, for a pipeline"  # A spreadsheet would compute it.
    assert run(audit, "export --since 2100-01-01", where) == ""
    with pytest.raises(UsageError, match="no time"):
        run(audit, "list --since yesterday", where)


def test_an_altered_log_is_found_and_a_copy_of_a_checkpoint_finds_one_that_was_turned_back(
    where: Path,
) -> None:
    run(user, "add bot --role ci --no-password", where)
    copy = where.parent / "elsewhere"
    copy.write_text(run(audit, "checkpoint", where))
    assert "2 entries" in run(audit, "verify", where, "--checkpoint", copy)
    with sqlite3.connect(where / "store.db") as connection:
        connection.execute("DROP TRIGGER audit_no_delete")
        connection.execute("DELETE FROM audit WHERE sequence = 2")
    connection.close()
    for more in ([], ["--checkpoint", copy]):
        with pytest.raises(VerificationError, match="its end was cut off"):
            run(audit, "verify", where, *more)
    with pytest.raises(VerificationError):
        # Nothing that changes something goes on as if nothing were.
        run(user, "add other --role ci --no-password", where)

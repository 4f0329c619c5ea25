"""The registry on every database: versions, approvals, releases; and what the database itself refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import IntegrityError

from crashing import crashed
from model_packages import RELEASE, resigned
from registry_world import ANNA, BEN, CARL, DORA, HERE, PIPELINE, World, governed, make_world, package
from service_fleet import ManualClock, policy
from umbel_proto.errors import PackageError, RefusedError, UsageError
from umbel_proto.ids import ModelName, RunId
from umbel_server.access.actor import Actor, Role
from umbel_server.fleet.create import create_fleet
from umbel_server.fleet.publish import publish
from umbel_server.registry.approval import Verdict
from umbel_server.registry.releasing import move, retire
from umbel_server.registry.stages import Event, Stage
from umbel_server.registry.versions import add, comment, describe
from umbel_server.store.registry import Line, comments_of, version_of, versions
from umbel_server.trust.repository import Repository

DAY_S = 86400


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Where the law is ours and no database's, on one of them."""
    made = make_world(tmp_path, tmp_path / "store.db")
    yield made
    made.store.close()


@pytest.fixture
def anywhere(tmp_path: Path, place: Path | URL) -> Iterator[World]:
    """On every database."""
    made = make_world(tmp_path, place)
    yield made
    made.store.close()


def approved(world: World, version: int = 1) -> None:
    world.add(version)
    world.ask(version)
    world.say(BEN, version)
    world.say(CARL, version)


# Versions


def test_a_package_is_added_as_a_draft_with_what_it_tells_of_itself(anywhere: World) -> None:
    anywhere.add(1, code="git:1234")
    anywhere.add(2)
    found = anywhere.version(2)
    assert (found.stage, found.task, found.parent, found.added_by) == ("draft", "digits", 1, "pipeline")
    assert {name: each["engine"] for name, each in found.variants.items()} == {"fp32": "onnx", "int8": "onnx"}
    assert found.size == len(package(2))
    assert found.contract_sha256 == anywhere.version(1).contract_sha256
    assert anywhere.version(1).code == "git:1234"


def test_the_same_package_again_is_no_error_and_changes_nothing(world: World) -> None:
    before = world.add()
    world.ask()
    assert world.add(actor=ANNA).stage is Stage.CANDIDATE
    assert world.version().added_by == before.added_by
    assert world.actions().count("version.add") == 1


def test_a_package_that_nobody_of_the_fleet_signed_is_not_added(world: World, tmp_path: Path) -> None:
    other = make_world(tmp_path / "other", tmp_path / "other.db", described=False)
    other.fleet.release_pub.write_bytes(bytes(32))
    with pytest.raises(PackageError, match="not signed by this fleet"):
        other.add()
    other.store.close()


def test_a_package_with_a_card_that_is_none_is_not_added(world: World) -> None:
    broken = resigned(
        package(1), lambda body: None, **{"card.json": b'{"bomFormat": "CycloneDX", "specVersion": "1.6"'}
    )
    with pytest.raises(PackageError, match="card"):
        add(world.fleet, world.store, broken, PIPELINE)
    odd = resigned(
        package(1), lambda body: None, **{"card.json": b'{"bomFormat": "CycloneDX", "specVersion": 16}'}
    )
    with pytest.raises(PackageError, match="no CycloneDX"):
        add(world.fleet, world.store, odd, PIPELINE)


def test_another_package_takes_the_place_of_a_draft_and_its_approvals_lapse(anywhere: World) -> None:
    approved(anywhere)
    assert anywhere.stage() is Stage.APPROVED
    anywhere.add(note="another")
    assert anywhere.stage() is Stage.DRAFT
    [asked] = anywhere.requests()
    assert (asked.closed, len(asked.decisions)) == ("lapsed", 2)
    with pytest.raises(RefusedError, match="umbel registry request digits@1"):
        anywhere.publish(note="another")


def test_a_version_names_a_run_that_there_is_and_that_has_ended(world: World) -> None:
    with pytest.raises(UsageError, match="no run nowhere"):
        world.add(run=RunId("nowhere"))
    world.store.runs.create(RunId("run-1"), ModelName("digits"), "{}")
    with pytest.raises(RefusedError, match="is running"):
        world.add(run=RunId("run-1"))
    world.store.runs.finish(RunId("run-1"), "failed", "too few devices")
    with pytest.raises(RefusedError, match="is failed"):
        world.add(run=RunId("run-1"))


def test_what_is_said_of_a_version_stays_with_it(anywhere: World) -> None:
    anywhere.add()
    comment(anywhere.store, "digits", 1, BEN, "what of the sevens?")
    comment(anywhere.store, "digits", 1, CARL, "they are fine")
    with anywhere.store.database.read() as connection:
        said = comments_of(connection, anywhere.version())
    assert [(each.author, each.text) for each in said] == [
        ("ben", "what of the sevens?"),
        ("carl", "they are fine"),
    ]
    with pytest.raises(UsageError, match="no digits@9"):
        comment(anywhere.store, "digits", 9, BEN, "hello")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (Line(ModelName("digits"), risk="unacceptable"), "no class of risk"),
        (Line(ModelName("digits"), review_date="next year"), "no date"),
        (Line(ModelName("digits"), review_date="20270331"), "no date"),
        (Line(ModelName("Digits")), "not a name"),
        (Line(ModelName("digits"), owner="x" * 300), "at most"),
    ],
)
def test_a_model_is_not_described_by_what_makes_no_sense(world: World, line: Line, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        describe(world.store, line, ANNA)


# Approval


def test_two_accounts_approve_and_a_third_releases(anywhere: World) -> None:
    anywhere.add()
    asked = anywhere.ask()
    assert anywhere.say(BEN)[1] == 1
    assert anywhere.stage() is Stage.CANDIDATE
    assert anywhere.say(CARL)[1] == 0
    assert anywhere.stage() is Stage.APPROVED
    anywhere.publish()
    assert anywhere.stage() is Stage.RELEASED
    assert [each.version for each in anywhere.store.releases.newest()] == [1]
    assert asked.number == 1
    assert anywhere.actions() == [
        "model.describe",
        "version.add",
        "version.request",
        "version.approve",
        "version.approve",
        "version.release",
    ]


def test_without_its_approvals_a_version_is_not_released_and_nothing_is_signed(world: World) -> None:
    with pytest.raises(RefusedError, match=r"not in the registry.*umbel registry add"):
        world.publish()
    world.add()
    with pytest.raises(RefusedError, match="draft and not approved: run  umbel registry request digits@1"):
        world.publish()
    world.ask()
    world.say(BEN)
    with pytest.raises(RefusedError, match="needs 1 of 2 approvals: run  umbel registry approve digits@1"):
        world.publish()
    assert world.store.releases.all() == ()
    assert "digits" not in Repository.of(world.fleet, clock=world.clock).read().lines


@pytest.mark.parametrize(
    ("actor", "sentence"),
    [
        (Actor("anna", frozenset({Role.REVIEWER})), "asked for this approval"),
        (Actor("pipeline", frozenset({Role.REVIEWER})), "added this version"),
        (HERE, "is no account"),
        (PIPELINE, "may not approve a version"),
        (Actor("eve", frozenset({Role.VIEWER, Role.OPERATOR})), "takes the role admin or release-manager"),
    ],
)
def test_some_may_not_approve(world: World, actor: Actor, sentence: str) -> None:
    world.add()
    world.ask()
    with pytest.raises(RefusedError, match=sentence):
        world.say(actor)
    assert not world.requests()[0].decisions


def test_who_asks_with_the_directory_at_hand_does_not_approve_with_an_account_of_that_name(
    world: World,
) -> None:
    world.add()
    world.ask(actor=HERE)
    with pytest.raises(RefusedError, match="asked for this approval"):
        world.say(ANNA)


def test_an_account_counts_once(world: World) -> None:
    world.add()
    world.ask()
    world.say(BEN)
    with pytest.raises(RefusedError, match="counts once"):
        world.say(BEN)
    assert world.stage() is Stage.CANDIDATE


def test_one_no_ends_a_request_even_after_all_approved(anywhere: World) -> None:
    approved(anywhere)
    anywhere.say(DORA, verdict=Verdict.REJECT)
    assert anywhere.stage() is Stage.DRAFT
    with pytest.raises(RefusedError, match="not approved"):
        anywhere.publish()
    anywhere.ask()
    anywhere.say(BEN)
    anywhere.say(CARL)
    anywhere.publish()
    assert [each.closed for each in anywhere.requests()] == ["rejected", ""]


def test_approvals_of_a_request_that_was_asked_again_are_not_those_of_the_new_one(world: World) -> None:
    world.add()
    world.ask()
    world.say(BEN)
    world.ask()
    assert world.say(CARL)[1] == 1
    assert world.stage() is Stage.CANDIDATE


def test_approvals_lapse_with_time(anywhere: World) -> None:
    approved(anywhere)
    anywhere.clock.advance(30 * DAY_S)
    with pytest.raises(RefusedError, match=r"has lapsed, as it was asked more than 30 days ago"):
        anywhere.publish()
    assert anywhere.stage() is Stage.DRAFT
    assert anywhere.requests()[0].closed == "lapsed"
    assert anywhere.actions()[-1] == "version.lapse"


def test_approvals_lapse_when_the_evidence_changes(world: World) -> None:
    world.store.runs.create(RunId("test"), ModelName("digits"), '{"privacy": {"delta": 1e-5}}')
    trained = resigned(package(1), lambda body: body["lineage"].update(run="test"))
    add(world.fleet, world.store, trained, PIPELINE)
    world.ask()
    world.say(BEN)
    world.store.runs.finish(RunId("test"), "stopped", "somebody had a doubt")
    with pytest.raises(RefusedError, match="evidence is not what was asked about"):
        world.say(CARL)
    assert world.stage() is Stage.DRAFT
    world.ask()
    world.say(BEN)
    world.say(CARL)
    publish(world.fleet, world.store, trained, actor=ANNA)
    assert world.stage() is Stage.RELEASED


def test_a_fleet_that_asks_for_more_than_before_does_so_of_what_is_approved_already(world: World) -> None:
    approved(world)
    world.fleet = governed(world.fleet, 3)
    with pytest.raises(RefusedError, match="needs 1 of 3"):
        world.publish()
    world.say(DORA)
    world.publish()
    assert world.stage() is Stage.RELEASED


def test_what_nobody_answers_for_is_not_asked_about(tmp_path: Path) -> None:
    world = make_world(tmp_path, tmp_path / "store.db", described=False)
    world.add()
    with pytest.raises(
        RefusedError, match="owner, purpose and risk of digits: do with  umbel registry describe"
    ):
        world.ask()
    world.store.close()


def test_what_was_never_evaluated_is_not_asked_about(world: World) -> None:
    def without(body: dict[str, object]) -> None:
        body["documents"] = {
            name: file
            for name, file in body["documents"].items()  # type: ignore[attr-defined]
            if name != "card"
        }

    add(world.fleet, world.store, resigned(package(1), without), PIPELINE)
    with pytest.raises(RefusedError, match=r"never evaluated.*--heldout"):
        world.ask()


def test_a_decision_says_why(world: World) -> None:
    from umbel_server.registry.asking import decide

    world.add()
    world.ask()
    with pytest.raises(UsageError, match="say why with --comment"):
        decide(world.fleet, world.store, "digits", 1, BEN, Verdict.APPROVE, comment="  ")


# Released


def test_where_nobody_must_approve_a_package_is_released_and_on_record(world: World) -> None:
    world.fleet = governed(world.fleet, 0)
    world.publish(1)
    world.add(2)
    world.ask(2)
    world.publish(2)
    world.publish(1)
    assert [world.stage(1), world.stage(2)] == ["released", "released"]


def test_a_released_version_stays_what_it_was(world: World) -> None:
    approved(world)
    world.publish()
    before = world.version()
    with pytest.raises(RefusedError, match="released already, with other content"):
        world.add(note="another")
    with pytest.raises(RefusedError, match="knows no request"):
        world.ask()
    world.add(code="another")
    assert world.version() == before


def test_another_package_of_an_approved_version_is_not_released_and_costs_it_nothing(world: World) -> None:
    approved(world)
    with pytest.raises(RefusedError, match="digits@1 is another package in the registry"):
        world.publish(note="another")
    assert world.stage() is Stage.APPROVED
    world.publish()


def test_a_version_that_could_not_be_signed_after_all_is_released_when_it_can(
    world: World, tmp_path: Path
) -> None:
    approved(world)
    vault = world.fleet.targets_key.rename(tmp_path / "vault.key")
    with pytest.raises(UsageError, match="Nobody signs for the model line digits"):
        world.publish()
    assert world.version().stage is Stage.APPROVED
    with pytest.raises(RefusedError, match="released already"):
        world.add(note="another")
    vault.rename(world.fleet.targets_key)
    world.publish()
    assert world.stage() is Stage.RELEASED


def test_a_release_of_before_there_was_a_registry_is_one_of_its_versions(anywhere: World) -> None:
    sha256 = bytes.fromhex(anywhere.add(2).sha256.hex())
    with anywhere.store.database.write() as connection:
        connection.execute(text("DELETE FROM model_versions"))
    anywhere.store.releases.publish(ModelName("digits"), 2, sha256=sha256, size=len(package(2)))
    with pytest.raises(RefusedError, match="released already"):
        anywhere.add(2, note="another")
    anywhere.publish(2)
    assert anywhere.stage(2) is Stage.RELEASED


def test_a_version_is_deprecated_and_reinstated_with_a_reason(world: World) -> None:
    approved(world)
    with pytest.raises(RefusedError, match="knows no deprecate"):
        move(world.store, "digits", 1, Event.DEPRECATE, ANNA, reason="old")
    world.publish()
    assert move(world.store, "digits", 1, Event.DEPRECATE, ANNA, reason="old").stage is Stage.DEPRECATED
    assert move(world.store, "digits", 1, Event.REINSTATE, ANNA, reason="not so old").stage is Stage.RELEASED
    with pytest.raises(UsageError, match="reason"):
        move(world.store, "digits", 1, Event.DEPRECATE, ANNA, reason=" ")
    with pytest.raises(RefusedError, match="may not deprecate"):
        move(world.store, "digits", 1, Event.DEPRECATE, BEN, reason="old")


def test_what_is_retired_is_neither_offered_nor_signed_nor_released_again(anywhere: World) -> None:
    anywhere.fleet = governed(anywhere.fleet, 0)
    anywhere.publish(1)
    anywhere.publish(2)
    retire(anywhere.fleet, anywhere.store, "digits", 2, ANNA, reason="it sees sevens everywhere")
    assert [each.version for each in anywhere.store.releases.newest()] == [1]
    assert anywhere.store.releases.get(anywhere.version(2).sha256) is None
    assert anywhere.store.releases.deltas() == ()
    assert list(
        Repository.of(anywhere.fleet, clock=anywhere.clock).read().lines["digits"].signed.targets
    ) == ["digits/1.umbel"]
    with pytest.raises(RefusedError, match="retired, for good"):
        anywhere.publish(2)
    with pytest.raises(RefusedError, match="released already"):
        anywhere.add(2, note="another")
    retire(anywhere.fleet, anywhere.store, "digits", 2, ANNA, reason="again")
    assert anywhere.actions().count("version.retire") == 1


def test_retiring_what_is_signed_needs_the_key_that_signed(world: World, tmp_path: Path) -> None:
    world.fleet = governed(world.fleet, 0)
    world.publish(1)
    world.fleet.release_key.rename(tmp_path / "vault.key")
    with pytest.raises(UsageError, match="name its file with --key"):
        retire(world.fleet, world.store, "digits", 1, ANNA, reason="old")
    assert world.stage() is Stage.RELEASED


def test_a_draft_is_retired_without_any_key(world: World) -> None:
    world.add()
    world.ask()
    world.fleet.release_key.unlink()
    assert retire(world.fleet, world.store, "digits", 1, ANNA, reason="not good").stage is Stage.RETIRED
    assert world.requests()[0].closed == "superseded"


# Direct SQL


def changes() -> dict[str, str]:
    row = "model = 'digits' AND version = 1"
    columns = {
        "sha256": "package_sha256",
        "size": "1",
        "task": "'other'",
        "run_id": "'other'",
        "rounds": "9",
        "parent_version": "7",
        "code_version": "'other'",
        "variants": "'{}'",
        "lineage": "'{}'",
        "added_by": "'mallory'",
        "sealed_s": "NULL",
        "version": "9",
        "stage": "'draft'",
    }
    found = {
        f"{name} changed": f"UPDATE model_versions SET {name} = {value} WHERE {row}"
        for name, value in columns.items()
        if name != "sha256"
    }
    return found | {
        "hash changed": f"UPDATE model_versions SET sha256 = contract_sha256 WHERE {row}",
        "deleted": f"DELETE FROM model_versions WHERE {row}",
        "released and never asked about, deleted": "DELETE FROM model_versions WHERE version = 3",
        "request deleted": "DELETE FROM approval_requests WHERE version = 2",
        "request changed": "UPDATE approval_requests SET requested_by = 'mallory'",
        "evidence changed": "UPDATE approval_requests SET evidence = '{}'",
        "decision deleted": "DELETE FROM approval_decisions",
        "decision changed": "UPDATE approval_decisions SET comment = 'fine'",
        "comment changed": "UPDATE version_comments SET text = 'fine'",
        "comment deleted": "DELETE FROM version_comments",
        "unapproved released": "UPDATE model_versions SET stage = 'released', sealed_s = 1 WHERE version = 2",
        "released unsealed": "UPDATE model_versions SET stage = 'approved' WHERE version = 2; "
        "UPDATE model_versions SET stage = 'released' WHERE version = 2",
    }


@pytest.fixture
def on_record(anywhere: World) -> World:
    approved(anywhere)
    comment(anywhere.store, "digits", 1, BEN, "fine")
    anywhere.publish()
    # One with a request and no decision, and one that was released without any: nothing else holds on to them.
    anywhere.add(2)
    anywhere.ask(2)
    anywhere.fleet = governed(anywhere.fleet, 0)
    anywhere.publish(3)
    return anywhere


def test_direct_sql_changes_nothing_that_was_released_or_decided(on_record: World) -> None:
    world = on_record

    def refused(statements: str) -> bool:
        try:
            with world.store.database.write() as connection:
                for statement in statements.split("; "):
                    connection.execute(text(statement))
        except IntegrityError:
            return True
        return False

    before, asked = world.version(), world.requests()
    for name, statements in changes().items():
        assert refused(statements), name
    assert (world.version(), world.requests()) == (before, asked)
    retire(world.fleet, world.store, "digits", 1, ANNA, reason="old")
    assert refused("UPDATE model_versions SET stage = 'released' WHERE version = 1")


def test_sqlites_replace_changes_nothing_that_was_released_or_decided(tmp_path: Path) -> None:
    world = make_world(tmp_path, tmp_path / "store.db")
    approved(world)
    world.publish()

    def again(table: str, column: str, value: str) -> str:
        with world.store.database.read() as connection:
            names = connection.execute(text(f"SELECT * FROM {table}")).keys()
        chosen = ", ".join(value if name == column else name for name in names)
        return f"REPLACE INTO {table} SELECT {chosen} FROM {table}"

    for table, column, value in (
        ("model_versions", "added_by", "'mallory'"),
        ("model_versions", "version", "version + 1"),
        ("approval_requests", "requested_by", "'mallory'"),
        ("approval_decisions", "comment", "'mallory'"),
    ):
        with pytest.raises(IntegrityError), world.store.database.write() as connection:
            connection.execute(text(again(table, column, value)))
    world.store.close()


def test_two_who_approve_at_the_same_moment_both_count(anywhere: World) -> None:
    import threading

    anywhere.add()
    anywhere.ask()
    ready, failures = threading.Barrier(2), []

    def approve(actor: Actor) -> None:
        ready.wait()
        try:
            anywhere.say(actor)
        except BaseException as exc:
            failures.append(exc)

    both = [threading.Thread(target=approve, args=(actor,)) for actor in (BEN, CARL)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert failures == []
    assert anywhere.stage() is Stage.APPROVED


def test_every_change_of_a_stage_is_in_the_audit_log_with_before_and_after(on_record: World) -> None:
    import json

    stages = ["draft"]
    for entry in on_record.store.audit.all():
        if entry.object == "version:digits@1" and entry.action not in ("version.add", "version.comment"):
            assert json.loads(entry.before)["stage"] == stages[-1]
            stages.append(json.loads(entry.after)["stage"])
    assert stages == ["draft", "candidate", "candidate", "approved", "released"]


def test_a_list_is_by_model_and_version(on_record: World) -> None:
    with on_record.store.database.read() as connection:
        assert [each.name for each in versions(connection)] == ["digits@1", "digits@2", "digits@3"]
        assert versions(connection, "other") == ()
        assert version_of(connection, "digits", 4) is None


# Killed


@pytest.mark.parametrize(
    ("what", "states"),
    [
        (
            "publish",
            {"approved unsigned held", "approved signed held"},
        ),
        ("retire", {"released signed offered", "retired signed held"}),
    ],
)
def test_a_release_or_retirement_that_was_killed_is_finished_by_doing_it_again(
    tmp_path: Path, what: str, states: set[str]
) -> None:
    made = create_fleet(tmp_path / "garden", name="garden", policy=policy(), approvals=2)
    made.release_key.write_bytes(RELEASE.to_pem())
    made.release_pub.write_bytes(RELEASE.public.raw)
    with made.open_store() as store:
        world = World(made, store, ManualClock())
        describe(store, Line(ModelName("digits"), "anna", "reads digits", "minimal"), ANNA)
        approved(world)
        if what == "retire":
            world.publish()
    files = [tmp_path / "package.umbel", tmp_path / "other.umbel"]
    for file, note in zip(files, ("", "another"), strict=True):
        file.write_bytes(package(1, note))
    assert set(crashed("crashing_registry.py", what, made.path, *files)) == states

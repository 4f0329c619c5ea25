"""Rules at the command line: one that is not there, and one whose plan is not, are told and not passed over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from api_world import api_world
from two_places import TwoPlaces
from umbel_proto.errors import UsageError
from umbel_server.access.actor import Role
from umbel_server.access.permissions import HELD
from umbel_server.monitor.alerts.evaluate import rules_path
from umbel_server.monitor.alerts.state import Timing
from umbel_server.store.alerts import Reading, Telling

RULE = """
[[rule]]
name = "drift"
what = "drift"
model = "digits"
actions = ["propose_run"]
plan = "retrain.toml"
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[TwoPlaces]:
    with api_world(tmp_path) as made:
        full = TwoPlaces(made.fleet, made.store, made.clock, made.client)
        full.path = tmp_path
        full.tokens = {"root": made.token(made.user("root", Role.ADMIN), HELD[Role.ADMIN])}
        rules_path(full.fleet).write_text(RULE)
        yield full


def found(world: TwoPlaces, rule: str, *readings: Reading) -> None:
    """Let a rule find some things, and nothing else any more."""
    world.store.alerts.look(
        rule,
        "warning",
        readings,
        Timing(0.0, 0.0, 0.0),
        telling=Telling({}, lambda kind, alerts: {}),
        act=lambda connection, alert: (),
    )


@pytest.mark.parametrize("where", ["here", "far"])
def test_alerts_of_a_rule_that_is_not_there_are_refused_and_not_none(world: TwoPlaces, where: str) -> None:
    for words in ("alert list --rule nosuch", "alert list --rule nosuch --all --json"):
        with pytest.raises(UsageError, match=r"There is no rule 'nosuch': see  umbel alert rules\."):
            world.run(words, where)


@pytest.mark.parametrize("where", ["here", "far"])
def test_where_a_rule_finds_nothing_it_is_said_of_the_rule(world: TwoPlaces, where: str) -> None:
    assert world.run("alert list --rule drift", where).startswith(
        "Nothing of rule drift fires.  umbel alert list"
    )
    assert world.run("alert list --rule drift --all", where) == "Nothing of rule drift fires.\n"


@pytest.mark.parametrize("where", ["here", "far"])
def test_what_a_rule_found_that_is_in_no_file_any_more_is_listed(world: TwoPlaces, where: str) -> None:
    found(world, "former", Reading({"model": "digits"}, True, 0.2, "age drifted"))
    assert "age drifted" in world.run("alert list --rule former", where)
    found(world, "former")
    assert world.run("alert list --rule former", where).startswith("Nothing of rule former fires.")
    assert "age drifted" in world.run("alert list --rule former --all", where)


@pytest.mark.parametrize("where", ["here", "far"])
def test_alerts_of_a_rule_are_listed_while_somebody_mends_the_rules(world: TwoPlaces, where: str) -> None:
    rules_path(world.fleet).write_text("[[rule]")
    assert world.run("alert list --rule drift", where).startswith("Nothing of rule drift fires.")


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (None, "cannot be read: No such file or directory: write it as for  umbel rounds start"),
        ("rounds = [", "is not TOML: .*: write it as for  umbel rounds start"),
        ("rounds = 2", "names no model: write it as for  umbel rounds start"),
        ('model = "letters"', "trains 'letters', and the rule looks at digits: let both name one model"),
    ],
)
def test_a_plan_that_a_rule_could_not_propose_is_one_sentence_that_names_both(
    world: TwoPlaces, plan: str | None, sentence: str
) -> None:
    if plan is not None:
        (world.fleet.path / "retrain.toml").write_text(plan)
    with pytest.raises(UsageError, match=rf"^Rule drift: the plan \S+/retrain\.toml {sentence}\.$") as caught:
        world.run("alert rules", "here")
    assert "\n" not in str(caught.value)


def test_rules_whose_plan_could_be_proposed_or_is_not_asked_for_are_shown(world: TwoPlaces) -> None:
    rules_path(world.fleet).write_text(RULE + "enabled = false\n")
    assert "drift (off)" in world.run("alert rules", "here")
    (world.fleet.path / "retrain.toml").write_text('model = "digits"')
    for text in (RULE, RULE.replace('"digits"', '"*"')):
        rules_path(world.fleet).write_text(text)
        assert "propose_run" in world.run("alert rules", "here")

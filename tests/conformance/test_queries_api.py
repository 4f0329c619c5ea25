"""Queries over the API and at the command line: tried, refused and read alike, by whoever may."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from simulation.federation import lenient_policy
from simulation.tabular import TabularFederation
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.permissions import HELD
from umbel_server.api.server import ApiServer
from umbel_server.queries.at_hand import QueriesAtHand
from umbel_server.queries.command import app
from umbel_server.queries.plan import Question
from umbel_server.store.store import Store

ASKED = {"kind": "histogram", "model": "tiny", "field": "group", "why": "to know", "epsilon": 1.0}


@dataclass(frozen=True, slots=True)
class World:
    """A fleet with one answered query, whose API listens."""

    federation: TabularFederation
    store: Store
    client: httpx.Client

    def call(self, role: Role, method: str, path: str, **more: Any) -> httpx.Response:
        name = f"{role.value}-1"
        if name not in {each.name for each in self.store.accounts.all()}:
            self.store.accounts.add(local_actor(), name, roles=frozenset({role}), password=None)
        text, _ = self.store.api_tokens.create(local_actor(), name, scopes=HELD[role], valid_s=3600)
        headers = {"Authorization": f"Bearer {text}"}
        return self.client.request(method, f"/api/v1/queries{path}", headers=headers, **more)

    def command(self, *words: str) -> str:
        made = CliRunner().invoke(app, [*words, "--fleet", str(self.federation.fleet.path)])
        assert made.exit_code == 0, (made.output, made.exception)
        return made.output


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    policy = lenient_policy()
    federation = TabularFederation(tmp_path_factory.mktemp("fleet"), 4, policy=policy)
    federation.ask(Question(kind="histogram", model="tiny", field="group", why="to know", epsilon=None))
    federation.ask(
        Question(
            kind="fairness",
            model="tiny",
            cohort="group",
            positive="b",
            why="to see",
            epsilon=None,
            per_device=99,
        )
    )
    federation.ask(Question(kind="mean", model="tiny", field="age", why="to see", epsilon=None))
    federation.ask(
        Question(kind="quantile", model="tiny", field="age", quantiles=(0.5,), why="to see", epsilon=None)
    )
    fleet = federation.fleet
    trust = ssl.create_default_context(cafile=fleet.ca_pem)
    with (
        fleet.open_store() as store,
        ApiServer(fleet, store, port=0) as server,
        httpx.Client(base_url=f"https://{server.address}", verify=trust, timeout=60) as client,
    ):
        yield World(federation, store, client)


def test_a_question_is_tried_at_the_command_line_and_over_the_api_alike(world: World) -> None:
    answer = world.call(Role.OPERATOR, "POST", "", json={**ASKED, "name": "tried", "dry_run": True})
    assert answer.status_code == 201
    words = (
        "histogram",
        "tiny",
        "--field",
        "group",
        "--why",
        "to know",
        "--name",
        "tried",
        "--dry-run",
        "--json",
    )
    assert json.loads(world.command(*words)) == answer.json()
    assert answer.json()["epsilon"] == pytest.approx(1.0)
    assert answer.json()["asked"] is False
    assert "tried" not in {each.id for each in world.store.queries.all()}
    told = world.command(*words[:-1])
    assert "An answer costs a device epsilon 1" in told
    assert "Nobody was asked." in told


def test_who_may_only_look_reads_answers_and_asks_nothing(world: World) -> None:
    shown = world.call(Role.VIEWER, "GET", "/histogram-1").json()
    assert shown["state"] == "finished"
    assert len(shown["result"]["cells"]) == 3
    assert json.loads(world.command("show", "histogram-1", "--json")) == shown
    listed = world.call(Role.VIEWER, "GET", "?limit=1").json()
    assert [each["query"] for each in listed["items"]] == ["fairness-1"]
    assert listed["next"]
    assert len(json.loads(world.command("list", "--json"))) == 4
    assert world.call(Role.VIEWER, "POST", "", json=ASKED).status_code == 403
    assert world.call(Role.VIEWER, "GET", "/nothing").status_code == 404


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"field": "height"}, 422),
        ({"kind": "dump"}, 422),
        ({"edges": [2, 1]}, 422),
        ({"epsilon": -1}, 422),
        ({"why": ""}, 422),
        ({"why": "a\nb"}, 422),
        ({"min_cohort": 9}, 409),
        ({"secret": 1}, 422),
    ],
)
def test_a_question_that_cannot_be_asked_is_a_problem(
    world: World, changes: dict[str, Any], status: int
) -> None:
    answer = world.call(Role.OPERATOR, "POST", "", json={**ASKED, **changes, "dry_run": True})
    assert answer.status_code == status, answer.text


def test_every_kind_of_answer_has_a_table(world: World) -> None:
    assert "0.5 to 1.5" in world.command("show", "histogram-1")
    assert "standard deviation" in world.command("show", "mean-1")
    assert "quantile" in world.command("show", "quantile-1")
    told = world.command("show", "fairness-1")
    assert "against the others" in told
    assert "Widest differences: selection rate" in told
    assert "mean-1" in world.command("list")


def test_a_query_that_cannot_be_put_is_on_record_as_failed(world: World) -> None:
    """No SuperLink listens in this test."""
    with world.federation.fleet.open_store() as store:
        at_hand = QueriesAtHand(world.federation.fleet, store)
        with pytest.raises(Exception, match="SuperLink does not answer"):
            at_hand.ask({**ASKED, "name": "lost"}, dry_run=False)

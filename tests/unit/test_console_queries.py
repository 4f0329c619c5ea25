"""The screens of private queries: what was asked and answered, and how somebody asks after a look at the cost."""

from __future__ import annotations

import contextlib
import csv
import html
import io
import re
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from console_world import ConsoleWorld, Visitor, text_of
from service_fleet import ManualClock
from simulation.federation import lenient_policy
from simulation.tabular import TabularFederation
from umbel_proto.ids import RunId
from umbel_server.access.actor import Role, local_actor
from umbel_server.console.screens.query_new import NEW
from umbel_server.console.server import ConsoleServer
from umbel_server.console.words import figures
from umbel_server.queries.ask import ask
from umbel_server.queries.plan import Question
from umbel_server.store.audit import Sought

ASKED = {"kind": "histogram", "model": "tiny", "field": "group", "why": "to know"}
QUESTIONS: dict[str, dict[str, Any]] = {
    "histogram": {"field": "group"},
    "mean": {"field": "age"},
    "quantile": {"field": "age", "quantiles": (0.1, 0.5)},
    "fairness": {"cohort": "group", "positive": "b"},
}
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    """A fleet that answered a query of each kind, whose console listens; no SuperLink does."""
    federation = TabularFederation(tmp_path_factory.mktemp("asked"), 4, policy=lenient_policy())
    fleet, clock = federation.fleet, ManualClock()
    trust = ssl.create_default_context(cafile=fleet.ca_pem)
    with (
        fleet.open_store(clock=clock) as store,
        ConsoleServer(fleet, store, port=0) as server,
        contextlib.ExitStack() as visitors,
    ):
        world = ConsoleWorld(fleet, store, clock, f"https://{server.address}", trust, visitors)
        assert "umbel query histogram MODEL" in text_of(world.signed_in(Role.VIEWER).get("/queries").text)
        for kind, own in QUESTIONS.items():
            many = {"kind": kind, "model": "tiny", "why": EVIL, "epsilon": None, "per_device": 99}
            federation.ask(Question(**many, **own))
        yield world


@pytest.fixture(scope="module")
def operator(console: ConsoleWorld) -> Visitor:
    return console.signed_in(Role.OPERATOR)


@pytest.fixture(scope="module")
def viewer(console: ConsoleWorld) -> Visitor:
    return console.signed_in(Role.VIEWER)


def at(**changes: str) -> str:
    return f"{NEW}?{urlencode(ASKED | changes)}"


def hidden(page: str) -> dict[str, str]:
    form = page[page.rindex('<form method="post"') :]
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form)
    return {name: html.unescape(value) for name, value in found if name != "csrf"}


def names(console: ConsoleWorld) -> set[str]:
    return {each.id for each in console.store.queries.all()}


def test_the_list_says_who_asked_what_and_what_it_cost(console: ConsoleWorld, viewer: Visitor) -> None:
    told = text_of(viewer.get("/queries?state=&kind=mean&model=").text)
    assert "mean-1" in told
    assert "fairness-1" not in told
    assert "infinite" in told, "no noise was asked for"
    assert "No query is like that." in text_of(viewer.get("/queries?state=stopped").text)
    rows = {row["query"]: row for row in csv.DictReader(io.StringIO(viewer.get("/queries?format=csv").text))}
    for kind, own in QUESTIONS.items():
        row = rows[f"{kind}-1"]
        assert (row["kind"], row["about"]) == (kind, own.get("field") or own["cohort"])
        assert (row["model"], row["devices"], row["asked_by"]) == ("tiny", "4", local_actor().name)


@pytest.mark.parametrize("kind", QUESTIONS)
def test_an_answer_is_shown_as_it_is_on_record_with_noise_and_sampling_apart(
    console: ConsoleWorld, viewer: Visitor, kind: str
) -> None:
    record = console.store.queries.get(RunId(f"{kind}-1"))
    assert record is not None
    assert record.result is not None
    result = record.result
    kept = {
        "histogram": [each["share"] for each in result.get("cells", ())],
        "mean": [result.get("mean")],
        "quantile": [each["figure"] for each in result.get("quantiles", ())],
        "fairness": [
            rate["figure"] for cohort in result.get("cohorts", ()) for rate in cohort["rates"].values()
        ],
    }[kind]
    assert any(kept), "or the test sees nothing"
    page = text_of(viewer.get(f"/queries/{kind}-1").text)
    for words in ("Noise", "Sampling", "In the sum 4 devices", "Paid for it 4 devices"):
        assert words in page
    rows = list(csv.DictReader(io.StringIO(viewer.get(f"/queries/{kind}-1?format=csv").text)))
    assert len(rows) == len(kept)
    for row, figure in zip(rows, kept, strict=True):
        for name in ("value", "low", "high", "noise", "sampling"):
            assert row[name] == ("" if figure is None else repr(figure[name]))
    chart = viewer.get(f"/queries/{kind}-1/answer.json").json()
    drawn = [value for series in chart["series"] for value in series["values"]]
    assert sorted(map(repr, drawn)) == sorted(repr(each and each["value"]) for each in kept)


def test_what_somebody_wrote_is_text(viewer: Visitor, operator: Visitor) -> None:
    for page in (viewer.get("/queries"), viewer.get("/queries/mean-1"), operator.get(at(why=EVIL))):
        assert EVIL not in page.text
        assert html.escape(EVIL) in page.text


def test_the_form_shows_what_a_dry_run_tells_and_asks_nobody(
    console: ConsoleWorld, operator: Visitor
) -> None:
    before = names(console)
    page = operator.get(at(epsilon="0.5"))
    assert page.status_code == 200
    question = Question(kind="histogram", model="tiny", field="group", why="to know", epsilon=0.5)
    told = ask(console.fleet, console.store, question, dry_run=True, actor=local_actor())
    text = text_of(page.text)
    assert f"epsilon {figures(told['epsilon'])} at delta" in text
    assert f"± {figures(told['expected']['half_width'])} : noise" in text
    assert told["query"] in text
    assert names(console) == before
    for kind in QUESTIONS:
        assert operator.get(f"{NEW}?kind={kind}").status_code == 200


def test_who_may_only_look_neither_sees_the_form_nor_asks(console: ConsoleWorld, viewer: Visitor) -> None:
    before = names(console)
    assert viewer.get(NEW).status_code == 403
    assert viewer.post(at(), name="mine", typed="mine", reason="x", state="").status_code == 403
    assert NEW not in viewer.get("/queries").text
    assert names(console) == before


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"field": "height"}, 422, "has no field 'height'"),
        ({"kind": "dump"}, 422, "no kind of query"),
        ({"epsilon": "a lot"}, 422, "Epsilon: 'a lot' is no number"),
        ({"edges": "2,1"}, 422, "edges"),
        ({"edges": "1,nan"}, 422, "Edges: 'nan' is no number"),
        ({"version": "9"}, 422, "released no version 9"),
        ({"why": ""}, 422, "what it is for"),
        ({"min_cohort": "9"}, 409, "a sum has at least 9"),
    ],
)
def test_a_question_that_cannot_be_asked_says_why(
    operator: Visitor, changes: dict[str, str], status: int, says: str
) -> None:
    page = operator.get(at(**changes))
    assert page.status_code == status
    assert says in text_of(page.text)
    assert "to confirm" not in page.text


def test_nobody_is_asked_without_the_typed_name_a_reason_and_the_cost_that_was_seen(
    console: ConsoleWorld, operator: Visitor
) -> None:
    before, here = names(console), at(name="mine")
    fields = hidden(operator.get(here).text)
    assert fields["name"] == "mine"
    for changes, status, says in (
        ({"typed": "x", "reason": "y"}, 422, "type mine to confirm"),
        ({"typed": "mine", "reason": ""}, 422, "say what for"),
        ({"typed": "mine", "reason": "y", "state": fields["state"] + "1"}, 409, "has changed since"),
    ):
        answer = operator.post(here, **(fields | changes))
        assert answer.status_code == status
        assert says in text_of(answer.text)
    # More was spent than when the page was made: for another epsilon, nobody agreed to what was shown.
    assert operator.post(at(name="mine", epsilon="2"), **fields, typed="mine", reason="y").status_code == 409
    assert names(console) == before


def test_a_confirmed_question_goes_on_record_with_who_asked_and_what_for(
    console: ConsoleWorld, operator: Visitor
) -> None:
    """No SuperLink listens in this test: the query is on record as failed, and the page says why."""
    here = at(name="lost")
    answer = operator.post(here, **hidden(operator.get(here).text), typed="lost", reason="a better reason")
    assert answer.status_code == 503
    assert "SuperLink does not answer" in text_of(answer.text)
    found = console.store.queries.get(RunId("lost"))
    assert found is not None
    assert (found.state, found.asked_by, found.why) == ("failed", "a-operator", "a better reason")
    (entry,) = console.store.audit.all(Sought(object="query:lost", action="query.ask"))
    assert (entry.actor, entry.reason) == ("a-operator", "a better reason")
    told = text_of(operator.get("/queries/lost").text)
    assert "There is no answer: it was not asked" in told
    assert "Paid for it 0 devices" in told
    again = operator.post(here, **hidden(operator.get(here).text), typed="lost", reason="again")
    assert again.status_code == 422
    assert "already a run or query lost" in text_of(again.text)


def test_what_is_not_there_is_not_found(viewer: Visitor) -> None:
    for path in ("/queries/nobody", "/queries/nobody/answer.json"):
        assert viewer.get(path).status_code == 404, path

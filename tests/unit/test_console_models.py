"""The screens of models and approvals: what they say of real versions, and what may be done from them, by whom."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from console_world import ConsoleWorld, Visitor, console_world, text_of
from model_packages import RELEASE, first, opened, resigned
from monitor_world import DAY_S, Reporters
from registry_world import ANNA, BEN, PIPELINE, World, package
from umbel_server.access.actor import Role
from umbel_server.console.screens.model_version import drawn
from umbel_server.fleet.publish import publish
from umbel_server.registry.figures import Metric
from umbel_server.registry.releasing import retire
from umbel_server.registry.stages import Stage
from umbel_server.registry.versions import add, describe
from umbel_server.store.audit import Sought
from umbel_server.store.registry import Line, comments_of, requests_of

NASTY = "<script>alert('x')</script>"
EVIDENCE = (
    ("accuracy", 0.94, "", (0.90, 0.97)),
    ("accuracy", 0.81, "cohort older", (0.70, 0.89)),
    ("accuracy", 0.95, f"cohort {NASTY}", None),
)


def judged(version: int) -> bytes:
    """Digits of a version whose card has figures by cohort, one of them by a name that is a script."""
    card = json.loads(bytes(opened(first()).file("card.json")))
    component = card["metadata"]["component"]
    component["version"] = str(version)
    component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"] = [
        {"type": kind, "value": repr(value)}
        | ({"slice": part} if part else {})
        | (
            {"confidenceInterval": {"lowerBound": repr(interval[0]), "upperBound": repr(interval[1])}}
            if interval
            else {}
        )
        for kind, value, part, interval in EVIDENCE
    ]

    def change(body: dict[str, Any]) -> None:
        body["version"] = version
        body["lineage"] |= {"base_version": version - 1, "note": NASTY}

    return resigned(first(), change, **{"card.json": json.dumps(card).encode()})


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("models"), approvals=2) as made:
        made.fleet.release_key.write_bytes(RELEASE.to_pem())
        made.fleet.release_pub.write_bytes(RELEASE.public.raw)
        yield made


@pytest.fixture(scope="module")
def empty(console: ConsoleWorld, viewer: Visitor) -> dict[str, str]:
    """What the screens say before there is anything."""
    return {path: text_of(viewer.get(path).text) for path in ("/models", "/approvals")}


@pytest.fixture(scope="module")
def registry(console: ConsoleWorld, empty: dict[str, str]) -> World:
    """Version 1 is released, 2 waits, 3 has evidence by cohort, 4 is a draft that will be moved about."""
    made = World(console.fleet, console.store, console.clock)
    describe(made.store, Line("digits", "anna", f"reads digits {NASTY}", "limited"), ANNA)  # type: ignore[arg-type]
    made.add(1)
    made.ask(1)
    for name in ("ben", "carl"):
        made.say(BEN if name == "ben" else type(BEN)(name, BEN.roles), 1)
    publish(made.fleet, made.store, package(1), actor=ANNA)
    made.add(2)
    made.ask(2)
    add(made.fleet, made.store, judged(3), PIPELINE)
    made.ask(3)
    return made


@pytest.fixture(scope="module")
def viewer(console: ConsoleWorld) -> Visitor:
    return console.signed_in(Role.VIEWER)


@pytest.fixture(scope="module")
def manager(console: ConsoleWorld) -> Visitor:
    return console.signed_in(Role.RELEASE_MANAGER)


@pytest.fixture(scope="module")
def reviewer(console: ConsoleWorld) -> Visitor:
    return console.signed_in(Role.REVIEWER)


def hidden(page: str, name: str) -> str:
    found = re.search(rf'<input type="hidden" name="{name}" value="([^"]*)"', page)
    assert found, name
    return found[1]


def test_with_an_empty_registry_the_screens_say_how_to_fill_it(empty: dict[str, str]) -> None:
    assert "umbel registry add PACKAGE.umbel" in empty["/models"]
    assert "umbel registry request MODEL@VERSION" in empty["/approvals"]
    assert "No device told of a review" in empty["/approvals"]


def test_the_list_has_every_version_and_filters_by_stage_in_the_url(registry: World, viewer: Visitor) -> None:
    told = text_of(viewer.get("/models").text)
    for words in ("digits@1", "digits@2", "digits@3", "released", "candidate", "limited", "In use version 1"):
        assert words in told
    some = text_of(viewer.get("/models?stage=released").text)
    assert "digits@1" in some
    assert "digits@2" not in some
    assert "No version is retired" in text_of(viewer.get("/models?stage=retired").text)
    assert viewer.get("/models?stage=golden").status_code == 422


def test_the_list_is_exported_whole_as_it_is_filtered(registry: World, viewer: Visitor) -> None:
    rows = list(csv.DictReader(io.StringIO(viewer.get("/models?format=csv").text)))
    assert [(row["version"], row["stage"], row["approvals"]) for row in rows] == [
        ("3", "candidate", "0/2"),
        ("2", "candidate", "0/2"),
        ("1", "released", "2/2"),
    ]
    (one,) = viewer.get("/models?format=json&stage=released").json()
    assert one["sha256"] == registry.version(1).sha256.hex()


def test_a_version_shows_its_card_its_way_and_what_devices_fetch(registry: World, viewer: Visitor) -> None:
    page = viewer.get("/models/digits/1").text
    told = text_of(page)
    for words in (
        "Read single handwritten digits",
        "Thirteen writers",
        "CC-BY-4.0",
        "What quantization cost",
        "share of equal answers int8",
        "data contract",
        "none of this model the package",
        "looked at it",
        "request 1",
    ):
        assert words in told, words
    assert "umbel:" not in told
    assert 'href="/models/digits/2"' in page  # made of it
    drafted = text_of(viewer.get("/models/digits/2").text)
    assert "No device can fetch it: it is candidate" in drafted
    assert "no figures by cohort" in drafted


def test_figures_by_cohort_are_shown_with_their_intervals(registry: World, viewer: Visitor) -> None:
    told = text_of(viewer.get("/models/digits/3").text)
    assert "cohort older 0.8100 0.700 to 0.890" in told
    rows = viewer.get("/models/digits/3?format=json").json()
    assert {row["part"]: (row["low"], row["high"]) for row in rows} == {
        "": (0.90, 0.97),
        "cohort older": (0.70, 0.89),
        f"cohort {NASTY}": (None, None),
    }


@pytest.mark.parametrize(
    "path",
    [
        "/models",
        "/models/digits",
        "/models/digits/3",
        "/approvals",
        "/approvals/digits/3",
        "/models/digits/compare?before=1&after=3",
        "/audit?object=version:digits@3",
    ],
)
def test_no_name_of_anybodys_becomes_a_script(registry: World, console: ConsoleWorld, path: str) -> None:
    page = console.signed_in(Role.ADMIN).get(path).text
    assert NASTY not in page
    assert "<script>alert" not in page


def test_files_of_a_card_are_what_the_registry_makes(registry: World, viewer: Visitor) -> None:
    card = viewer.get("/models/digits/1/card.json")
    assert card.json()["metadata"]["component"]["hashes"][0]["content"] == registry.version(1).sha256.hex()
    assert "attachment" in card.headers["content-disposition"]
    assert "# digits@1" in viewer.get("/models/digits/1/card.md").text
    assert "# Data sheet of digits@1" in viewer.get("/models/digits/1/datasheet.md").text
    steps = viewer.get("/models/digits/1/lineage.json").json()["steps"]
    assert [step[0]["kind"] for step in steps][:3] == ["contract", "package", "variant"]


def test_two_versions_stand_side_by_side_with_what_may_be_chance(registry: World, viewer: Visitor) -> None:
    told = text_of(viewer.get("/models/digits/compare?before=1&after=3").text)
    assert "digits@1 and digits@3" in told
    assert "Contract The same in both." in told
    rows = viewer.get("/models/digits/compare?before=1&after=3&format=json").json()
    assert {row["part"] for row in rows} >= {"", "cohort older"}
    missing = viewer.get("/models/digits/compare?before=1&after=9")
    assert missing.status_code == 404
    assert "There is no version 9 of model digits" in text_of(missing.text)


def test_what_is_not_there_is_a_page_and_no_error(registry: World, viewer: Visitor) -> None:
    for path in ("/models/roses", "/models/digits/9", "/approvals/digits/9", "/models/digits/0"):
        answer = viewer.get(path)
        assert answer.status_code in (404, 422), path
        assert "Traceback" not in answer.text


def test_a_model_is_described_and_two_who_do_so_at_once_lose_nothing(
    registry: World, manager: Visitor
) -> None:
    page = manager.get("/models/digits").text
    seen = hidden(page, "seen")
    said = {"owner": "dora", "purpose": "reads digits", "risk": "minimal", "review_date": "2031-01-31"}
    kept = manager.post("/models/digits", **said, decommission="", reason="moved", seen=seen)
    assert kept.status_code == 303
    late = manager.post("/models/digits", **(said | {"owner": "eve"}), decommission="", reason="x", seen=seen)
    assert late.status_code == 409
    assert "Somebody else has just said something of digits" in text_of(late.text)
    assert 'value="eve"' in late.text  # What was typed is still there.
    assert "dora" in text_of(manager.get("/models").text)
    wrong = manager.post(
        "/models/digits",
        **(said | {"review_date": "soon"}),
        decommission="",
        reason="x",
        seen=hidden(manager.get("/models/digits").text, "seen"),
    )
    assert wrong.status_code == 422
    assert "is no date" in text_of(wrong.text)


# Approvals


def test_two_people_approve_by_clicking_and_neither_twice(
    registry: World, console: ConsoleWorld, reviewer: Visitor, manager: Visitor
) -> None:
    page = reviewer.get("/approvals/digits/2").text
    told = text_of(page)
    assert "What devices have now: digits@1" in told
    assert "0 of 2 approvals, 2 to go" in told
    number = hidden(page, "number")
    silent = reviewer.post("/approvals/digits/2", number=number, verdict="approve", reason=" ")
    assert silent.status_code == 422
    assert "needs its reason" in text_of(silent.text)
    once = reviewer.post("/approvals/digits/2", number=number, verdict="approve", reason="better on all")
    assert (once.status_code, once.headers["location"]) == (303, "/approvals/digits/2")
    twice = reviewer.post("/approvals/digits/2", number=number, verdict="approve", reason="again")
    assert twice.status_code == 409
    assert "counts once" in text_of(twice.text)
    assert registry.stage(2) is Stage.CANDIDATE
    done = manager.post("/approvals/digits/2", number=number, verdict="approve", reason="agreed")
    assert done.status_code == 303
    assert registry.stage(2) is Stage.APPROVED
    notice = text_of(manager.get("/approvals/digits/2").text)
    assert "it has all it needs, and may be released" in notice
    assert "has all it needs" in text_of(manager.get("/approvals").text)
    entries = console.store.audit.latest(Sought(action="version.approve", object="version:digits@2"), limit=9)
    assert [(each.actor, each.reason) for each in entries] == [
        ("a-release-manager", "agreed"),
        ("a-reviewer", "better on all"),
    ]


def test_whoever_asked_may_not_approve_and_is_told_so_before(registry: World, manager: Visitor) -> None:
    registry.add(5)
    asked = manager.post("/models/digits/5/request", reason="for the trial")
    assert asked.status_code == 303
    page = text_of(manager.get("/approvals/digits/5").text)
    assert "a-release-manager asked for this approval, and so cannot give it" in page
    number = str(registry.requests(5)[-1].number)
    answer = manager.post("/approvals/digits/5", number=number, verdict="approve", reason="mine")
    assert answer.status_code == 409
    assert registry.requests(5)[-1].decisions == ()


def test_a_decision_on_evidence_that_is_another_by_now_is_not_taken(
    registry: World, reviewer: Visitor
) -> None:
    page = reviewer.get("/approvals/digits/5").text
    number = hidden(page, "number")
    registry.ask(5)
    answer = reviewer.post("/approvals/digits/5", number=number, verdict="approve", reason="all is well")
    assert answer.status_code == 409
    assert "was asked about again since you looked" in text_of(answer.text)
    assert "all is well" in answer.text  # What was typed is still there.
    assert registry.requests(5)[-1].decisions == ()


def test_a_rejected_version_is_a_draft_with_the_reason_on_its_page(
    registry: World, reviewer: Visitor
) -> None:
    number = hidden(reviewer.get("/approvals/digits/5").text, "number")
    answer = reviewer.post(
        "/approvals/digits/5", number=number, verdict="reject", reason="older hands suffer"
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/approvals")
    assert registry.stage(5) is Stage.DRAFT
    assert "older hands suffer" in text_of(reviewer.get("/models/digits/5").text)
    assert "Nobody asks for approval of digits@5" in text_of(reviewer.get("/approvals/digits/5").text)


def test_a_viewer_reads_the_evidence_and_decides_nothing(registry: World, viewer: Visitor) -> None:
    page = viewer.get("/approvals/digits/3")
    assert page.status_code == 200
    assert 'value="approve"' not in page.text
    assert "takes the role" in text_of(page.text)
    refused = viewer.post("/approvals/digits/3", number="1", verdict="approve", reason="me too")
    assert refused.status_code == 403
    assert "reviewer" in text_of(refused.text)


def test_neither_button_is_no_decision(registry: World, reviewer: Visitor) -> None:
    answer = reviewer.post("/approvals/digits/3", number="1", verdict="maybe", reason="hm")
    assert answer.status_code == 422
    assert registry.requests(3)[-1].decisions == ()


def test_reviews_are_counts_and_the_page_says_where_the_examples_are(
    registry: World, console: ConsoleWorld, viewer: Visitor
) -> None:
    devices = Reporters(console.store, console.clock, 10)
    for name in devices.names:
        devices.tell(name, counters={"review.asked": 6, "review.resolved": 5, "review.changed": 1})
    devices.arrive()
    told = text_of(viewer.get("/approvals?range=7d").text)
    assert "The examples never leave the device" in told
    assert "digits@1 60 50 10 80.0" in told.replace("\N{NO-BREAK SPACE}", " ").replace(" %", " %")
    assert console.clock() > DAY_S


# What is done with a version


def test_a_version_is_deprecated_reinstated_and_retired_by_its_typed_name(
    registry: World, console: ConsoleWorld, manager: Visitor
) -> None:
    ask = manager.get("/models/digits/1/deprecate").text
    assert "0 devices touched" in text_of(ask)
    seen = hidden(ask, "seen")
    assert seen == "released"
    wrong = manager.post("/models/digits/1/deprecate", seen=seen, typed="digits", reason="old")
    assert wrong.status_code == 422
    assert "type digits@1 to confirm" in text_of(wrong.text)
    moved = manager.post("/models/digits/1/deprecate", seen=seen, typed="digits@1", reason="old")
    assert (moved.status_code, registry.stage(1)) == (303, Stage.DEPRECATED)
    late = manager.post("/models/digits/1/deprecate", seen=seen, typed="digits@1", reason="also I")
    assert late.status_code == 409
    assert "was released when you looked, and is deprecated now" in text_of(late.text)
    assert "also I" in late.text
    back = manager.post("/models/digits/1/reinstate", seen="deprecated", typed="digits@1", reason="fine")
    assert (back.status_code, registry.stage(1)) == (303, Stage.RELEASED)
    entry = console.store.audit.newest()
    assert entry is not None
    assert (entry.actor, entry.action, entry.reason) == ("a-release-manager", "version.reinstate", "fine")


def test_what_needs_the_release_key_says_where_it_is_done(registry: World, manager: Visitor) -> None:
    key = registry.fleet.release_key.read_bytes()
    registry.fleet.release_key.unlink()
    try:
        told = text_of(manager.get("/models/digits/1/retire").text)
        assert "umbel registry retire digits@1 --key release.key" in told
        answer = manager.post("/models/digits/1/retire", seen="released", typed="digits@1", reason="over")
        assert answer.status_code == 422
        assert "needs the release key" in text_of(answer.text)
        assert registry.stage(1) is Stage.RELEASED
    finally:
        registry.fleet.release_key.write_bytes(key)


def test_a_draft_is_retired_and_nothing_more_can_be_done_with_it(registry: World, manager: Visitor) -> None:
    registry.add(6)
    done = manager.post("/models/digits/6/retire", seen="draft", typed="digits@6", reason="a mistake")
    assert (done.status_code, registry.stage(6)) == (303, Stage.RETIRED)
    page = manager.get("/models/digits/6").text
    assert "/models/digits/6/retire" not in page
    assert "/models/digits/6/request" not in page
    retire(registry.fleet, registry.store, "digits", 6, ANNA, reason="again")


def test_a_comment_stays_on_record(registry: World, viewer: Visitor) -> None:
    assert viewer.post("/models/digits/1/comment", comment=f"see {NASTY}").status_code == 303
    with registry.store.database.read() as connection:
        assert comments_of(connection, registry.version(1))[-1].text == f"see {NASTY}"
        assert requests_of(connection, registry.version(1))
    page = viewer.get("/models/digits/1").text
    assert NASTY not in page
    assert viewer.post("/models/digits/1/comment", comment=" ").status_code == 422


# How figures are drawn


def test_figures_of_a_kind_are_drawn_on_one_scale_that_holds_them_all() -> None:
    bars = drawn(
        [
            Metric("accuracy", 0.9, "", (0.85, 0.95)),
            Metric("log loss", 3.0, "", (2.0, 4.0)),
            Metric("log loss", 1.0, "cohort older"),
            Metric("R2", -1.0),
        ]
    )
    assert [(each.low, each.value, each.high, each.known) for each in bars] == [
        (0.85, 0.9, 0.95, True),
        (0.5, 0.75, 1.0, True),
        (0.25, 0.25, 0.25, False),
        (0.0, 0.0, 0.0, False),
    ]

"""The screens of alerts and of the runs that they propose: what they say, and what people do about them."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterator

import pytest

from console_world import ConsoleWorld, Visitor, console_world, text_of
from rollout_world import ANN, DIGITS
from umbel_server.access.actor import Role
from umbel_server.access.permissions import HELD, Permission
from umbel_server.console.seen.alerts import link_of
from umbel_server.monitor.alerts.evaluate import rules_path
from umbel_server.monitor.alerts.state import Timing
from umbel_server.store.alerts import Alert, Reading, Telling
from umbel_server.store.audit import Sought

RULES = """
[[channel]]
name = "oncall"
kind = "webhook"
url = "https://hooks.test/secret-path"

[[rule]]
name = "drift"
what = "drift"
threshold = 1
severity = "critical"
runbook = "https://runbooks.test/drift"

[[rule]]
name = "latency"
what = "latency_ms"
threshold = 40.0
runbook = "javascript:alert(1)"
"""
NOBODY = Telling({}, lambda kind, alerts: {})
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("alerts")) as made:
        visitor = made.signed_in(Role.VIEWER)
        assert "umbel alert rules --init" in text_of(visitor.get("/alerts").text)
        assert "umbel alert rules --init" in text_of(visitor.get("/alerts/-/rules").text)
        assert "umbel alert test" in text_of(visitor.get("/alerts/-/notices").text)
        rules_path(made.fleet).write_text(RULES)
        assert "umbel serve alerts" in text_of(visitor.get("/alerts").text)
        yield made


@pytest.fixture(scope="module")
def operator(console: ConsoleWorld) -> Visitor:
    return console.signed_in(Role.OPERATOR)


@pytest.fixture(scope="module")
def viewer(console: ConsoleWorld) -> Visitor:
    return console.signed_in(Role.VIEWER)


def fire(
    console: ConsoleWorld, rule: str = "drift", *, feature: str = "age", why: str = "it drifts"
) -> Alert:
    """Let a rule find something; what it found before of other features goes on."""
    reading = Reading({"model": "digits", "feature": feature}, True, 0.5, why)
    others = [
        Reading(each.labels, None, None, "")
        for each in console.store.alerts.all(rule=rule)
        if each.labels != reading.labels
    ]
    console.store.alerts.look(
        rule,
        "critical" if rule == "drift" else "warning",
        [reading, *others],
        Timing(),
        telling=NOBODY,
        act=lambda *_: (),
    )
    return next(each for each in console.store.alerts.all(rule=rule) if each.labels == reading.labels)


def now(console: ConsoleWorld, alert: Alert) -> Alert:
    return console.store.alerts.get(alert.fingerprint)


def test_the_list_tells_what_fires_the_worst_first_with_where_to_read_on(
    console: ConsoleWorld, operator: Visitor
) -> None:
    slow = fire(console, "latency", feature="p90")
    drifted = fire(console, feature="age")
    page = operator.get("/alerts")
    told = text_of(page.text)
    assert told.index("feature age") < told.index("feature p90")
    assert 'href="https://runbooks.test/drift"' in page.text
    assert "critical, firing 1" in told
    rows = list(csv.DictReader(io.StringIO(operator.get("/alerts?format=csv&rule=drift").text)))
    assert drifted.fingerprint in {row["alert"] for row in rows}
    assert slow.fingerprint not in {row["alert"] for row in rows}
    assert text_of(operator.get("/alerts?severity=info").text).count("feature") == 0


def test_a_runbook_is_a_link_only_where_a_browser_may_follow_it(
    console: ConsoleWorld, operator: Visitor
) -> None:
    alert = fire(console, "latency", feature="p99")
    for path in ("/alerts", "/alerts/-/rules", f"/alerts/{alert.fingerprint}"):
        assert 'href="javascript:' not in operator.get(path).text
    assert link_of("https://a.test/b") == "https://a.test/b"
    assert [link_of(text) for text in ("javascript:alert(1)", "//a.test", "/rollouts", "data:x", "")] == [
        ""
    ] * 5


def test_an_alert_is_acknowledged_assigned_silenced_and_heard_again(
    console: ConsoleWorld, operator: Visitor
) -> None:
    alert = fire(console, feature="income")
    path = f"/alerts/{alert.fingerprint}"

    def act(what: str, **fields: str) -> int:
        seen = str(now(console, alert).revision)
        return operator.post(f"{path}/{what}", revision=seen, **fields).status_code

    assert act("acknowledge", reason="") == 422
    assert act("acknowledge", reason="I look") == 303
    assert getattr(now(console, alert).state, "who", "") == "a-operator"
    assert act("acknowledge", reason="again") == 409
    assert act("assign", to="nobody-here", reason="x") == 422
    assert act("assign", to="a-viewer", reason="she knows it") == 303
    assert getattr(now(console, alert).state, "who", "") == "a-viewer"
    assert "feature income" in text_of(operator.get("/alerts?who=a-viewer").text)
    for wrong in ("", "soon", "-1h", "9999999w"):
        assert act("silence", reason="x", **{"for": wrong}) == 422
    assert act("silence", reason="maintenance", **{"for": "2h"}) == 303
    state = now(console, alert).state
    assert getattr(state, "until_s", 0.0) == console.clock() + 7200
    told = text_of(operator.get(path).text)
    assert "maintenance" in told
    assert "Silent until in 2" in told
    assert act("unsilence", reason="done") == 303
    assert now(console, alert).status == "pending"
    entries = list(console.store.audit.all(Sought(object=f"alert:{alert.fingerprint}")))
    assert [(each.action, each.actor) for each in entries] == [
        (f"alert.{what}", "a-operator") for what in ("acknowledge", "assign", "silence", "unsilence")
    ]


def test_of_two_operators_at_once_the_second_is_told_and_keeps_what_was_typed(
    console: ConsoleWorld, operator: Visitor
) -> None:
    alert = fire(console, feature="zip")
    console.store.alerts.acknowledge(alert.fingerprint, actor=ANN, reason="mine")
    late = operator.post(
        f"/alerts/{alert.fingerprint}/silence",
        revision=str(alert.revision),
        reason="too loud",
        **{"for": "7d"},
    )
    assert late.status_code == 409
    assert "The alert was changed meanwhile: it is acknowledged" in text_of(late.text)
    assert 'value="too loud"' in late.text
    assert 'value="7d"' in late.text
    assert now(console, alert).status == "acknowledged"


def test_who_may_only_look_changes_nothing(console: ConsoleWorld, viewer: Visitor) -> None:
    alert = fire(console, feature="age")
    page = viewer.get(f"/alerts/{alert.fingerprint}")
    assert "not allowed" in text_of(page.text)
    assert "/silence" not in page.text
    assert viewer.post(f"/alerts/{alert.fingerprint}/silence", reason="x", **{"for": "1h"}).status_code == 403
    assert now(console, alert).revision == alert.revision


def test_rolling_out_does_not_let_somebody_silence_alerts_here_nor_over_the_api(
    console: ConsoleWorld,
) -> None:
    alert = fire(console, feature="age")
    manager = console.signed_in(Role.RELEASE_MANAGER)
    page = manager.get(f"/alerts/{alert.fingerprint}")
    assert "not allowed" in text_of(page.text)
    refused = manager.post(f"/alerts/{alert.fingerprint}/silence", reason="x", **{"for": "1h"})
    assert refused.status_code == 403
    assert "alerts:write" in refused.text
    assert now(console, alert).revision == alert.revision
    assert {role for role, may in HELD.items() if Permission.ALERTS_WRITE in may} == {
        Role.OPERATOR,
        Role.ADMIN,
    }


def test_what_devices_called_things_is_text_and_never_markup(
    console: ConsoleWorld, operator: Visitor
) -> None:
    alert = fire(console, feature=EVIL, why=EVIL)
    for path in ("/alerts", f"/alerts/{alert.fingerprint}"):
        page = operator.get(path).text
        assert EVIL not in page
        assert html.escape(EVIL) in page


def test_rules_are_shown_with_whom_they_tell_and_no_secret_of_a_channel(
    console: ConsoleWorld, viewer: Visitor
) -> None:
    page = viewer.get("/alerts/-/rules").text
    assert "oncall" in text_of(page)
    assert "secret-path" not in page


def test_a_broken_file_of_rules_is_said_and_alerts_are_still_shown(
    console: ConsoleWorld, operator: Visitor
) -> None:
    alert = fire(console, feature="age")
    rules_path(console.fleet).write_text("[[rule]]\nname = 1")
    try:
        for path in ("/alerts", "/alerts/-/rules", f"/alerts/{alert.fingerprint}"):
            answer = operator.get(path)
            assert answer.status_code == 200
        assert "alerts.toml cannot be used" in text_of(operator.get("/alerts").text)
        assert "feature age" in text_of(operator.get("/alerts").text)
    finally:
        rules_path(console.fleet).write_text(RULES)


def test_a_proposed_run_is_declined_with_a_reason_and_only_once(
    console: ConsoleWorld, operator: Visitor
) -> None:
    assert "No alert has proposed a run" in text_of(operator.get("/runs/-/proposals").text)
    alert = fire(console, feature="age")
    with console.store.database.write() as connection:
        number = console.store.proposed_runs.propose_within(
            connection,
            ANN,
            rule="drift",
            fingerprint=alert.fingerprint,
            model=DIGITS,
            plan={"model": "digits", "rounds": 2, "devices": 8},
            why="age drifts",
            rest_s=0.0,
            accepted=False,
        )
    here = f"/runs/-/proposals/{number}"
    assert "age drifts" in text_of(operator.get("/runs/-/proposals").text)
    assert "8 devices touched" in text_of(operator.get(f"{here}/accept").text)
    # What policy and budget do not allow is not accepted: here the model was never released.
    refused = operator.post(f"{here}/accept", typed="digits", reason="go on")
    assert refused.status_code == 409
    assert "publish it first" in text_of(refused.text)
    assert operator.post(f"{here}/decline", reason="").status_code == 422
    assert operator.post(f"{here}/decline", reason="not now").status_code == 303
    late = operator.post(f"{here}/decline", reason="me too")
    assert late.status_code == 409
    assert "is declined, as a-operator decided" in text_of(late.text)
    assert operator.get("/runs/-/proposals/77/accept").status_code == 404


def test_what_is_not_there_is_not_found(operator: Visitor) -> None:
    nowhere = "0" * 32
    assert operator.get(f"/alerts/{nowhere}").status_code == 404
    assert operator.post(f"/alerts/{nowhere}/silence", reason="x", **{"for": "1h"}).status_code == 404
    assert operator.get("/alerts/drift").status_code == 422

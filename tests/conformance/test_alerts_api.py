"""Alerts over the API: read, acknowledged and silenced as at the command line; and runs accepted by who may begin them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from api_world import api_world
from rollout_world import ANN, DIGITS
from umbel_server.access.actor import Role
from umbel_server.access.permissions import HELD
from umbel_server.monitor.alerts.evaluate import rules_path
from umbel_server.monitor.alerts.state import Timing
from umbel_server.store.alerts import Reading, Telling, fingerprint
from umbel_server.store.store import Store

LABELS = {"model": "digits", "feature": "age"}
NAME = fingerprint("drift", LABELS)
RULES = """
[[rule]]
name = "drift"
what = "drift"
runbook = "https://wiki.example.org/drift"

[[channel]]
name = "ops"
kind = "webhook"
url = "https://hooks.example.org/T0KEN"
"""


def fire(store: Store) -> None:
    store.alerts.look(
        "drift",
        "warning",
        [Reading(LABELS, True, 0.2, "age drifted")],
        Timing(),
        telling=Telling({"ops": 0.0}, lambda kind, alerts: {"kind": kind}),
        act=lambda connection, alert: (),
    )


def test_alerts_through_the_api(tmp_path: Path) -> None:
    with api_world(tmp_path) as api:
        rules_path(api.fleet).write_text(RULES)
        fire(api.store)
        operator = api.token(api.user("otto", Role.OPERATOR), HELD[Role.OPERATOR])
        viewer = api.token(api.user("vera", Role.VIEWER), HELD[Role.VIEWER])

        def call(method: str, path: str, **body: object) -> tuple[int, dict[str, Any]]:
            answer = api.call(operator, method, path, **({"json": body} if method == "POST" else {}))
            return answer.status_code, answer.json()

        _, listed = call("GET", "/alerts?state=firing")
        assert [each["fingerprint"] for each in listed["items"]] == [NAME]
        assert call("GET", "/alerts?state=resolved")[1]["items"] == []
        _, alert = call("GET", f"/alerts/{NAME[:8]}")
        assert (alert["why"], alert["runbook"]) == ("age drifted", "https://wiki.example.org/drift")
        status, mine = call("POST", f"/alerts/{NAME}/acknowledge", reason="I look at it")
        assert (status, mine["state"], mine["who"]) == (200, "acknowledged", "otto")
        assert call("POST", f"/alerts/{NAME}/acknowledge", reason="again")[0] == 409
        assert call("POST", f"/alerts/{NAME}/silence", seconds=5, reason="too short")[0] == 422
        assert call("POST", f"/alerts/{NAME}/silence", seconds=3600)[0] == 422
        _, quiet = call("POST", f"/alerts/{NAME}/silence", seconds=3600, reason="known")
        assert (quiet["state"], quiet["until_s"]) == ("silenced", api.store.clock() + 3600)
        assert call("POST", f"/alerts/{NAME}/unsilence", reason="not known")[1]["state"] == "pending"
        assert [each["event"] for each in call("GET", f"/alerts/{NAME}")[1]["events"]] == [
            "firing",
            "acknowledge",
            "silence",
            "unsilence",
        ]
        assert call("GET", "/alerts/00000000")[0] == 404
        # While somebody mends the rules, what fires is seen all the same.
        rules_path(api.fleet).write_text("[[rule]")
        assert (call("GET", "/alerts")[0], call("GET", f"/alerts/{NAME}")[1]["runbook"]) == (200, "")
        assert call("GET", "/alert-rules")[0] == 422
        # Who may only look does not act.
        assert api.call(viewer, "GET", f"/alerts/{NAME}").status_code == 200
        denied = api.call(viewer, "POST", f"/alerts/{NAME}/silence", json={"seconds": 60, "reason": "x"})
        assert denied.status_code == 403


def test_rules_channels_and_notices_through_the_api_tell_no_secret(tmp_path: Path) -> None:
    with api_world(tmp_path) as api:
        rules_path(api.fleet).write_text(RULES)
        fire(api.store)
        operator = api.token(api.user("otto", Role.OPERATOR), HELD[Role.OPERATOR])
        shown = api.call(operator, "GET", "/alert-rules")
        assert [each["rule"] for each in shown.json()["rules"]] == ["drift"]
        assert "T0KEN" not in shown.text
        made = api.call(operator, "POST", "/alert-channels/ops/test", json={})
        assert made.status_code == 202
        assert api.call(operator, "POST", "/alert-channels/gone/test", json={}).status_code == 404
        first = api.call(operator, "GET", "/alert-notices?limit=1").json()
        assert [each["kind"] for each in first["items"]] == ["test"]
        rest = api.call(operator, "GET", f"/alert-notices?cursor={first['next']}").json()
        assert [each["rule"] for each in rest["items"]] == ["drift"]


def test_a_proposed_run_is_accepted_only_if_it_can_begin_and_by_who_may_begin_runs(tmp_path: Path) -> None:
    with api_world(tmp_path) as api:
        with api.store.database.write() as connection:
            number = api.store.proposed_runs.propose_within(
                connection,
                ANN,
                rule="drift",
                fingerprint=NAME,
                model=DIGITS,
                plan={"model": "digits"},
                why="age drifted",
                rest_s=0.0,
                accepted=False,
            )
        operator = api.token(api.user("otto", Role.OPERATOR), HELD[Role.OPERATOR])
        viewer = api.token(api.user("vera", Role.VIEWER), HELD[Role.VIEWER])
        where, why = f"/proposed-runs/{number}", {"reason": "not now"}
        assert api.call(viewer, "POST", f"{where}/decline", json=why).status_code == 403
        refused = api.call(operator, "POST", f"{where}/accept", json=why)
        assert refused.status_code == 422
        assert "publish it first" in refused.json()["detail"]
        assert api.call(operator, "POST", f"{where}/decline", json=why).json()["state"] == "declined"
        assert api.call(operator, "POST", f"{where}/decline", json=why).status_code == 409
        assert api.call(operator, "POST", "/proposed-runs/99/decline", json=why).status_code == 404
        (listed,) = api.call(operator, "GET", "/proposed-runs").json()["items"]
        assert (listed["state"], listed["decided_by"], listed["said"]) == ("declined", "otto", "not now")

"""A question put to real processes: SuperLink, SuperExec, and devices as users start them."""

from __future__ import annotations

from pathlib import Path

import pytest

from live_fleet import live_fleet
from simulation.federation import lenient_policy
from simulation.tabular import TabularFederation
from umbel._privacy import account
from umbel_proto.ids import RunId
from umbel_server.queries.at_hand import QueriesAtHand

pytestmark = pytest.mark.e2e

DEVICES = 3
ANSWER_S = 120.0


def test_devices_answer_a_question_and_know_that_they_did(tmp_path: Path) -> None:
    federation = TabularFederation(tmp_path, DEVICES, policy=lenient_policy())
    with live_fleet(federation) as live:
        for number in range(DEVICES):
            live.start_device(number)
        queries = QueriesAtHand(federation.fleet, live.store)
        fields = {
            "kind": "histogram",
            "model": "tiny",
            "field": "group",
            "why": "to see it live",
            "epsilon": 2.0,
            "wait_s": 60.0,
        }
        made = queries.ask(fields, dry_run=False)

        def ended() -> bool:
            record = live.store.queries.get(RunId(made["query"]))
            return record is not None and record.state != "running"

        live.supervisor.wait("the answer", ended, timeout_s=ANSWER_S)
        shown = queries.show(made["query"])
    assert (shown["state"], shown["reason"]) == ("finished", "")
    assert shown["result"]["devices"] == DEVICES
    assert shown["result"]["epsilon"] == made["epsilon"]
    for home in federation.homes:
        (line,) = account(home).to_json()["queries"]
        assert line["answered"]
        assert line["epsilon_after"] == pytest.approx(made["epsilon"], rel=1e-9)

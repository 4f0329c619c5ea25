"""An alert whose rule says so starts a federated run by itself: once, as planned, on record, and not twice."""

from __future__ import annotations

import json
from pathlib import Path

from monitor_world import Reporters
from service_fleet import ManualClock
from simulation.tabular import TabularFederation
from umbel_proto.ids import ModelName, RunId
from umbel_server.monitor.alerts.evaluate import Evaluator, rules_path
from umbel_server.store.audit import Sought

MODEL = ModelName("tiny")
PLAN = """
model = "tiny"
rounds = 2
devices = 4
[training]
learning_rate = 0.5
[privacy]
clip = 2.0
noise_multiplier = 4.0
"""
RULE = """
[[rule]]
name = "crashes"
what = "crash_loops"
actions = ["start_run"]
plan = "retrain.toml"
"""


def test_a_rule_that_may_start_runs_begins_one_of_its_plan(tmp_path: Path) -> None:
    fleet, clock = TabularFederation(tmp_path / "fleet", 4).fleet, ManualClock(1_800_000_000.0)
    rules_path(fleet).write_text(RULE)
    (fleet.path / "retrain.toml").write_text(PLAN)
    with fleet.open_store(clock=clock) as store:
        told = Reporters(store, clock)
        for device in told.names:
            told.tell(device, counters={"predictions": 100, "model.fell_back": 1}, model=MODEL)
        told.arrive()
        evaluator = Evaluator(fleet, store)
        for _ in range(3):  # It still fires, and begins no second one.
            evaluator.run_once()
        (proposed,) = store.proposed_runs.all()
        assert (proposed.state, proposed.run, proposed.decided_by) == (
            "begun",
            "tiny-proposed-1",
            "alert:crashes",
        )
        (run,) = store.runs.all()
        assert (run.id, run.model, run.state) == ("tiny-proposed-1", MODEL, "running")
        plan = json.loads(run.plan) if isinstance(run.plan, str) else run.plan
        assert (plan["rounds"], plan["devices"]) == (2, 4)
        assert store.runs.driven() == (
            RunId("tiny-proposed-1"),
        )  # The service of runs drives it from here on.
        (entry,) = store.audit.latest(Sought(object="run:tiny-proposed-1"), limit=9)
        assert entry.actor == "alert:crashes"
        (alert,) = store.alerts.all()
        done = [(each.event, each.reason) for each in store.alerts.events(alert.fingerprint)][1:]
        assert done == [("start_run", "run 1 is accepted")]

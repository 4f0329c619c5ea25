"""Charts by day mark the days on which a model was trained, beside those of its rollouts."""

from __future__ import annotations

from pathlib import Path

from run_world import trained
from service_fleet import DAY_S, ManualClock
from umbel_server.console.seen.marks import marks_of
from umbel_server.store.store import open_store

NOW_S = 1_800_000_000.0 // DAY_S * DAY_S + 3600


def test_days_are_marked_on_which_rounds_of_the_model_were_opened(tmp_path: Path) -> None:
    with open_store(tmp_path / "store.db", clock=ManualClock(NOW_S)) as store:
        run = trained(store, "autumn", at_s=NOW_S, rounds=2)
        record = store.runs.get(run)
        assert record
        today = int(NOW_S) // DAY_S * DAY_S
        ended = {int(each.finished_s or 0) // DAY_S * DAY_S for each in store.runs.rounds(run)}
        assert ended == {today}
        marks = marks_of(store, record.model, 1, [today - DAY_S, today])
        assert [(each.day_s, each.name) for each in marks] == [(today, "2 rounds of autumn")]
        assert marks_of(store, "another", 1, [today]) == ()
        assert marks_of(store, record.model, 1, [today - DAY_S]) == ()
        assert marks_of(store, record.model, 1, []) == ()

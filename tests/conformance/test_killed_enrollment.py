"""Law: an authority that is killed at any instant of an enrollment leaves no ghost, and no token that was used twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crashing import crashed
from service_fleet import make_fleet


@pytest.mark.parametrize("how", ["new", "approved", "replaced"])
def test_whoever_is_killed_lets_in_the_same_device_once(tmp_path: Path, how: str) -> None:
    fleet = make_fleet(tmp_path / "garden")
    lines = [json.loads(line) for line in crashed("crashing_enrollment.py", fleet.path, how)]
    assert len(lines) > 8
    assert [line["killed"] for line in lines] == [True] * (len(lines) - 1) + [False]
    before = [line["before"] for line in lines]
    assert before[0] != before[-1]
    # Either nothing of it happened, or all of it: there is no instant between.
    assert {json.dumps(each) for each in before} == {json.dumps(before[0]), json.dumps(before[-1])}
    for line in lines:
        assert line["got"] == "rose"
        assert line["after"] == before[-1]
        assert line["after"]["devices"] == {"rose": line["key"]}
        assert line["after"]["uses_left"] == 0
        assert line["after"]["entered"] == (2 if how == "replaced" else 1)

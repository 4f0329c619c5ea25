"""Which keys a fleet has, and what is told of them."""

from __future__ import annotations

import json
from pathlib import Path

from service_fleet import ManualClock, make_fleet
from umbel_server.fleet.keys import ELSEWHERE, HERE, keys, retired
from umbel_server.fleet.rotate_command import KEEP_DAYS, rotate_telemetry_key


def test_a_key_that_was_taken_elsewhere_is_told_so(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "garden")
    assert {each.held for each in keys(fleet) if each.name != "audit"} == {HERE}
    fleet.root_key.unlink()
    found = {each.name: each for each in keys(fleet)}
    assert (found["root"].held, found["release"].held) == (ELSEWHERE, HERE)
    assert {name for name, each in found.items() if each.ends_s is not None} == {
        "ca",
        "server",
        "root",
        "targets",
    }
    assert found["telemetry"].id == fleet.telemetry_public().key_id


def test_nothing_of_a_private_key_is_told(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "garden")
    told = json.dumps([each.to_json() for each in keys(fleet)])
    for path in sorted((fleet.path / "keys").glob("*.key")):
        secret = path.read_bytes()
        body = secret.splitlines()[1].decode() if b"PRIVATE" in secret else secret[:16].hex()
        assert len(body) >= 32
        assert body not in told


def test_a_telemetry_key_that_was_changed_is_among_the_retired(tmp_path: Path) -> None:
    clock = ManualClock()
    fleet = make_fleet(tmp_path / "garden", clock=clock)
    before = fleet.telemetry_public().key_id
    assert list(retired(fleet)) == []
    rotate_telemetry_key(fleet, keep_days=90, now_s=clock())
    ((name, since_s, until_s),) = retired(fleet)
    assert name == before
    assert until_s - since_s == KEEP_DAYS * 86400

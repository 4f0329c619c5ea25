"""Every screen with a table gives it as a file, which has what the page shows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import pytest

from console_seed import seed
from console_world import ConsoleWorld, Visitor, console_world
from operations_seed import DRIFTED


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("console-files"), approvals=2) as made:
        seed(made)
        yield made


@pytest.fixture(scope="module")
def admin(world: ConsoleWorld) -> Visitor:
    return world.signed_in()


def rows_of(visitor: Visitor, path: str) -> list[dict[str, str]]:
    """Return a page's table, of its file; fail if the page offers none, or its two files differ."""
    for kind in ("csv", "json"):
        assert f"format={kind}" in visitor.get(path).text
    there = f"{path}{'&' if '?' in path else '?'}format="
    rows = list(csv.DictReader(io.StringIO(visitor.get(there + "csv").text)))
    told = visitor.get(there + "json").json()
    assert [list(each) for each in told] == [list(each) for each in rows] != []
    return rows


def test_the_overview_gives_how_many_devices_each_version_answers_on(
    world: ConsoleWorld, admin: Visitor
) -> None:
    rows = rows_of(admin, "/")
    found = {(each["model"], int(each["version"])): int(each["devices"]) for each in rows}
    assert found == {
        (model, version): count for model, version, count in world.store.device_list.facets().versions
    }


def test_a_device_gives_its_models(admin: Visitor) -> None:
    (row,) = rows_of(admin, "/devices/porch-001?range=30d")
    assert (row["model"], row["version"], row["variant"]) == ("digits", "2", "fp32")
    assert int(row["predictions"]) > 0


def test_an_alert_gives_what_happened_to_it(world: ConsoleWorld, admin: Visitor) -> None:
    rows = rows_of(admin, f"/alerts/{DRIFTED}")
    assert [each["event"] for each in rows] == [
        each.event for each in reversed(world.store.alerts.events(DRIFTED))
    ]


def test_an_approval_gives_its_evidence(admin: Visitor) -> None:
    rows = rows_of(admin, "/approvals/digits/3")
    older = next(each for each in rows if each["on"] == "cohort older")
    assert float(older["low"]) < float(older["value"]) < float(older["high"])
    assert {each["figure"] for each in rows} >= {"accuracy", "log loss"}


def test_settings_are_a_table_too(world: ConsoleWorld, admin: Visitor) -> None:
    rows = {(each["table"], each["setting"]): each["value"] for each in rows_of(admin, "/settings")}
    assert rows["retention", "raw_days"] == str(world.fleet.settings.retention.raw_days)

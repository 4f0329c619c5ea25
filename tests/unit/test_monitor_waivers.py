"""A gap that somebody lives with is shown as waived, by whom and until when; it is never hidden, and opens again."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from api_world import ApiWorld, api_world
from model_packages import first
from monitor_world import DAY_S, Reporters
from rollout_world import DIGITS
from umbel_proto.errors import RefusedError, UsageError
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.permissions import HELD
from umbel_server.monitor.commands import app
from umbel_server.monitor.fairness import ACCURACY, CALIBRATION, FPR, SELECTION, TPR, CohortLine, Fairness
from umbel_server.monitor.looks import look_at_fairness
from umbel_server.store.waivers import METRICS, Gap, Waiver

GAP = Gap(DIGITS, None, 3, "north", "selection rate")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiWorld]:
    with api_world(tmp_path_factory.mktemp("waivers")) as made:
        made.user("root", Role.ADMIN)
        made.user("judge", Role.REVIEWER)
        made.fleet.package(b"\1" * 32).write_bytes(first())
        made.store.releases.publish(DIGITS, 1, sha256=b"\1" * 32, size=len(first()))
        reporters = Reporters(made.store, made.clock, count=30)
        reporters.tag("north", reporters.names[:15])
        for number, device in enumerate(reporters.names):
            often = 80 if number < 15 else 30
            counters = {"predictions": 100, "label.3": often, "label.1": 100 - often}
            reporters.tell(device, counters=counters, ago_s=DAY_S)
        reporters.arrive()
        yield made


def north(world: ApiWorld, version: int | None = None) -> CohortLine:
    now = look_at_fairness(world.fleet, world.store, DIGITS, version, label="3").now
    assert isinstance(now, Fairness)
    [line] = [each for each in now.lines if (each.cohort, each.metric) == ("north", SELECTION)]
    return line


def waived(world: ApiWorld, gap: Gap = GAP, *, days: float = 2.0) -> Waiver:
    return world.store.waivers.waive(gap, days=days, reason="the north has more threes", actor=local_actor())


def test_figures_are_named_alike_everywhere() -> None:
    assert METRICS == (SELECTION, ACCURACY, TPR, FPR, CALIBRATION)


def test_a_waived_gap_is_shown_as_waived_and_is_open_again_when_its_time_is_over(world: ApiWorld) -> None:
    assert north(world).open
    waiver = waived(world)
    line = north(world)
    assert (line.finding, line.open) == (True, False)
    assert line.waived is not None
    assert (line.waived.id, line.waived.by, line.waived.reason) == (
        waiver.id,
        local_actor().name,
        "the north has more threes",
    )
    assert line.waived.expires_s == waiver.expires_s == world.clock() + 2 * DAY_S
    world.clock.now_s = waiver.expires_s - 1
    assert not north(world).open
    world.clock.now_s = waiver.expires_s
    assert north(world).open
    assert [each.id for each in world.store.waivers.of(DIGITS)] == [waiver.id]  # It stays on record.


def test_a_waiver_is_of_one_gap_alone_and_one_is_in_force_at_a_time(world: ApiWorld) -> None:
    for other in (
        Gap(DIGITS, None, 1, "north", "selection rate"),
        Gap(DIGITS, None, 3, "south", "selection rate"),
        Gap(DIGITS, None, 3, "north", "accuracy"),
        Gap(DIGITS, 9, 3, "north", "selection rate"),
        Gap("other", None, 3, "north", "selection rate"),
    ):
        waived(world, other)
    assert north(world).open
    waiver = waived(world, Gap(DIGITS, 1, 3, "north", "selection rate"))
    with pytest.raises(RefusedError, match=f"already \\({waiver.id}\\)"):
        waived(world, Gap(DIGITS, 1, 3, "north", "selection rate"))
    world.store.waivers.end(waiver.id, reason="it is mended", actor=local_actor())
    assert north(world).open
    with pytest.raises(RefusedError, match="in force no more"):
        world.store.waivers.end(waiver.id, reason="again", actor=local_actor())


@pytest.mark.parametrize("days", [0, -1, 180.1, float("nan")])
def test_no_waiver_lasts_for_good(world: ApiWorld, days: float) -> None:
    with pytest.raises(UsageError, match="at most 180 days"):
        waived(world, Gap(DIGITS, 7, 3, "north", "selection rate"), days=days)


def test_a_waiver_names_a_figure_a_cohort_and_a_reason(world: ApiWorld) -> None:
    with pytest.raises(UsageError, match="choose of selection rate"):
        Gap(DIGITS, None, 3, "north", "beauty")
    with pytest.raises(UsageError):
        Gap(DIGITS, None, 3, "<b>north", "accuracy")
    with pytest.raises(UsageError, match="from 0 on"):
        Gap(DIGITS, None, -1, "north", "accuracy")
    with pytest.raises(UsageError, match="reason"):
        world.store.waivers.waive(GAP, days=1, reason="  ", actor=local_actor())


def test_the_api_waives_for_those_who_approve_and_every_step_is_in_the_audit_log(world: ApiWorld) -> None:
    may_not, judge = world.token("root", HELD[Role.VIEWER]), world.token("judge", HELD[Role.REVIEWER])
    new = {"cohort": "north", "metric": "accuracy", "label": "1", "version": 4, "days": 7, "reason": "known"}
    path = f"/monitor/{DIGITS}/waivers"
    assert world.call(may_not, "POST", path, json=new).status_code == 403
    assert world.call(judge, "POST", path, json={**new, "label": "cat"}).status_code == 422
    answer = world.call(judge, "POST", path, json={**new, "version": 1})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["created_by"], made["holds"], made["ended_by"]) == ("judge", True, None)
    assert made["id"] in {each["id"] for each in world.call(may_not, "GET", path).json()["items"]}
    assert world.call(judge, "POST", f"{path}/nobody/end", json={"reason": "x"}).status_code == 404
    ended = world.call(judge, "POST", f"{path}/{made['id']}/end", json={"reason": "mended"}).json()
    assert (ended["holds"], ended["ended_by"]) == (False, "judge")
    log = [each for each in world.store.audit.all() if each.object == f"waiver:{made['id']}"]
    assert [(each.action, each.actor, each.reason) for each in log] == [
        ("fairness.waive", "judge", "known"),
        ("fairness.waiver_end", "judge", "mended"),
    ]


def test_the_command_line_waives_lists_and_ends(world: ApiWorld) -> None:
    def run(*words: str) -> str:
        result = CliRunner().invoke(app, [*words, "--fleet", str(world.fleet.path)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    gap = ["--cohort", "north", "--metric", "calibration gap", "--label", "3", "--days", "3"]
    made = json.loads(run("waive", DIGITS, *gap, "--reason", "few labels", "--json"))
    assert (made["label"], made["version"], made["metric"]) == (3, None, "calibration gap")
    listed = json.loads(run("waivers", "--all", "--json"))
    assert made["id"] in [each["id"] for each in listed]
    assert made["id"] in run("waivers", DIGITS, "--all")
    # The command's clock is the machine's: by it this waiver holds, while those of the test's clock may not.
    assert "open again" in run("unwaive", made["id"], "--reason", "enough labels")
    assert "ended" in run("waivers", DIGITS, "--all")

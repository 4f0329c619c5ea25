"""The stages of a version: every stage, whatever happens."""

from __future__ import annotations

import itertools

import pytest

from umbel_proto.errors import RefusedError
from umbel_server.registry.stages import Event, Stage, step

# Written down by hand, a line a stage: what may happen to it, and where it then stands.
LIFE = {
    "draft": "change>draft request>candidate retire>retired",
    "candidate": "change>draft request>candidate approve>approved reject>draft lapse>draft retire>retired",
    "approved": "change>draft request>candidate reject>draft lapse>draft release>released retire>retired",
    "released": "release>released deprecate>deprecated retire>retired",
    "deprecated": "release>deprecated reinstate>released retire>retired",
    "retired": "",
}


@pytest.mark.parametrize(("stage", "event"), list(itertools.product(Stage, Event)))
def test_every_stage_takes_every_event_as_written_or_refuses_it(stage: Stage, event: Event) -> None:
    expected = dict(each.split(">") for each in LIFE[stage].split())
    if event in expected:
        assert step(stage, event) == expected[event]
    else:
        with pytest.raises(RefusedError, match=f"A version that is {stage} knows no {event}"):
            step(stage, event)


def reachable(begin: Stage) -> set[Stage]:
    found, waiting = {begin}, [begin]
    while waiting:
        here = waiting.pop()
        for event in Event:
            try:
                after = step(here, event)
            except RefusedError:
                continue
            if after not in found:
                found.add(after)
                waiting.append(after)
    return found


def test_what_was_released_is_never_again_something_that_may_change() -> None:
    for stage in (Stage.RELEASED, Stage.DEPRECATED, Stage.RETIRED):
        assert reachable(stage) <= {Stage.RELEASED, Stage.DEPRECATED, Stage.RETIRED}


def test_every_stage_is_reached_and_every_one_can_be_retired() -> None:
    assert reachable(Stage.DRAFT) == set(Stage)
    assert all(Stage.RETIRED in reachable(stage) for stage in Stage)


def test_nothing_is_released_that_was_not_approved() -> None:
    before = {stage for stage in Stage if "release>released" in LIFE[stage].split()}
    assert before == {"approved", "released"}

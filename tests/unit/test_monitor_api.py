"""The API tells of a model what the command line does, and refuses in a sentence what it cannot say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from api_world import ApiWorld, api_world
from model_packages import first
from monitor_world import DAY_S, Reporters
from rollout_world import DIGITS
from umbel_proto.histogram import CONFIDENCE, LATENCY_US, Histogram
from umbel_server.access.actor import Role
from umbel_server.access.permissions import HELD
from umbel_server.monitor.drift_report import drift
from umbel_server.monitor.looks import look_at_fairness, look_at_operations, look_at_performance


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiWorld]:
    with api_world(tmp_path_factory.mktemp("monitor")) as made:
        made.user("root", Role.ADMIN)
        made.fleet.package(b"\1" * 32).write_bytes(first())
        made.store.releases.publish(DIGITS, 1, sha256=b"\1" * 32, size=len(first()))
        reporters = Reporters(made.store, made.clock, count=30)
        reporters.tag("north", reporters.names[:15])
        for ago_s in (2 * DAY_S, 9 * DAY_S):
            for device in reporters.names:
                reporters.tell(
                    device,
                    Histogram.empty("confidence", CONFIDENCE).observe(np.linspace(0.5, 0.99, 50)),
                    Histogram.empty("latency_us", LATENCY_US).observe(np.full(50, 500.0)),
                    ago_s=ago_s,
                    counters={
                        "predictions": 50,
                        "label.3": 20,
                        "label.1": 30,
                        "feedback": 5,
                        "feedback.agreed": 4,
                    },
                )
        reporters.arrive()
        yield made


@pytest.fixture(scope="module")
def token(world: ApiWorld) -> str:
    return world.token("root", HELD[Role.ADMIN])


def test_every_figure_is_that_of_the_command_line(world: ApiWorld, token: str) -> None:
    def get(what: str) -> object:
        answer = world.call(token, "GET", f"/monitor/{DIGITS}/{what}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    of = world.fleet, world.store, DIGITS
    for what, found in (
        ("drift", drift(*of).to_json()),
        ("performance", look_at_performance(*of).to_json()),
        ("fairness?label=3", look_at_fairness(*of, label="3").to_json()),
    ):
        assert plain(get(what)) == plain(found)
    told = plain(look_at_operations(*of).to_json())
    assert isinstance(told, dict)
    del told["before"]
    assert plain(get("operations")) == told


def plain(value: object) -> object:
    """Return a value as JSON has it."""
    match value:
        case dict():
            return {name: plain(each) for name, each in value.items()}
        case list() | tuple():
            return [plain(each) for each in value]
        case float():
            return float(f"{value:.9g}")
    return value


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("nothing/drift", "No device has reported of model 'nothing'"),
        (f"{DIGITS}/fairness?label=cat", "has no label 'cat'"),
        (f"{DIGITS}/fairness?label=1&version=9", "No version 9 of digits is released"),
    ],
)
def test_what_cannot_be_said_is_refused_in_a_sentence(
    world: ApiWorld, token: str, path: str, sentence: str
) -> None:
    answer = world.call(token, "GET", f"/monitor/{path}")
    assert answer.status_code == 422
    assert sentence in answer.json()["detail"]

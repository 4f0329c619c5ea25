"""Experiments over the API: begun, read and decided as at the command line, by the same rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from api_world import api_world
from experiment_world import PLAN, shop
from umbel_server.access.actor import Role
from umbel_server.access.permissions import HELD


def test_an_experiment_through_the_api(tmp_path: Path) -> None:
    with api_world(tmp_path) as api:
        world = shop(api.store, api.clock)
        token = api.token(api.user("rita", Role.RELEASE_MANAGER), HELD[Role.RELEASE_MANAGER])
        viewer = api.token(api.user("vera", Role.VIEWER), HELD[Role.VIEWER])
        new = {"model": "digits", "version": 3, "plan": PLAN.to_dict()}

        def call(method: str, path: str, **body: object) -> tuple[int, dict[str, Any]]:
            answer = api.call(token, method, f"/experiments{path}", **({"json": body} if body else {}))
            return answer.status_code, answer.json()

        _, dry = call("POST", "/plan", **new)
        assert (dry["experiment"], dry["treatment"]["count"] + dry["control"]["count"]) == ("digits-3-ab", 60)
        status, begun = call("POST", "", **new, reason="autumn")
        assert (status, begun["state"], begun["created_by"]) == (201, "running", "rita")
        assert call("POST", "", **new, name="another", reason="autumn")[0] == 409
        assert call("POST", "", **new | {"plan": {"metric": "errors"}}, reason="x")[0] == 422
        world.check()
        assert {str(each) for each in world.with_version(3)} == set(dry["treatment"]["devices"])
        early = {"decision": "ship", "reason": "now"}
        assert call("POST", "/digits-3-ab/decide", **early)[0] == 409
        for _ in range(2):
            world.sell({2: 0.3, 3: 0.45})
        _, shown = call("GET", "/digits-3-ab")
        assert shown["figures"]["outcome"] == "better"
        # Who may only look sees the same, and decides nothing.
        assert api.call(viewer, "GET", "/experiments/digits-3-ab").json() == shown
        assert api.call(viewer, "POST", "/experiments/digits-3-ab/decide", json=early).status_code == 403
        _, shipped = call("POST", "/digits-3-ab/decide", **early)
        assert (shipped["state"], shipped["decisions"][0]["actor"]) == ("shipped", "rita")
        assert shipped["decisions"][0]["figures"] == shown["figures"]
        assert [each["experiment"] for each in call("GET", "?limit=5")[1]["items"]] == ["digits-3-ab"]
        assert call("GET", "/spring")[0] == call("POST", "/spring/decide", **early)[0] == 404

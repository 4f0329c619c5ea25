"""A shadow in a whole fleet: applications predict, and a candidate that disagrees is stopped unheard.

The gateway answers over mutual TLS, and the devices are the SDK's own, with their models, telemetry and shadows.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from model_packages import RELEASE, digits, first, release, resigned
from service_fleet import make_fleet, running
from umbel._device import Device
from umbel._fleet.enroll import enroll
from umbel._home.directory import DeviceHome
from umbel._predict.model import Prediction
from umbel_proto.ids import DeviceId, ModelName
from umbel_server.access.actor import local_actor
from umbel_server.fleet.invite import invite
from umbel_server.fleet.publish import publish
from umbel_server.monitor.opener import Opener
from umbel_server.rollouts.assignment import place
from umbel_server.rollouts.begin import begin, propose
from umbel_server.rollouts.decider import Decider
from umbel_server.rollouts.plan import RolloutPlan
from umbel_server.rollouts.shown import status_json
from umbel_server.store.rollouts import salt_of

DEVICES = 3
PLAN = """
least_devices = 3

[[step]]
name = "beside"
percent = 100
hours = 0
shadow = true
one_in = 1

[[step]]
name = "canary"
percent = 40
hours = 100
longest_hours = 100

[[step]]
name = "all"
percent = 100

[[gate]]
kind = "failed"

[[gate]]
kind = "agreement"
minimum = 0.9
"""
ROUNDS = 2000
"""Far more than it takes: a candidate is asked in a thread that has its own time."""


def test_one_that_disagrees_is_stopped_unheard_and_one_that_agrees_goes_on(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "garden")
    fleet.release_key.write_bytes(RELEASE.to_pem())
    fleet.release_pub.write_bytes(RELEASE.public.raw)
    untrained = resigned(first(), lambda body: body.update(version=3))
    with running(fleet) as (_, store), contextlib.ExitStack() as opened:
        opener, decider = Opener(store, fleet.telemetry_private()), Decider(store)
        publish(fleet, store, release(2))
        phones = []
        for number in range(DEVICES):
            home = DeviceHome(tmp_path / f"d{number}")
            enroll(home, invite(fleet, store).to_text(), name=f"d{number}", now_s=time.time())
            # It talks when it is told to: the background thread asks once a minute.
            phones.append(opened.enter_context(Device.open(home.path, online=False)))
            phones[-1].sync()
        models = [phone.model("digits") for phone in phones]
        x, heard = digits().held_out.x[:20], set[int]()

        def live() -> None:
            """Predict, report, and ask; then open what was reported, and decide."""
            for phone, model in zip(phones, models, strict=True):
                for row in x:
                    said = model.predict(row)
                    assert isinstance(said, Prediction)
                    heard.add(said.model_version)
                phone.sync()
            opener.run_once()
            decider.run_once()

        def until(done: Callable[[], bool]) -> None:
            for _ in range(ROUNDS):
                live()
                if done():
                    return
            raise AssertionError("nothing was decided")

        def start(version: int, name: str) -> None:
            plan = RolloutPlan.from_toml(PLAN)
            begin(store, propose(store, "digits", version, plan, name=name), actor=local_actor())

        store.rollouts.hold(ModelName("digits"), 2, actor=local_actor())
        publish(fleet, store, untrained)
        start(3, "wrong")
        until(lambda: store.rollouts.get("wrong").status != "running")
        told = status_json(store, store.rollouts.get("wrong"), now_s=time.time())
        assert told["state"] == "rolled-back"
        assert "gate agreement: agrees with the active version in" in told["reason"]
        assert told["shadows"] == {"asked": 3, "running": 3, "unavailable": 0, "failed": 0}
        assert told["devices"]["offered"] == 0
        live()
        # No prediction was ever answered by it, by the devices' word and by what the fleet was told.
        assert heard == {2}
        told_of_3 = [each for each in store.rollups.all() if each.version == 3]
        assert told_of_3
        assert not any("predictions" in each.counters for each in told_of_3)
        assert [model._shadow for model in models] == [None] * DEVICES

        publish(fleet, store, release(4))
        start(4, "right")
        until(lambda: getattr(store.rollouts.get("right").state, "step", 0) == 1)
        assert store.rollouts.get("right").status == "running"
        assert store.rollouts.events("right")[-1].reason == "step beside passed 2 gates"
        live()
        live()
        # Now it answers where the draw says so, and there only.
        drawn = {name for name in ("d0", "d1", "d2") if place(salt_of("right"), DeviceId(name)) < 0.4}
        assert {phone.id for phone, model in zip(phones, models, strict=True) if model.version == 4} == drawn

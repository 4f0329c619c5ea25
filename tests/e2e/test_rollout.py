"""A rollout in a fleet of real processes: a good version goes through by itself, a slow one comes back by itself."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from live_fleet import umbel
from model_packages import RELEASE, release
from service_fleet import batch, make_fleet, window
from umbel._fleet.channel import Gateway, call
from umbel._fleet.delivery import Delivery
from umbel._fleet.enroll import enroll
from umbel._home.directory import DeviceHome
from umbel._releases.shelf import Shelf
from umbel_proto.histogram import LATENCY_US, Histogram
from umbel_proto.ids import DeviceId
from umbel_proto.seal import seal
from umbel_proto.wire import telemetry_pb2 as pb
from umbel_server.demo.supervisor import Supervisor
from umbel_server.fleet.invite import invite
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.publish import publish
from umbel_server.rollouts.assignment import place
from umbel_server.store.rollouts import salt_of

DEVICES = [DeviceId(f"d{number}") for number in range(6)]
PLAN = """
least_devices = 3
least_predictions = 50

[[step]]
name = "half"
percent = 50
hours = 0

[[step]]
name = "all"
percent = 100
hours = 0

[[gate]]
kind = "latency"
tolerance = 0.15

[[gate]]
kind = "failed"
"""
START_S, SOON_S = 60.0, 30.0


def drawn(name: str) -> set[DeviceId]:
    return {device for device in DEVICES if place(salt_of(name), device) < 0.5}


def name_that_draws_three(word: str) -> str:
    """Which devices a rollout draws is known beforehand by its name."""
    return next(name for name in map(f"{word}-{{}}".format, range(100)) if len(drawn(name)) == 3)


@dataclass(slots=True)
class Phone:
    """A device of the fleet, with what the SDK has under it."""

    fleet: FleetDir
    home: DeviceHome

    @property
    def shelf(self) -> Shelf:
        return Shelf(self.home.shelf, RELEASE.public)

    @property
    def version(self) -> int:
        active = self.shelf.active("digits")
        assert active is not None
        return self.shelf.package(active).manifest.version

    def check(self) -> int:
        """Ask once, as the background thread does; then which version answers."""
        with Gateway(self.home, now_s=time.time()) as gateway:
            Delivery(self.home, self.shelf).check(gateway)
        return self.version

    def report(self, slower: float = 1.0) -> None:
        """Report 200 predictions of what answers, about 300 us each."""
        number = DEVICES.index(self.home.identity.device)
        # Three devices against three tell 15 % only where devices are much alike.
        times = np.linspace(200, 400, 200) * slower * (1 + number / 500)
        told = window(
            version=self.version,
            start_s=int(time.time()),
            end_s=int(time.time()) + 1,
            counters={"predictions": 200},
            histograms=[Histogram.empty("latency_us", LATENCY_US).observe(times).to_wire()],
        )
        to, identity = self.fleet.telemetry_public(), self.home.identity
        header = pb.BatchHeader(
            schema=1,
            suite=to.suite,
            key_id=to.key_id,
            fleet_id=self.fleet.name,
            device_id=identity.device,
            batch_id=secrets.token_bytes(16),
            sequence=time.monotonic_ns(),
            created_s=int(time.time()),
        ).SerializeToString()
        sealed = pb.SealedBatch(header=header, ciphertext=seal(to, header, batch(told)))
        with Gateway(self.home, now_s=time.time()) as gateway:
            call(gateway.telemetry.Upload, pb.UploadRequest(batches=[sealed]), gateway.address)


def test_a_good_version_goes_through_and_a_slow_one_comes_back(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "garden")
    fleet.release_key.write_bytes(RELEASE.to_pem())
    fleet.release_pub.write_bytes(RELEASE.public.raw)
    (tmp_path / "plan.toml").write_text(PLAN)
    (tmp_path / "log").mkdir()
    with fleet.open_store() as store, Supervisor(tmp_path / "log") as supervisor:
        where = ("--fleet", fleet.path)
        services = {
            name: supervisor.start(name, umbel("serve", name, *where, *options))
            for name, options in (
                ("gateway", ()),
                ("opener", ("--poll-s", 0.1)),
                ("rollouts", ("--poll-s", 0.1)),
            )
        }
        publish(fleet, store, release(2))
        supervisor.wait(
            "the services",
            lambda: all(process.says(f"ready {name}") for name, process in services.items()),
            timeout_s=START_S,
        )
        phones = []
        for device in DEVICES:
            home = DeviceHome(tmp_path / device)
            enroll(home, invite(fleet, store).to_text(), name=device, now_s=time.time())
            phones.append(Phone(fleet, home))
        assert [phone.check() for phone in phones] == [2] * 6

        def run(*words: object) -> str:
            return supervisor.command(f"umbel {words[1]}", umbel(*words, *where)).finish()

        def brings(version: int, name: str) -> None:
            publish(fleet, store, release(version))
            assert [phone.check() for phone in phones] == [version - 1] * 6
            run("rollout", "start", "digits", version, "--plan", tmp_path / "plan.toml", "--name", name)
            reached = {p.home.identity.device for p in phones if p.check() == version}
            assert reached == drawn(name)

        def becomes(name: str, state: str) -> None:
            supervisor.wait(
                f"{name} to be {state}", lambda: store.rollouts.get(name).status == state, timeout_s=SOON_S
            )

        run("rollout", "hold", "digits")
        good, slow = name_that_draws_three("good"), name_that_draws_three("slow")
        brings(3, good)
        for phone in phones:
            phone.report()
        becomes(good, "finished")
        assert [phone.check() for phone in phones] == [3] * 6

        brings(4, slow)
        for phone in phones:
            phone.report(1.3 if phone.version == 4 else 1.0)
        becomes(slow, "rolled-back")
        reached = [phone for phone in phones if phone.version == 4]
        assert len(reached) == 3
        assert [phone.check() for phone in phones] == [3] * 6  # After one check each.
        # They went back to what they still had, and keep no way to what was taken back.
        assert [phone.shelf.previous("digits") for phone in reached] == [None] * 3
        told = json.loads(run("rollout", "status", slow, "--json"))
        assert told["state"] == "rolled-back"
        assert "gate latency p95: latency rose by" in told["reason"]
        assert (told["events"][-1]["actor"], told["events"][-1]["event"]) == ("service:rollouts", "rollback")

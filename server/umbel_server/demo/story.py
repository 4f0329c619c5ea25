"""What the demo does, in order: a fleet, devices, private rounds, a signed package, telemetry."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from umbel_proto.credentials import FleetPolicy
from umbel_proto.errors import UnavailableError
from umbel_proto.ids import FleetId, ModelName, RunId
from umbel_proto.manifest import Manifest
from umbel_proto.package import Package, read_package
from umbel_proto.privacy.plan import cohort_for_epsilon
from umbel_server.clock import system_clock
from umbel_server.demo.report import RoundFigures, Summary
from umbel_server.demo.supervisor import Process, Supervisor
from umbel_server.fleet.create import create_fleet
from umbel_server.fleet.invite import invite
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.publish import publish
from umbel_server.learning.begin import register
from umbel_server.learning.budget import plan_privacy
from umbel_server.learning.evaluate import HeldOut
from umbel_server.learning.measure import quantities
from umbel_server.learning.plan import Privacy, RunPlan, Timing, Training
from umbel_server.learning.run import PROGRESS, TRAINED
from umbel_server.monitor.report import telemetry
from umbel_server.store.runs import RoundRecord
from umbel_server.superexec import flower_environment, superexec_command

if TYPE_CHECKING:
    from umbel_server.control import Control

DEVICES = 8
LATE = "dev-8"
"""Joins when `JOIN_AFTER` rounds are done."""
JOIN_AFTER = 2
VICTIM = "dev-3"
"""Is killed in the middle of round `KILL_IN`: it has shared its secrets and owes its masked update."""
KILL_IN, KILL_PHASE = 4, "mask"

FLEET = FleetId("demo")
MODEL = ModelName("digits")
RUN = RunId("demo-run")
ALPHA = 0.7
"""How unevenly the digits are spread: Dirichlet's concentration."""
SEED = 1
TRAINING = Training(epochs=10, batch_size=32, learning_rate=0.05, momentum=0.9, seed=SEED)
PRIVACY = Privacy(clip=2.0, noise_multiplier=0.1, delta=1e-5)
"""Noise that leaves the model useful. Eight devices cannot have both: the table says what it costs."""
POLICY = FleetPolicy(
    fleet=FLEET,
    corrupt_fraction=0.1,
    dropout_fraction=0.25,
    server_malicious=True,
    min_cohort=5,
    noise_floor=PRIVACY.noise_multiplier,
    # Far above what any real fleet would allow: see the table's last word on epsilon.
    budget_epsilon=1e6,
    budget_delta=1e-5,
)
POLL_S = "0.5"
PARALLEL = max(2, os.cpu_count() or 1)
VARIANTS = ("fp32", "int8")
"""Are compared on one device. Trained with other noise each time, a package now and then has no int8: it would lose too much."""


@dataclass(eq=False)
class Story:
    """One telling of the demo.

    Args:
        home: Its directory.
        supervisor: Holds its processes.
        console: Where progress goes.
        rounds: How many rounds to complete.
        console_port: Where the fleet's console will listen; 0: at a free one.
    """

    home: Path
    supervisor: Supervisor
    console: Console
    rounds: int
    console_port: int = 0
    began_s: float = field(default_factory=system_clock)
    devices: dict[str, Process] = field(default_factory=dict)

    def tell(self) -> Summary:
        """Do all of it and return the figures.

        Raises:
            UmbelError: Something went wrong; the message says what, and the logs say more.
        """
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            self._step = _Steps(progress)
            self._fleet = create_fleet(
                self.home / "fleet", name=FLEET, policy=POLICY, ca_apart=True, console_port=self.console_port
            )
            with self._fleet.open_store() as self._store:
                self._start_services()
                self._watch_run()
                self._deliver()
                results = self._predict()
                reports = self._reports()
                return self._summary(results, reports)

    @property
    def fleet(self) -> FleetDir:
        """The fleet, once there is one."""
        return self._fleet

    @property
    def trained(self) -> Package:
        """The package that came of the rounds, once there is one."""
        return self._trained

    @property
    def control(self) -> Control:
        """What speaks to its SuperLink, once that is ready."""
        return self._control

    def predict_on(self, name: str) -> list[str]:
        """Return the command with which a device predicts on held-out digits, as an app on it would."""
        return self._predicting(name, "auto")

    # A fleet

    def _start_services(self) -> None:
        done = self._step("Starting the fleet", DEVICES + 2)
        fleet = str(self._fleet.path)
        environment = {**flower_environment(self._fleet), "UMBEL_FLEET": fleet}
        services = {
            name: self.supervisor.start(name, umbel("serve", name), environment)
            for name in ("superlink", "ca", "gateway")
        }
        self.supervisor.start("superexec", superexec_command(self._fleet), flower_environment(self._fleet))
        data, base = self.home / "data", self.home / "digits-1.umbel"
        split = ("split", MODEL, "--devices", DEVICES, "--alpha", ALPHA, "--seed", SEED, "--out", data)
        self.supervisor.command("split", umbel("model", *split)).finish()
        build = ("build", MODEL, "--key", self._fleet.release_key, "--out", base)
        self.supervisor.command(
            "build", umbel("model", *build, "--calibration", data / "calibration.npz")
        ).finish()
        published = publish(self._fleet, self._store, base.read_bytes())
        self._package = read_package(base.read_bytes(), release_key=self._fleet.release_public())
        self._plan = self._run_plan(published.sha256.hex())
        manifest = self._package.manifest
        asked = quantities(self._plan, len(manifest.labels))
        self._privacy = plan_privacy(self._plan, POLICY, manifest.dim, len(asked))
        # Flower takes a second to import, and its SuperLink is started by now.
        from umbel_server.control import Control

        for name in ("ca", "gateway", "superlink"):
            self.supervisor.wait(name, lambda name=name: services[name].says(f"ready {name}"), timeout_s=60)  # type: ignore[misc]
            done()
        self._control = Control(self._fleet)
        # Flower starts the run's server process while the devices start; it waits for them.
        self._store.runs.create(RUN, MODEL, self._plan.to_json())
        self._flower_run = self._control.start(self._fleet, RUN)
        for number in range(1, DEVICES + 1):
            if f"dev-{number}" != LATE:
                self._start_device(f"dev-{number}")
        ready: set[str] = set()

        def all_ready() -> bool:
            register(self._store, self._control)
            for name, process in self.devices.items():
                if name not in ready and process.says(f"ready {name}"):
                    ready.add(name)
                    done()
            return len(ready) == len(self.devices)

        self.supervisor.wait("the devices", all_ready, timeout_s=60)

    def _run_plan(self, sha256: str) -> RunPlan:
        return RunPlan(
            model=MODEL,
            version=1,
            package_sha256=sha256,
            rounds=self.rounds,
            devices=DEVICES,
            training=TRAINING,
            privacy=PRIVACY,
            timing=Timing(settle_s=0.6, train_timeout_s=60, phase_timeout_s=30, grace_s=2.5),
            heldout=str(self.home / "data" / "heldout.npz"),
        )

    def _start_device(self, name: str) -> None:
        """Start a device's process; a new one enrolls with a token of its own."""
        home = self.home / "devices" / name
        environment = {key: value for key, value in os.environ.items() if key != "UMBEL_FLEET"}
        if not home.exists():
            # As a device makes it: one that others may enter, `umbel doctor` finds wrong.
            home.mkdir(mode=0o700, parents=True)
            # In the environment and not on the command line, which everyone on the machine can read.
            environment["UMBEL_TOKEN"] = invite(self._fleet, self._store, device=name).to_text()
        shard = self.home / "data" / f"shard-{int(name.removeprefix('dev-')) - 1}.npz"
        command = umbel("run", "--home", home, "--data", shard, "--poll", POLL_S)
        self.devices[name] = self.supervisor.start(name, command, environment)

    # Rounds

    def _start_baselines(self) -> None:
        """Train the same without privacy, and centrally, beside the rounds and not before them."""
        data = self.home / "data"
        shards = [data / f"shard-{number}.npz" for number in range(DEVICES)]
        self._baselines = [
            self.supervisor.command("fedavg", self._local_training(shards), idle=True),
            self.supervisor.command("central", self._local_training([data / "train.npz"]), idle=True),
        ]

    def _local_training(self, data: Sequence[Path]) -> list[str]:
        training = self._plan.training
        return umbel(
            "train", self.home / "digits-1.umbel",
            "--release-key", self._fleet.release_pub,
            *(part for path in data for part in ("--data", path)),
            "--heldout", self.home / "data" / "heldout.npz",
            "--rounds", self.rounds, "--epochs", training.epochs, "--batch-size", training.batch_size,
            "--learning-rate", training.learning_rate, "--momentum", training.momentum,
            "--seed", training.seed, "--json",
        )  # fmt: skip

    def _watch_run(self) -> None:
        done = self._step("Secure, private rounds", self.rounds)
        self._opened: list[RoundRecord] = []
        self._opener_started = False
        watch = _Watch(self._fleet.runs / RUN / PROGRESS)
        checked = time.monotonic()

        def finished() -> bool:
            nonlocal checked
            register(self._store, self._control)
            if watch.grown():
                self._take_note(done)
            self._disturb(watch)
            record_of_run = self._store.runs.get(RUN)
            assert record_of_run is not None
            if record_of_run.state == "failed":
                raise UnavailableError(f"The run failed: {record_of_run.reason}")
            if time.monotonic() - checked > 5:
                checked = time.monotonic()
                status, details = self._control.status(self._flower_run)
                if status == "finished" and record_of_run.state == "running":
                    raise UnavailableError(
                        f"Flower ended the run: {details}  (log: {self.home}/log/superexec.log)"
                    )
            return record_of_run.state == "finished"

        self.supervisor.wait("the rounds", finished, timeout_s=600)
        self._take_note(done)
        self._disturb(watch)

    def _take_note(self, done: Callable[[], None]) -> None:
        """Read the rounds that are new in the store."""
        opened = [record for record in self._store.runs.rounds(RUN) if record.state == "opened"]
        for record in opened[len(self._opened) :]:
            self._opened.append(record)
            done()

    def _disturb(self, watch: _Watch) -> None:
        """Kill one device in the middle of a round, bring it back after, and let another join late."""
        if not self._opener_started and self._opened:
            # Reports come later; until the first round the processor has better things to do.
            environment = {**os.environ, "UMBEL_FLEET": str(self._fleet.path)}
            self.supervisor.start("opener", umbel("serve", "opener"), environment)
            self._opener_started = True
        if LATE not in self.devices and len(self._opened) >= JOIN_AFTER:
            self._start_device(LATE)
            self._start_baselines()
        victim = self.devices[VICTIM]
        if victim.running and watch.reached(KILL_IN, KILL_PHASE) and len(self._opened) < KILL_IN:
            victim.kill()
        if not victim.running and len(self._opened) >= KILL_IN:
            self.supervisor.forget(victim)
            self._start_device(VICTIM)

    # A package

    def _deliver(self) -> None:
        done = self._step("Packing, signing, delivering", DEVICES)
        trained = self.home / "digits-2.umbel"
        lineage = {
            "run": RUN,
            "rounds": len(self._opened),
            "epsilon_server": self._opened[-1].figures["epsilon_server"],
        }
        self.supervisor.command(
            "pack",
            umbel(
                "model", "pack", self.home / "digits-1.umbel", "--params", self._fleet.runs / RUN / TRAINED,
                "--calibration", self.home / "data" / "calibration.npz", "--version", 2,
                "--heldout", self.home / "data" / "heldout.npz",
                "--key", self._fleet.release_key, "--lineage", json.dumps(lineage), "--out", trained,
            ),
        ).finish()  # fmt: skip
        data = trained.read_bytes()
        self._trained: Package = read_package(data, release_key=self._fleet.release_public())
        publish(self._fleet, self._store, data)
        arrived: set[str] = set()

        def everywhere() -> bool:
            for name in self.devices:
                if name not in arrived and self._has(name, self._trained):
                    arrived.add(name)
                    done()
            return len(arrived) == len(self.devices)

        self.supervisor.wait("the devices to fetch the package", everywhere, timeout_s=60)

    def _has(self, name: str, package: Package) -> bool:
        pointer = self.home / "devices" / name / "shelf" / "models" / f"{MODEL}.json"
        return pointer.exists() and package.sha256 == json.loads(pointer.read_bytes())["active"]

    def _predict(self) -> dict[str, Any]:
        """Let every device predict on held-out digits, as an app on it would; one also compares variants."""
        compared = [("dev-1", variant) for variant in VARIANTS if variant in self._trained.manifest.variants]
        jobs = [(name, "auto") for name in sorted(self.devices)] + compared
        done = self._step("Predicting on the devices", len(jobs))
        results: dict[str, Any] = {}
        waiting = [(name, variant, self._predicting(name, variant)) for name, variant in jobs]
        # The last ones one after the other, so that neither disturbs the other's latency.
        while waiting:
            at_once = PARALLEL if len(waiting) > len(compared) else 1
            batch = [waiting.pop(0) for _ in range(min(at_once, len(waiting)))]
            running = [
                (variant, self.supervisor.command(f"predict on {name}", command))
                for name, variant, command in batch
            ]
            for variant, command in running:
                results[variant] = json.loads(command.finish())
                done()
        return results

    def _predicting(self, name: str, variant: str) -> list[str]:
        heldout, home = self.home / "data" / "heldout.npz", self.home / "devices" / name
        return umbel("predict", MODEL, heldout, "--home", home, "--variant", variant, "--json")

    # Telemetry

    def _reports(self) -> dict[str, int]:
        done = self._step("Reports, opened and summed", DEVICES)
        reports: dict[str, int] = {}

        def all_in() -> bool:
            for line in telemetry(self._store, self._store.devices.all()):
                if line.device not in reports and line.predictions and not line.sealed:
                    done()
                    reports[line.device] = line.opened
            return len(reports) == len(self.devices)

        self.supervisor.wait("the devices' reports", all_in, timeout_s=60)
        return {line.device: line.opened for line in telemetry(self._store, self._store.devices.all())}

    # Figures

    def _summary(self, results: dict[str, Any], reports: dict[str, int]) -> Summary:
        fedavg, central = (json.loads(command.finish())["accuracy"] for command in self._baselines)
        before = HeldOut(self._package, self.home / "data" / "heldout.npz").score(self._package.parameters())
        rounds, manifest = self._opened, self._trained.manifest
        from umbel_server.flower import plain_fedavg_size

        last = rounds[-1].figures
        compared = [name for name in VARIANTS if name in results]
        arrays = [np.zeros(parameter.shape, np.float32) for parameter in manifest.parameters]
        summed = [{p.device for p in record.participations if p.outcome == "summed"} for record in rounds]
        lost = {p.device for record in rounds for p in record.participations if p.outcome != "summed"}
        late = sorted(set().union(*summed) - summed[0] - lost)
        phases = {name for record in rounds for name in record.figures["seconds"]}
        by_phase = {
            name: _mean(record.figures["seconds"].get(name, 0.0) for record in rounds)
            for name in ("train", "share", "mask", "confirm", "unmask")
            if name in phases
        }
        return Summary(
            accuracy={
                "before": before,
                "after": last["accuracy"],
                "devices": last["metrics"]["accuracy"]["mean"],
                "devices_error": last["metrics"]["accuracy"]["error"],
                "plain_fedavg": fedavg[-1],
                "central": central[-1],
                **{name: results[name]["accuracy"] for name in compared},
            },
            latency_us={name: results[name]["latency_us"]["p50"] for name in compared},
            bytes={
                **{f"model_{name}": _size(manifest, name) for name in compared},
                "up_per_device_round": _mean(r.figures["bytes_up_per_device"] for r in rounds),
                "down_per_device_round": _mean(r.figures["bytes_down_per_device"] for r in rounds),
                "flower_fedavg_up_per_device_round": plain_fedavg_size(arrays),
            },
            epsilon={
                "server": last["epsilon_server"],
                # Every device that is online takes part: nothing is sampled, so nothing is amplified.
                "release": last["epsilon_server"],
                "delta": self._plan.privacy.delta,
            },
            cohort_for_epsilon_4=cohort_for_epsilon(
                self._privacy,
                4.0,
                corrupt_fraction=POLICY.corrupt_fraction,
                server_malicious=POLICY.server_malicious,
            ),
            reports=reports,
            seconds={
                "first_round": rounds[0].finished_s - self.began_s,
                "total": system_clock() - self.began_s,
                "by_phase": by_phase,
            },
            rounds=len(rounds),
            dropped=sorted(lost),
            joined_late=late,
            history=[
                RoundFigures(
                    record.round,
                    record.figures["accuracy"],
                    record.figures["epsilon_server"],
                    len(members),
                    sum(p.outcome == "charged" for p in record.participations),
                )
                for record, members in zip(rounds, summed, strict=True)
            ],
        )


def _size(manifest: Manifest, variant: str) -> int:
    """Return how many bytes a variant's graph and its weights have."""
    of = manifest.variants[variant]
    return manifest.files[of.file].size + manifest.files[of.weights].size


class _Steps:
    """Progress bars, one below the other."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, what: str, total: int) -> Callable[[], None]:
        task = self._progress.add_task(what, total=total)
        return lambda: self._progress.advance(task)


class _Watch:
    """The progress that a run's server process writes, read as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        self._reached: set[tuple[int, str]] = set()

    def grown(self) -> bool:
        """Read what is new; say whether there was anything."""
        if not self._path.exists():
            return False
        with self._path.open("rb") as file:
            file.seek(self._size)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._size += len(whole)
        for line in whole.splitlines():
            event = json.loads(line)
            if event["event"] == "phase":
                self._reached.add((event["round"], event["phase"]))
        return bool(whole)

    def reached(self, round_: int, phase: str) -> bool:
        """Whether a phase of a round has begun."""
        return (round_, phase) in self._reached


def umbel(*words: object) -> list[str]:
    """Return a command of this program's."""
    return [sys.executable, "-m", "umbel", *map(str, words)]


def _mean(values: Any) -> float:
    return statistics.fmean(values)

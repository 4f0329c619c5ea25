"""A run from its plan to its last round; started again after a crash, it goes on where it was."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from umbel_proto.credentials import FleetPolicy
from umbel_proto.errors import (
    BudgetError,
    RefusedError,
    StorageError,
    UmbelError,
    UnavailableError,
    UsageError,
)
from umbel_proto.ids import DeviceId, RunId
from umbel_proto.package import Package, read_package
from umbel_proto.privacy.accounting import epsilon
from umbel_proto.privacy.encode import decode
from umbel_proto.privacy.plan import Plan, plan
from umbel_proto.secagg.session import Descriptor, model_hash, plan_hash, rotation_seed
from umbel_proto.wire import rounds_pb2 as pb
from umbel_server.clock import Clock, system_clock
from umbel_server.files import read_file, write_atomically
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning.evaluate import HeldOut
from umbel_server.learning.link import Link, NodeId
from umbel_server.learning.plan import RunPlan
from umbel_server.learning.round import Invitation, Progress, RoundOutcome, run_round
from umbel_server.store.runs import Participation, RoundRecord
from umbel_server.store.store import Store

log = logging.getLogger(__name__)

TRAINED = "trained.safetensors"
PROGRESS = "progress.jsonl"

GATHER_POLL_S = 0.2

Vector = NDArray[np.float32]
Pause = Callable[[float], None]


def run_to_end(
    fleet: FleetDir, run: RunId, link: Link, *, clock: Clock = system_clock, pause: Pause = time.sleep
) -> None:
    """Do the rounds of a run that are still to be done, and end it with a reason.

    Args:
        fleet: The fleet; its store holds the run.
        run: The run.
        link: Reaches the devices.
        clock: Tells the time.
        pause: Waits, seconds.

    Raises:
        UmbelError: The run failed; its record says why.
    """
    with fleet.open_store(clock=clock) as store:
        record = store.runs.get(run)
        if record is None:
            raise UsageError(f"There is no run {run} in fleet {fleet.name}.")
        if record.state != "running":
            log.info("run %s is %s already", run, record.state)
            return
        try:
            _Run(fleet, store, run, RunPlan.from_json(record.plan), link, clock, pause).go()
        except UmbelError as exc:
            store.runs.finish(run, "failed", str(exc))
            raise
        except Exception as exc:
            store.runs.finish(run, "failed", f"an unexpected {type(exc).__name__}: see the log")
            raise
        # Whatever else ends it, such as a signal, leaves it running: started again, it goes on.
        store.runs.finish(run, "finished", "")


def plan_privacy(run_plan: RunPlan, policy: FleetPolicy, dim: int) -> Plan:
    """Return noise and layout for a run's rounds.

    Args:
        run_plan: The run.
        policy: What the fleet's devices insist on.
        dim: Parameters of the model.

    Raises:
        RefusedError: Devices would refuse it: too little noise.
        BudgetError: The run would cost a device more than its whole budget.
    """
    privacy = run_plan.privacy
    if privacy.noise_multiplier < policy.noise_floor:
        raise RefusedError(
            f"noise_multiplier is {privacy.noise_multiplier:g}, below the fleet's floor of {policy.noise_floor:g}: "
            "raise it in the run's plan."
        )
    planned = plan(
        dim=dim,
        clip=privacy.clip,
        devices=run_plan.devices,
        honest=policy.honest(policy.min_cohort),
        participations=run_plan.rounds,
        delta=privacy.delta,
        noise_multiplier=privacy.noise_multiplier,
    )
    if planned.epsilon_server > policy.budget_epsilon:
        raise BudgetError(
            f"{run_plan.rounds} rounds would cost a device epsilon {planned.epsilon_server:.4g}, and its budget is "
            f"{policy.budget_epsilon:.4g}: plan fewer rounds or more noise."
        )
    return planned


@dataclass(frozen=True, slots=True)
class _Position:
    """Where a run stands: the last completed round and the parameters after it."""

    round: int
    parameters: Vector


class _Run:
    """One run at work."""

    def __init__(
        self,
        fleet: FleetDir,
        store: Store,
        run: RunId,
        run_plan: RunPlan,
        link: Link,
        clock: Clock,
        pause: Pause,
    ) -> None:
        self._fleet, self._store, self._run, self._plan, self._link = fleet, store, run, run_plan, link
        self._clock, self._pause = clock, pause
        self._silent: frozenset[DeviceId] = frozenset()
        self._policy = fleet.policy()
        self._package = _read(fleet, run_plan)
        self._dir = fleet.runs / run
        self._dir.mkdir(exist_ok=True)
        self._heldout = HeldOut(self._package, Path(run_plan.heldout)) if run_plan.heldout else None
        self._privacy = plan_privacy(run_plan, self._policy, self._package.manifest.dim)

    def go(self) -> None:
        position = self._resume()
        while position.round < self._plan.rounds:
            position = self._round(position)
        write_atomically(
            self._dir / TRAINED, safetensors.numpy.save(self._package.split(position.parameters))
        )

    def _resume(self) -> _Position:
        done = [record.round for record in self._store.runs.rounds(self._run) if record.state == "opened"]
        if not done:
            return _Position(0, self._package.parameters())
        last = max(done)
        log.info("run %s goes on after round %d", self._run, last)
        arrays = safetensors.numpy.load(read_file(self._checkpoint(last), "checkpoint"))
        return _Position(last, self._package.manifest.join(arrays))

    def _round(self, before: _Position) -> _Position:
        """Try the next round until it opens or the attempts are used up."""
        number = before.round + 1
        tried = [r.attempt for r in self._store.runs.rounds(self._run) if r.round == number]
        reason = ""
        for attempt in range(max(tried, default=0) + 1, max(tried, default=0) + 1 + self._plan.attempts):
            members = self._gather()
            begin = self._clock()
            outcome = run_round(
                self._link,
                self._invitation(number, attempt, before.parameters),
                members=members,
                authority=self._fleet.authority_public(),
                timing=self._plan.timing,
                progress=self._progress(number, attempt),
                clock=self._clock,
                silent=self._silent,
                pause=self._pause,
            )
            self._silent = outcome.silent
            if outcome.total is not None:
                return self._accept(before, number, attempt, outcome, begin)
            reason = outcome.reason
            log.warning("round %d, attempt %d was aborted: %s", number, attempt, reason)
            self._append(number, attempt, outcome, begin, {})
        raise RefusedError(
            f"Round {number} was aborted {self._plan.attempts} times, the last time because {reason}"
        )

    def _gather(self) -> dict[NodeId, DeviceId]:
        """Wait until enough devices are online, and no more are coming or all are there.

        Raises:
            UnavailableError: Too few came in time.
        """
        timing, least = self._plan.timing, self._policy.min_cohort
        deadline = self._clock() + timing.join_timeout_s
        found: dict[NodeId, DeviceId] = {}
        since = self._clock()
        while True:
            now = self._clock()
            online = set(self._link.nodes())
            devices = self._store.devices.all()
            members = {d.node_id: d.id for d in devices if d.active and d.node_id in online}
            if members != found:
                found, since = {n: d for n, d in members.items() if n is not None}, now
            complete = len(found) >= self._plan.devices
            if len(found) >= least and (complete or now - since >= timing.settle_s):
                return dict(sorted(found.items())[: self._plan.devices])
            if now >= deadline:
                raise UnavailableError(
                    f"{len(found)} devices are online and a round needs {least}: start more of them, and the run again."
                )
            self._pause(GATHER_POLL_S)

    def _accept(
        self, before: _Position, number: int, attempt: int, outcome: RoundOutcome, begin: float
    ) -> _Position:
        assert outcome.total is not None
        mean = decode(
            outcome.total,
            self._privacy.encoding,
            count=len(outcome.survivors),
            rotation_seed=rotation_seed(outcome.sid),
        )
        step = np.float32(self._plan.server_learning_rate)
        parameters = (before.parameters + step * mean).astype(np.float32, copy=False)
        figures: dict[str, Any] = {}
        if self._heldout is not None:
            figures["accuracy"] = self._heldout.accuracy(parameters)
        # The checkpoint first: a round that is on record can be resumed from.
        write_atomically(self._checkpoint(number), safetensors.numpy.save(self._package.split(parameters)))
        self._append(number, attempt, outcome, begin, figures)
        return _Position(number, parameters)

    def _append(
        self, number: int, attempt: int, outcome: RoundOutcome, begin: float, figures: dict[str, Any]
    ) -> None:
        charged = self._charged(outcome.participations)
        devices = max(1, len(outcome.participations))
        encoding = self._privacy.encoding
        cost = epsilon(
            encoding.bound_sq,
            encoding.coordinates,
            float(encoding.noise * self._privacy.honest),
            self._plan.privacy.delta,
            charged,
        )
        figures |= {
            "seconds": outcome.seconds,
            "bytes_up_per_device": outcome.bytes_up / devices,
            "bytes_down_per_device": outcome.bytes_down / devices,
            "participations": charged,
            "epsilon_server": cost,
        }
        self._store.runs.append_round(
            RoundRecord(
                self._run,
                number,
                attempt,
                "opened" if outcome.total is not None else "aborted",
                begin,
                self._clock(),
                outcome.reason,
                figures,
                outcome.participations,
            )
        )

    def _charged(self, now: tuple[Participation, ...]) -> int:
        """How often the device that took part most often has been charged in this run."""
        counts: Counter[DeviceId] = Counter(p.device for p in now if p.outcome != "dropped")
        for record in self._store.runs.rounds(self._run):
            counts.update(p.device for p in record.participations if p.outcome != "dropped")
        return max(counts.values(), default=0)

    def _invitation(self, number: int, attempt: int, parameters: Vector) -> Invitation:
        vector = parameters.astype("<f4", copy=False).tobytes()
        training = self._plan.training
        train_plan = pb.TrainPlan(
            epochs=training.epochs,
            batch_size=training.batch_size,
            learning_rate=training.learning_rate,
            momentum=training.momentum,
            seed=training.seed,
            package_sha256=bytes.fromhex(self._plan.package_sha256),
            model=self._plan.model,
            package_version=self._plan.version,
        ).SerializeToString(deterministic=True)
        timing = self._plan.timing
        life_s = timing.train_timeout_s + 4 * timing.phase_timeout_s
        descriptor = Descriptor(
            fleet=self._fleet.name,
            run=self._run,
            round=number,
            attempt=attempt,
            task=self._plan.model,
            model_hash=model_hash(vector),
            plan_hash=plan_hash(train_plan),
            encoding=self._privacy.encoding,
            min_cohort=self._policy.min_cohort,
            max_cohort=max(self._plan.devices, self._policy.min_cohort),
            corrupt_fraction=self._policy.corrupt_fraction,
            dropout_fraction=self._policy.dropout_fraction,
            server_malicious=self._policy.server_malicious,
            closes_at_s=int(self._clock() + life_s) + 1,
        )
        return Invitation(descriptor, train_plan, vector)

    def _checkpoint(self, number: int) -> Path:
        return self._dir / f"round-{number:05d}.safetensors"

    def _progress(self, number: int, attempt: int) -> Progress:
        return _progress_to(self._dir / PROGRESS, number, attempt, self._clock)


def _progress_to(path: Path, number: int, attempt: int, clock: Clock) -> Callable[..., None]:
    def note(event: str, **facts: Any) -> None:
        line = {"at_s": round(clock(), 3), "round": number, "attempt": attempt, "event": event, **facts}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    return note


def _read(fleet: FleetDir, run_plan: RunPlan) -> Package:
    path = fleet.package(bytes.fromhex(run_plan.package_sha256))
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise StorageError(
            f"{path} cannot be read ({exc.strerror}): publish {run_plan.model} {run_plan.version} again."
        ) from exc
    package = read_package(data, release_key=fleet.release_public())
    if package.sha256 != run_plan.package_sha256:
        raise StorageError(f"{path} is not the package its name says: publish it again.")
    if "gradient" not in package.manifest.graphs:
        raise UsageError(f"Package {run_plan.model} {run_plan.version} has no gradient graph to train with.")
    return package

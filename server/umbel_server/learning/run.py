"""A run from its plan to its last round; started again after a crash or a pause, it goes on where it was."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from umbel_proto.errors import RefusedError, StorageError, UmbelError, UsageError
from umbel_proto.ids import DeviceId, RunId
from umbel_proto.package import Package, read_package
from umbel_proto.privacy.auxiliary import WEIGHT, WITHIN_CLIP, next_clip
from umbel_proto.privacy.encode import Encoding, decode
from umbel_proto.secagg.session import rotation_seed
from umbel_proto.update import SUFFIX, write_update
from umbel_server.clock import Clock, system_clock
from umbel_server.files import remove_leftovers, write_atomically
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning import checkpoint, groups, guard, optimize
from umbel_server.learning.budget import (
    charges,
    fewest_online,
    held,
    plan_privacy,
    policy_for,
    released,
    spent,
    unable,
)
from umbel_server.learning.checkpoint import Position
from umbel_server.learning.cohort import Gathering
from umbel_server.learning.evaluate import HeldOut
from umbel_server.learning.fleet_ledger import Cost, FleetLedger
from umbel_server.learning.groups import Members
from umbel_server.learning.invitation import invite
from umbel_server.learning.link import Link
from umbel_server.learning.lock import driving
from umbel_server.learning.measure import LEAST_WEIGHT, measure, quantities, with_clip
from umbel_server.learning.plan import RunPlan
from umbel_server.learning.round import Journal, RoundOutcome, run_round
from umbel_server.store.runs import LIVE, NotRunningError, Participation, Phase, RoundRecord, RunState
from umbel_server.store.store import Store

log = logging.getLogger(__name__)

TRAINED = f"trained{SUFFIX}"
PROGRESS = "progress.jsonl"
LOST = "the server was stopped"
"""Why an attempt ended that a killed server left."""

Pause = Callable[[float], None]


def run_to_end(
    fleet: FleetDir, run: RunId, link: Link, *, clock: Clock = system_clock, pause: Pause = time.sleep
) -> None:
    """Do the rounds of a run that are still to be done, and end it with a reason; paused, it is left as it is.

    What a killed server left of a round is not taken up: that attempt is aborted, with the reason, and the
    round is tried again (docs/adr/0009-interrupted-rounds.md).

    Args:
        fleet: The fleet; its store holds the run.
        run: The run.
        link: Reaches the devices.
        clock: Tells the time.
        pause: Waits, seconds.

    Raises:
        UsageError: There is no such run, or another process drives it.
        UmbelError: The run failed; its record says why.
    """
    with fleet.open_store(clock=clock) as store:
        if store.runs.get(run) is None:
            raise UsageError(f"There is no run {run} in fleet {fleet.name}.")
        directory = fleet.runs / run
        directory.mkdir(exist_ok=True)
        while True:
            with driving(directory):
                _drive(fleet, store, run, link, clock, pause)
            # Who lets a paused run go on puts it on record first, and looks then whether somebody drives it. Either
            # they find it left, and start a process, or it is found going on here.
            if _state(store, run) != "running":
                return


def _drive(fleet: FleetDir, store: Store, run: RunId, link: Link, clock: Clock, pause: Pause) -> None:
    """Drive a run that nobody else drives."""
    store.runs.abandon(run, LOST)
    record = store.runs.get(run)
    assert record is not None
    if record.state != "running":
        log.info("run %s is %s already", run, record.state)
        return
    try:
        done = _Run(fleet, store, run, RunPlan.from_json(record.plan), link, clock, pause).go()
    except UmbelError as exc:
        _fail(store, run, str(exc))
        raise
    except Exception as exc:
        _fail(store, run, f"an unexpected {type(exc).__name__}: see the log")
        raise
    # Whatever else ends it, such as a signal, leaves it running: started again, it goes on.
    if done:
        store.runs.finish(run, "finished", "")


def _state(store: Store, run: RunId) -> RunState:
    record = store.runs.get(run)
    assert record is not None
    return record.state


def _fail(store: Store, run: RunId, reason: str) -> None:
    store.runs.abandon(run, "the run failed")
    if _state(store, run) in LIVE:  # Else an operator has ended it, with a reason.
        store.runs.finish(run, "failed", reason)


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
        self._store, self._run, self._plan, self._link = store, run, run_plan, link
        self._clock, self._pause = clock, pause
        self._silent: frozenset[DeviceId] = frozenset()
        self._policy, self._authority = policy_for(run_plan, fleet.policy()), fleet.authority_public()
        self._package = _read(fleet, run_plan)
        self._dir = fleet.runs / run
        remove_leftovers(self._dir)
        self._heldout = HeldOut(self._package, Path(run_plan.heldout)) if run_plan.heldout else None
        manifest = self._package.manifest
        self._quantities = quantities(run_plan, len(manifest.labels))
        ledger = FleetLedger.of(store, fleet.runs, but=run)
        self._privacy = plan_privacy(run_plan, self._policy, manifest.dim, len(self._quantities), ledger)
        Cost.of(self._privacy).save(self._dir)
        broke = unable(self._privacy, self._policy, ledger)
        least = self._policy.min_cohort
        enough = fewest_online(run_plan, least)
        self._gathering = Gathering(
            store,
            link,
            run_plan,
            least,
            enough,
            clock,
            pause,
            broke,
            still=lambda: store.runs.require_running(run),
        )

    def go(self) -> bool:
        """Do the rounds still to be done; say whether all are, and it was not stopped by an operator."""
        position = self._resume()
        try:
            while position.round < self._plan.rounds:
                position = self._round(position)
        except NotRunningError as exc:
            log.info("%s It has done %d of %d.", exc, position.round, self._plan.rounds)
        write_atomically(self._dir / TRAINED, write_update(self._package, position.parameters))
        # One that was paused in its last round has nothing left to pause.
        return position.round == self._plan.rounds and _state(self._store, self._run) in LIVE

    def _resume(self) -> Position:
        done = [record.round for record in self._store.runs.rounds(self._run) if record.state == "opened"]
        if not done:
            return Position(0, self._package.parameters(), self._plan.privacy.clip)
        log.info("run %s goes on after round %d", self._run, max(done))
        return checkpoint.load(self._dir, max(done), self._package)

    def _round(self, before: Position) -> Position:
        """Try the next round until it opens or the attempts are used up."""
        number = before.round + 1
        tried = [r for r in self._store.runs.rounds(self._run) if r.round == number]
        encoding = with_clip(self._privacy.encoding, before.clip)
        reason = tried[-1].reason if tried else ""
        # Those that a killed server left count too: a round that kills its server must not charge for ever.
        for attempt in range(len(tried) + 1, self._plan.attempts + 1):
            members = self._gathering.gather(self._charges())
            begin = self._clock()
            self._store.runs.begin_round(self._run, number, attempt)
            figures: dict[str, Any] = {"guard": {}}
            cohorts = self._cohorts(number, members, figures["guard"])
            outcomes = [
                self._session(before, encoding, (number, attempt), cohort, place)
                for place, cohort in enumerate(cohorts)
            ]
            outcome = groups.combine(outcomes)
            self._silent = outcome.silent
            after: Position | str
            if len(outcomes) > 1:
                sifted = groups.sift(
                    outcomes, encoding=encoding, asked=self._quantities, rules=self._plan.guard
                )
                outcome, figures["guard"]["groups"] = sifted.outcome, sifted.figures()
                after = sifted.reason or self._learn(before, encoding, sifted.kept, figures)
            else:
                after = outcome.reason or self._learn(before, encoding, outcomes, figures)
            if isinstance(after, Position):
                # The checkpoint first: a round that is on record can be resumed from.
                checkpoint.save(after, self._dir, self._package)
                self._append(number, attempt, outcome, begin, figures, "")
                return after
            reason = after
            log.warning("round %d, attempt %d was aborted: %s", number, attempt, reason)
            self._append(number, attempt, outcome, begin, figures, reason)
        raise RefusedError(
            f"Round {number} was aborted {self._plan.attempts} times, the last time because {reason}"
        )

    def _cohorts(self, number: int, members: Members, notes: dict[str, Any]) -> Sequence[Members]:
        """Return who shares a session: all members or, where the guard has refused twice, random groups."""
        rules = self._plan.guard
        tried = [record for record in self._store.runs.rounds(self._run) if record.round == number]
        if not rules.groups or not guard.suspects(tried):
            return (members,)
        charged = self._charges()
        most = max(charged[device] for device in members.values()) + 1
        obstacle = groups.obstacle(
            len(members), rules=rules, policy=self._policy, epsilon=spent(self._privacy, most)
        )
        if obstacle:
            notes["no_groups"] = obstacle
            log.warning("round %d is held without a diagnostic round: %s", number, obstacle)
            return (members,)
        log.info("round %d is held as a diagnostic round of %d groups", number, rules.groups)
        return groups.deal(members, rules.groups)

    def _session(
        self, before: Position, encoding: Encoding, try_: tuple[int, int], members: Members, place: int
    ) -> RoundOutcome:
        """Hold one session of an attempt, the whole of it or the group at ``place``."""
        number, attempt = try_
        invitation = invite(
            self._run,
            number,
            attempt,
            plan=self._plan,
            policy=self._policy,
            encoding=encoding,
            quantities=self._quantities,
            parameters=before.parameters,
            # A second apart, as all else of two groups' descriptors may be equal and their ids must not be.
            now_s=self._clock() + place,
        )
        return run_round(
            self._link,
            invitation,
            members=members,
            authority=self._authority,
            timing=self._plan.timing,
            journal=self._journal(number, attempt),
            progress=_progress_to(self._dir / PROGRESS, number, attempt, self._clock),
            clock=self._clock,
            silent=self._silent,
            pause=self._pause,
            shut_out=self._store.devices.untrusted,
        )

    def _learn(
        self, before: Position, encoding: Encoding, outcomes: Sequence[RoundOutcome], figures: dict[str, Any]
    ) -> Position | str:
        """Return where sums take the run, or why they must not be used; note what they say in ``figures``."""
        totals = [outcome.total for outcome in outcomes if outcome.total is not None]
        count = sum(len(outcome.survivors) for outcome in outcomes)
        # What groups sum beside their updates adds up word by word; the updates are rotated differently.
        measured = measure(reduce(np.add, totals), encoding, self._quantities, count=count)
        figures["clip"] = before.clip
        figures["metrics"] = {name: {"mean": m.mean, "error": m.error} for name, m in measured.items()}
        average = reduce(
            np.add,
            [
                decode(total, encoding, count=count, rotation_seed=rotation_seed(outcome.sid))
                for total, outcome in zip(totals, outcomes, strict=True)
            ],
        )
        rules, past = self._plan.guard, guard.past(self._store.runs.rounds(self._run))
        if rules.gate:
            reading = guard.read(
                average,
                measured,
                encoding=encoding,
                asked=self._quantities,
                count=count,
                # Groups have been held against each other, which tells more than the past.
                norms=past.norms if len(outcomes) == 1 else (),
                factor=rules.factor,
            )
            figures["guard"] |= {"norm": reading.norm, "limit": reading.limit}
            if reading.reason:
                figures["guard"]["refused"] = "gate"
                return reading.reason
        weight = float(count)
        if WEIGHT in measured:
            weight *= measured[WEIGHT].mean / self._plan.weight_cap
            if weight < LEAST_WEIGHT * count:
                return f"the weights of {count} devices add up to {weight:.3g}: noise drowns so little"
        mean = average if weight == count else average * np.float32(count / weight)
        parameters, moments = optimize.apply(self._plan.optimizer, before.parameters, mean, before.moments)
        if self._heldout is not None:
            reached = figures[self._heldout.figure] = self._heldout.score(parameters)
            best = max(past.scores, default=0.0) or self._heldout.score(before.parameters)
            if worse := guard.dropped(reached, best, rules, self._heldout.figure):
                figures["guard"]["refused"] = self._heldout.figure
                return worse
        clip, clipping = before.clip, self._plan.clipping
        if clipping.rate:
            clip = next_clip(
                clip,
                measured[WITHIN_CLIP].mean,
                quantile=clipping.quantile,
                rate=clipping.rate,
                low=clipping.low,
                high=clipping.high,
            )
        return Position(before.round + 1, parameters, clip, moments)

    def _journal(self, number: int, attempt: int) -> Journal:
        def note(phase: Phase, charged: Collection[DeviceId]) -> None:
            self._store.runs.enter_phase(self._run, number, attempt, phase, charged)

        return note

    def _append(
        self,
        number: int,
        attempt: int,
        outcome: RoundOutcome,
        begin: float,
        figures: dict[str, Any],
        reason: str,
    ) -> None:
        charged = max(self._charges(outcome.participations).values(), default=0)
        past = [record.participations for record in self._store.runs.rounds(self._run)]
        devices = max(1, len(outcome.participations))
        figures |= {
            "seconds": outcome.seconds,
            "bytes_up_per_device": outcome.bytes_up / devices,
            "bytes_down_per_device": outcome.bytes_down / devices,
            "participations": charged,
            "epsilon_server": spent(self._privacy, charged),
            # For those who see only models, if devices are drawn honestly and in secret.
            "epsilon_release": released(self._privacy, charged, held([*past, outcome.participations])),
        }
        self._store.runs.end_round(
            RoundRecord(
                self._run,
                number,
                attempt,
                "aborted" if reason else "opened",
                begin,
                self._clock(),
                reason,
                figures,
                outcome.participations,
            )
        )

    def _charges(self, now: tuple[Participation, ...] = ()) -> Counter[DeviceId]:
        """How often each device has been charged in this run, and in an attempt not yet on record."""
        return charges([*(r.participations for r in self._store.runs.rounds(self._run)), now])


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

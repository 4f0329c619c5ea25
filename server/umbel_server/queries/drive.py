"""A query from its first invitation to its answer; started again after a crash, it costs no device twice."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np

from umbel_proto.analytics.query import Query, open_query, query_hash
from umbel_proto.credentials import FleetPolicy
from umbel_proto.errors import RefusedError, UmbelError, UsageError
from umbel_proto.ids import DeviceId, RunId
from umbel_proto.privacy.counts import CountPlan
from umbel_proto.privacy.encode import decode
from umbel_proto.secagg.session import Descriptor, model_hash, rotation_seed
from umbel_server.clock import Clock, system_clock
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning.cohort import Gathering
from umbel_server.learning.fleet_ledger import FleetLedger
from umbel_server.learning.invitation import Invitation
from umbel_server.learning.link import Link
from umbel_server.learning.lock import driving
from umbel_server.learning.plan import Privacy, RunPlan, Timing
from umbel_server.learning.round import RoundOutcome, run_round
from umbel_server.learning.run import PROGRESS, run_to_end
from umbel_server.queries.plan import Asking, cost_of, plan_query
from umbel_server.queries.read import read
from umbel_server.store.runs import Phase, RoundRecord
from umbel_server.store.store import Store

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""So often a query is put that no device has been charged for."""

Pause = Callable[[float], None]


def to_end(fleet: FleetDir, name: RunId, link: Link) -> None:
    """Drive what Flower was asked to run to its end: a query, or a run that trains.

    Raises:
        UmbelError: It failed; its record says why.
    """
    with fleet.open_store() as store:
        asks = store.queries.get(name) is not None
    if asks:
        query_to_end(fleet, name, link)
    else:
        run_to_end(fleet, name, link)


def query_to_end(
    fleet: FleetDir, name: RunId, link: Link, *, clock: Clock = system_clock, pause: Pause = time.sleep
) -> None:
    """Put a query to the fleet's devices, and keep what their sum says.

    An attempt that fails before any device was charged is tried again. After that it is not: devices answer a query
    once, and asking anew is for a person to decide.

    Args:
        fleet: The fleet; its store holds the query.
        name: The query.
        link: Reaches the devices.
        clock: Tells the time.
        pause: Waits, seconds.

    Raises:
        UsageError: There is no such query, or another process drives it.
        UmbelError: It failed; its record says why.
    """
    with fleet.open_store(clock=clock) as store:
        record = store.queries.get(name)
        if record is None:
            raise UsageError(f"There is no query {name} in fleet {fleet.name}.")
        directory = fleet.runs / name
        directory.mkdir(exist_ok=True)
        with driving(directory):
            store.runs.abandon(name, "the server was stopped")
            if record.state != "running":
                log.info("query %s is %s already", name, record.state)
                return
            try:
                asking = Asking.from_json(record.plan)
                query = open_query(
                    record.signed, authority=fleet.authority_public(), fleet=fleet.name, now_s=clock()
                )
                _Query(fleet, store, query, record.signed, asking, link, clock, pause).go()
            except UmbelError as exc:
                _fail(store, name, str(exc))
                raise
            except Exception as exc:
                _fail(store, name, f"an unexpected {type(exc).__name__}: see the log")
                raise


def _fail(store: Store, name: RunId, reason: str) -> None:
    store.runs.abandon(name, "the query failed")
    record = store.queries.get(name)
    if record is not None and record.state == "running":
        store.runs.finish(name, "failed", reason)


class _Query:
    """One query at work."""

    def __init__(
        self,
        fleet: FleetDir,
        store: Store,
        query: Query,
        signed: bytes,
        asking: Asking,
        link: Link,
        clock: Clock,
        pause: Pause,
    ) -> None:
        self._fleet, self._store, self._query, self._signed = fleet, store, query, signed
        self._asking, self._link, self._clock, self._pause = asking, link, clock, pause
        self._policy = replace(fleet.policy(), min_cohort=query.min_cohort)
        self._planned = plan_query(query, asking, self._policy)
        cost_of(self._planned).save(fleet.runs / query.id)
        self._silent: frozenset[DeviceId] = frozenset()

    def go(self) -> None:
        """Ask until a sum opens, or somebody was charged in vain, or the attempts are used up."""
        name, reason = self._query.id, ""
        for attempt in range(1, ATTEMPTS + 1):
            tried = [each for each in self._store.runs.rounds(name) if each.attempt == attempt]
            if not tried:
                outcome = self._ask(attempt)
                if outcome is None:
                    return
                reason, parts = outcome.reason, outcome.participations
            else:  # A server that was killed left it.
                reason, parts = tried[0].reason, tried[0].participations
            charged = sum(part.outcome != "dropped" for part in parts)
            if charged:
                raise RefusedError(
                    f"{charged} devices were charged for their answers and no sum was opened, because {reason}: devices "
                    "answer a query once; ask a new one, which costs as much again."
                )
        raise RefusedError(f"The query was put {ATTEMPTS} times, and cost nothing: the last time {reason}.")

    def _ask(self, attempt: int) -> RoundOutcome | None:
        """Put the query once; None: it is answered."""
        query, begin = self._query, self._clock()
        members = self._gathering().gather(Counter())
        self._store.runs.begin_round(query.id, 1, attempt)
        outcome = run_round(
            self._link,
            self._invitation(attempt),
            members=members,
            authority=self._fleet.authority_public(),
            timing=_timing(self._asking),
            journal=functools.partial(_note, self._store, query.id, attempt),
            progress=_progress(self._fleet, query.id, attempt, self._clock),
            clock=self._clock,
            silent=self._silent,
            pause=self._pause,
            shut_out=self._store.devices.untrusted,
        )
        self._silent = outcome.silent
        figures = {
            "seconds": outcome.seconds,
            "epsilon_server": self._planned.epsilon,
            "devices": len(outcome.survivors),
        }
        self._store.runs.end_round(
            RoundRecord(
                query.id,
                1,
                attempt,
                "aborted" if outcome.total is None else "opened",
                begin,
                self._clock(),
                outcome.reason,
                figures,
                outcome.participations,
            )
        )
        if outcome.total is None:
            log.warning("query %s, attempt %d was aborted: %s", query.id, attempt, outcome.reason)
            return outcome
        self._store.queries.answer(query.id, self._result(outcome))
        log.info("query %s is answered by %d devices", query.id, len(outcome.survivors))
        return None

    def _result(self, outcome: RoundOutcome) -> dict[str, Any]:
        assert outcome.total is not None
        encoding, devices = self._planned.encoding, len(outcome.survivors)
        total = decode(outcome.total, encoding, count=1, rotation_seed=rotation_seed(outcome.sid))
        error = self._planned.error(devices)
        asking = self._asking
        refused = Counter(part.reason for part in outcome.participations if part.outcome == "dropped")
        return {
            **read(self._query, total.astype(np.float64), error=error, names=asking.labels, ends=asking.ends),
            "devices": devices,
            "refused": sum(refused.values()),
            "reasons": dict(refused.most_common(10)),
            "error": error,
            "epsilon": None if np.isinf(self._planned.epsilon) else self._planned.epsilon,
            "delta": self._policy.budget_delta,
        }

    def _gathering(self) -> Gathering:
        query, policy = self._query, self._policy
        # Who is online and able is found as for the one round of a run.
        plan = RunPlan(
            model=query.model,
            version=query.version,
            package_sha256=query.package_sha256,
            rounds=1,
            devices=self._asking.devices,
            privacy=Privacy(clip=query.bound, noise_multiplier=query.noise_multiplier),
            timing=_timing(self._asking),
        )
        broke = unable(self._planned, policy, FleetLedger.of(self._store, self._fleet.runs, but=query.id))
        least = query.min_cohort
        return Gathering(self._store, self._link, plan, least, least, self._clock, self._pause, broke)

    def _invitation(self, attempt: int) -> Invitation:
        query, policy, timing = self._query, self._policy, _timing(self._asking)
        life_s = timing.train_timeout_s + 4 * timing.phase_timeout_s
        descriptor = Descriptor(
            fleet=query.fleet,
            run=query.id,
            round=1,
            attempt=attempt,
            task=query.kind,
            model_hash=model_hash(b""),
            plan_hash=query_hash(self._signed),
            encoding=self._planned.encoding,
            min_cohort=query.min_cohort,
            max_cohort=max(self._asking.devices, query.min_cohort),
            corrupt_fraction=policy.corrupt_fraction,
            dropout_fraction=policy.dropout_fraction,
            server_malicious=policy.server_malicious,
            closes_at_s=int(self._clock() + life_s) + 1,
        )
        return Invitation(descriptor, b"", b"", self._signed)


def unable(planned: CountPlan, policy: FleetPolicy, ledger: FleetLedger) -> frozenset[DeviceId]:
    """Return the devices whose budget does not cover an answer: they are not asked."""
    rooms = ledger.rooms(
        cost_of(planned), most=1, budget_epsilon=policy.budget_epsilon, budget_delta=policy.budget_delta
    )
    return frozenset(device for device, left in rooms.items() if not left)


def _timing(asking: Asking) -> Timing:
    return Timing(
        join_timeout_s=asking.wait_s,
        settle_s=min(2.0, asking.wait_s),
        train_timeout_s=max(asking.wait_s, 30.0),
        phase_timeout_s=30.0,
    )


def _note(store: Store, name: RunId, attempt: int, phase: Phase, charged: Collection[DeviceId]) -> None:
    store.runs.enter_phase(name, 1, attempt, phase, charged)


def _progress(fleet: FleetDir, name: RunId, attempt: int, clock: Clock) -> Callable[..., None]:
    path = fleet.runs / name / PROGRESS

    def note(event: str, **facts: Any) -> None:
        line = {"at_s": round(clock(), 3), "round": 1, "attempt": attempt, "event": event, **facts}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    return note

"""The decider: lets rollouts go on, waits, or takes them back, by what devices report. One acts at a time."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from umbel_proto.errors import RefusedError, UnavailableError
from umbel_server.rollouts.evidence import gather
from umbel_server.rollouts.gates import Outcome, Verdict, judge
from umbel_server.rollouts.plan import OnFailure
from umbel_server.rollouts.state import Advance, Event, Pause, RollBack, Running
from umbel_server.store.database import DiskFullError
from umbel_server.store.rollouts import SERVICE, Rollout
from umbel_server.store.store import Store

POLL_S = 10.0
LEASE = "rollouts"
LEASE_S = 60.0
LOOKS = 500
"""How often an experiment's guardrails are looked at, of its time so far: after an hour every 7 s, a day 3 min."""
_MINUTE_S = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a running rollout gave.

    Args:
        rollout: The rollout.
        verdicts: What its gates say.
        event: What follows; None: it waits.
    """

    rollout: Rollout
    verdicts: tuple[Verdict, ...]
    event: Event | None


def look(store: Store, rollout: Rollout, *, now_s: float) -> Look:
    """Return what the gates of a running rollout say, and what follows. It changes nothing.

    Args:
        store: The store.
        rollout: The rollout.
        now_s: The time, Unix seconds.
    """
    if not isinstance(rollout.state, Running):
        return Look(rollout, (), None)
    if rollout.state.step == len(rollout.plan.steps) - 1:
        # Nobody is left to compare with.
        return Look(rollout, (), _at_last(store, rollout, rollout.state, now_s=now_s))
    verdicts = judge(rollout.plan, gather(store.placements, rollout))
    return Look(rollout, verdicts, decide(rollout, verdicts, now_s=now_s))


def decide(rollout: Rollout, verdicts: Sequence[Verdict], *, now_s: float) -> Event | None:
    """Return what follows from the verdicts on a step that leaves devices to compare with; None: it waits."""
    if not isinstance(rollout.state, Running):
        return None
    step = rollout.plan.steps[rollout.state.step]
    failed = [verdict for verdict in verdicts if verdict.outcome is Outcome.FAIL]
    if failed:
        reason = "; ".join(f"gate {verdict.gate}: {verdict.why}" for verdict in failed)
        return RollBack(reason) if rollout.plan.on_failure is OnFailure.ROLL_BACK else Pause(reason)
    lasted_s = now_s - rollout.state.since_s
    # An experiment goes on when somebody decides so, however good it looks.
    if step.control is not None or lasted_s < step.least_s:
        return None
    open_ = [verdict for verdict in verdicts if verdict.outcome is Outcome.OPEN]
    if not open_:
        said = sum(verdict.outcome is not Outcome.UNDEFINED for verdict in verdicts)
        return Advance(f"step {step.name} passed {said} gates")
    if step.longest_s is None or lasted_s < step.longest_s:
        return None
    outside = [verdict for verdict in open_ if not verdict.within]
    if outside:
        told = "; ".join(f"gate {verdict.gate}: {verdict.why}" for verdict in outside)
        return Pause(f"step {step.name} ended without enough to judge by: {told}")
    return Advance(
        f"step {step.name} ended with {len(open_)} gates unsure, and everything measured tolerable"
    )


def _at_last(store: Store, rollout: Rollout, running: Running, *, now_s: float) -> Event | None:
    """Return what follows in the step that reaches every device."""
    step = rollout.plan.steps[running.step]
    least_s = step.least_s
    if rollout.plan.rate is not None:
        # Whoever is not offered it by then was not heard of, and gets it as what everybody has.
        waiting = len(store.placements.eligible()) - len(store.placements.members(rollout))
        least_s = max(
            least_s, 0.0 if waiting <= 0 else _MINUTE_S * len(store.placements.eligible()) / rollout.plan.rate
        )
    return Advance("every device is offered it") if now_s - running.since_s >= least_s else None


class Decider:
    """Looks at every running rollout again and again.

    It keeps nothing itself: killed at any moment, the next one goes on. Of several processes one acts, and a change
    that somebody else made meanwhile is never overwritten.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._name = secrets.token_hex(8)
        self._said: dict[str, tuple[str, ...]] = {}
        self._looked: dict[str, float] = {}

    def run_once(self) -> int:
        """Look at every running rollout, and let happen what follows.

        Returns:
            How many rollouts changed.

        Raises:
            StorageError: The store fails; nothing is half done.
        """
        rollouts = self._store.rollouts.running()
        if not rollouts or not self._store.rollouts.lease(LEASE, self._name, seconds=LEASE_S):
            return 0
        due = [each for each in rollouts if self._due(each, now_s=self._store.clock())]
        return sum(self._act(look(self._store, each, now_s=self._store.clock())) for each in due)

    def _due(self, rollout: Rollout, *, now_s: float) -> bool:
        """Whether to look: at an experiment, whose guardrails compare weeks, the less often the longer it lasts."""
        if not isinstance(rollout.state, Running) or rollout.plan.steps[rollout.state.step].control is None:
            return True
        if now_s < self._looked.get(rollout.id, 0.0) + (now_s - rollout.state.since_s) / LOOKS:
            return False
        self._looked[rollout.id] = now_s
        return True

    def run(self, stopped: Callable[[float], bool], *, poll_s: float = POLL_S) -> None:
        """Look until told to stop.

        Args:
            stopped: Waits up to so many seconds and tells whether to stop, as ``Event.wait`` does.
            poll_s: How long to wait between looks, seconds.

        Raises:
            StorageError: The store is damaged.
        """
        while not stopped(poll_s):
            try:
                self.run_once()
            except (DiskFullError, UnavailableError) as exc:
                log.warning("rollouts stay as they are for now: %s", exc)
        self._store.rollouts.release(LEASE, self._name)

    def _act(self, seen: Look) -> bool:
        rollout = seen.rollout
        self._say(seen)
        if seen.event is None:
            return False
        try:
            self._store.rollouts.happen(
                rollout.id,
                seen.event,
                actor=SERVICE,
                figures=[verdict_json(verdict) for verdict in seen.verdicts],
                revision=rollout.revision,
            )
        except RefusedError as exc:
            log.info("%s", exc)
            return False
        log.info(
            "rollout %s of %s %d: %s: %s",
            rollout.id,
            rollout.model,
            rollout.to_version,
            type(seen.event).__name__.lower(),
            getattr(seen.event, "reason", ""),
        )
        return True

    def _say(self, seen: Look) -> None:
        told = tuple(f"{verdict.gate}: {verdict.outcome}" for verdict in seen.verdicts)
        if told and told != self._said.get(seen.rollout.id):
            log.info("rollout %s: %s", seen.rollout.id, ", ".join(told))
        self._said[seen.rollout.id] = told


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as JSON has it: an infinite bound is none."""
    fields = asdict(verdict)
    return {name: None if value in (float("inf"), float("-inf")) else value for name, value in fields.items()}

"""Look at an experiment, and decide about it: who, when, why, and by what figures, for good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from umbel_proto.errors import RefusedError, UsageError
from umbel_server.access.actor import Actor
from umbel_server.experiments.evidence import DAY_S, gather
from umbel_server.experiments.plan import LONGEST_DAYS
from umbel_server.experiments.reading import Outcome, Reading, read
from umbel_server.rollouts.decider import look, verdict_json
from umbel_server.rollouts.state import Advance, RollBack, RolledBack
from umbel_server.store.experiments import EXTEND, SHIP, STOP, Experiment

if TYPE_CHECKING:
    from umbel_server.rollouts.gates import Verdict
    from umbel_server.store.rollouts import Rollout
    from umbel_server.store.store import Store


@dataclass(frozen=True, slots=True)
class Seen:
    """An experiment at a moment.

    Args:
        experiment: The experiment.
        rollout: Its rollout.
        reading: What it says.
        guards: What its guardrails say.
    """

    experiment: Experiment
    rollout: Rollout
    reading: Reading
    guards: tuple[Verdict, ...]

    def figures(self) -> dict[str, Any]:
        """Return what a decision freezes."""
        from umbel_server.experiments.shown import reading_json

        return reading_json(self.reading) | {"gates": [verdict_json(each) for each in self.guards]}


def status_of(experiment: Experiment, rollout: Rollout) -> str:
    """Return where an experiment stands, in a word."""
    if experiment.final is not None:
        return "shipped" if experiment.final.decision == SHIP else "stopped"
    # What its guardrails or somebody at the rollout did, nobody has decided about yet.
    return "ended" if rollout.status == "kept" else rollout.status


def see(store: Store, name: str) -> Seen:
    """Return an experiment that nobody has decided about as it is now, or as it was when its rollout ended.

    Raises:
        UsageError: There is none of that name.
    """
    experiment, rollout = store.experiments.get(name), store.rollouts.get(name)
    now_s = store.clock() if rollout.live else getattr(rollout.state, "since_s", store.clock())
    reading = read(experiment.plan, *gather(store, rollout, experiment.plan, now_s=now_s), now_s=now_s)
    return Seen(experiment, rollout, reading, look(store, rollout, now_s=now_s).verdicts)


def decide(
    store: Store,
    name: str,
    decision: str,
    *,
    actor: Actor,
    comment: str,
    days: float | None = None,
    known: int | None = None,
) -> Experiment:
    """Decide about an experiment.

    To ship lets its rollout go on with its next step: devices with the candidate keep it. To stop takes the candidate
    back. To extend changes only when somebody is to decide: the interval holds however long it lasts.

    Args:
        store: The store.
        name: The experiment.
        decision: ``ship``, ``stop`` or ``extend``.
        actor: Who decides.
        comment: Why.
        days: Of an extension, from now on for how long, > 0.
        known: How many decisions whoever decides had seen; None: whatever there are by now.

    Raises:
        UsageError: There is no such experiment, no comment, or the days do not fit.
        RefusedError: It is decided already, or there is nothing yet to ship it by.
    """
    comment = comment.strip()
    if not comment:
        raise UsageError("Say why with --reason: it is kept with what was seen.")
    if (decision == EXTEND) != (days is not None):
        raise UsageError("Say with --days for how long an experiment is extended; nothing else takes days.")
    final = store.experiments.get(name).final
    if final is not None:
        raise RefusedError(f"{final.actor} decided about experiment {name} already: to {final.decision}.")
    seen = see(store, name)
    if decision == STOP:
        # Its guardrails may have been first: then there is nothing to take back, and the decision goes on record.
        event = None if isinstance(seen.rollout.state, RolledBack) else RollBack(comment)
        return store.experiments.decide(
            name, STOP, actor=actor, comment=comment, figures=seen.figures(), event=event, known=known
        )
    if not seen.rollout.live:
        raise RefusedError(
            f"Experiment {name} has ended: {seen.rollout.status}. Stop it, for the record, or begin another one."
        )
    if decision == SHIP:
        _require_shippable(seen)
        return store.experiments.decide(
            name,
            SHIP,
            actor=actor,
            comment=comment,
            figures=seen.figures(),
            event=Advance(comment),
            known=known,
        )
    assert days is not None
    ends_s = store.clock() + days * DAY_S
    if not days > 0 or ends_s - seen.experiment.created_s > LONGEST_DAYS * DAY_S:
        raise UsageError(f"Extend it by more than 0 days, and to {LONGEST_DAYS:g} days in all at most.")
    return store.experiments.decide(
        name, EXTEND, actor=actor, comment=comment, figures=seen.figures(), ends_s=ends_s, known=known
    )


def _require_shippable(seen: Seen) -> None:
    if seen.reading.outcome in (Outcome.WAITING, Outcome.MISMATCH, Outcome.RANDOMIZED):
        raise RefusedError(
            f"There is nothing to ship {seen.experiment.id} by. {seen.reading.why} To bring the version without an "
            "experiment, stop this one and begin a rollout."
        )

"""What rules find of a rollout's candidate: the gates' own comparison of devices, also where the plan has no such gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from umbel_server.monitor.alerts.rules import EVERY_MODEL, Rule
from umbel_server.monitor.alerts.scene import Scene
from umbel_server.rollouts.evidence import gather
from umbel_server.rollouts.gates import Outcome, Verdict, judge
from umbel_server.rollouts.plan import Gate, Kind, RolloutPlan
from umbel_server.rollouts.state import Running
from umbel_server.store.alerts import Reading
from umbel_server.store.rollouts import Rollout

_KINDS: Mapping[str, Kind] = {
    "candidate_latency": Kind.LATENCY,
    "candidate_errors": Kind.ERRORS,
    "candidate_estimated_accuracy": Kind.ESTIMATED,
    "candidate_realized_accuracy": Kind.METRIC,
    "candidate_agreement": Kind.AGREEMENT,
}
_REALIZED = "feedback.agreed/feedback"


def of_candidates(scene: Scene, rule: Rule) -> list[Reading]:
    """Return what a rule about candidates finds, of each rollout that is under way.

    The bounds hold at all looks together, with the rule's level as the chance of a false alarm in a step.
    """
    found = []
    for rollout in scene.store.rollouts.running():
        if rule.model not in (EVERY_MODEL, rollout.model):
            continue
        assert isinstance(rollout.state, Running)
        if rollout.state.step == len(rollout.plan.steps) - 1:
            continue  # Nobody is left to compare with.
        reading = _reading(rule, rollout, _judged(scene, rule, rollout))
        if reading is not None:
            found.append(reading)
    return found


def _judged(scene: Scene, rule: Rule, rollout: Rollout) -> Verdict:
    gate = gate_of(rule)
    evidence = gather(scene.store.placements, replace(rollout, plan=_with(rollout.plan, gate)))
    return judge(_alone(rollout.plan, gate, rule), evidence)[0]


def gate_of(rule: Rule) -> Gate:
    """Return the gate that makes a rule's comparison."""
    kind = _KINDS[rule.what]
    match kind:
        case Kind.LATENCY:
            return Gate(kind, rule.threshold, percentile=rule.percentile)
        case Kind.METRIC:
            return Gate(kind, rule.threshold, metric=_REALIZED)
        case _:
            return Gate(kind, rule.threshold)


def _with(plan: RolloutPlan, gate: Gate) -> RolloutPlan:
    """Return the plan with the gate alone, so that what it reads is gathered; steps and devices stay the same."""
    if gate.kind is Kind.AGREEMENT:
        return plan  # What devices told of answers beside is gathered in any shadow step.
    return replace(plan, gates=(*(each for each in plan.gates if each.kind is Kind.AGREEMENT), gate))


def _alone(plan: RolloutPlan, gate: Gate, rule: Rule) -> RolloutPlan:
    """Return a plan that only judges: one step and one gate, with the rule's level."""
    shadow = gate.kind is Kind.AGREEMENT
    first = replace(plan.steps[0], shadow=shadow, control=None)
    return replace(
        plan,
        steps=(first, plan.steps[-1]),
        gates=(gate,),
        error=min(rule.level, 0.49),
        least_devices=max(2, min(plan.least_devices, rule.least_devices)),
    )


def _reading(rule: Rule, rollout: Rollout, verdict: Verdict) -> Reading | None:
    if verdict.outcome is Outcome.UNDEFINED:
        return None
    labels = {"model": str(rollout.model), "version": str(rollout.to_version), "rollout": rollout.id}
    if verdict.estimate is None or verdict.low is None:
        return Reading(labels, None, None, verdict.why)
    holds = verdict.outcome is Outcome.FAIL
    return Reading(labels, holds, verdict.estimate, f"version {rollout.to_version}: {_words(rule, verdict)}")


def _words(rule: Rule, verdict: Verdict) -> str:
    if rule.what == "candidate_realized_accuracy":
        return f"agreement with labels fell: {verdict.why}"
    return verdict.why

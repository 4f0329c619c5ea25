"""What a run costs its devices: planned before it starts, and counted as its rounds go by.

This is the fleet's side. Each device keeps a ledger of its own, and that one decides.

Source: docs/spec/privacy.md, "Planning" and "Ledger".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from umbel_proto.credentials import FleetPolicy
from umbel_proto.errors import BudgetError, RefusedError
from umbel_proto.ids import DeviceId
from umbel_proto.privacy.accounting import SKELLAM_ORDERS, epsilon, rdp_to_epsilon, variance_for
from umbel_proto.privacy.forecast import check_delta
from umbel_proto.privacy.plan import Plan, plan
from umbel_server.learning import draw
from umbel_server.learning.fleet_ledger import Cost, FleetLedger, room
from umbel_server.learning.plan import RunPlan
from umbel_server.store.runs import Participation


def policy_for(run_plan: RunPlan, policy: FleetPolicy) -> FleetPolicy:
    """Return what a run's sessions demand: the fleet's policy, or a larger smallest cohort if the run wants one.

    Raises:
        RefusedError: The run wants a smaller one.
    """
    if not run_plan.min_cohort:
        return policy
    if run_plan.min_cohort < policy.min_cohort:
        raise RefusedError(
            f"min_cohort is {run_plan.min_cohort}, below the {policy.min_cohort} of the fleet's policy: raise it in "
            "the run's plan, or leave it out."
        )
    return replace(policy, min_cohort=run_plan.min_cohort)


def plan_privacy(
    run_plan: RunPlan, policy: FleetPolicy, dim: int, quantities: int = 0, ledger: FleetLedger | None = None
) -> Plan:
    """Return noise and layout for a run's rounds.

    Args:
        run_plan: The run.
        policy: What the fleet's devices insist on.
        dim: Parameters of the model.
        quantities: How many are summed beside the update.
        ledger: What the devices were charged in other runs; without it, all count as new.

    Raises:
        RefusedError: Devices would refuse it: too little noise, or too small a cohort.
        BudgetError: The run would cost more than a device's budget, or too few devices could pay for it.
        UsageError: The plan's numbers do not go together.
    """
    privacy, policy = run_plan.privacy, policy_for(run_plan, policy)
    if privacy.noise_multiplier < policy.noise_floor:
        raise RefusedError(
            f"noise_multiplier is {privacy.noise_multiplier:g}, below the fleet's floor of {policy.noise_floor:g}: "
            "raise it in the run's plan."
        )
    if privacy.noise_multiplier == 0 and math.isfinite(policy.budget_epsilon):
        raise BudgetError(
            f"noise_multiplier is 0, and a device's budget is epsilon {policy.budget_epsilon:g}: no budget covers a "
            "round without noise; choose a noise_multiplier above 0 in the run's plan."
        )
    if math.isfinite(policy.example_budget_epsilon) and not run_plan.training.example_noise:
        # Whether a noisy run fits depends on how many examples a device has: only the device can tell.
        raise BudgetError(
            f"example_noise is 0, and the budget of an example is epsilon {policy.example_budget_epsilon:g}: devices "
            "would not train; choose an example_clip and example_noise above 0 in the run's plan."
        )
    check_delta(privacy.delta, math.ceil(run_plan.devices / privacy.sampling_rate))
    _check_draws(run_plan, policy)
    planned = plan(
        dim=dim,
        clip=privacy.clip,
        devices=run_plan.most_devices,
        honest=policy.honest(policy.min_cohort),
        participations=run_plan.most_participations,
        delta=privacy.delta,
        noise_multiplier=privacy.noise_multiplier,
        sampling_rate=privacy.sampling_rate,
        rounds=run_plan.rounds,
        auxiliary=quantities,
        auxiliary_share=run_plan.metrics.share,
    )
    _check_budget(run_plan, policy, Cost.of(planned))
    if ledger is not None:
        _check_ledger(run_plan, policy, Cost.of(planned), ledger)
    return planned


def fewest_online(run_plan: RunPlan, least: int) -> int:
    """Return how many devices a run's rounds have to be drawn from, or held with where all take part."""
    held_at_most = run_plan.rounds * run_plan.attempts
    privacy = run_plan.privacy
    return draw.fewest_online(privacy.sampling_rate, least, rounds=held_at_most, delta=privacy.delta)


def _check_draws(run_plan: RunPlan, policy: FleetPolicy) -> None:
    """Refuse a cohort that would often be drawn too small: ``epsilon_release`` leaves such draws out."""
    rate, least = run_plan.privacy.sampling_rate, policy.min_cohort
    if rate == 1:
        return
    enough = math.ceil(fewest_online(run_plan, least) * rate)
    if run_plan.devices < enough:
        raise RefusedError(
            f"devices is {run_plan.devices}, drawn with probability {rate:g}: too often that is fewer than the {least} "
            f"a round needs; plan it for at least {enough} devices, or raise sampling_rate."
        )


def unable(planned: Plan, policy: FleetPolicy, ledger: FleetLedger) -> frozenset[DeviceId]:
    """Return the devices that cannot pay for all of a run's participations after others: they are not invited."""
    rooms = ledger.rooms(
        Cost.of(planned),
        most=planned.participations,
        budget_epsilon=policy.budget_epsilon,
        budget_delta=policy.budget_delta,
    )
    return frozenset(device for device, left in rooms.items() if left < planned.participations)


def _check_budget(run_plan: RunPlan, policy: FleetPolicy, cost: Cost) -> None:
    """Refuse a run that even a device which was never charged could not pay for."""
    budget, delta, wanted = policy.budget_epsilon, policy.budget_delta, run_plan.most_participations
    nothing = np.zeros(SKELLAM_ORDERS.shape)
    fit = room(nothing, cost, wanted, budget, delta)
    if fit == wanted:
        return
    total = rdp_to_epsilon(wanted * cost.curve(), delta, SKELLAM_ORDERS)
    needed = math.sqrt(variance_for(budget, cost.bound_sq, cost.coordinates, delta, wanted) / cost.bound_sq)
    raise BudgetError(
        f"{_many(wanted, run_plan)} would cost a device epsilon {total:.4g} at delta {delta:g}, and its budget is "
        f"{budget:.4g}: plan {_fitting(fit, run_plan)}, or a noise_multiplier of {1.001 * needed:.4g} or more."
    )


def _check_ledger(run_plan: RunPlan, policy: FleetPolicy, cost: Cost, ledger: FleetLedger) -> None:
    """Refuse a run that too few devices can pay for, after all that they were charged."""
    wanted, least = run_plan.most_participations, policy.min_cohort
    rooms = ledger.rooms(
        cost, most=wanted, budget_epsilon=policy.budget_epsilon, budget_delta=policy.budget_delta
    )
    able = sum(left == wanted for left in rooms.values())
    # A fleet still too small for a round is not a matter of budgets: devices may be about to enroll.
    if able >= min(least, len(rooms)):
        return
    fit = sorted(rooms.values(), reverse=True)[min(least, len(rooms)) - 1]
    raise BudgetError(
        f"After earlier runs {able} of {len(rooms)} devices can pay for {_many(wanted, run_plan)}, and a round needs "
        f"{least}: plan {_fitting(fit, run_plan)}, a larger noise_multiplier, or enroll more devices."
    )


def _many(count: int, run_plan: RunPlan) -> str:
    what = "participation" if run_plan.privacy.participations else "round"
    return f"{count} {what}{'' if count == 1 else 's'}"


def _fitting(count: int, run_plan: RunPlan) -> str:
    return f"at most {_many(count, run_plan)}" if count else "no round of this kind, as not even one fits"


def charges(attempts: Iterable[Iterable[Participation]]) -> Counter[DeviceId]:
    """Return how often each device's ledger was charged in some attempts at rounds."""
    return Counter(part.device for parts in attempts for part in parts if part.outcome != "dropped")


def held(attempts: Iterable[Iterable[Participation]]) -> int:
    """Return how many attempts asked anyone for an update.

    Which of them gave a model was decided by looking at their sums, so a model gives away something of all.
    """
    return sum(any(part.outcome != "dropped" for part in parts) for parts in attempts)


def spent(planned: Plan, participations: int) -> float:
    """Return epsilon_server of a device that was charged so often in a run."""
    encoding = planned.encoding
    return epsilon(
        encoding.bound_sq,
        encoding.coordinates,
        float(encoding.noise * planned.honest),
        planned.delta,
        participations,
    )


def released(planned: Plan, participations: int, rounds: int) -> float:
    """Return epsilon_release after some rounds, for a device that was charged so often.

    It assumes that devices were drawn honestly, independently and in secret.

    Args:
        planned: The run.
        participations: How often the device was charged.
        rounds: How many attempts were held, those included that gave no model; see ``held``.
    """
    encoding = planned.encoding
    drawn = epsilon(
        encoding.bound_sq,
        encoding.coordinates,
        float(encoding.noise * planned.honest),
        planned.delta,
        rounds,
        planned.sampling_rate,
    )
    return min(drawn, spent(planned, participations))

"""What a run costs its devices: planned before it starts, and counted as its rounds go by.

This is the fleet's side. Each device keeps a ledger of its own, and that one decides.

Source: docs/spec/privacy.md, "Planning" and "Ledger".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from umbel_proto.credentials import FleetPolicy
from umbel_proto.errors import BudgetError, RefusedError
from umbel_proto.ids import DeviceId
from umbel_proto.privacy.accounting import epsilon
from umbel_proto.privacy.plan import Plan, plan
from umbel_server.learning.plan import RunPlan
from umbel_server.store.runs import Participation


def plan_privacy(run_plan: RunPlan, policy: FleetPolicy, dim: int, quantities: int = 0) -> Plan:
    """Return noise and layout for a run's rounds.

    Args:
        run_plan: The run.
        policy: What the fleet's devices insist on.
        dim: Parameters of the model.
        quantities: How many are summed beside the update.

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
        devices=run_plan.most_devices,
        honest=policy.honest(policy.min_cohort),
        participations=run_plan.most_participations,
        delta=privacy.delta,
        noise_multiplier=privacy.noise_multiplier,
        sampling_rate=privacy.sampling_rate,
        auxiliary=quantities,
        auxiliary_share=run_plan.metrics.share,
    )
    if planned.epsilon_server > policy.budget_epsilon:
        raise BudgetError(
            f"{run_plan.rounds} rounds would cost a device epsilon {planned.epsilon_server:.4g}, and its budget is "
            f"{policy.budget_epsilon:.4g}: plan fewer rounds or more noise."
        )
    return planned


def charges(attempts: Iterable[Iterable[Participation]]) -> Counter[DeviceId]:
    """Return how often each device's ledger was charged in some attempts at rounds."""
    return Counter(part.device for parts in attempts for part in parts if part.outcome != "dropped")


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

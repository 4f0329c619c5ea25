"""Begin an experiment: check that it can find something out before any device hears of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import DeviceId
from umbel_server.access.actor import Actor
from umbel_server.experiments.plan import ExperimentPlan
from umbel_server.rollouts.assignment import place, reaches, stays
from umbel_server.rollouts.begin import Proposal, propose
from umbel_server.rollouts.state import Start
from umbel_server.store.rollouts import Rollout, salt_of

if TYPE_CHECKING:
    from umbel_server.store.experiments import Experiment
    from umbel_server.store.store import Store


@dataclass(frozen=True, slots=True)
class Drawn:
    """Whom an experiment would draw.

    Args:
        treatment: The devices that would be offered the candidate.
        control: Those that would be kept as they are.
        pinned: Devices that stay at a version, whoever is drawn.
        others: The rest of the fleet, which is in no arm.
    """

    treatment: tuple[DeviceId, ...]
    control: tuple[DeviceId, ...]
    pinned: int
    others: int


def design(
    store: Store,
    model: str,
    version: int,
    plan: ExperimentPlan,
    *,
    name: str | None = None,
    kept_days: int | None = None,
) -> Proposal:
    """Return an experiment's rollout, checked.

    Args:
        store: The store.
        model: The model.
        version: The candidate, released.
        plan: The experiment's plan.
        name: Its name; None: of model and version.
        kept_days: For how many days the fleet keeps what each device reports; None: for longer than it takes.

    Raises:
        UsageError: It cannot work: a version is not released, or what is needed would not be kept.
        RefusedError: The candidate is what devices are offered already, or the metric is told only with noise.
    """
    following = replace(plan.to_rollout(), steps=plan.following)
    proposal = propose(store, model, version, following, name=name or f"{model[:36]}-{version}-ab")
    if kept_days is not None and plan.days > kept_days:
        raise UsageError(
            f"The experiment lasts {plan.days:g} days, and what devices report is kept for {kept_days}: shorten it, "
            "or change  hours_days  of the fleet's settings."
        )
    amount = plan.measured.amount
    if plan.measured.of_model and amount:
        for each in (proposal.from_version, version):
            if store.experiments.randomized(proposal.model, each, amount):
                raise RefusedError(
                    f"Devices report {amount} of {model} {each} only with noise against the fleet: the value of one "
                    "device is mostly noise. Choose a metric that is not randomized."
                )
    return replace(proposal, plan=plan.to_rollout())


def draw(store: Store, proposal: Proposal) -> Drawn:
    """Return the very devices that an experiment would draw, once they ask."""
    step, salt = proposal.plan.steps[0], salt_of(proposal.name)
    tags, pinned = store.placements.tags(), store.placements.pinned(proposal.model)
    treatment, control, others = [], [], 0
    eligible = store.placements.eligible()
    for device in eligible:
        if device in pinned:
            continue
        where, mine = place(salt, device), tags.get(device, frozenset())
        if reaches((step,), where, mine):
            treatment.append(device)
        elif stays(step, where, mine):
            control.append(device)
        else:
            others += 1
    return Drawn(tuple(treatment), tuple(control), len(pinned), others)


def require_enough(store: Store, proposal: Proposal, plan: ExperimentPlan) -> None:
    """Check that either arm has the devices that it needs.

    Raises:
        UsageError: One has not.
    """
    drawn = draw(store, proposal)
    for arm, devices in (("treatment", drawn.treatment), ("control", drawn.control)):
        if len(devices) < plan.least_devices:
            raise UsageError(
                f"The {arm} draws {len(devices)} devices, and nothing is told of fewer than {plan.least_devices}: "
                f"raise  {arm},  widen the audience, or lower  least_devices."
            )


def begin(
    store: Store, proposal: Proposal, plan: ExperimentPlan, *, actor: Actor, reason: str = ""
) -> tuple[Experiment, Rollout]:
    """Make an experiment and start it.

    Raises:
        UsageError: An arm draws too few devices ever to tell something.
        RefusedError: There is a rollout or experiment of that name, or another one of the model is under way.
    """
    require_enough(store, proposal, plan)
    under_way = next(
        (each for each in store.rollouts.all() if each.live and each.model == proposal.model), None
    )
    if under_way is not None:
        raise RefusedError(
            f"{under_way.id} of {proposal.model} is under way: a model has one rollout or experiment at a time. Stop "
            "it first, or wait for its end."
        )
    versions = proposal.from_version, proposal.to_version
    made = store.rollouts.create(proposal.name, proposal.model, versions, proposal.plan, actor=actor)
    experiment = store.experiments.add(made.id, plan, actor=actor, reason=reason)
    return experiment, store.rollouts.happen(made.id, Start(), actor=actor, reason=reason)

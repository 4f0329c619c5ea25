"""Begin a rollout: check that it can work before any device hears of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import DeviceId, ModelName, check_name
from umbel_server.access.actor import Actor
from umbel_server.rollouts.evidence import touched
from umbel_server.rollouts.gates import check_metrics
from umbel_server.rollouts.plan import RolloutPlan
from umbel_server.rollouts.state import Start
from umbel_server.store.rollouts import Rollout, salt_of

if TYPE_CHECKING:
    from umbel_server.store.store import Store


@dataclass(frozen=True, slots=True)
class Proposal:
    """A rollout that could be begun.

    Args:
        name: Its name.
        model: The model.
        from_version: The version that its devices come from.
        to_version: The candidate.
        plan: What it shall do.
    """

    name: str
    model: ModelName
    from_version: int
    to_version: int
    plan: RolloutPlan


def propose(
    store: Store,
    model: str,
    version: int,
    plan: RolloutPlan,
    *,
    name: str | None = None,
    since: int | None = None,
) -> Proposal:
    """Return a rollout of a released version, checked.

    Args:
        store: The store.
        model: The model.
        version: The candidate.
        plan: What it shall do.
        name: Its name; None: of model and version, and a number where there was one before.
        since: The version that devices come from; None: what they are offered now.

    Raises:
        UsageError: A version is not released, or the plan cannot work.
        RefusedError: The candidate is what devices are offered already.
    """
    check_metrics(plan)
    if any(step.control is not None for step in plan.steps):
        raise UsageError("A step with  control  is an experiment: begin it with  umbel experiment start.")
    of_model = ModelName(check_name(model, "model"))
    versions = sorted(release.version for release in store.releases.all() if release.model == of_model)
    if version not in versions:
        raise UsageError(
            f"Version {version} of {model} is not released: sign and release it with  umbel fleet publish  after "
            f"umbel rollout hold {model},  so that it does not reach every device at once."
        )
    if since is None:
        since = store.rollouts.baselines().get(of_model)
    if since is None:
        since = max((each for each in versions if each < version), default=None)
    if since is None or since not in versions:
        raise UsageError(f"There is no released version of {model} for its devices to come from.")
    if since >= version:
        raise RefusedError(
            f"Devices are offered version {since} of {model} already: a rollout brings a newer one. To go back, roll "
            "back the rollout that brought it, or pin devices."
        )
    return Proposal(name or _name(store, of_model, version), of_model, since, version, plan)


def begin(store: Store, proposal: Proposal, *, actor: Actor, reason: str = "") -> Rollout:
    """Make a rollout and start it.

    Raises:
        UsageError: A step reaches too few devices for the gates ever to say something.
        RefusedError: There is one of that name, or another one of the model is under way.
    """
    require_enough(store, proposal)
    plan, versions = proposal.plan, (proposal.from_version, proposal.to_version)
    made = store.rollouts.create(proposal.name, proposal.model, versions, plan, actor=actor)
    return store.rollouts.happen(made.id, Start(), actor=actor, reason=reason)


def require_enough(store: Store, proposal: Proposal) -> None:
    """Check that every step whose gates decide reaches enough devices, and leaves enough.

    By their expected number: which ones it reaches is drawn when it starts.

    Raises:
        UsageError: One does not.
    """
    plan = proposal.plan
    if not plan.gates:
        return
    devices = len(store.placements.eligible()) - len(store.placements.pinned(proposal.model))
    for step in plan.steps[:-1]:
        reached = round(devices * step.percent / 100)
        # Who has a tag, or what devices say they are, may change; and who has an end does not wait.
        if step.chosen or step.longest_s is not None:
            continue
        if step.shadow and reached < plan.least_devices:
            raise UsageError(
                f"Step {step.name} reaches {reached} of {devices} devices, and its gates need {plan.least_devices}: "
                "change the step's percent, or give it  longest_hours,  after which it pauses."
            )
        if not step.shadow and min(reached, devices - reached) < plan.least_devices:
            raise UsageError(
                f"Step {step.name} reaches {reached} of {devices} devices, and its gates need {plan.least_devices} with "
                "the candidate and as many without it: change the step's percent, or give it  longest_hours,  after "
                "which it goes on if nothing was bad."
            )


def preview(store: Store, proposal: Proposal) -> dict[str, list[DeviceId]]:
    """Return the devices that each step would reach first, by its name."""
    return touched(store.placements, proposal.plan, salt_of(proposal.name), proposal.model)


def _name(store: Store, model: ModelName, version: int) -> str:
    taken = {rollout.id for rollout in store.rollouts.all()}
    name = f"{model[:40]}-{version}"
    number = 2
    while name in taken:
        name = f"{model[:40]}-{version}-{number}"
        number += 1
    return name

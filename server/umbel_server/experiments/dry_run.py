"""What an experiment would do, without doing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from umbel_proto.errors import UsageError
from umbel_server.experiments.begin import draw, require_enough
from umbel_server.experiments.sequence import tuned_information

if TYPE_CHECKING:
    from umbel_server.experiments.plan import ExperimentPlan
    from umbel_server.rollouts.begin import Proposal
    from umbel_server.store.store import Store


def dry_run(
    store: Store, proposal: Proposal, plan: ExperimentPlan, *, shown: int | None = None
) -> dict[str, Any]:
    """Return whom an experiment would draw, how much it needs, and why it would not start, as JSON values.

    Args:
        store: The store.
        proposal: The experiment's rollout, checked.
        plan: Its plan.
        shown: So many devices of each arm are named; None: all.
    """
    drawn = draw(store, proposal)
    try:
        require_enough(store, proposal, plan)
        doubt = None
    except UsageError as exc:
        doubt = str(exc)
    arms = plan.treatment_share * (1 - plan.treatment_share)
    return {
        "experiment": proposal.name,
        "model": proposal.model,
        "from_version": proposal.from_version,
        "to_version": proposal.to_version,
        "plan": plan.to_dict(),
        "treatment": {"count": len(drawn.treatment), "devices": list(drawn.treatment[:shown])},
        "control": {"count": len(drawn.control), "devices": list(drawn.control[:shown])},
        "pinned": drawn.pinned,
        "others": drawn.others,
        # Of values with standard deviation 1: devices of both arms until the interval is as narrow as the effect.
        "devices_at_one_deviation": tuned_information(error=plan.error, effect=1.0) / arms,
        "doubt": doubt,
    }

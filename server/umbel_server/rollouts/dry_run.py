"""What a rollout would do, without doing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from umbel_proto.errors import UsageError
from umbel_server.rollouts.begin import Proposal, preview, require_enough

if TYPE_CHECKING:
    from umbel_server.store.store import Store


def dry_run(store: Store, proposal: Proposal) -> dict[str, Any]:
    """Return whom a rollout would reach and why it would not start, as JSON values."""
    try:
        require_enough(store, proposal)
        doubt = None
    except UsageError as exc:
        doubt = str(exc)
    reached = preview(store, proposal)
    return {
        "rollout": proposal.name,
        "model": proposal.model,
        "from_version": proposal.from_version,
        "to_version": proposal.to_version,
        "plan": proposal.plan.to_dict(),
        "steps": [
            {"name": step, "count": len(devices), "devices": devices} for step, devices in reached.items()
        ],
        "pinned": sorted(store.placements.pinned(proposal.model)),
        "doubt": doubt,
    }

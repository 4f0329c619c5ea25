"""What became of the devices that a rollout offered its candidate, as the database tells."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from sqlalchemy import ColumnElement, and_, case, literal, select

from umbel_server.rollouts.state import RolledBack
from umbel_server.store.batches import SEEN_EVERY_S
from umbel_server.store.rollouts import Rollout
from umbel_server.store.tables import devices
from umbel_server.store.tables_rollouts import device_models, rollout_devices

Became: TypeAlias = Literal["running", "failed", "back", "other", "waiting"]
"""The candidate answers there, it failed there, the version before answers again, something else answers, or the device
was not heard of since."""
BECAME: tuple[Became, ...] = get_args(Became)


def became(rollout: Rollout) -> ColumnElement[str]:
    """Return what tells it in a query of `rollout_devices`, joined with the model's `device_models`.

    A device goes back when it next asks: of a rollout that was rolled back, one that was not heard of since then is
    waiting. Of any other, one that was not heard of since it was offered the candidate.
    """
    since_s: ColumnElement[float] = rollout_devices.c.admitted_s
    if isinstance(rollout.state, RolledBack):  # No device was offered the candidate after that.
        since_s = literal(rollout.state.since_s)
    version, changed_s = device_models.c.version, device_models.c.since_s
    heard_s = select(devices.c.last_seen_s).where(devices.c.id == rollout_devices.c.device_id)
    return case(
        (rollout_devices.c.failed == 1, "failed"),
        (version == rollout.to_version, "running"),
        # What answered there when it was offered the candidate has been so for longer.
        (and_(version == rollout.from_version, changed_s > rollout_devices.c.admitted_s), "back"),
        (heard_s.scalar_subquery() > since_s + SEEN_EVERY_S, "other"),
        else_="waiting",
    )

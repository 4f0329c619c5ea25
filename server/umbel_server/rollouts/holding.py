"""Hold a model's new versions back, and pin devices: by name, checked against what is released."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umbel_proto.errors import UsageError
from umbel_proto.ids import DeviceId, ModelName, check_name
from umbel_server.access.actor import Actor

if TYPE_CHECKING:
    from umbel_server.store.store import Store


def hold(store: Store, model: str, *, actor: Actor, reason: str = "") -> int:
    """Let new versions of a model come by rollouts only; return the one that devices get until then.

    Raises:
        UsageError: No version of it is released.
        RefusedError: A rollout of it is under way.
    """
    of_model = ModelName(check_name(model, "model"))
    versions = [each.version for each in store.releases.all() if each.model == of_model]
    if not versions:
        raise UsageError(
            f"No version of {model} is released: release the first one before you hold the next."
        )
    version = store.rollouts.baselines().get(of_model, max(versions))
    store.rollouts.hold(of_model, version, actor=actor, reason=reason)
    return version


def pin(
    store: Store, device: str, model: str, version: int | None, *, actor: Actor, reason: str = ""
) -> None:
    """Let a device stay at a released version; None: let it have what the others get.

    Raises:
        UsageError: The version is not released, or there is no such device.
    """
    of_model = ModelName(check_name(model, "model"))
    released = {(each.model, each.version) for each in store.releases.all()}
    if version is not None and (of_model, version) not in released:
        raise UsageError(f"Version {version} of {model} is not released.")
    store.placements.pin(DeviceId(device), of_model, version, actor=actor, reason=reason)

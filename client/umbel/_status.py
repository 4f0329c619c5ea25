"""What a device says of itself at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from umbel_proto.ids import DeviceId, FleetId

if TYPE_CHECKING:
    from umbel._releases.shadows import ShadowRelease
    from umbel._rounds.conditions import Verdict


@dataclass(frozen=True, slots=True)
class Release:
    """A model that is installed.

    Args:
        model: Its name.
        version: Its version.
        variant: The variant that is fastest on this device.
    """

    model: str
    version: int
    variant: str


@dataclass(frozen=True, slots=True)
class FailedRelease:
    """A release that this device does not use, because it failed here. It is not tried again.

    Args:
        model: Its name.
        version: Its version.
        why: What happened, the end of a sentence that begins with the version.
        at_s: When, Unix seconds.
    """

    model: str
    version: int
    why: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Status:
    """A device at one moment. Times are Unix seconds.

    Args:
        fleet: Its fleet.
        device: Its name.
        gateway: The address it reports to.
        certificate_ends_s: When its certificate expires.
        last_contact_s: When the gateway last answered; None if it never did.
        refused_s: Since when the gateway refuses it, as after it was revoked; None: it does not, as far as is known.
        agent_runs: Whether ``umbel run`` serves this home.
        models: The active release of every model.
        releases_until_s: Until when what the fleet signed of its releases holds, as far as the device knows; after it
            nothing new is installed. None before the first check for releases.
        failed: Releases that failed on this device; ``umbel model retry`` lets them be tried again.
        shadows: Releases that a rollout tries here beside those that answer.
        spooled_batches: Reports that wait to be sent.
        spooled_bytes: Their size.
        dropped_batches: Reports that were given up, most for want of room.
        rounds: Sessions the device was charged for.
        epsilon: Privacy spent, at ``budget_delta``.
        budget_epsilon: What it may spend over its life.
        budget_delta: The delta that goes with it.
        training: Whether it trains when a round asks, and who forbids it if not.
    """

    fleet: FleetId
    device: DeviceId
    gateway: str
    certificate_ends_s: float
    last_contact_s: float | None
    refused_s: float | None
    agent_runs: bool
    models: tuple[Release, ...]
    releases_until_s: float | None
    failed: tuple[FailedRelease, ...]
    shadows: tuple[ShadowRelease, ...]
    spooled_batches: int
    spooled_bytes: int
    dropped_batches: int
    rounds: int
    epsilon: float
    budget_epsilon: float
    budget_delta: float
    training: Verdict

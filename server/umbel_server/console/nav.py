"""The screens by name: what the menu lists, and where each is."""

from __future__ import annotations

from dataclasses import dataclass

from umbel_server.access.permissions import Permission


@dataclass(frozen=True, slots=True)
class Screen:
    """A screen of the menu.

    Args:
        path: Where it is.
        title: What it is called.
        group: The part of the menu that lists it.
        permission: What it takes to see it.
    """

    path: str
    title: str
    group: str
    permission: Permission


SCREENS: tuple[Screen, ...] = (
    Screen("/", "Overview", "Fleet", Permission.DEVICES_READ),
    Screen("/devices", "Devices", "Fleet", Permission.DEVICES_READ),
    Screen("/enrollment", "Enrollment", "Fleet", Permission.ENROLLMENT_READ),
    Screen("/groups", "Groups", "Fleet", Permission.DEVICES_READ),
    Screen("/models", "Models", "Models", Permission.REGISTRY_READ),
    Screen("/approvals", "Approvals", "Models", Permission.REGISTRY_READ),
    Screen("/reviews", "Reviews", "Models", Permission.REVIEWS_READ),
    Screen("/runs", "Federated runs", "Models", Permission.RUNS_READ),
    Screen("/rollouts", "Rollouts", "Models", Permission.ROLLOUTS_READ),
    Screen("/experiments", "Experiments", "Models", Permission.ROLLOUTS_READ),
    Screen("/drift", "Drift", "Watch", Permission.TELEMETRY_READ),
    Screen("/performance", "Performance", "Watch", Permission.TELEMETRY_READ),
    Screen("/fairness", "Fairness", "Watch", Permission.TELEMETRY_READ),
    Screen("/explanations", "Explanations", "Watch", Permission.TELEMETRY_READ),
    Screen("/energy", "Energy and cost", "Watch", Permission.TELEMETRY_READ),
    Screen("/queries", "Private queries", "Watch", Permission.PRIVACY_READ),
    Screen("/alerts", "Alerts", "Watch", Permission.ALERTS_READ),
    Screen("/audit", "Audit", "System", Permission.AUDIT_READ),
    Screen("/settings", "Settings", "System", Permission.POLICY_READ),
    Screen("/health", "System health", "System", Permission.HEALTH_READ),
)
"""In the menu's order; one whose path no router has yet is not listed."""


def screen_at(path: str) -> Screen | None:
    """Return the screen that a path belongs to: its own, or the one above it."""
    fitting = [each for each in SCREENS if each.path == path or path.startswith(f"{each.path.rstrip('/')}/")]
    return max(fitting, key=lambda each: len(each.path), default=None)

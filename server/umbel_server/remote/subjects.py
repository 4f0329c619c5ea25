"""The subjects that commands work on, each in the fleet's directory or at its service."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from umbel_server.remote.place import at

if TYPE_CHECKING:
    from umbel_server.access.at_hand import AccessAtHand, AuditAtHand
    from umbel_server.experiments.at_hand import ExperimentsAtHand
    from umbel_server.fleet.at_hand import FleetAtHand
    from umbel_server.learning.at_hand import RunsAtHand
    from umbel_server.learning.schedules_at_hand import SchedulesAtHand
    from umbel_server.monitor.alerts.at_hand import AlertsAtHand
    from umbel_server.monitor.at_hand import MonitorAtHand
    from umbel_server.queries.at_hand import QueriesAtHand
    from umbel_server.registry.at_hand import RegistryAtHand
    from umbel_server.remote.access import AccessFar, AuditFar
    from umbel_server.remote.alerts import AlertsFar
    from umbel_server.remote.experiments import ExperimentsFar
    from umbel_server.remote.fleet import FleetFar
    from umbel_server.remote.monitor import MonitorFar
    from umbel_server.remote.queries import QueriesFar
    from umbel_server.remote.registry import RegistryFar
    from umbel_server.remote.reviews import ReviewsFar
    from umbel_server.remote.rollouts import RolloutsFar
    from umbel_server.remote.runs import RunsFar
    from umbel_server.remote.schedules import SchedulesFar
    from umbel_server.reviews.at_hand import ReviewsAtHand
    from umbel_server.rollouts.at_hand import RolloutsAtHand


def fleet_at(
    directory: Path | None, server: str | None, *, token_file: Path | None = None
) -> AbstractContextManager[FleetAtHand | FleetFar]:
    """Reach devices, policy, spending and releases for the length of a block."""
    from umbel_server.fleet.at_hand import FleetAtHand
    from umbel_server.remote.fleet import FleetFar

    return at(directory, server, FleetAtHand, FleetFar, token_file=token_file)


def registry_at(
    directory: Path | None, server: str | None, *, token_file: Path | None = None
) -> AbstractContextManager[RegistryAtHand | RegistryFar]:
    """Reach the registry for the length of a block."""
    from umbel_server.registry.at_hand import RegistryAtHand
    from umbel_server.remote.registry import RegistryFar

    return at(directory, server, RegistryAtHand, RegistryFar, token_file=token_file)


def rollouts_at(
    directory: Path | None, server: str | None
) -> AbstractContextManager[RolloutsAtHand | RolloutsFar]:
    """Reach rollouts for the length of a block."""
    from umbel_server.remote.rollouts import RolloutsFar
    from umbel_server.rollouts.at_hand import RolloutsAtHand

    return at(directory, server, RolloutsAtHand, RolloutsFar)


def experiments_at(
    directory: Path | None, server: str | None
) -> AbstractContextManager[ExperimentsAtHand | ExperimentsFar]:
    """Reach experiments for the length of a block."""
    from umbel_server.experiments.at_hand import ExperimentsAtHand
    from umbel_server.remote.experiments import ExperimentsFar

    return at(directory, server, ExperimentsAtHand, ExperimentsFar)


def access_at(directory: Path | None, server: str | None) -> AbstractContextManager[AccessAtHand | AccessFar]:
    """Reach accounts and tokens for the length of a block."""
    from umbel_server.access.at_hand import AccessAtHand
    from umbel_server.remote.access import AccessFar

    return at(directory, server, AccessAtHand, AccessFar)


def audit_at(directory: Path | None, server: str | None) -> AbstractContextManager[AuditAtHand | AuditFar]:
    """Reach the audit log for the length of a block."""
    from umbel_server.access.at_hand import AuditAtHand
    from umbel_server.remote.access import AuditFar

    return at(directory, server, AuditAtHand, AuditFar)


def runs_at(directory: Path | None, server: str | None) -> AbstractContextManager[RunsAtHand | RunsFar]:
    """Reach runs for the length of a block."""
    from umbel_server.learning.at_hand import RunsAtHand
    from umbel_server.remote.runs import RunsFar

    return at(directory, server, RunsAtHand, RunsFar)


def schedules_at(
    directory: Path | None, server: str | None
) -> AbstractContextManager[SchedulesAtHand | SchedulesFar]:
    """Reach schedules for the length of a block."""
    from umbel_server.learning.schedules_at_hand import SchedulesAtHand
    from umbel_server.remote.schedules import SchedulesFar

    return at(directory, server, SchedulesAtHand, SchedulesFar)


def alerts_at(directory: Path | None, server: str | None) -> AbstractContextManager[AlertsAtHand | AlertsFar]:
    """Reach alerts for the length of a block."""
    from umbel_server.monitor.alerts.at_hand import AlertsAtHand
    from umbel_server.remote.alerts import AlertsFar

    return at(directory, server, AlertsAtHand, AlertsFar)


def queries_at(
    directory: Path | None, server: str | None
) -> AbstractContextManager[QueriesAtHand | QueriesFar]:
    """Reach queries for the length of a block."""
    from umbel_server.queries.at_hand import QueriesAtHand
    from umbel_server.remote.queries import QueriesFar

    return at(directory, server, QueriesAtHand, QueriesFar)


def reviews_at(
    directory: Path | None, server: str | None
) -> AbstractContextManager[ReviewsAtHand | ReviewsFar]:
    """Reach what devices announced for review, for the length of a block."""
    from umbel_server.remote.reviews import ReviewsFar
    from umbel_server.reviews.at_hand import ReviewsAtHand

    return at(directory, server, ReviewsAtHand, ReviewsFar)


def monitor_at(
    directory: Path | None, server: str | None
) -> AbstractContextManager[MonitorAtHand | MonitorFar]:
    """Reach what devices reported, and how models are doing by it, for the length of a block."""
    from umbel_server.monitor.at_hand import MonitorAtHand
    from umbel_server.remote.monitor import MonitorFar

    return at(directory, server, MonitorAtHand, MonitorFar)

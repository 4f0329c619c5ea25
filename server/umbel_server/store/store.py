"""Open a store and reach its subjects."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from sqlalchemy import URL

from umbel_server.clock import Clock, system_clock
from umbel_server.store.accounts import Accounts
from umbel_server.store.alerts import Alerts
from umbel_server.store.api_tokens import ApiTokens
from umbel_server.store.applications import Applications
from umbel_server.store.attempts import Attempts
from umbel_server.store.audit import Audit
from umbel_server.store.batches import Batches
from umbel_server.store.cohorts import Cohorts
from umbel_server.store.database import Database
from umbel_server.store.deliveries import Delivered
from umbel_server.store.device_days import DeviceDays
from umbel_server.store.device_list import DeviceList
from umbel_server.store.devices import Devices
from umbel_server.store.experiments import Experiments
from umbel_server.store.groups import Groups
from umbel_server.store.inventory import Inventory
from umbel_server.store.notices import Notices
from umbel_server.store.participants import Participants
from umbel_server.store.pauses import Pauses
from umbel_server.store.placed import PlacedDevices
from umbel_server.store.placements import Placements
from umbel_server.store.progress import Progress
from umbel_server.store.proposed_runs import ProposedRuns
from umbel_server.store.quarantine import Quarantine
from umbel_server.store.queries import Queries
from umbel_server.store.releases import Releases
from umbel_server.store.replies import Replies
from umbel_server.store.reports import DeviceReports
from umbel_server.store.retention import Retention
from umbel_server.store.reviews import Reviews
from umbel_server.store.rollouts import Rollouts
from umbel_server.store.rollups import Rollups
from umbel_server.store.runs import Runs
from umbel_server.store.schedules import Schedules
from umbel_server.store.schema import prepare
from umbel_server.store.sessions import Sessions
from umbel_server.store.tokens import Tokens
from umbel_server.store.waivers import Waivers


class Store:
    """Everything the services know. Any number of threads and processes may use it at once."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.database = database
        self.clock = clock
        self.audit = Audit(database, clock)
        self.accounts = Accounts(database, clock, self.audit)
        self.api_tokens = ApiTokens(database, clock, self.audit)
        self.sessions = Sessions(database, clock)
        self.replies = Replies(database, clock)
        self.tokens = Tokens(database, clock)
        self.devices = Devices(database, clock)
        self.device_list = DeviceList(database, clock)
        self.applications = Applications(database, clock)
        self.quarantine = Quarantine(database)
        self.batches = Batches(database, clock)
        self.rollups = Rollups(database, clock)
        self.delivered = Delivered(database)
        self.device_days = DeviceDays(database, clock)
        self.cohorts = Cohorts(database, clock)
        self.reports = DeviceReports(database)
        self.retention = Retention(database, clock)
        self.inventory = Inventory(database, clock)
        self.releases = Releases(database, clock)
        self.rollouts = Rollouts(database, self.audit, clock)
        self.experiments = Experiments(database, self.audit, self.rollouts, clock)
        self.placed = PlacedDevices(database)
        self.placements = Placements(database, self.audit, clock)
        self.progress = Progress(database)
        self.waivers = Waivers(database, self.audit, clock)
        self.groups = Groups(database, self.audit, clock)
        self.runs = Runs(database, clock)
        self.pauses = Pauses(database, self.audit, clock)
        self.queries = Queries(database, self.audit, clock)
        self.attempts = Attempts(database)
        self.participants = Participants(database)
        self.schedules = Schedules(database, self.audit, clock)
        self.alerts = Alerts(database, self.audit, clock)
        self.notices = Notices(database, clock)
        self.proposed_runs = ProposedRuns(database, self.audit, clock)
        self.reviews = Reviews(database, self.audit, clock)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self.database.close()


def open_store(where: Path | URL, *, clock: Clock = system_clock) -> Store:
    """Open a store, made if missing, with its tables brought up to date.

    Args:
        where: The SQLite file, or the URL of a PostgreSQL database.
        clock: Dates what is stored.

    Raises:
        StorageError: It is damaged, cannot be written, or was made by a newer umbel.
        UnavailableError: It does not answer.
    """
    database = Database(where)
    try:
        prepare(database)
    except BaseException:
        database.close()
        raise
    return Store(database, clock)

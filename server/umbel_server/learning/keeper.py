"""The runs' keeper: registers new nodes with Flower, begins scheduled runs, drives on those whose server was lost.

It holds no state of its own that matters: killed at any moment and started again, it goes on.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

from umbel_proto.errors import RefusedError, UmbelError, UnavailableError, UsageError
from umbel_proto.ids import RunId
from umbel_server.access.actor import Actor, Role
from umbel_server.clock import Clock, system_clock
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning import begin, pack
from umbel_server.learning.lock import driving, require_free
from umbel_server.learning.plan import RunPlan
from umbel_server.learning.run import LOST
from umbel_server.learning.schedule import caught_up
from umbel_server.seldom import Seldom
from umbel_server.store.registry import versions
from umbel_server.store.runs import LIVE, RunRecord
from umbel_server.store.schedules import Schedule
from umbel_server.store.store import Store

if TYPE_CHECKING:
    from umbel_server.control import Control

log = logging.getLogger(__name__)

SERVICE = Actor("service:runs", frozenset({Role.CI}))
START_S = 30.0
"""How long a run's server process may take until it drives it; after that it is started again."""
END_S = 3.0
"""How long after its server process was last seen a run that says it is running has lost it."""
LABELS_S = 60.0
"""How often labels are counted for a schedule that waits for them."""


class Keeper:
    """Keeps a fleet's runs going.

    Args:
        fleet: The fleet.
        store: Its store.
        control: Its SuperLink.
        clock: Tells the time.
    """

    def __init__(
        self, fleet: FleetDir, store: Store, control: Control, *, clock: Clock = system_clock
    ) -> None:
        self._fleet, self._store, self._control, self._clock = fleet, store, control, clock
        self._lost_s: dict[RunId, float] = {}
        self._packed: set[RunId] = set()
        self._counted: dict[str, float] = {}
        self._seldom = Seldom(clock)

    def run(self, came: Callable[[float], bool], *, poll_s: float) -> None:
        """Work until told to stop.

        Args:
            came: Waits so many seconds; says whether a signal has come.
            poll_s: How often to look, seconds.
        """
        while not came(poll_s):
            self.turn()

    def turn(self) -> None:
        """Do what there is to do now. What fails is tried again the next time, and logged now and then while it does."""
        for step in (self._register, self._begin_due, self._drive_on, self._give_up, self._pack):
            try:
                step()
            except UmbelError as exc:
                if self._seldom.lets(str(exc)):
                    # The SuperLink or the store starts again: both are waited for.
                    level = logging.INFO if isinstance(exc, UnavailableError) else logging.WARNING
                    log.log(level, "%s It is tried again.", exc)

    def _register(self) -> None:
        begin.register(self._store, self._control)

    def _begin_due(self) -> None:
        now_s = self._clock()
        for schedule in self._store.schedules.due(now_s):
            if not self._enough_labels(schedule, now_s):
                continue
            next_s = caught_up(schedule.next_s, now_s, schedule.every_s, schedule.at_s)
            self._begin(schedule, now_s, next_s)

    def _begin(self, schedule: Schedule, now_s: float, next_s: float) -> None:
        last = None if schedule.last_run is None else self._store.runs.get(schedule.last_run)
        if last is not None and last.state in LIVE:
            says = "still runs" if last.state == "running" else "is paused"
            self._say(schedule, next_s, f"not begun: {last.id} {says}")
            return
        try:
            checked = begin.check(self._fleet, self._store, begin.pin(dict(schedule.plan), self._store))
        except UnavailableError:
            raise  # The next turn tries again.
        except UmbelError as exc:
            self._say(schedule, next_s, f"not begun: {exc}")
            return
        run = begin.free_name(self._store, schedule.name)
        # The schedule first: who is killed after it has missed a run, and nobody begins one twice.
        if not self._store.schedules.turn(
            schedule, next_s=next_s, said=f"begun: {run}", run=run, since_s=now_s
        ):
            return
        begin.record(self._fleet, self._store, run, checked)
        self._lost_s[run] = now_s + START_S
        self._control.start(self._fleet, run)  # If nobody answers now, it is driven on later.
        log.info("run %s is begun, as schedule %s says", run, schedule.name)

    def _say(self, schedule: Schedule, next_s: float, what: str) -> None:
        if self._store.schedules.turn(schedule, next_s=next_s, said=what):
            log.warning("schedule %s: %s", schedule.name, what)

    def _enough_labels(self, schedule: Schedule, now_s: float) -> bool:
        if not schedule.labels:
            return True
        if now_s - self._counted.get(schedule.name, -LABELS_S) < LABELS_S:
            return False
        self._counted[schedule.name] = now_s
        return self._store.schedules.labels_since(schedule.model, schedule.since_s) >= schedule.labels

    def _drive_on(self) -> None:
        """Start the server process of a run again that none drives: it, its SuperLink or the machine was lost."""
        now_s, driven = self._clock(), self._store.runs.driven()
        # One that goes on after a pause has as long as one that begins.
        self._lost_s = {name: lost_s for name, lost_s in self._lost_s.items() if name in driven}
        for name in driven:
            # Somebody else may have asked for it just now.
            lost_s = self._lost_s.setdefault(name, now_s + START_S)
            try:
                require_free(self._fleet.runs / name)
            except UsageError:
                self._lost_s[name] = now_s + END_S
                continue
            if now_s < lost_s:
                continue
            self._lost_s[name] = now_s + START_S
            self._control.start(self._fleet, name)
            log.warning("run %s was driven by nobody: its server process is started again", name)

    def _give_up(self) -> None:
        """End the attempt that a run had under way which is paused or stopped, and whose server process was lost."""
        for name in self._store.pauses.left_behind():
            with contextlib.suppress(UsageError), driving(self._fleet.runs / name):
                self._store.runs.abandon(name, LOST)

    def _pack(self) -> None:
        for record in self._store.runs.all():
            if record.state != "finished" or record.id in self._packed:
                continue
            self._packed.add(record.id)
            plan = RunPlan.from_json(record.plan)
            if not plan.result.calibration or self._is_registered(record):
                continue
            try:
                made = pack.pack(self._fleet, self._store, record, SERVICE)
            except (RefusedError, UsageError, subprocess.SubprocessError) as exc:
                log.warning("run %s is finished, and its model is not packed: %s", record.id, exc)
            else:
                log.info(
                    "run %s is finished, and its model is a draft in the registry: %s", record.id, made.path
                )

    def _is_registered(self, record: RunRecord) -> bool:
        with self._store.database.read() as connection:
            return any(version.run == record.id for version in versions(connection, record.model))

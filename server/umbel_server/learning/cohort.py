"""Who is invited to a round: devices that are online, not over their cap, and drawn."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from umbel_proto.errors import BudgetError, UnavailableError
from umbel_proto.ids import DeviceId
from umbel_server.clock import Clock
from umbel_server.learning.draw import drawn
from umbel_server.learning.link import Link, NodeId
from umbel_server.learning.plan import RunPlan
from umbel_server.store.store import Store

log = logging.getLogger(__name__)

GATHER_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Gathering:
    """Who there is to choose from, and how long to wait for them.

    Args:
        store: Knows the devices.
        link: Knows who is online.
        plan: The run's.
        least: The smallest cohort.
        enough: Devices to choose from; with sampling, more than the smallest cohort.
        clock: Tells the time.
        pause: Waits, seconds.
        broke: Devices that earlier runs have left too little budget for this one.
        draw: True with the probability it is given.
        still: Raises when no round is to begin any more.
    """

    store: Store
    link: Link
    plan: RunPlan
    least: int
    enough: int
    clock: Clock
    pause: Callable[[float], None]
    broke: frozenset[DeviceId] = frozenset()
    draw: Callable[[float], bool] = field(default=drawn, repr=False)
    still: Callable[[], None] = field(default=lambda: None, repr=False)

    def gather(self, charges: Mapping[DeviceId, int]) -> dict[NodeId, DeviceId]:
        """Wait until enough devices are online, and no more are coming or all are there; choose from them.

        Args:
            charges: How often each device has been charged in this run.

        Raises:
            UnavailableError: Too few came in time.
            BudgetError: Too few have participations left.
            NotRunningError: The run was paused or ended meanwhile.
        """
        found = self._online(charges)
        rate = self.plan.privacy.sampling_rate
        if rate < 1:
            return self._drawn(found, rate)
        if len(found) <= self.plan.devices:
            return found
        # By lot: always the same ones would pay for every round.
        return dict(secrets.SystemRandom().sample(sorted(found.items()), self.plan.devices))

    def _drawn(self, found: Mapping[NodeId, DeviceId], rate: float) -> dict[NodeId, DeviceId]:
        """Draw each device by itself; forget a draw of too few for a round, of which nobody has heard.

        To keep such a draw and add to it would favor some devices: docs/spec/privacy.md, 6.2a.
        """
        while True:
            chosen = {node: device for node, device in found.items() if self.draw(rate)}
            if len(chosen) >= self.least:
                return chosen
            log.info(
                "%d of %d devices were drawn, too few for a round: drawing again", len(chosen), len(found)
            )

    def _online(self, charges: Mapping[DeviceId, int]) -> dict[NodeId, DeviceId]:
        timing, cap = self.plan.timing, self.plan.privacy.participations
        deadline = self.clock() + timing.join_timeout_s
        wanted = self.plan.devices / self.plan.privacy.sampling_rate
        found: dict[NodeId, DeviceId] = {}
        since = self.clock()
        while True:
            self.still()
            now = self.clock()
            online = set(self.link.nodes())
            there = {d.node_id: d.id for d in self.store.devices.all() if d.trusted and d.node_id in online}
            present = {n: d for n, d in there.items() if d not in self.broke}
            able = {
                n: d for n, d in present.items() if n is not None and not (cap and charges.get(d, 0) >= cap)
            }
            if able != found:
                found, since = able, now
            if len(found) >= self.enough and (len(found) >= wanted or now - since >= timing.settle_s):
                return found
            if now >= deadline:
                spent = len(present) - len(able)
                if len(present) >= self.enough:
                    raise BudgetError(
                        f"{spent} of {len(present)} devices online have taken part {cap} times, as planned, and a "
                        f"round {self._needs()}: plan the run with more participations, or fewer rounds."
                    )
                broke = len(there) - len(present)
                besides = f", besides {broke} whose budget is too small by now," if broke else ""
                raise UnavailableError(
                    f"{len(found)} devices are online{besides} and a round {self._needs()}: start more of them, and the run again."
                )
            self.pause(GATHER_POLL_S)

    def _needs(self) -> str:
        rate = self.plan.privacy.sampling_rate
        return (
            f"needs {self.least}" if rate == 1 else f"is drawn from {self.enough} at sampling_rate {rate:g}"
        )

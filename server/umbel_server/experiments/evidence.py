"""What the devices of both arms reported since each of them was drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from umbel_proto.ids import DeviceId
from umbel_server.experiments.metric import Metric, part_of
from umbel_server.experiments.plan import ExperimentPlan
from umbel_server.rollouts.assignment import place
from umbel_server.rollouts.interval import Values

if TYPE_CHECKING:
    from umbel_server.store.rollouts import Rollout
    from umbel_server.store.store import Store

SAMPLE = 2_000
"""Devices of either arm that are compared at most: what they report in two weeks is a million rows, read in seconds."""
HOUR_S, DAY_S = 3600, 86400.0


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """The devices of an arm, and what they reported.

    Args:
        drawn: How many were drawn into it, and asked.
        pinned: How many of them stay at a version by now: they are left out.
        gone: How many of them may not call any more: left out.
        since_s: From when on each of the others is compared, Unix seconds, shape (m,).
        device: Of each row that counts, whose it is, as an index of ``since_s``, shape (r,).
        hour_s: The hour it is of, Unix seconds, shape (r,), ascending.
        above: What it adds above, shape (r,).
        below: What it adds below, shape (r,).
        randomized: Whether devices report the metric only with noise.
    """

    drawn: int
    pinned: int
    gone: int
    since_s: NDArray[np.float64]
    device: NDArray[np.int64]
    hour_s: NDArray[np.int64]
    above: NDArray[np.float64]
    below: NDArray[np.float64]
    randomized: bool = False

    def values(self, metric: Metric, *, until_s: float, least: int, cap: float | None = None) -> Values:
        """Return one value of each device that is comparable at a time.

        Args:
            metric: The metric.
            until_s: The time, Unix seconds: later hours do not count.
            least: How many cases a device must have reported; of a daily metric it is a day.
            cap: The largest value that a device counts with; None: any.
        """
        rows = int(np.searchsorted(self.hour_s, until_s))
        device, size = self.device[:rows], len(self.since_s)
        above = np.bincount(device, self.above[:rows], size).astype(np.float64)
        if metric.daily:
            below: NDArray[np.float64] = (until_s - self.since_s) / DAY_S
            counts = (np.bincount(device, minlength=size) > 0) & (below >= 1)
        else:
            below = np.bincount(device, self.below[:rows], size).astype(np.float64)
            counts = below >= least
        values: Values = above[counts] / below[counts]
        return values if cap is None else np.minimum(values, cap)


def gather(store: Store, rollout: Rollout, plan: ExperimentPlan, *, now_s: float) -> tuple[Arm, Arm]:
    """Return the treatment and the control.

    A device belongs to the arm that it was drawn into, whatever became of the candidate there: if only those on which
    it works were compared, a version that fails on slow devices would look fast.

    Args:
        store: The store.
        rollout: The experiment's rollout.
        plan: The experiment's plan.
        now_s: The time, Unix seconds.
    """
    offered = {each.device: each.admitted_s for each in store.placements.members(rollout)}
    kept = store.experiments.kept(rollout.id)
    # Both arms are thinned by the draw, and alike.
    part = min(1.0, SAMPLE / max(len(offered), len(kept), 1))
    low, high = part * plan.treatment / 100, 1 - part * plan.control / 100
    reading = _Reading(
        store,
        rollout,
        plan.measured,
        now_s,
        eligible=frozenset(store.placements.eligible()),
        pinned=frozenset(store.placements.pinned(rollout.model)),
    )
    return (
        reading.arm(offered, lambda device: place(rollout.salt, device) < low),
        reading.arm(kept, lambda device: place(rollout.salt, device) >= high),
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    """One look at the store."""

    store: Store
    rollout: Rollout
    metric: Metric
    now_s: float
    eligible: frozenset[DeviceId]
    pinned: frozenset[DeviceId]

    def arm(self, drawn: Mapping[DeviceId, float], in_sample: Callable[[DeviceId], bool]) -> Arm:
        """Return an arm.

        Args:
            drawn: Its devices, each with when it was drawn.
            in_sample: Whether a device is looked at.
        """
        chosen = [
            name for name in drawn if name in self.eligible and name not in self.pinned and in_sample(name)
        ]
        # What was reported in the hour in which it was drawn may be of before.
        since_s = np.array([HOUR_S * math.ceil(drawn[name] / HOUR_S) for name in chosen], np.float64)
        rows = self._rows(chosen, since_s)
        order = np.argsort(rows["hour_s"], kind="stable")
        rows = rows[order]
        return Arm(
            drawn=len(drawn),
            pinned=sum(name in self.pinned for name in drawn),
            gone=sum(name not in self.eligible for name in drawn),
            since_s=since_s,
            device=rows["device"],
            hour_s=rows["hour_s"],
            above=rows["above"],
            below=rows["below"],
            randomized=bool(rows["randomized"].any()),
        )

    def _rows(self, chosen: list[DeviceId], since_s: NDArray[np.float64]) -> NDArray[np.void]:
        number = {name: index for index, name in enumerate(chosen)}
        found: list[tuple[int, int, float, float, bool]] = []
        for row in self.store.experiments.rows(
            chosen,
            model=self.rollout.model,
            versions=(self.rollout.from_version, self.rollout.to_version)
            if self.metric.of_model or self.metric.daily
            else (),
            since_s=float(since_s.min(initial=math.inf)),
            until_s=self.now_s + HOUR_S,
            # Of a daily metric, any word of a device tells that it is there.
            application=self.metric.of_application or self.metric.daily,
            amounts=bool(self.metric.amount),
        ):
            index = number[row.device]
            # A device's clock may be wrong; what it dates before it was drawn is not of the experiment.
            if row.hour_s < since_s[index]:
                continue
            part = part_of(self.metric, row.counters, row.histograms, application=row.application)
            found.append((index, row.hour_s, part.above, part.below, part.randomized))
        return np.array(found, _ROW)


_ROW = np.dtype([("device", "i8"), ("hour_s", "i8"), ("above", "f8"), ("below", "f8"), ("randomized", "?")])

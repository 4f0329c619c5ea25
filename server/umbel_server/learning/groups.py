"""A diagnostic round: random groups, each with a secure sum of its own, so that a poisoned one stands out.

It tells the server more than a round does, so it is held only when the guard has refused twice. Each device
is in one group and pays for one participation: noise is planned for the smallest cohort, and no group is
smaller.

Source: docs/explanation/poisoning.md.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from umbel_proto.credentials import FleetPolicy
from umbel_proto.ids import DeviceId
from umbel_proto.privacy.auxiliary import Quantity
from umbel_proto.privacy.encode import Encoding, decode
from umbel_proto.secagg.session import rotation_seed
from umbel_server.learning import guard
from umbel_server.learning.guard import Reading
from umbel_server.learning.link import NodeId
from umbel_server.learning.measure import measure
from umbel_server.learning.plan import Guard
from umbel_server.learning.round import RoundOutcome

Members = Mapping[NodeId, DeviceId]


@dataclass(frozen=True, slots=True)
class Group:
    """A group, as it goes on record.

    Args:
        devices: Its members.
        reason: Why its sum was left out; empty if it was used.
        norm: Of its average update without the noise, model units; None without a sum.
        limit: The largest that passed; None without a sum.
    """

    devices: tuple[DeviceId, ...]
    reason: str
    norm: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Sifted:
    """A diagnostic round.

    Args:
        outcome: All groups' as one; a device whose group was left out is charged and not summed.
        kept: Of the groups whose sums are used.
        groups: All of them, for the record.
        reason: Why the round must not be used; empty if it may.
    """

    outcome: RoundOutcome
    kept: tuple[RoundOutcome, ...]
    groups: tuple[Group, ...]
    reason: str

    def figures(self) -> list[dict[str, Any]]:
        """Return the groups as JSON values."""
        return [asdict(group) for group in self.groups]


def least_size(policy: FleetPolicy) -> int:
    """Return how many devices a group needs, so that the smallest cohort is left when some drop out."""
    return math.ceil(policy.min_cohort / (1 - policy.dropout_fraction) - 1e-9)


def obstacle(devices: int, *, rules: Guard, policy: FleetPolicy, epsilon: float) -> str:
    """Say why devices cannot be asked in groups; empty if they can.

    Args:
        devices: How many are at hand.
        rules: The run's.
        policy: The fleet's.
        epsilon: What the round would bring one of them to, against the server.
    """
    least = least_size(policy)
    if not rules.groups:
        return "the run's plan has no groups"
    if devices < rules.groups * least:
        return f"{devices} devices do not make {rules.groups} groups of at least {least}"
    if epsilon > policy.budget_epsilon:
        return (
            f"it would bring a device to epsilon {epsilon:.4g}, and its budget is {policy.budget_epsilon:.4g}"
        )
    return ""


def deal(members: Members, count: int) -> tuple[Members, ...]:
    """Return devices in groups of nearly equal size, at random: from the operating system, so no liar knows its group.

    Args:
        members: At least ``count`` devices, by node.
        count: How many groups.
    """
    nodes = list(members)
    secrets.SystemRandom().shuffle(nodes)
    return tuple({node: members[node] for node in nodes[first::count]} for first in range(count))


def sift(
    outcomes: Sequence[RoundOutcome],
    *,
    encoding: Encoding,
    asked: Sequence[Quantity],
    rules: Guard,
) -> Sifted:
    """Hold the groups of a diagnostic round against each other.

    A group is left out if its norm is above the clip, or above ``rules.factor`` times the median of the groups',
    beyond the noise; or if a quantity of it is out of range.

    Args:
        outcomes: How each group's session ended.
        encoding: Of all of them.
        asked: What devices added beside their updates.
        rules: The run's.
    """
    averages = [
        None
        if each.total is None
        else decode(each.total, encoding, count=len(each.survivors), rotation_seed=rotation_seed(each.sid))
        for each in outcomes
    ]
    norms = [
        guard.estimate(average, guard.noise_deviation(encoding, count=len(each.survivors)))
        for each, average in zip(outcomes, averages, strict=True)
        if average is not None
    ]
    groups, kept, marked = [], [], []
    for each, average in zip(outcomes, averages, strict=True):
        devices = tuple(part.device for part in each.participations)
        if average is None or each.total is None:
            groups.append(Group(devices, each.reason))
            marked.append(each)
            continue
        count = len(each.survivors)
        reading = guard.read(
            average,
            measure(each.total, encoding, asked, count=count),
            encoding=encoding,
            asked=asked,
            count=count,
            norms=norms,
            factor=rules.factor,
        )
        groups.append(Group(devices, reading.reason, reading.norm, reading.limit))
        if not reading.reason:
            kept.append(each)
        marked.append(_left_out(each, reading) if reading.reason else each)
    reason = ""
    if 2 * len(kept) <= len(outcomes):
        reason = f"{len(kept)} of {len(outcomes)} groups gave a sum that may be used, and more than half must"
    return Sifted(combine(marked), tuple(kept), tuple(groups), reason)


def combine(outcomes: Sequence[RoundOutcome]) -> RoundOutcome:
    """Return sessions held one after the other as one outcome; a single one as it is. Sums are not added."""
    first, *rest = outcomes
    if not rest:
        return first
    seconds: Counter[str] = Counter()
    for each in outcomes:
        seconds.update(each.seconds)
    parts = [part for each in outcomes for part in each.participations]
    return replace(
        first,
        total=None,
        survivors=tuple(device for each in outcomes for device in each.survivors),
        reason="; ".join(each.reason for each in outcomes if each.reason),
        participations=tuple(sorted(parts, key=lambda part: part.device)),
        silent=frozenset().union(*(each.silent for each in outcomes)),
        seconds=dict(seconds),
        bytes_up=sum(each.bytes_up for each in outcomes),
        bytes_down=sum(each.bytes_down for each in outcomes),
    )


def _left_out(outcome: RoundOutcome, reading: Reading) -> RoundOutcome:
    parts = tuple(
        replace(part, outcome="charged", reason=f"its group was left out: {reading.reason}")
        if part.outcome == "summed"
        else part
        for part in outcome.participations
    )
    return replace(outcome, survivors=(), participations=parts)

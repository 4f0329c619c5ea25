"""How the devices of a federated run share a task's training data, so unevenly as devices do."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from umbel_models.task import Examples
from umbel_proto.errors import UsageError

MIN_SHARD = 20  # fewer examples than one batch would make a device's update mostly chance
ATTEMPTS = 200


def by_label(examples: Examples, devices: int, *, alpha: float, seed: int) -> list[Examples]:
    """Share examples among devices unevenly: each class by its own draw from a Dirichlet distribution.

    Args:
        examples: What to share; every example goes to exactly one device.
        devices: Number of devices, >= 1.
        alpha: Concentration, > 0: 100 is nearly even, 0.1 gives a device one or two classes.
        seed: Which example goes where.

    Raises:
        UsageError: The examples cannot give every device ``MIN_SHARD`` of them.

    Source:
        Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
        Visual Classification", arXiv:1909.06335, section 3.
    """
    if devices < 1 or not 0 < alpha < float("inf"):
        raise UsageError(
            f"Shards for {devices} devices with alpha {alpha} make no sense: give both a value > 0."
        )
    for owner in _dirichlet(examples.y, devices, alpha, seed):
        if np.bincount(owner, minlength=devices).min() >= MIN_SHARD:
            return [examples.take(owner == device) for device in range(devices)]
    raise UsageError(
        f"{len(examples.y)} examples do not give {devices} devices {MIN_SHARD} each at alpha {alpha}: "
        "use fewer devices or a greater alpha."
    )


def by_chance(examples: Examples, devices: int, *, seed: int) -> list[Examples]:
    """Share examples among devices at random and evenly: each device sees the same kind of data.

    Args:
        examples: What to share; every example goes to exactly one device.
        devices: Number of devices, >= 1.
        seed: Which example goes where.

    Raises:
        UsageError: The examples cannot give every device ``MIN_SHARD`` of them.
    """
    if devices < 1 or len(examples.y) < devices * MIN_SHARD:
        raise UsageError(
            f"{len(examples.y)} examples do not give {devices} devices {MIN_SHARD} each: use fewer devices."
        )
    order = np.random.default_rng(seed).permutation(len(examples.y))
    return [examples.take(rows) for rows in np.array_split(order, devices)]


def by_source(examples: Examples, devices: int, *, seed: int) -> list[Examples]:
    """Share examples among devices by their source: all of a person's, or of a branch's, on one device.

    Sources come in random order, and each goes to the device that has the fewest examples by then.

    Args:
        examples: What to share, with its sources; every example goes to exactly one device.
        devices: Number of devices, >= 1.
        seed: Which source goes where.

    Raises:
        UsageError: The examples name no sources, or too few to give every device ``MIN_SHARD`` examples.
    """
    if examples.source is None:
        raise UsageError("This task's examples name no sources: share them by label.")
    if devices < 1:
        raise UsageError(f"Shards for {devices} devices make no sense: give at least one.")
    sources, place = np.unique(examples.source, return_inverse=True)
    sizes = np.bincount(place)
    load = np.zeros(devices, np.int64)
    device = np.empty(len(sources), np.int64)
    for each in np.random.default_rng(seed).permutation(len(sources)):
        device[each] = load.argmin()
        load[device[each]] += sizes[each]
    if load.min() < MIN_SHARD:
        raise UsageError(
            f"{len(sources)} sources do not give {devices} devices {MIN_SHARD} examples each: use fewer "
            "devices, or share by label."
        )
    return [examples.take(device[place] == each) for each in range(devices)]


def _dirichlet(y: NDArray[np.int64], devices: int, alpha: float, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield draws of who owns each example."""
    source = np.random.default_rng(seed)
    for _ in range(ATTEMPTS if devices * MIN_SHARD <= len(y) else 0):
        owner = np.empty(len(y), np.int64)
        for label in np.unique(y):
            rows = source.permutation(np.flatnonzero(y == label))
            bounds = np.cumsum(source.dirichlet(np.full(devices, alpha)))[:-1]
            for device, part in enumerate(np.split(rows, np.round(bounds * len(rows)).astype(int))):
                owner[part] = device
        yield owner

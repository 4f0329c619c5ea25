"""Answer: a person's word on a prediction that waits somewhere is checked, signed by the authority and put on record."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from umbel_proto.errors import PackageError, UsageError
from umbel_proto.package import read_unsigned
from umbel_proto.reviews import MAX_WORDS, ReviewAnswer, sign_answer
from umbel_server.access.actor import Actor
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.looks import label_number
from umbel_server.store.reviews import Review, require_waiting
from umbel_server.store.store import Store

REMEMBERED = 64
"""Packages whose labels a process need not read again."""


def labels_of(fleet: FleetDir, store: Store, model: str, version: int) -> Sequence[str]:
    """Return the names of a released version's labels, in order; none where its package cannot be read."""
    for release in store.releases.all():
        if (release.model, release.version) == (model, version):
            try:
                return _labels(fleet.package(release.sha256))
            except (OSError, PackageError):
                return ()
    return ()


def answer(
    fleet: FleetDir, store: Store, number: int, label: str | int, *, actor: Actor, reason: str
) -> Review:
    """Say what holds for a prediction that waits on a device; the device is told when it next asks for releases.

    Args:
        fleet: The fleet.
        store: Its store.
        number: The review.
        label: The label that holds: its number, or as people write it, its name or else its number.
        actor: Who decides.
        reason: Why, 1 to 200 characters: it goes to the device, and into the audit log.

    Raises:
        UsageError: There is no such review or label, or no reason.
        RefusedError: It does not wait any more: somebody else answered it, or its device.
        StorageError: The authority's key is not here.
    """
    reason = reason.strip()
    if not 0 < len(reason) <= MAX_WORDS:
        raise UsageError(f"Say why: an answer to a review has a reason of 1 to {MAX_WORDS} characters.")
    found = store.reviews.get(number)
    require_waiting(found, store.clock())
    labels = labels_of(fleet, store, found.model, found.version)
    if not labels:
        raise UsageError(
            f"The labels of {found.model} {found.version} are not known: its package is not here."
        )
    holds = label_number(labels, label, found.model) if isinstance(label, str) else label
    if not 0 <= holds < len(labels):
        raise UsageError(f"Model {found.model} has no label {holds}: it has {len(labels)}.")
    signed = sign_answer(
        fleet.authority_signer(),
        ReviewAnswer(
            fleet=fleet.name,
            device=found.device,
            id=found.announced_id,
            label=holds,
            by=actor.name[: MAX_WORDS - 16],  # The device says before it where the answer is from.
            why=reason,
        ),
    )
    return store.reviews.answer(number, holds, signed=signed, actor=actor, reason=reason)


@functools.lru_cache(maxsize=REMEMBERED)
def _labels(package: Path) -> Sequence[str]:
    """Read a package's labels; its file is named by its hash and never changes."""
    return tuple(read_unsigned(package.read_bytes()).manifest.labels)

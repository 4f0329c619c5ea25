"""Answer: a person's word on a prediction that waits somewhere is checked, signed by the authority and put on record."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from umbel_proto.errors import PackageError, UsageError
from umbel_proto.keys import SigningKey
from umbel_proto.package import read_unsigned
from umbel_proto.reviews import MAX_WORDS, ReviewAnswer, sign_answer
from umbel_proto.wire.authority_pb2 import ReviewAsk
from umbel_server.access.actor import Actor
from umbel_server.ca.authority import open_authority
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.labels import label_number
from umbel_server.store.reviews import Review, require_waiting
from umbel_server.store.store import Store

REMEMBERED = 64
"""Packages whose labels a process need not read again."""


def labels_of(fleet: FleetDir, store: Store, model: str, version: int) -> Sequence[str]:
    """Return the names of the labels of a version that was ever released, in order; none where they cannot be read."""
    with store.database.read() as connection:
        release = store.releases.of_version(connection, model, version)
    if release is None:
        return ()
    try:
        return _labels(fleet.package(release.sha256))
    except (OSError, PackageError):
        return ()


def answer(
    fleet: FleetDir,
    store: Store,
    number: int,
    label: str | int,
    *,
    actor: Actor,
    reason: str,
    key: SigningKey | None = None,
) -> Review:
    """Say what holds for a prediction that waits on a device; the device is told when it next asks for releases.

    Args:
        fleet: The fleet.
        store: Its store.
        number: The review.
        label: The label that holds: its number, or as people write it, its name or else its number.
        actor: Who decides.
        reason: Why, 1 to 200 characters: it goes to the device, and into the audit log.
        key: The authority's; None: the one that the fleet's directory says.

    Raises:
        UsageError: There is no such review or label, or no reason.
        RefusedError: It does not wait any more: somebody else answered it, or its device.
        StorageError: The authority's key is not here.
    """
    found, labels, holds, reason = _checked(fleet, store, number, label, reason)
    signed = sign_answer(
        key or fleet.authority_signer(),
        ReviewAnswer(
            fleet=fleet.name,
            device=found.device,
            id=found.announced_id,
            label=holds,
            by=actor.name[: MAX_WORDS - 16],  # The device says before it where the answer is from.
            why=reason,
            name=labels[holds],
        ),
    )
    return store.reviews.answer(number, holds, signed=signed, actor=actor, reason=reason)


def answer_by_authority(
    fleet: FleetDir,
    store: Store,
    number: int,
    label: str | int,
    *,
    reason: str,
    token: str = "",
    session: str = "",
) -> Review:
    """Have the authority answer, which checks for itself who asks; it may be a process of its own.

    Args:
        fleet: The fleet.
        store: Its store.
        number: The review.
        label: As of ``answer``.
        reason: As of ``answer``.
        token: The API token that the operator showed; or
        session: what the cookie of their session in the console holds.

    Raises:
        UsageError: There is no such review or label, or no reason.
        RefusedError: It does not wait any more, or the operator may not.
        UnavailableError: The authority does not answer.
    """
    _, _, holds, reason = _checked(fleet, store, number, label, reason)
    ask = ReviewAsk(token=token, session=session, review=number, label=holds, why=reason)
    open_authority(fleet, store, clock=store.clock).answer_review(ask)
    return store.reviews.get(number)


def _checked(
    fleet: FleetDir, store: Store, number: int, label: str | int, reason: str
) -> tuple[Review, Sequence[str], int, str]:
    """Return a review that waits, the labels of the version that it is of, the one that holds, and why."""
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
    return found, labels, holds, reason


@functools.lru_cache(maxsize=REMEMBERED)
def _labels(package: Path) -> Sequence[str]:
    """Read a package's labels; its file is named by its hash and never changes."""
    return tuple(read_unsigned(package.read_bytes()).manifest.labels)

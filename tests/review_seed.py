"""Reviews that devices announce, as their sealed reports bring them: for tests of the service and the console."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

from console_world import ConsoleWorld
from umbel_proto.ids import DeviceId
from umbel_proto.reviews import EndedReview, WaitingReview
from umbel_proto.seal import seal
from umbel_proto.wire import telemetry_pb2 as pb
from umbel_server.access.actor import Actor, Role
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.opener import Opener
from umbel_server.reviews.answer import answer
from umbel_server.store.batches import Arrival
from umbel_server.store.store import Store

ADA = Actor("ada", frozenset({Role.REVIEWER}))


def waiting(
    name: str,
    *,
    now_s: float,
    version: int = 2,
    label: int = 7,
    confidence: float = 0.614,
    flagged: bool = False,
    ago_s: float = 600,
) -> WaitingReview:
    """A prediction of digits that waits; its id is made of a name, so that a test finds it again."""
    return WaitingReview.of(
        id_of(name),
        model="digits",
        version=version,
        at_s=now_s - ago_s,
        label=label,
        confidence=confidence,
        unsure=not flagged or confidence < 0.8,
        flagged=flagged,
    )


def id_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:16]


def report(
    fleet: FleetDir,
    store: Store,
    device: str,
    told: Sequence[WaitingReview] = (),
    ended: Sequence[EndedReview] = (),
    *,
    batch: pb.Batch | None = None,
) -> None:
    """Let a device's sealed report arrive and be opened."""
    key = fleet.telemetry_private().public
    body = batch or pb.Batch(
        waiting_reviews=[each.to_wire() for each in told], ended_reviews=[each.to_wire() for each in ended]
    )
    batch_id = secrets.token_bytes(16)
    header = pb.BatchHeader(
        schema=1, suite=key.suite, key_id=key.key_id, fleet_id=fleet.name, device_id=device, batch_id=batch_id
    ).SerializeToString()
    sealed = seal(key, header, body.SerializeToString())
    store.batches.append(DeviceId(device), [Arrival(batch_id, key.key_id, header, sealed)])
    Opener(store, fleet.telemetry_private()).run_once()


def reviews(world: ConsoleWorld) -> None:
    """Five that wait, one on its way, one done as somebody here said, one that its device decided, one withdrawn."""
    fleet, store, now_s = world.fleet, world.store, world.clock()
    report(
        fleet,
        store,
        "rose",
        [
            waiting("done", now_s=now_s, label=4, confidence=0.52, ago_s=90_000),
            waiting("agreed", now_s=now_s, label=1, confidence=0.66, ago_s=80_000),
            waiting("there", now_s=now_s, label=9, confidence=0.47, ago_s=70_000),
            waiting("rose-1", now_s=now_s),
            waiting("rose-2", now_s=now_s, label=3, confidence=0.999, flagged=True, ago_s=3600),
        ],
    )
    report(
        fleet,
        store,
        "iris",
        [waiting("sent", now_s=now_s, label=2, ago_s=7200), waiting("taken-back", now_s=now_s)],
    )
    report(
        fleet,
        store,
        "iris",
        [
            waiting(f"iris-{number}", now_s=now_s, label=number, confidence=0.4 + number / 20)
            for number in range(3)
        ],
    )
    by_id = {each.announced_id: each.id for each in store.reviews.page(limit=100)}
    for name, label, why in (
        ("done", "9", "the loop is closed"),
        ("agreed", "1", "a plain stroke"),
        ("there", "4", "open at the top"),
        ("sent", "3", "two bows"),
    ):
        answer(fleet, store, by_id[id_of(name)], label, actor=ADA, reason=why)
    ended = [EndedReview(id_of("done"), "answered"), EndedReview(id_of("agreed"), "answered")]
    report(fleet, store, "rose", ended=[*ended, EndedReview(id_of("there"), "here")])
    report(fleet, store, "iris", ended=[EndedReview(id_of("taken-back"), "withdrawn")])

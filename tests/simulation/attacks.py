"""The attacks of a lying server on one device: what it sends, when, and why the device refuses.

Each makes something else of the honest message of that moment; see ``simulation/liar.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from simulation.liar import Stage
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.keys import SigningKey
from umbel_proto.secagg.engine import TRAIN
from umbel_proto.secagg.messages import Confirmation, JoinEntry
from umbel_proto.secagg.pairwise import CONFIRM, MASK, SHARE, UNMASK
from umbel_proto.wire import rounds_pb2 as pb
from umbel_server.learning.link import Payload

FREE, CHARGED = False, True
JUNK = b"\x0f\xff not a message"
LONG = bytes(9 << 20)


class Attack(NamedTuple):
    """What the server does, when, why the device refuses, and whether its ledger is charged by then."""

    what: str
    kind: str
    lie: Callable[[Stage], Payload]
    reason: str
    charged: bool


def body(make: Callable[[Stage], bytes]) -> Callable[[Stage], Payload]:
    return lambda stage: Payload(make(stage))


def values(stage: Stage, *, first: float) -> bytes:
    """The model with another first value."""
    model = np.frombuffer(stage.model, "<f4").copy()
    model[0] = first
    return model.tobytes()


def planned(stage: Stage, **changes: int) -> bytes:
    """The plan with other fields."""
    plan = pb.TrainPlan.FromString(stage.invitation.plan)
    for field, value in changes.items():
        setattr(plan, field, value)
    return plan.SerializeToString(deterministic=True)


def wire(stage: Stage, **changes: object) -> Payload:
    """An invitation whose descriptor says what our own types would not let it say."""
    message = pb.SessionDescriptor.FromString(stage.invitation.descriptor)
    for field, value in changes.items():
        setattr(message, field, value)
    return stage.raw_invitation(message.SerializeToString(deterministic=True))


def wire_encoding(stage: Stage, **changes: list[int]) -> Payload:
    """The same for repeated fields of its encoding."""
    message = pb.SessionDescriptor.FromString(stage.invitation.descriptor)
    for field, value in changes.items():
        getattr(message.encoding, field)[:] = value
    return stage.raw_invitation(message.SerializeToString(deterministic=True))


def coded(stage: Stage, **changes: object) -> Payload:
    """An invitation to a session with another encoding."""
    return stage.invite(encoding=replace(stage.descriptor.encoding, **changes))  # type: ignore[arg-type]


def swapped(stage: Stage, field: str) -> Payload:
    """The roster with a key of dev-1 that the server knows, under dev-1's signature."""
    entry = JoinEntry.from_bytes(stage.of(1).moments[TRAIN].answer.body, "dev-1")
    return stage.roster_with(1, replace(entry, **{field: bytes(range(32))}).to_bytes())


def signed_anew(stage: Stage, keys: list[bytes] | None = None) -> bytes:
    """An entry with keys that the server knows and that dev-1, being corrupt, signed."""
    return stage.entry("dev-1", *stage.liar.member(1), keys=keys)


def made_up(stage: Stage, **changes: object) -> Payload:
    """The roster with a device the server made up in the place of dev-1."""
    return stage.roster_with(1, stage.entry("dev-1", *stage.liar.accomplice("dev-1", **changes)))  # type: ignore[arg-type]


def boxes(stage: Stage, *take: int) -> Payload:
    """The shares of some neighbors only."""
    shares = stage.shares
    return Payload(replace(shares, boxes=tuple(shares.boxes[i] for i in take)).to_bytes())


def spoiled(stage: Stage, count: int) -> Payload:
    """The shares with some boxes that do not open."""
    shares = stage.shares
    wrong = tuple((peer, bytes(92)) for peer, _ in shares.boxes[:count])
    return Payload(replace(shares, boxes=(*wrong, *shares.boxes[count:])).to_bytes())


def signatures(stage: Stage, change: Callable[[tuple], tuple]) -> Payload:  # type: ignore[type-arg]
    message = stage.confirmations
    return Payload(replace(message, signatures=change(message.signatures)).to_bytes())


INVITATIONS = [
    # Policy made weaker. Everything else about the session is right.
    Attack("a cohort below the policy's", TRAIN, lambda s: s.invite(min_cohort=3), "smallest cohort, 4", FREE),
    Attack("a server to be trusted", TRAIN, lambda s: s.invite(server_malicious=False), "trusts its server", FREE),
    Attack("fewer said to be corrupt", TRAIN, lambda s: s.invite(corrupt_fraction=0.0), "assumes 0 corrupt", FREE),
    Attack("fewer said to be lost", TRAIN, lambda s: s.invite(dropout_fraction=0.1), "assumes 0.1 lost", FREE),
    Attack("no noise", TRAIN, lambda s: coded(s, noise=Fraction(0)), "noise is below the policy's floor", FREE),
    Attack("too little noise", TRAIN, lambda s: coded(s, noise=s.descriptor.encoding.noise / 64), "below the", FREE),
    Attack(
        "the same noise for a larger bound", TRAIN,
        lambda s: coded(s, bound_sq=64 * s.descriptor.encoding.bound_sq), "below the policy's floor", FREE,
    ),
    Attack("another fleet's session", TRAIN, lambda s: s.invite(fleet=FleetId("forest")), "of fleet forest", FREE),
    Attack("a session that is over", TRAIN, lambda s: s.invite(closes_at_s=int(s.now())), "already over", FREE),
    # What is to be trained.
    Attack(
        "another model under the honest hash", TRAIN,
        lambda s: s.raw_invitation(model=values(s, first=0.5)), "the model is not the session's", FREE,
    ),
    Attack(
        "another plan under the honest hash", TRAIN,
        lambda s: s.raw_invitation(plan=planned(s, epochs=9)), "the plan is not the session's", FREE,
    ),
    Attack(
        "a package it never verified", TRAIN,
        lambda s: s.invite(plan={"package_sha256": b"\xab" * 32}), "only what it has verified", FREE,
    ),
    Attack("a model it does not have", TRAIN, lambda s: s.invite(plan={"model": "spy"}), "no package spy", FREE),
    Attack("a model that is a path", TRAIN, lambda s: s.invite(plan={"model": "../../x"}), "is not a name", FREE),
    Attack("a model without a value", TRAIN, lambda s: s.invite(model=s.model[:-4]), "not 13706", FREE),
    Attack("a model with half a value", TRAIN, lambda s: s.invite(model=s.model[:-2]), "not 13706", FREE),
    Attack("no model", TRAIN, lambda s: s.invite(model=b""), "not 13706", FREE),
    Attack(
        "an encoding of other dimensions", TRAIN,
        lambda s: coded(s, dim=13700, padded=13824), "for 13700 parameters, not 13706", FREE,
    ),
    Attack("a model with a NaN", TRAIN, lambda s: s.invite(model=values(s, first=np.nan)), "not finite", FREE),
    Attack("a model with an infinity", TRAIN, lambda s: s.invite(model=values(s, first=np.inf)), "not finite", FREE),
    Attack("no passes over the data", TRAIN, lambda s: s.invite(plan={"epochs": 0}), "epochs is 0", FREE),
    Attack("passes without end", TRAIN, lambda s: s.invite(plan={"epochs": 2**32 - 1}), "epochs is 4294967295", FREE),
    Attack("a batch of all memory", TRAIN, lambda s: s.invite(plan={"batch_size": 2**32 - 1}), "batch_size is", FREE),
    Attack("a learning rate of NaN", TRAIN, lambda s: s.invite(plan={"learning_rate": np.nan}), "learning_rate", FREE),
    Attack("most data held back", TRAIN, lambda s: s.invite(plan={"holdback": 0.99}), "hold.* 0.99", FREE),
    Attack("a question it does not answer", TRAIN, lambda s: s.invite(
        beside=[("loss", 0, 1), ("age", 0, 99)]), "'age' is no quantity", FREE),
    Attack("a question asked twice", TRAIN, lambda s: s.invite(
        beside=[("loss", 0, 1), ("loss", 0, 1)]), "a quantity twice", FREE),
    Attack("more questions than sums", TRAIN, lambda s: s.invite(
        beside=[("loss", 0, 1), ("accuracy", 0, 1), ("weight", 0, 9)]), "asks for 3 quantities", FREE),
    Attack("bounds that are none", TRAIN, lambda s: s.invite(
        beside=[("loss", 0, np.nan), ("accuracy", 0, 1)]), "choose low < high", FREE),
    Attack("bounds beyond numbers", TRAIN, lambda s: s.invite(
        beside=[("loss", -1.7e308, 1.7e308), ("accuracy", 0, 1)]), "choose low < high", FREE),
    Attack("answers beyond the bound", TRAIN, lambda s: wire_encoding(
        s, auxiliary=[2000, 2000]), "bound_sq is", FREE),
    # Forms.
    Attack("no invitation at all", TRAIN, body(lambda s: JUNK), "malformed", FREE),
    Attack("an invitation cut off", TRAIN, lambda s: replace(s.request, body=s.request.body[:-9]), "malformed|plan", FREE),
    Attack("an oversized invitation", TRAIN, lambda s: replace(s.request, body=LONG), "bytes, more than", FREE),
    Attack(
        "an invitation with more in it", TRAIN,
        lambda s: replace(s.request, body=s.request.body + b"\x78\x01"), "not in canonical form", FREE,
    ),
    Attack("an oversized descriptor", TRAIN, lambda s: s.raw_invitation(bytes(2049)), "more than 2048", FREE),
    Attack("no descriptor", TRAIN, lambda s: s.raw_invitation(b""), "denominator 0", FREE),
    Attack("an unknown version", TRAIN, lambda s: wire(s, protocol=2), "protocol version is 2", FREE),
    Attack("a corrupt fraction of NaN", TRAIN, lambda s: wire(s, corrupt_fraction=np.nan), "out of range", FREE),
    Attack("a cohort without end", TRAIN, lambda s: wire(s, max_cohort=2**32 - 1), "out of range", FREE),
    Attack("a run that is a path", TRAIN, lambda s: wire(s, run_id="../../x"), "out of range", FREE),
]  # fmt: skip

ROSTERS = [
    Attack("a cohort of three", SHARE, body(lambda s: replace(
        s.roster, rows=s.roster.rows[:3], entries=s.roster.entries[:2]).to_bytes()), "a roster of 3 is below", FREE),
    Attack("a single survivor", SHARE, body(lambda s: replace(
        s.roster, rows=s.roster.rows[:1], entries=()).to_bytes()), "a roster of 1 is below", FREE),
    Attack("the same device twice", SHARE, body(lambda s: replace(
        s.roster, rows=(*s.roster.rows[:2], s.roster.rows[1], *s.roster.rows[3:])).to_bytes()), "repeats a device", FREE),
    Attack("the same device under two names", SHARE, lambda s: s.roster_with(
        2, s.of(1).moments[TRAIN].answer.body), "entry of dev-2 has the credential of dev-1", FREE),
    Attack("a roster out of order", SHARE, body(lambda s: replace(
        s.roster, rows=s.roster.rows[::-1]).to_bytes()), "out of order", FREE),
    Attack("more than agreed", SHARE, body(lambda s: replace(
        s.roster, rows=(*s.roster.rows, (DeviceId("dev-9"), bytes(32)))).to_bytes()), "above the largest cohort, 5", FREE),
    Attack("a roster without the device", SHARE, body(lambda s: replace(
        s.roster, rows=s.roster.rows[1:]).to_bytes()), "leaves this device out", FREE),
    Attack("another entry for the device", SHARE, body(lambda s: replace(
        s.roster, rows=((s.name, bytes(32)), *s.roster.rows[1:])).to_bytes()), "changed this device's entry", FREE),
    Attack("a swapped mask key", SHARE, lambda s: swapped(s, "mask_key"), "dev-1 is not signed by it", FREE),
    Attack("a swapped share key", SHARE, lambda s: swapped(s, "share_key"), "dev-1 is not signed by it", FREE),
    Attack("a swapped seed commitment", SHARE, lambda s: swapped(s, "seed_commitment"), "not signed by it", FREE),
    Attack("an entry that is not its row's", SHARE, body(lambda s: replace(
        s.roster, entries=(signed_anew(s), *s.roster.entries[1:])).to_bytes()), "dev-1's is not the roster's", FREE),
    Attack("too few neighbors", SHARE, body(lambda s: replace(
        s.roster, entries=s.roster.entries[1:]).to_bytes()), "3 entries for 4 neighbors", FREE),
    Attack("a device nobody enrolled", SHARE, lambda s: made_up(
        s, authority=SigningKey.generate()), "not signed by this fleet's authority", FREE),
    Attack("a device of another fleet", SHARE, lambda s: made_up(
        s, fleet=FleetId("forest")), "of fleet forest, not simulated", FREE),
    Attack("a stale certificate", SHARE, lambda s: made_up(
        s, not_after_s=int(s.now())), "has expired", FREE),
    Attack("a forged certificate", SHARE, lambda s: s.roster_with(1, s.entry(
        "dev-1", SigningKey.generate(), s.liar.member(1)[1])), "dev-1 is not signed by it", FREE),
    Attack("a certificate cut off", SHARE, lambda s: s.roster_with(1, s.entry(
        "dev-1", *s.liar.member(1)).replace(s.liar.member(1)[1], s.liar.member(1)[1][:-1])), "malformed|canonical|not 64", FREE),
    Attack("an entry of another session", SHARE, lambda s: s.roster_with(
        1, s.other.of(1).moments[TRAIN].answer.body), "not signed by it for this session", FREE),
    Attack("a share key that everyone knows", SHARE, lambda s: s.roster_with(
        1, signed_anew(s, [bytes(range(32)), bytes(32)])), "key of dev-1 has small order", FREE),
    Attack("the other session's roster", SHARE, lambda s: s.other.request, "of another session", FREE),
    Attack("the other session's roster under this one's id", SHARE, body(lambda s: replace(
        s.other.roster, sid=s.sid).to_bytes()), "changed this device's entry", FREE),
    Attack("the shares too early", MASK, lambda s: s.other.request, "of another session", FREE),
    Attack("no roster at all", SHARE, body(lambda s: JUNK), "Roster is malformed", FREE),
    Attack("an empty roster", SHARE, body(lambda s: b""), "session id has 0 bytes", FREE),
    Attack("a roster cut off", SHARE, body(lambda s: s.request.body[:-1]), "Roster is malformed", FREE),
    Attack("an oversized roster", SHARE, body(lambda s: LONG), "bytes, more than", FREE),
    Attack("a roster with more in it", SHARE, body(lambda s: s.request.body + b"\x78\x01"), "not in canonical form", FREE),
]  # fmt: skip

SHARES = [
    Attack("no shares", MASK, lambda s: boxes(s), "shares of 0 neighbors open", FREE),
    Attack("fewer shares than the threshold", MASK, lambda s: boxes(s, 0, 1), "shares of 2 neighbors open", FREE),
    Attack("boxes that do not open", MASK, lambda s: spoiled(s, 2), "shares of 2 neighbors open", FREE),
    Attack("another device's boxes", MASK, body(lambda s: replace(
        s.shares, boxes=tuple((peer, box) for (peer, _), (_, box) in zip(
            s.shares.boxes, s.of(1).shares.boxes, strict=True))).to_bytes()), "shares of 0 neighbors open", FREE),
    Attack("the other session's boxes", MASK, body(lambda s: replace(
        s.shares, boxes=s.other.shares.boxes).to_bytes()), "shares of 0 neighbors open", FREE),
    Attack("its own boxes back", MASK, body(lambda s: replace(
        s.shares, boxes=tuple(pb_boxes(s))).to_bytes()), "shares of 0 neighbors open", FREE),
    Attack("boxes from no neighbor", MASK, body(lambda s: replace(
        s.shares, boxes=(*s.shares.boxes, (9, bytes(92)))).to_bytes()), "position 9, which is no neighbor", FREE),
    Attack("one neighbor's box four times", MASK, body(lambda s: replace(
        s.shares, boxes=s.shares.boxes[:1] * 4).to_bytes()), "repeats? a device", FREE),
    Attack("the other session's shares", MASK, lambda s: s.other.request, "of another session", FREE),
    Attack("shares of another roster", MASK, body(lambda s: replace(
        s.shares, roster_hash=bytes(32)).to_bytes()), "of another roster", FREE),
    Attack("shares that are none", MASK, body(lambda s: JUNK), "SealedShares is malformed", FREE),
    Attack("shares cut off", MASK, body(lambda s: s.request.body[:-1]), "SealedShares is malformed", FREE),
    Attack("oversized shares", MASK, body(lambda s: LONG), "bytes, more than", FREE),
    Attack("shares with more in them", MASK, body(lambda s: s.request.body + b"\x78\x01"), "canonical form", FREE),
]  # fmt: skip

SURVIVORS = [
    Attack("a single survivor", CONFIRM, lambda s: s.surviving(0), "1 survivors, fewer than 4", CHARGED),
    Attack("three survivors", CONFIRM, lambda s: s.surviving(0, 1, 2), "3 survivors, fewer than 4", CHARGED),
    Attack("survivors without the device", CONFIRM, lambda s: s.surviving(1, 2, 3, 4), "leave this device out", CHARGED),
    Attack("survivors beyond the roster", CONFIRM, body(lambda s: replace(
        s.survivors, bitmap=b"\x3f").to_bytes()), "not one of 5 devices", CHARGED),
    Attack("the other session's survivors", CONFIRM, lambda s: s.other.request, "of another session", CHARGED),
    Attack("survivors of another roster", CONFIRM, body(lambda s: replace(
        s.survivors, roster_hash=bytes(32)).to_bytes()), "of another roster", CHARGED),
    Attack("survivors cut off", CONFIRM, body(lambda s: s.request.body[:-1]), "Survivors is malformed", CHARGED),
    Attack("oversized survivors", CONFIRM, body(lambda s: LONG), "more than 4096", CHARGED),
    Attack("survivors with more in them", CONFIRM, body(lambda s: s.request.body + b"\x78\x01"), "canonical", CHARGED),
]  # fmt: skip

CONFIRMATIONS = [
    Attack("a peer alive for it and dead for the others", UNMASK, lambda s: s.confirmed_by(
        1, 2, 3, survivors=(0, 1, 2, 3)), "dev-1 did not sign these survivors", CHARGED),
    Attack("too few confirmations", UNMASK, lambda s: signatures(s, lambda all_: all_[:2]), "2 neighbors confirmed", CHARGED),
    Attack("no confirmations", UNMASK, lambda s: signatures(s, lambda all_: ()), "0 neighbors confirmed", CHARGED),
    Attack("a forged confirmation", UNMASK, lambda s: signatures(
        s, lambda all_: ((1, bytes(64)), *all_[1:])), "dev-1 did not sign", CHARGED),
    Attack("one confirmation for two", UNMASK, lambda s: signatures(
        s, lambda all_: (all_[0], (2, all_[0][1]), *all_[2:])), "dev-2 did not sign", CHARGED),
    Attack("one confirmation twice", UNMASK, lambda s: signatures(
        s, lambda all_: (all_[0], *all_)), "repeats? a device", CHARGED),
    Attack("its own confirmation as a neighbor's", UNMASK, lambda s: signatures(s, lambda all_: ((0, Confirmation.from_bytes(
        s.moments[CONFIRM].answer.body, "dev-0").signature), *all_)), "position 0, which is no surviving", CHARGED),
    Attack("the other session's confirmations", UNMASK, lambda s: s.other.request, "of another session", CHARGED),
    Attack("confirmations cut off", UNMASK, body(lambda s: s.request.body[:-1]), "Confirmations is malformed", CHARGED),
    Attack("oversized confirmations", UNMASK, body(lambda s: LONG), "bytes, more than", CHARGED),
    Attack("confirmations with more in them", UNMASK, body(lambda s: s.request.body + b"\x78\x01"), "canonical", CHARGED),
]  # fmt: skip

TABLE = [*INVITATIONS, *ROSTERS, *SHARES, *SURVIVORS, *CONFIRMATIONS]


def pb_boxes(stage: Stage) -> Iterator[tuple[int, bytes]]:
    """The boxes that the device itself sealed."""
    message = pb.SealedShares.FromString(stage.moments[SHARE].answer.body)
    return ((share.peer, share.box) for share in message.shares)

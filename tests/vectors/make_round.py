"""The vectors of round.json: one round of four devices, byte for byte, and what each party refuses in it.

Dora shares and then vanishes, so that both sorts of secrets are opened. Keys, coefficients, nonces and
words are hashes of their names (fixed.py): the states that a device draws at random are put together here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from umbel_proto.encoding import digest, enc
from umbel_proto.ids import DeviceId
from umbel_proto.secagg import device, server
from umbel_proto.secagg import messages as m
from umbel_proto.secagg.entries import JOIN_LABEL, make_entry
from umbel_proto.secagg.masks import Words
from umbel_proto.secagg.neighborhood import Neighborhood, Session, read_roster
from umbel_proto.secagg.session import entry_hash, session_id
from vectors.fixed import (
    AUTHORITY,
    NOW_S,
    PRIME,
    credential_of,
    descriptor,
    encoding,
    fixed,
    policy,
    secrets_of,
    signing_key,
)
from vectors.independent import polynomial
from vectors.make_primitives import SMALL_ORDER

Case = dict[str, Any]
ANNA, BERT, CARL, DORA = DEVICES = tuple(DeviceId(name) for name in ("anna", "bert", "carl", "dora"))
SESSION = descriptor()
SID = session_id(SESSION.to_bytes())
THRESHOLD = 3
TO_DEVICE: Mapping[str, Callable[[bytes, float], device.Event]] = {
    "train": lambda data, now_s: device.Invited(data, fixed("model"), fixed("plan"), now_s),
    "share": device.RosterReceived,
    "mask": lambda data, _: device.SharesReceived(data, words_of(ANNA)),
    "confirm": lambda data, _: device.SurvivorsReceived(data),
    "unmask": lambda data, _: device.SignaturesReceived(data),
}
"""What a request of a phase is to a device; words are anna's."""


def words_of(name: DeviceId) -> Words:
    return np.frombuffer(fixed(f"words {name}", 8 * SESSION.encoding.words), "<u8").astype(np.uint64)


def member_of(name: DeviceId, *, not_after_s: int = NOW_S + 3600) -> device.Member:
    credential = credential_of(name, not_after_s=not_after_s)
    return device.Member(credential, signing_key(name), policy(), AUTHORITY.public)


def entry_of(name: DeviceId, sid: bytes = SID, **changes: Any) -> bytes:
    entry = make_entry(
        secrets_of(name), sid=sid, device=name, credential=credential_of(name), identity=signing_key(name)
    )
    if not changes:
        return entry
    e = replace(m.JoinEntry.from_bytes(entry, name), **changes)
    body = enc(sid, name, e.mask_key, e.share_key, e.seed_commitment)
    return replace(e, signature=signing_key(name).sign(JOIN_LABEL, body)).to_bytes()


def joined(name: DeviceId) -> device.Joined:
    """Phase 1 answered, with keys that are not drawn."""
    session = Session(SID, SESSION, name, fixed("model"))
    request = digest(device.REQUEST_LABEL, SESSION.to_bytes(), fixed("model"), fixed("plan"))
    answer = device.Answer(request, device.Reply(entry_of(name)))
    return device.Joined(member_of(name), session, secrets_of(name), answer)


def coefficients(name: DeviceId) -> tuple[list[int], list[int]]:
    """The polynomials of a device's seed and mask key."""
    own = secrets_of(name)
    first = {"seed": own.seed, "key": own.mask_private.private_bytes_raw()}
    seed, key = (
        [int.from_bytes(secret, "big")]
        + [int.from_bytes(fixed(f"{what} {name} {i}"), "big") % PRIME for i in range(1, THRESHOLD)]
        for what, secret in first.items()
    )
    return seed, key


def shared(state: device.Joined, roster: bytes) -> tuple[device.Shared, bytes]:
    """Phase 2 answered, with coefficients and nonces that are not drawn, and the answer."""
    name, own = state.session.device, state.secrets
    around = read_roster(
        state.session, roster, entry=state.answer.reply.message, authority=AUTHORITY.public, now_s=NOW_S
    )
    seed, key = coefficients(name)
    boxes = []
    for position in around.peers:
        lane = around.lane_to(position, SID)
        plain = b"".join(polynomial(each, position + 1).to_bytes(32, "big") for each in (seed, key))
        nonce = fixed(f"nonce {name} {position}", 12)
        sealed = AESGCM(around.lane_key(lane, own, position)).encrypt(nonce, plain, lane.associated)
        boxes.append((position, nonce + sealed))
    reply = device.Reply(m.SealedShares(SID, around.roster_hash, tuple(boxes)).to_bytes())
    own_share = polynomial(seed, around.position + 1).to_bytes(32, "big")
    answer = device.Answer(digest(device.REQUEST_LABEL, roster), reply)
    return device.Shared(state.member, state.session, around, own, own_share, answer), reply.message


@dataclass
class Tape:
    """The round: every message, and the states of anna and the server before each phase."""

    messages: list[Case]
    asked: dict[str, bytes]
    anna: dict[str, device.State]
    server: dict[str, server.State]
    replies: dict[str, dict[DeviceId, device.Reply]]
    around: Neighborhood


def play() -> Tape:
    state: server.State = server.open_session(
        SESSION, authority=AUTHORITY.public, invited=DEVICES, now_s=NOW_S
    )
    devices: dict[DeviceId, device.State] = {name: device.Idle(member_of(name)) for name in DEVICES}
    requests: dict[DeviceId, bytes] = dict.fromkeys(DEVICES, SESSION.to_bytes())
    sent: Mapping[str, Callable[[DeviceId, device.Reply], server.Event]] = {
        "train": lambda name, reply: server.Joined(name, reply.message),
        "share": lambda name, reply: server.SharesSent(name, reply.message),
        "mask": lambda name, reply: server.MaskedSent(name, reply.message, _present(reply.words)),
        "confirm": lambda name, reply: server.ConfirmedSent(name, reply.message),
        "unmask": lambda name, reply: server.Revealed(name, reply.message),
    }
    tape = Tape([], {}, {}, {}, {}, None)  # type: ignore[arg-type]
    for phase in sent:
        tape.anna[phase], tape.server[phase] = devices[ANNA], state
        tape.asked[phase], tape.replies[phase] = requests[ANNA], {}
        for name, request in requests.items():
            tape.messages.append({"phase": phase, "to": name, "bytes": request.hex()})
            if phase == "mask" and name == DORA:
                state, _ = server.step(state, server.Lost(DORA, "gone"))
                continue
            before = devices[name]
            if phase == "train":
                devices[name] = joined(name)
                reply = device.Reply(entry_of(name))
            elif isinstance(before, device.Joined):
                devices[name], message = shared(before, request)
                reply = device.Reply(message)
            else:
                event = TO_DEVICE[phase](request, NOW_S)
                if isinstance(event, device.SharesReceived):
                    event = replace(event, words=words_of(name))
                devices[name], reply = device.step(before, event)
            tape.replies[phase][name] = reply
            words = {} if reply.words is None else {"words": [str(w) for w in reply.words.tolist()]}
            tape.messages.append({"phase": phase, "from": name, "bytes": reply.message.hex(), **words})
            state, _ = server.step(state, sent[phase](name, reply))
        state, outgoing = server.step(state, server.Closed())
        requests = {each.device: each.message for each in outgoing}
    tape.anna["over"], tape.server["over"] = devices[ANNA], state
    masked = tape.anna["confirm"]
    assert isinstance(masked, device.Masked)
    tape.around = masked.neighborhood
    return tape


def _present(words: Words | None) -> Words:
    assert words is not None
    return words


def vectors() -> dict[str, Any]:
    tape = play()
    opened = tape.server["over"]
    assert isinstance(opened, server.Opened)
    plain = {name: [str(w) for w in words_of(name).tolist()] for name in DEVICES}
    return {
        "about": "One round of docs/spec/secure-aggregation.md with four devices, one of which vanishes in phase "
        "3; and requests to anna, and answers to the server, that are refused. Bytes are hex, words decimal.",
        "session": {
            "descriptor": SESSION.to_bytes().hex(),
            "sid": SID.hex(),
            "roster_hash": tape.around.roster_hash.hex(),
            "threshold": THRESHOLD,
            "authority": AUTHORITY.public.raw.hex(),
            "model_hash": fixed("model").hex(),
            "plan_hash": fixed("plan").hex(),
            "now_s": NOW_S,
        },
        "devices": [_device(name, plain[name]) for name in DEVICES],
        "messages": tape.messages,
        "opened": {
            "survivors": list(opened.survivors),
            "total": [str(w) for w in opened.total.tolist()],
        },
        "device_refuses": to_refuse(tape),
        "server_refuses": to_reject(tape),
    }


def _device(name: DeviceId, words: list[str]) -> Case:
    own, (seed, key) = secrets_of(name), coefficients(name)
    return {
        "id": name,
        "identity_key": signing_key(name).public.raw.hex(),
        "mask_private": own.mask_private.private_bytes_raw().hex(),
        "share_private": own.share_private.private_bytes_raw().hex(),
        "seed": own.seed.hex(),
        "seed_coefficients": [f"{c:064x}" for c in seed],
        "key_coefficients": [f"{c:064x}" for c in key],
        "words": words,
    }


def to_refuse(tape: Tape) -> list[Case]:
    """Requests to anna that come when the phase's right one would be answered."""
    out: list[Case] = []

    def refuse(phase: str, comment: str, kind: str, data: bytes, **more: Any) -> None:
        out.append({"phase": phase, "comment": comment, "bytes": data.hex(), "kind": kind, **more})

    for comment, kind, changed in (
        ("another fleet", "against_policy", {"fleet": "forest"}),
        ("gamma below the policy's", "against_policy", {"corrupt_fraction": 0.05}),
        ("delta below the policy's", "against_policy", {"dropout_fraction": 0.1}),
        ("a server that is trusted", "against_policy", {"server_malicious": False}),
        ("noise below the floor", "against_policy", {"encoding": encoding(noise=encoding().noise / 128)}),
        ("another model than hers", "wrong_model", {"model_hash": fixed("another model")}),
        ("another plan than hers", "wrong_plan", {"plan_hash": fixed("another plan")}),
        ("over a second ago", "over", {"closes_at_s": NOW_S - 1}),
        ("over this very second", "over", {"closes_at_s": NOW_S}),
    ):
        refuse("train", comment, kind, descriptor(**changed).to_bytes())
    for comment, kind, data, more in _rosters(tape):
        refuse("share", comment, kind, data, **more)
    for comment, kind, data in _deliveries(tape):
        refuse("mask", comment, kind, data)
    for comment, kind, data, more in _survivors(tape):
        refuse("confirm", comment, kind, data, **more)
    for comment, kind, data in _confirmations(tape):
        refuse("unmask", comment, kind, data)
    phases = [*TO_DEVICE, "over"]
    for turn, phase in enumerate(phases):
        for asked, data in tape.asked.items():
            if phases.index(asked) not in (turn, turn - 1):
                what = f"a request of phase {asked} when {phase} is next"
                refuse(phase, what, "out_of_turn", data, asked=asked)
    others = {
        "train": descriptor(attempt=2).to_bytes(),
        "share": replace(m.Roster.from_bytes(tape.asked["share"], ""), entries=()).to_bytes(),
        "mask": replace(m.SealedShares.from_bytes(tape.asked["mask"], ""), boxes=()).to_bytes(),
        "confirm": m.Survivors(SID, tape.around.roster_hash, b"\x0f").to_bytes(),
        "unmask": m.Confirmations(SID, tape.around.roster_hash, ()).to_bytes(),
    }
    for asked, data in others.items():
        after = phases[phases.index(asked) + 1]
        refuse(after, f"another {asked} request after the first", "second_request", data, asked=asked)
    return out


def _rosters(tape: Tape) -> list[tuple[str, str, bytes, Case]]:
    roster = m.Roster.from_bytes(tape.asked["share"], "server")
    rows, entries = roster.rows, roster.entries

    def with_entry(entry: bytes) -> bytes:
        """Bert's entry replaced, and its hash put right."""
        ours = tuple((name, entry_hash(entry) if name == BERT else hash_) for name, hash_ in rows)
        return replace(roster, rows=ours, entries=(entry, *entries[1:])).to_bytes()

    many = sorted([*rows, *((DeviceId(f"x{i:02}"), fixed(f"x{i}")) for i in range(61))])
    bent = tuple((name, fixed("?") if name == ANNA else hash_) for name, hash_ in rows)
    bert = m.JoinEntry.from_bytes(entries[0], BERT)
    flipped = bytes([bert.signature[0] ^ 1]) + bert.signature[1:]
    late = credential_of(BERT, not_after_s=NOW_S)
    small = SMALL_ORDER["1"]
    cases = [
        ("another session's", "wrong_session", replace(roster, sid=fixed("another sid")).to_bytes()),
        ("two devices", "too_few", replace(roster, rows=rows[:2], entries=entries[:1]).to_bytes()),
        ("65 devices", "too_many", replace(roster, rows=tuple(many)).to_bytes()),
        ("without anna", "left_out", replace(roster, rows=rows[1:]).to_bytes()),
        ("another entry of anna", "changed_entry", replace(roster, rows=bent).to_bytes()),
        ("one entry less", "too_few", replace(roster, entries=entries[1:]).to_bytes()),
        ("entries in another order", "changed_entry", replace(roster, entries=entries[::-1]).to_bytes()),
        (
            "carl's entry in bert's place",
            "changed_entry",
            replace(roster, entries=(entries[1], *entries[1:])).to_bytes(),
        ),
        (
            "bert's key swapped, his old signature",
            "bad_signature",
            with_entry(replace(bert, mask_key=fixed("?")).to_bytes()),
        ),
        (
            "a bit of bert's signature",
            "bad_signature",
            with_entry(replace(bert, signature=flipped).to_bytes()),
        ),
        (
            "bert's entry of another session",
            "bad_signature",
            with_entry(entry_of(BERT, fixed("another sid"))),
        ),
        (
            "bert with carl's credential",
            "bad_credential",
            with_entry(entry_of(BERT, credential=credential_of(CARL))),
        ),
        (
            "bert of another fleet",
            "bad_credential",
            with_entry(entry_of(BERT, credential=credential_of(BERT, fleet="forest"))),
        ),
        ("bert's credential expired", "bad_credential", with_entry(entry_of(BERT, credential=late))),
        ("bert's entry cut", "malformed", with_entry(entries[0][:-1])),
        ("bert's share key of small order", "small_order", with_entry(entry_of(BERT, share_key=small))),
    ]
    return [
        *((comment, kind, data, {}) for comment, kind, data in cases),
        ("after the session's end", "over", tape.asked["share"], {"now_s": NOW_S + 60}),
    ]


def _deliveries(tape: Tape) -> list[tuple[str, str, bytes]]:
    sealed = m.SealedShares.from_bytes(tape.asked["mask"], "server")
    boxes = sealed.boxes
    spoiled = tuple((p, bytes([box[0] ^ 1]) + box[1:]) if p > 1 else (p, box) for p, box in boxes)
    return [
        ("another session's", "wrong_session", replace(sealed, sid=fixed("another sid")).to_bytes()),
        ("another roster's", "wrong_roster", replace(sealed, roster_hash=fixed("?")).to_bytes()),
        ("one box: with her own, two of three", "too_few", replace(sealed, boxes=boxes[:1]).to_bytes()),
        ("none", "too_few", replace(sealed, boxes=()).to_bytes()),
        ("three boxes, of which one opens", "too_few", replace(sealed, boxes=spoiled).to_bytes()),
        (
            "a box from herself",
            "not_a_neighbor",
            replace(sealed, boxes=((0, boxes[0][1]), *boxes)).to_bytes(),
        ),
        ("a box from nobody", "not_a_neighbor", replace(sealed, boxes=(*boxes, (4, boxes[0][1]))).to_bytes()),
        (
            "boxes of each other",
            "too_few",
            replace(sealed, boxes=((1, boxes[1][1]), (2, boxes[0][1]))).to_bytes(),
        ),
    ]


def _survivors(tape: Tape) -> list[tuple[str, str, bytes, Case]]:
    roster = tape.around.roster_hash

    def message(positions: list[int], *, sid: bytes = SID, hash_: bytes = roster) -> bytes:
        return m.Survivors(sid, hash_, m.to_bitmap(positions, 4)).to_bytes()

    sealed = m.SealedShares.from_bytes(tape.asked["mask"], "server")
    fewer = replace(sealed, boxes=sealed.boxes[:2]).to_bytes().hex()
    return [
        ("another session's", "wrong_session", message([0, 1, 2], sid=fixed("another sid")), {}),
        ("another roster's", "wrong_roster", message([0, 1, 2], hash_=fixed("?")), {}),
        ("without anna", "left_out", message([1, 2, 3]), {}),
        ("anna alone", "too_few", message([0]), {}),
        ("two survivors", "too_few", message([0, 1]), {}),
        ("nobody", "wrong_length", m.Survivors(SID, roster, b"").to_bytes(), {}),
        ("a fifth device", "wrong_length", m.Survivors(SID, roster, b"\x17").to_bytes(), {}),
        ("a byte too many", "wrong_length", m.Survivors(SID, roster, b"\x07\x00").to_bytes(), {}),
        # `mask` is what she was asked in phase 3 instead: she knows nothing of dora's shares.
        ("dora, who never shared with anna", "not_a_neighbor", message([0, 1, 2, 3]), {"mask": fewer}),
    ]


def _confirmations(tape: Tape) -> list[tuple[str, str, bytes]]:
    right = m.Confirmations.from_bytes(tape.asked["unmask"], "server")
    roster, (bert, carl) = tape.around.roster_hash, right.signatures

    def signed(
        name: DeviceId, bitmap: bytes, *, sid: bytes = SID, label: str = device.CONFIRM_LABEL
    ) -> bytes:
        return signing_key(name).sign(label, enc(sid, roster, bitmap))

    def with_(*signatures: tuple[int, bytes]) -> bytes:
        return replace(right, signatures=signatures).to_bytes()

    return [
        ("another session's", "wrong_session", replace(right, sid=fixed("another sid")).to_bytes()),
        ("another roster's", "wrong_roster", replace(right, roster_hash=fixed("?")).to_bytes()),
        ("bert's alone: with her own, two of three", "too_few", with_(bert)),
        ("none", "too_few", with_()),
        ("carl was shown other survivors", "bad_signature", with_(bert, (2, signed(CARL, b"\x0f")))),
        (
            "carl signed in another session",
            "bad_signature",
            with_(bert, (2, signed(CARL, b"\x07", sid=fixed("?")))),
        ),
        (
            "carl signed something else",
            "bad_signature",
            with_(bert, (2, signed(CARL, b"\x07", label=JOIN_LABEL))),
        ),
        ("bert's in carl's place", "bad_signature", with_(bert, (2, bert[1]))),
        ("dora's, who is lost", "not_a_neighbor", with_(bert, carl, (3, signed(DORA, b"\x07")))),
        ("anna's own", "not_a_neighbor", with_((0, signed(ANNA, b"\x07")), bert, carl)),
    ]


def to_reject(tape: Tape) -> list[Case]:
    """Answers to the server, in place of anna's (or of another device) in a phase that has just begun."""
    out: list[Case] = []
    roster = tape.around.roster_hash

    def reject(phase: str, comment: str, kind: str, data: bytes, **more: Any) -> None:
        out.append(
            {"phase": phase, "comment": comment, "from": ANNA, "bytes": data.hex(), "kind": kind} | more
        )

    entry = m.JoinEntry.from_bytes(entry_of(ANNA), ANNA)
    low = SMALL_ORDER["p + 1"]
    reject("train", "another session's entry", "bad_signature", entry_of(ANNA, fixed("another sid")))
    reject("train", "bert's entry", "bad_credential", entry_of(BERT))
    reject(
        "train",
        "an expired credential",
        "bad_credential",
        entry_of(ANNA, credential=credential_of(ANNA, not_after_s=NOW_S)),
    )
    reject(
        "train",
        "a credential of another fleet",
        "bad_credential",
        entry_of(ANNA, credential=credential_of(ANNA, fleet="forest")),
    )
    reject(
        "train",
        "a key changed after signing",
        "bad_signature",
        replace(entry, share_key=fixed("?")).to_bytes(),
    )
    reject("train", "a mask key of small order", "small_order", entry_of(ANNA, mask_key=low))
    reject("train", "a share key of small order", "small_order", entry_of(ANNA, share_key=low))
    reject(
        "train", "a device that was not invited", "not_asked", entry_of(DeviceId("emil")), **{"from": "emil"}
    )
    sealed = m.SealedShares.from_bytes(tape.replies["share"][ANNA].message, ANNA)
    boxes = sealed.boxes
    for comment, kind, message in (
        ("another session's", "wrong_session", replace(sealed, sid=fixed("another sid"))),
        ("another roster's", "wrong_roster", replace(sealed, roster_hash=fixed("?"))),
        ("nothing for dora", "not_a_neighbor", replace(sealed, boxes=boxes[:2])),
        ("something for herself", "not_a_neighbor", replace(sealed, boxes=((0, boxes[0][1]), *boxes))),
        ("something for a fifth", "not_a_neighbor", replace(sealed, boxes=(*boxes, (4, boxes[0][1])))),
    ):
        reject("share", comment, kind, message.to_bytes())
    words = [str(w) for w in words_of(ANNA).tolist()]
    right = m.Masked(SID, roster)
    reject(
        "mask", "another session's", "wrong_session", replace(right, sid=fixed("?")).to_bytes(), words=words
    )
    reject(
        "mask",
        "another roster's",
        "wrong_roster",
        replace(right, roster_hash=fixed("?")).to_bytes(),
        words=words,
    )
    reject("mask", "a word too few", "wrong_length", right.to_bytes(), words=words[:-1])
    reject("mask", "a word too many", "wrong_length", right.to_bytes(), words=[*words, "0"])
    reject("mask", "no words", "wrong_length", right.to_bytes(), words=[])
    confirmed = m.Confirmation.from_bytes(tape.replies["confirm"][ANNA].message, ANNA)
    for comment, bitmap in (("other survivors", b"\x0f"), ("fewer survivors", b"\x03")):
        signature = signing_key(ANNA).sign(device.CONFIRM_LABEL, enc(SID, roster, bitmap))
        reject("confirm", comment, "bad_signature", replace(confirmed, signature=signature).to_bytes())
    bert = tape.replies["confirm"][BERT].message
    reject("confirm", "bert's confirmation", "bad_signature", bert)
    reject("confirm", "another session's", "wrong_session", replace(confirmed, sid=fixed("?")).to_bytes())
    reject(
        "confirm", "another roster's", "wrong_roster", replace(confirmed, roster_hash=fixed("?")).to_bytes()
    )
    reject("confirm", "of dora, who is lost", "not_asked", confirmed.to_bytes(), **{"from": DORA})
    shares = m.RevealedShares.from_bytes(tape.replies["unmask"][ANNA].message, ANNA)
    share = fixed("share")
    for comment, kind, message_ in (
        ("another session's", "wrong_session", replace(shares, sid=fixed("?"))),
        ("another roster's", "wrong_roster", replace(shares, roster_hash=fixed("?"))),
        ("the lost device's seed", "not_asked", replace(shares, seeds=(*shares.seeds, (3, share)))),
        ("a survivor's mask key", "not_asked", replace(shares, keys=((1, share), *shares.keys))),
        ("the secrets of a fifth", "not_asked", replace(shares, keys=(*shares.keys, (4, share)))),
    ):
        reject("unmask", comment, kind, message_.to_bytes())
    phases = list(TO_DEVICE)
    for phase in phases:
        for answered in phases:
            if answered != phase:
                reply = tape.replies[answered][ANNA].message
                more = {"words": words} if answered == "mask" else {}
                reject(
                    phase, f"an answer of phase {answered}", "out_of_turn", reply, answered=answered, **more
                )
    return out


def anna_when(tape: Tape, case: Case) -> device.State:
    """Anna as a request of ``device_refuses`` finds her."""
    if "mask" in case:
        state, _ = device.step(tape.anna["mask"], TO_DEVICE["mask"](bytes.fromhex(case["mask"]), NOW_S))
        return state
    return tape.anna[case["phase"]]

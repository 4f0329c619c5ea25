"""round.json: a whole round byte for byte, opened again from the specification alone, and what is refused in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from simulation.freeze import freeze
from umbel_proto.ids import DeviceId
from umbel_proto.secagg import device, server
from umbel_proto.secagg.messages import JoinEntry
from umbel_proto.wire import identity_pb2
from umbel_proto.wire import rounds_pb2 as pb
from vectors import independent
from vectors.kinds import fails_as
from vectors.make import MADE, text_of
from vectors.make_round import TO_DEVICE, anna_when, play

HERE = Path(__file__).resolve().parent
KNOWN: dict[str, Any] = json.loads((HERE / "round.json").read_text())
TAPE = play()
PHASES = list(TO_DEVICE)
NAMES = [each["id"] for each in KNOWN["devices"]]
Case = dict[str, Any]
raw = bytes.fromhex
SID, ROSTER = raw(KNOWN["session"]["sid"]), raw(KNOWN["session"]["roster_hash"])


@pytest.mark.parametrize("name", MADE)
def test_the_committed_file_is_what_its_generator_gives(name: str) -> None:
    assert text_of(MADE[name]()) == (HERE / name).read_text()


def refusals(which: str) -> pytest.MarkDecorator:
    ids = [f"{case['phase']}: {case['comment']}" for case in KNOWN[which]]
    return pytest.mark.parametrize("case", KNOWN[which], ids=ids)


@refusals("device_refuses")
def test_a_device_refuses_what_is_not_right_and_answers_what_is_afterwards(case: Case) -> None:
    state = anna_when(TAPE, case)
    before = freeze(state)
    event = TO_DEVICE[case.get("asked", case["phase"])](
        raw(case["bytes"]), case.get("now_s", KNOWN["session"]["now_s"])
    )
    with fails_as(case["kind"]):
        device.step(state, event)
    assert freeze(state) == before
    if case["phase"] in TAPE.asked and "mask" not in case:
        right = TO_DEVICE[case["phase"]](TAPE.asked[case["phase"]], KNOWN["session"]["now_s"])
        assert device.step(state, right)[0] is not state


def answer_of(case: Case) -> server.Event:
    name, data = DeviceId(case["from"]), raw(case["bytes"])
    words = np.array([int(w) for w in case.get("words", [])], np.uint64)
    match case.get("answered", case["phase"]):
        case "train":
            return server.Joined(name, data)
        case "share":
            return server.SharesSent(name, data)
        case "mask":
            return server.MaskedSent(name, data, words)
        case "confirm":
            return server.ConfirmedSent(name, data)
        case _:
            return server.Revealed(name, data)


@refusals("server_refuses")
def test_the_server_refuses_what_is_not_right_and_goes_on(case: Case) -> None:
    state = TAPE.server[case["phase"]]
    before = freeze(state)
    with fails_as(case["kind"]) as _:
        server.step(state, answer_of(case))
    assert freeze(state) == before


def test_an_expired_credential_of_its_own_keeps_a_device_out() -> None:
    member = TAPE.anna["train"]
    with fails_as("expired"):
        device.step(member, TO_DEVICE["train"](expiring(), KNOWN["session"]["now_s"] + 3600))


def expiring() -> bytes:
    """The session's descriptor, open for longer than anna's credential is valid."""
    message = pb.SessionDescriptor.FromString(TAPE.asked["train"])
    message.closes_at_s += 7200
    return message.SerializeToString(deterministic=True)


@pytest.mark.parametrize("phase", PHASES)
def test_an_answer_given_twice_is_not_asked_for(phase: str) -> None:
    sent = [c for c in KNOWN["messages"] if c["phase"] == phase and c.get("from") == "anna"]
    state, _ = server.step(TAPE.server[phase], answer_of(sent[0]))
    with fails_as("not_asked"):
        server.step(state, answer_of(sent[0]))


def test_every_kind_that_depends_on_the_round_is_met_in_it() -> None:
    kinds = {case["kind"] for case in KNOWN["device_refuses"]}
    assert kinds >= {"wrong_session", "wrong_roster", "bad_signature", "too_few", "left_out", "out_of_turn"}
    assert kinds >= {
        "second_request",
        "changed_entry",
        "not_a_neighbor",
        "over",
        "against_policy",
        "small_order",
    }
    for phase in PHASES[1:]:
        met = {case["kind"] for case in KNOWN["device_refuses"] if case["phase"] == phase}
        assert met >= {"wrong_session", "out_of_turn", "second_request"}, phase


# From here on: the specification, not the code.


def sent(phase: str, name: str) -> Case:
    found = [c for c in KNOWN["messages"] if c["phase"] == phase and c.get("from") == name]
    return dict(found[0])


def test_the_specification_alone_names_the_session_and_the_roster() -> None:
    assert independent.h("umbel/1/sid", raw(KNOWN["session"]["descriptor"])) == SID
    fields = []
    for name in NAMES:
        fields += [name.encode(), independent.h("umbel/1/entry", raw(sent("train", name)["bytes"]))]
    assert independent.h("umbel/1/roster", SID, *fields) == ROSTER


@pytest.mark.parametrize("name", NAMES)
def test_the_specification_alone_verifies_what_a_device_joined_with(name: str) -> None:
    own = KNOWN["devices"][NAMES.index(name)]
    entry = pb.JoinEntry.FromString(raw(sent("train", name)["bytes"]))
    assert entry.mask_key == independent.public_of(raw(own["mask_private"]))
    assert entry.share_key == independent.public_of(raw(own["share_private"]))
    assert entry.seed_commitment == independent.h("umbel/1/seed", SID, name.encode(), raw(own["seed"]))
    body = independent.enc(SID, name.encode(), entry.mask_key, entry.share_key, entry.seed_commitment)
    identity = Ed25519PublicKey.from_public_bytes(raw(own["identity_key"]))
    identity.verify(entry.signature, independent.enc(b"umbel/1/join", body))
    signed = identity_pb2.Signed.FromString(entry.credential)
    authority = Ed25519PublicKey.from_public_bytes(raw(KNOWN["session"]["authority"]))
    authority.verify(signed.signature, independent.enc(b"umbel/1/credential", signed.body))


@pytest.mark.parametrize("sender", NAMES)
def test_the_specification_alone_opens_every_box(sender: str) -> None:
    own = KNOWN["devices"][NAMES.index(sender)]
    message = pb.SealedShares.FromString(raw(sent("share", sender)["bytes"]))
    assert [share.peer for share in message.shares] == [i for i, n in enumerate(NAMES) if n != sender]
    for share in message.shares:
        ids = (sender.encode(), NAMES[share.peer].encode())
        public = independent.public_of(raw(KNOWN["devices"][share.peer]["share_private"]))
        info = independent.enc(b"umbel/1/share", SID, ROSTER, *ids)
        key = independent.kdf(raw(own["share_private"]), public, info)
        plain = AESGCM(key).decrypt(share.box[:12], share.box[12:], independent.enc(SID, *ids))
        for coefficients, half in (("seed_coefficients", plain[:32]), ("key_coefficients", plain[32:])):
            dealt = independent.polynomial([int(c, 16) for c in own[coefficients]], share.peer + 1)
            assert dealt == int.from_bytes(half, "big")


def pair_mask(low: int, high: int, size: int) -> list[int]:
    ids = (NAMES[low].encode(), NAMES[high].encode())
    info = independent.enc(b"umbel/1/mask", SID, ROSTER, raw(KNOWN["session"]["model_hash"]), *ids)
    public = independent.public_of(raw(KNOWN["devices"][high]["mask_private"]))
    key = independent.kdf(raw(KNOWN["devices"][low]["mask_private"]), public, info)
    return independent.words(independent.keystream(key, 0, 8 * size))


def self_mask(seed: bytes, size: int) -> list[int]:
    return independent.words(
        independent.keystream(independent.h("umbel/1/self", SID, ROSTER, seed), 0, 8 * size)
    )


@pytest.mark.parametrize("name", ["anna", "bert", "carl"])
def test_the_specification_alone_masks_the_words(name: str) -> None:
    place = NAMES.index(name)
    own = KNOWN["devices"][place]
    total = [int(w) for w in own["words"]]
    masks = [(1, self_mask(raw(own["seed"]), len(total)))]
    for other in range(len(NAMES)):
        if other != place:
            sign = 1 if place < other else -1
            masks.append((sign, pair_mask(min(place, other), max(place, other), len(total))))
    for sign, mask in masks:
        total = [(word + sign * m) % 2**64 for word, m in zip(total, mask, strict=True)]
    assert [str(w) for w in total] == sent("mask", name)["words"]


@pytest.mark.parametrize("name", ["anna", "bert", "carl"])
def test_the_specification_alone_verifies_the_confirmations(name: str) -> None:
    message = pb.Confirmation.FromString(raw(sent("confirm", name)["bytes"]))
    identity = Ed25519PublicKey.from_public_bytes(raw(KNOWN["devices"][NAMES.index(name)]["identity_key"]))
    body = independent.enc(SID, ROSTER, independent.bitmap([0, 1, 2], 4))
    identity.verify(message.signature, independent.enc(b"umbel/1/confirm", body))


def test_the_specification_alone_opens_the_sum() -> None:
    """As a server would: from what the devices sent, and from nothing else."""
    seeds: dict[int, dict[int, int]] = {}
    keys: dict[int, dict[int, int]] = {}
    for holder, name in enumerate(NAMES[:3]):
        message = pb.RevealedShares.FromString(raw(sent("unmask", name)["bytes"]))
        for found, shares in ((seeds, message.seed_shares), (keys, message.key_shares)):
            for share in shares:
                found.setdefault(share.peer, {})[holder + 1] = int.from_bytes(share.share, "big")
    assert (sorted(seeds), sorted(keys)) == ([0, 1, 2], [3])
    masked = [[int(w) for w in sent("mask", name)["words"]] for name in NAMES[:3]]
    total = [sum(column) % 2**64 for column in zip(*masked, strict=True)]
    for owner, shares in seeds.items():
        seed = independent.interpolate(shares).to_bytes(32, "big")
        entry = JoinEntry.from_bytes(raw(sent("train", NAMES[owner])["bytes"]), "server")
        assert independent.h("umbel/1/seed", SID, NAMES[owner].encode(), seed) == entry.seed_commitment
        total = [(t - m) % 2**64 for t, m in zip(total, self_mask(seed, len(total)), strict=True)]
    assert independent.interpolate(keys[3]).to_bytes(32, "big") == raw(KNOWN["devices"][3]["mask_private"])
    for survivor in range(3):  # Each is lower than dora, and so added their mask.
        total = [(t - m) % 2**64 for t, m in zip(total, pair_mask(survivor, 3, len(total)), strict=True)]
    assert [str(t) for t in total] == KNOWN["opened"]["total"]
    plain = [[int(w) for w in KNOWN["devices"][i]["words"]] for i in range(3)]
    assert total == [sum(column) % 2**64 for column in zip(*plain, strict=True)]

"""primitives.json: umbel's code gives every value, and so does the specification alone."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import umbel_proto
from umbel_proto.credentials import open_credential, open_policy
from umbel_proto.encoding import digest, enc
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.keys import VerifyKey
from umbel_proto.prg import Keystream
from umbel_proto.secagg.boxes import Lane, open_shares, seal_shares
from umbel_proto.secagg.entries import commit_to_seed
from umbel_proto.secagg.graph import Graph, parameters
from umbel_proto.secagg.masks import add_masks, agree, pair_key, self_key
from umbel_proto.secagg.messages import from_bitmap, to_bitmap
from umbel_proto.secagg.shamir import combine, deal, recover
from vectors import independent
from vectors.kinds import fails_as

KNOWN: dict[str, Any] = json.loads((Path(__file__).resolve().parent / "primitives.json").read_text())
PROTOCOL_LABELS = re.compile(r'"(umbel/1/[a-z]+)"')
ELSEWHERE = {
    "umbel/1/seal",
    "umbel/1/telemetry",
    "umbel/1/enroll",
    "umbel/1/return",
    "umbel/1/package",
    "umbel/1/update",
}
LOCAL = {"umbel/1/request"}
"""Labels of other protocols, and of what never leaves a device."""

Case = dict[str, Any]
raw = bytes.fromhex


def each(primitive: str, *, valid: bool | None = None) -> pytest.MarkDecorator:
    """Every case of a primitive, or only those that succeed, or fail."""
    cases = [c for c in KNOWN[primitive] if valid is None or ("expected" in c) is valid]
    assert cases
    return pytest.mark.parametrize("case", cases, ids=[c["comment"] for c in cases])


def fields_of(case: Case) -> list[str | int | bytes]:
    out: list[str | int | bytes] = []
    for field in case["fields"]:
        out.append(raw(field["bytes"]) if "bytes" in field else field.get("text", field.get("integer")))
    return out


def plain_fields(case: Case) -> list[bytes]:
    """As the specification says: text is UTF-8, an integer 8 bytes big-endian."""
    return [
        f if isinstance(f, bytes) else f.encode() if isinstance(f, str) else f.to_bytes(8, "big")
        for f in fields_of(case)
    ]


@each("enc", valid=True)
def test_fields_are_encoded_injectively(case: Case) -> None:
    assert enc(*fields_of(case)) == raw(case["expected"]) == independent.enc(*plain_fields(case))


@each("enc", valid=False)
def test_an_integer_without_a_form_is_not_encoded(case: Case) -> None:
    with fails_as(case["kind"]):
        enc(*fields_of(case))


@each("digest")
def test_every_hash_has_its_value(case: Case) -> None:
    assert digest(case["label"], *fields_of(case)) == raw(case["expected"])
    assert independent.h(case["label"], *plain_fields(case)) == raw(case["expected"])


def test_every_label_of_the_code_has_a_vector() -> None:
    sources = Path(umbel_proto.__file__).parent.rglob("*.py")
    used = {label for path in sources for label in PROTOCOL_LABELS.findall(path.read_text())}
    hashed, signed = {c["label"] for c in KNOWN["digest"]}, {c["label"] for c in KNOWN["signature"]}
    derived = {"umbel/1/mask", "umbel/1/share"}
    assert used - ELSEWHERE - LOCAL == hashed | signed | derived


@pytest.mark.parametrize("mode", ["gcm", "ctr"])
@each("prg", valid=True)
def test_a_keystream_is_aes_of_the_counters_from_two(case: Case, mode: Any) -> None:
    begin, size = case["at"], case["size"]
    stream = Keystream(raw(case["key"]), mode=mode)
    stream.read(begin)
    assert stream.read(size).tobytes() == raw(case["expected"])
    assert independent.keystream(raw(case["key"]), begin, size) == raw(case["expected"])


@each("prg", valid=False)
def test_a_key_of_another_length_gives_no_keystream(case: Case) -> None:
    with fails_as(case["kind"]):
        Keystream(raw(case["key"]))


@each("agree", valid=True)
def test_two_keys_agree_on_what_hkdf_makes_of_them(case: Case) -> None:
    private, public, info = raw(case["private"]), raw(case["public"]), raw(case["info"])
    assert agree(X25519PrivateKey.from_private_bytes(private), public, info) == raw(case["expected"])
    assert independent.kdf(private, public, info) == raw(case["expected"])


@each("agree", valid=False)
def test_nobody_agrees_with_a_key_of_small_order(case: Case) -> None:
    private = X25519PrivateKey.from_private_bytes(raw(case["private"]))
    with fails_as(case["kind"]):
        agree(private, raw(case["public"]), raw(case["info"]))


@each("mask_keys")
def test_a_pair_s_keys_have_their_values(case: Case) -> None:
    sid, roster, model = raw(case["sid"]), raw(case["roster_hash"]), raw(case["model_hash"])
    low, high = (DeviceId(device) for device in case["ids"])
    private, public = X25519PrivateKey.from_private_bytes(raw(case["private"])), raw(case["public"])
    there, back = Lane(sid, roster, low, high), Lane(sid, roster, high, low)
    found = {
        "pair": pair_key(
            private, public, pair=(high, low), sid=sid, roster_hash=roster, model_hash=model
        ).hex(),
        "self": self_key(raw(case["seed"]), sid=sid, roster_hash=roster).hex(),
        "lane": there.key(private, public).hex(),
        "lane_back": back.key(private, public).hex(),
        "associated": there.associated.hex(),
    }
    assert found == case["expected"]
    a, b = (device.encode() for device in case["ids"])
    key = functools.partial(independent.kdf, raw(case["private"]), public)
    assert found == {
        "pair": key(independent.enc(b"umbel/1/mask", sid, roster, model, a, b)).hex(),
        "self": independent.h("umbel/1/self", sid, roster, raw(case["seed"])).hex(),
        "lane": key(independent.enc(b"umbel/1/share", sid, roster, a, b)).hex(),
        "lane_back": key(independent.enc(b"umbel/1/share", sid, roster, b, a)).hex(),
        "associated": independent.enc(sid, a, b).hex(),
    }


def test_a_key_of_another_session_roster_or_model_is_another_key() -> None:
    plain, session, roster, model = (case["expected"] for case in KNOWN["mask_keys"])
    for name in ("pair", "self", "lane", "lane_back"):
        assert len({plain[name], session[name], roster[name]}) == 3
        assert (model[name] == plain[name]) is (name != "pair")  # Only masks depend on the model.
    assert len(set(plain.values())) == len(plain)


@each("masked_words")
def test_masks_are_added_modulo_2_to_the_64(case: Case) -> None:
    words = np.array([int(w) for w in case["words"]], np.uint64)
    add_masks(words, plus=map(raw, case["plus"]), minus=map(raw, case["minus"]))
    assert [str(w) for w in words.tolist()] == case["expected"]
    total = [int(w) for w in case["words"]]
    for sign, keys in ((1, case["plus"]), (-1, case["minus"])):
        for key in keys:
            mask = independent.words(independent.keystream(raw(key), 0, 8 * len(total)))
            total = [(word + sign * m) % 2**64 for word, m in zip(total, mask, strict=True)]
    assert [str(w) for w in total] == case["expected"]


def lane_of(case: Case) -> Lane:
    return Lane(raw(case["sid"]), raw(case["roster_hash"]), DeviceId(case["from"]), DeviceId(case["to"]))


@each("box", valid=True)
def test_a_box_opens_on_its_lane(case: Case) -> None:
    key, box, lane = raw(case["key"]), raw(case["box"]), lane_of(case)
    held = open_shares(box, key, lane)
    assert {"seed": held.seed.hex(), "key": held.key.hex()} == case["expected"]
    associated = independent.enc(raw(case["sid"]), case["from"].encode(), case["to"].encode())
    sealed = AESGCM(key).encrypt(box[:12], held.seed + held.key, associated)
    assert box[:12] + sealed == box
    ours = seal_shares(held, key, lane)
    assert AESGCM(key).decrypt(ours[:12], ours[12:], associated) == held.seed + held.key


@each("box", valid=False)
def test_a_box_that_is_not_right_stays_closed(case: Case) -> None:
    with fails_as(case["kind"]):
        open_shares(raw(case["box"]), raw(case["key"]), lane_of(case))


@each("shares", valid=True)
def test_shares_are_values_of_one_polynomial(case: Case) -> None:
    shares = {int(x): raw(share) for x, share in case["expected"].items()}
    coefficients = [int(c, 16) for c in case["coefficients"]]
    assert {x: independent.polynomial(coefficients, x) for x in shares} == {
        x: int.from_bytes(share, "big") for x, share in shares.items()
    }
    some = dict(list(shares.items())[-case["threshold"] :])
    assert combine(some) == raw(case["secret"])
    assert all(combine(some, at=x) == share for x, share in shares.items())


@each("shares", valid=True)
def test_what_is_dealt_lies_on_a_polynomial_of_the_threshold_s_degree(case: Case) -> None:
    points, threshold = [int(x) for x in case["expected"]], case["threshold"]
    dealt = deal(raw(case["secret"]), points=points, threshold=threshold)
    numbers = {x: int.from_bytes(share, "big") for x, share in dealt.items()}
    first = {x: numbers[x] for x in points[:threshold]}
    assert independent.interpolate(first) == int(case["secret"], 16)
    assert all(independent.interpolate(first, x) == number for x, number in numbers.items())
    fewer = {x: numbers[x] for x in points[: threshold - 1]}
    assert threshold == 1 or independent.interpolate(fewer) != int(case["secret"], 16)


@each("shares", valid=False)
def test_what_is_no_sharing_is_not_dealt(case: Case) -> None:
    with fails_as(case["kind"]):
        deal(raw(case["secret"]), points=case["points"], threshold=case["threshold"])


def recovered(case: Case) -> tuple[bytes, frozenset[int]]:
    shares = {int(x): raw(share) for x, share in case["shares"].items()}

    def committed(seed: bytes) -> bool:
        ours = commit_to_seed(seed, sid=raw(case["sid"]), device=DeviceId(case["id"]))
        assert ours == independent.h("umbel/1/seed", raw(case["sid"]), case["id"].encode(), seed)
        return ours == raw(case["commitment"])

    return recover(shares, threshold=case["threshold"], check=committed)


@each("recover", valid=True)
def test_a_secret_is_recovered_and_who_lied_is_known(case: Case) -> None:
    secret, wrong = recovered(case)
    assert secret == raw(case["expected"]["secret"])
    assert sorted(wrong) == case["expected"]["wrong"]


@each("recover", valid=False)
def test_a_secret_that_is_not_what_was_committed_to_is_not_recovered(case: Case) -> None:
    with fails_as(case["kind"]):
        recovered(case)


@each("graph")
def test_the_graph_follows_from_the_roster(case: Case) -> None:
    n, expected = case["devices"], case["expected"]
    ids, sid, roster = [f"d{i:03}" for i in range(n)], raw(case["sid"]), raw(case["roster_hash"])
    shape = parameters(n, corrupt_fraction=0.1, dropout_fraction=0.1, server_malicious=True)
    graph = Graph.of([DeviceId(i) for i in ids], shape, sid=sid, roster_hash=roster)
    assert list(graph.order) == expected["order"]
    assert (shape.degree, shape.complete) == (expected["degree"], expected["complete"])
    around = (
        [[j for j in range(n) if j != i] for i in range(n)]
        if expected["complete"]
        else independent.circulant(ids, expected["degree"], sid, roster)
    )
    assert [list(graph.neighbors(i)) for i in range(n)] == around
    assert {i: around[int(i)] for i in expected["neighbors"]} == expected["neighbors"]
    own = [expected["complete"]] * n
    assert [i in graph.holders(i) for i in range(n)] == own


def shape_of(case: Case) -> Any:
    return parameters(
        case["devices"],
        corrupt_fraction=case["corrupt_fraction"],
        dropout_fraction=case["dropout_fraction"],
        server_malicious=case["malicious"],
    )


def test_degree_and_threshold_follow_from_the_size() -> None:
    for case in KNOWN["parameters"]:
        if "kind" in case:
            with fails_as(case["kind"]):
                shape_of(case)
            continue
        p, expected = shape_of(case), case["expected"]
        assert p.degree == expected["degree"], case
        assert p.threshold == expected["threshold"], case
        assert p.min_survivors == expected["least_survivors"], case


@each("bitmap", valid=True)
def test_a_bitmap_counts_from_the_lowest_bit(case: Case) -> None:
    n, positions = case["devices"], case["positions"]
    assert to_bitmap(positions, n) == raw(case["expected"]) == independent.bitmap(positions, n)
    assert from_bitmap(raw(case["expected"]), n, "server") == frozenset(positions)


@each("bitmap", valid=False)
def test_a_bitmap_has_one_form(case: Case) -> None:
    with fails_as(case["kind"]):
        from_bitmap(raw(case["bitmap"]), case["devices"], "server")


@each("signature")
def test_a_signature_is_over_its_label_and_body(case: Case) -> None:
    key, body, signature = raw(case["key"]), raw(case["body"]), raw(case["signature"])
    plain = Ed25519PublicKey.from_public_bytes(key)
    labelled = independent.enc(case["label"].encode(), body)
    if "kind" in case:
        with fails_as(case["kind"]):
            VerifyKey(key).verify(case["label"], body, signature)
        with pytest.raises(InvalidSignature):
            plain.verify(signature, labelled)
    else:
        VerifyKey(key).verify(case["label"], body, signature)
        plain.verify(signature, labelled)


@each("credential")
def test_a_credential_speaks_for_one_device_of_one_fleet(case: Case) -> None:
    authority, fleet = VerifyKey(raw(case["authority"])), FleetId(case["fleet"])
    if "kind" in case:
        with fails_as(case["kind"]):
            open_credential(raw(case["signed"]), authority=authority, fleet=fleet, now_s=case["now_s"])
        return
    found = open_credential(raw(case["signed"]), authority=authority, fleet=fleet, now_s=case["now_s"])
    expected = case["expected"]
    assert (found.fleet, found.device) == (expected["fleet"], expected["device"])
    assert found.identity_key.raw.hex() == expected["identity_key"]
    assert found.not_after_s == expected["not_after_s"]


@each("policy")
def test_a_policy_says_what_a_fleet_insists_on(case: Case) -> None:
    authority, fleet = VerifyKey(raw(case["authority"])), FleetId(case["fleet"])
    if "kind" in case:
        with fails_as(case["kind"]):
            open_policy(raw(case["signed"]), authority=authority, fleet=fleet)
        return
    found = open_policy(raw(case["signed"]), authority=authority, fleet=fleet)
    fields = asdict(found)
    assert {name: fields[name] for name in case["expected"]} == case["expected"]


def test_the_seed_of_the_shares_is_a_known_hash() -> None:
    """The generator's inputs are named, so that anyone can make them again."""
    secret = hashlib.shake_256(b"umbel vector seed anna").hexdigest(32)
    assert {c["expected"]["secret"] for c in KNOWN["recover"] if "expected" in c} == {secret}

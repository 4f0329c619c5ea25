"""The vectors of primitives.json: hashes, keys, streams, boxes, shares, graphs, signatures.

Each case has a comment, its inputs, and either ``expected`` or the ``kind`` of failure. Bytes are hex.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from umbel_proto.analytics.query import QUERY_LABEL
from umbel_proto.conditions import Rules
from umbel_proto.credentials import CREDENTIAL_LABEL, POLICY_LABEL, sign_policy
from umbel_proto.encoding import digest, enc
from umbel_proto.errors import UsageError
from umbel_proto.ids import DeviceId
from umbel_proto.prg import Keystream
from umbel_proto.secagg.boxes import Lane
from umbel_proto.secagg.device import CONFIRM_LABEL
from umbel_proto.secagg.entries import JOIN_LABEL, commit_to_seed
from umbel_proto.secagg.graph import Graph, parameters
from umbel_proto.secagg.masks import add_masks, agree, pair_key, self_key
from umbel_proto.secagg.messages import to_bitmap
from umbel_proto.wire import identity_pb2
from vectors import independent
from vectors.fixed import (
    AUTHORITY,
    FLEET,
    NOW_S,
    PRIME,
    agreement_key,
    credential_of,
    fixed,
    policy,
    signing_key,
)

Case = dict[str, Any]
SID, ROSTER, MODEL = fixed("sid"), fixed("roster"), fixed("model")
ANNA, BERT = DeviceId("anna"), DeviceId("bert")

# u-coordinates of small order on Curve25519 and its twist, and two of them not reduced (RFC 7748, section 7;
# the list of Cremers and Jackson, "Prime, Order Please!", CSF 2019).
SMALL_ORDER = {
    "0": (0).to_bytes(32, "little"),
    "1": (1).to_bytes(32, "little"),
    "order 8": bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    "order 8, the other": bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    "p - 1": (2**255 - 20).to_bytes(32, "little"),
    "p": (2**255 - 19).to_bytes(32, "little"),
    "p + 1": (2**255 - 18).to_bytes(32, "little"),
}


def vectors() -> dict[str, Any]:
    return {
        "about": "Primitives of docs/spec/secure-aggregation.md. Bytes are hex; a case has `expected`, or the "
        "`kind` of failure (section 9).",
        "enc": encodings(),
        "digest": digests(),
        "prg": streams(),
        "agree": agreements(),
        "mask_keys": mask_keys(),
        "masked_words": masked_words(),
        "box": boxes(),
        "shares": sharings(),
        "recover": recoveries(),
        "graph": graphs(),
        "parameters": shapes(),
        "bitmap": bitmaps(),
        "signature": signatures(),
        "credential": credentials(),
        "policy": policies(),
    }


def encodings() -> list[Case]:
    cases: list[tuple[str, list[str | int | bytes]]] = [
        ("nothing", []),
        ("one empty field is not no field", [b""]),
        ("text", ["abc"]),
        ("text beyond ASCII is UTF-8", ["é€"]),
        ("an integer, 8 bytes big-endian", [1]),
        ("the largest integer", [2**64 - 1]),
        ("bytes that look like a length", [bytes(7) + b"\x01", b"x"]),
        ("where a field ends matters", ["ab", "c"]),
        ("as the case before says", ["a", "bc"]),
    ]
    out: list[Case] = [
        {"comment": comment, "fields": [_field(f) for f in fields], "expected": enc(*fields).hex()}
        for comment, fields in cases
    ]
    for comment, number in (("an integer too large", 2**64), ("a negative integer", -1)):
        out.append({"comment": comment, "fields": [{"integer": number}], "kind": "out_of_range"})
    return out


def _field(value: str | int | bytes) -> Case:
    match value:
        case str():
            return {"text": value}
        case int():
            return {"integer": value}
        case _:
            return {"bytes": value.hex()}


def digests() -> list[Case]:
    """Every hash of the protocol: its label, its fields, its value."""
    uses: list[tuple[str, str, list[str | int | bytes]]] = [
        ("the session id", "umbel/1/sid", [b"descriptor"]),
        ("a join entry in the roster", "umbel/1/entry", [b"entry"]),
        ("a roster of two", "umbel/1/roster", [SID, "anna", fixed("hash a"), "bert", fixed("hash b")]),
        ("the model as received", "umbel/1/model", [b"parameters"]),
        ("the plan as received", "umbel/1/plan", [b"plan"]),
        ("the query as received", "umbel/1/question", [b"query"]),
        ("the seed of the rotation", "umbel/1/rotation", [SID]),
        ("the commitment to a seed", "umbel/1/seed", [SID, "anna", fixed("seed anna")]),
        ("a device's rank in the graph", "umbel/1/graph", [SID, ROSTER, "anna"]),
        ("the key of the self mask", "umbel/1/self", [SID, ROSTER, fixed("seed anna")]),
        ("what people compare of an identity key", "umbel/1/fingerprint", [fixed("identity anna")]),
    ]
    return [
        {"comment": comment, "label": label, "fields": [_field(f) for f in fields], "expected": value.hex()}
        for comment, label, fields in uses
        for value in [digest(label, *fields)]
    ]


def streams() -> list[Case]:
    key, tile = bytes(range(32)), 1 << 18
    stream = Keystream(key).read(2 * tile + 64).tobytes()
    spans = [("the first block", 0, 16), ("not a whole block", 0, 37), ("across a tile's end", tile - 24, 48)]
    spans += [("across the second tile's end", 2 * tile - 8, 16), ("across the counter's 2^8", 253 * 16, 48)]
    out: list[Case] = [
        {"comment": what, "key": key.hex(), "at": at, "size": size, "expected": stream[at : at + size].hex()}
        for what, at, size in spans
    ]
    for size in (0, 16, 31, 33):
        short = (key + key)[:size].hex()
        out.append({"comment": f"a key of {size} bytes", "key": short, "kind": "wrong_length"})
    return out


def agreements() -> list[Case]:
    """X25519, then HKDF; and the public keys whose outcome anyone knows."""
    private = agreement_key("mask anna")
    out: list[Case] = []
    for comment, info in (("no info", b""), ("some", b"info"), ("long info", bytes(200))):
        public = agreement_key("mask bert").public_key().public_bytes_raw()
        out.append(_agreement(comment, public, info.hex(), expected=agree(private, public, info).hex()))
    high = bytearray(agreement_key("mask bert").public_key().public_bytes_raw())
    high[31] |= 0x80
    expected = agree(private, bytes(high), b"info").hex()
    out.append(
        _agreement("the top bit is ignored (RFC 7748, section 5)", bytes(high), b"info".hex(), expected)
    )
    for name, point in SMALL_ORDER.items():
        out.append(_agreement(f"small order: {name}", point, b"info".hex(), kind="small_order"))
    return out


def _agreement(
    comment: str, public: bytes, info: str, expected: str | None = None, kind: str | None = None
) -> Case:
    outcome = {"kind": kind} if kind else {"expected": expected}
    private = agreement_key("mask anna").private_bytes_raw().hex()
    return {"comment": comment, "private": private, "public": public.hex(), "info": info, **outcome}


def mask_keys() -> list[Case]:
    private, public = agreement_key("mask anna"), agreement_key("mask bert").public_key().public_bytes_raw()
    base: Case = {"sid": SID.hex(), "roster_hash": ROSTER.hex(), "model_hash": MODEL.hex()}
    out = []
    for comment, change in (
        ("between anna and bert", {}),
        ("another session", {"sid": fixed("another sid").hex()}),
        ("another roster", {"roster_hash": fixed("another roster").hex()}),
        ("another model: another mask, so nothing cancels", {"model_hash": fixed("another model").hex()}),
    ):
        given = {**base, **change}
        pair = pair_key(
            private,
            public,
            pair=(ANNA, BERT),
            sid=bytes.fromhex(given["sid"]),
            roster_hash=bytes.fromhex(given["roster_hash"]),
            model_hash=bytes.fromhex(given["model_hash"]),
        )
        lane = Lane(bytes.fromhex(given["sid"]), bytes.fromhex(given["roster_hash"]), ANNA, BERT)
        back = Lane(lane.sid, lane.roster_hash, BERT, ANNA)
        own = self_key(fixed("seed anna"), sid=lane.sid, roster_hash=lane.roster_hash)
        out.append(
            {
                "comment": comment,
                **given,
                "ids": ["anna", "bert"],
                "private": private.private_bytes_raw().hex(),
                "public": public.hex(),
                "seed": fixed("seed anna").hex(),
                "expected": {
                    "pair": pair.hex(),
                    "self": own.hex(),
                    "lane": lane.key(private, public).hex(),
                    "lane_back": back.key(private, public).hex(),
                    "associated": lane.associated.hex(),
                },
            }
        )
    return out


def masked_words() -> list[Case]:
    plus, minus = [fixed("plus 1"), fixed("plus 2")], [fixed("minus 1")]
    out = []
    for comment, p, m in (
        ("no mask", [], []),
        ("one added", plus[:1], []),
        ("one subtracted", [], minus),
        ("several", plus, minus),
        ("what is added and subtracted cancels", plus, plus),
    ):
        words = np.array([0, 1, 2**63, 2**64 - 1, 5], np.uint64)
        add_masks(words, plus=p, minus=m)
        keys = {"plus": [k.hex() for k in p], "minus": [k.hex() for k in m]}
        before = ["0", "1", str(2**63), str(2**64 - 1), "5"]
        out.append(
            {"comment": comment, "words": before, **keys, "expected": [str(w) for w in words.tolist()]}
        )
    return out


def boxes() -> list[Case]:
    key, nonce, lane = fixed("lane key"), fixed("nonce", 12), Lane(SID, ROSTER, ANNA, BERT)
    shares = fixed("seed share") + fixed("key share")

    def sealed(plain: bytes = shares, associated: bytes = lane.associated) -> bytes:
        return nonce + AESGCM(key).encrypt(nonce, plain, associated)

    def flipped(at: int) -> bytes:
        box = bytearray(sealed())
        box[at] ^= 1
        return bytes(box)

    back = Lane(SID, ROSTER, BERT, ANNA).associated
    other = Lane(fixed("another sid"), ROSTER, ANNA, BERT).associated
    high = PRIME.to_bytes(32, "big")
    failing = [
        ("a bit of the nonce", flipped(0), "does_not_open"),
        ("a bit of the seed share", flipped(12), "does_not_open"),
        ("a bit of the key share", flipped(75), "does_not_open"),
        ("a bit of the tag", flipped(91), "does_not_open"),
        ("sealed for the other direction", sealed(associated=back), "does_not_open"),
        ("sealed in another session", sealed(associated=other), "does_not_open"),
        ("cut by a byte", sealed()[:-1], "wrong_length"),
        ("a byte more", sealed() + b"\x00", "wrong_length"),
        ("empty", b"", "wrong_length"),
        ("the seed share is p", sealed(high + shares[32:]), "not_an_element"),
        ("the key share is 2^256 - 1", sealed(shares[:32] + b"\xff" * 32), "not_an_element"),
    ]
    base = {"key": key.hex(), "sid": SID.hex(), "roster_hash": ROSTER.hex(), "from": "anna", "to": "bert"}
    zero = {"seed": bytes(32).hex(), "key": (PRIME - 1).to_bytes(32, "big").hex()}
    plain = {"seed": shares[:32].hex(), "key": shares[32:].hex()}
    edge = bytes.fromhex(zero["seed"] + zero["key"])
    return [
        {"comment": "two shares", **base, "box": sealed().hex(), "expected": plain},
        {"comment": "the least and the largest element", **base, "box": sealed(edge).hex(), "expected": zero},
        *({"comment": c, **base, "box": box.hex(), "kind": kind} for c, box, kind in failing),
    ]


def _element(value: int) -> str:
    return value.to_bytes(32, "big").hex()


def sharings() -> list[Case]:
    """Polynomials with their values: any ``threshold`` of the shares give the secret and the rest."""
    out: list[Case] = []
    for comment, threshold, points in (
        ("every share is the secret at threshold 1", 1, [1, 2, 9]),
        ("all shares needed", 3, [1, 2, 3]),
        ("points far apart", 3, [1, 7, 100, 16384]),
        ("a neighborhood", 8, list(range(3, 19))),
    ):
        coefficients = [
            int.from_bytes(fixed(f"coefficient {i} of {threshold}"), "big") % PRIME for i in range(threshold)
        ]
        out.append(_sharing(comment, coefficients, points))
    out.append(_sharing("a secret of 0", [0, 1], [1, 2, 3]))
    out.append(_sharing("the largest secret: sums wrap at p", [PRIME - 1, PRIME - 1], [1, 2, PRIME % 997]))
    secret = fixed("seed anna").hex()
    for comment, threshold, points, given, kind in (
        ("no threshold", 0, [1, 2], secret, "out_of_range"),
        ("a threshold that cannot be met", 3, [1, 2], secret, "out_of_range"),
        ("the point that holds the secret", 1, [0, 1], secret, "out_of_range"),
        ("a point twice", 2, [4, 4], secret, "out_of_range"),
        ("a secret of p", 2, [1, 2], _element(PRIME), "not_an_element"),
        ("a secret of 31 bytes", 2, [1, 2], secret[2:], "not_an_element"),
    ):
        out.append(
            {"comment": comment, "threshold": threshold, "points": points, "secret": given, "kind": kind}
        )
    return out


def _sharing(comment: str, coefficients: list[int], points: list[int]) -> Case:
    return {
        "comment": comment,
        "threshold": len(coefficients),
        "coefficients": [_element(c) for c in coefficients],
        "secret": _element(coefficients[0]),
        "expected": {str(x): _element(independent.polynomial(coefficients, x)) for x in points},
    }


def recoveries() -> list[Case]:
    """Shares with wrong ones among them; the owner committed to the seed for this sid and id."""
    coefficients = [int.from_bytes(fixed("seed anna"), "big")] + [
        int.from_bytes(fixed(f"recover {i}"), "big") % PRIME for i in range(2)
    ]
    right = {x: independent.polynomial(coefficients, x) for x in range(1, 8)}
    other = [coefficients[0] + 1, *coefficients[1:]]
    cases: list[tuple[str, dict[int, int], list[int] | str]] = [
        ("as many as needed", {x: right[x] for x in (2, 4, 7)}, []),
        ("more than needed; what was not needed stays untested", {**right, 7: 1}, []),
        ("the first is wrong", {**right, 1: 1}, [1]),
        ("two are wrong", {**right, 1: 1, 3: 2}, [1, 3]),
        ("a wrong share equal to a right one at another point", {**right, 2: right[5]}, [2]),
        (
            "four of seven wrong: the three right ones still give it",
            {**right, 1: 1, 2: 1, 3: 1, 4: 1},
            [1, 2, 3, 4],
        ),
        ("too few", {x: right[x] for x in (2, 4)}, "too_few"),
        ("none", {}, "too_few"),
        ("five of seven wrong", {**right, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1}, "wrong_secret"),
        (
            "all of another polynomial: its owner dealt it, or all lied",
            {x: independent.polynomial(other, x) for x in range(1, 8)},
            "wrong_secret",
        ),
    ]
    commitment = commit_to_seed(fixed("seed anna"), sid=SID, device=ANNA).hex()
    base = {"threshold": 3, "sid": SID.hex(), "id": "anna", "commitment": commitment}
    out = []
    for comment, shares, outcome in cases:
        given = {"comment": comment, **base, "shares": {str(x): _element(s) for x, s in shares.items()}}
        if isinstance(outcome, str):
            out.append({**given, "kind": outcome})
        else:
            out.append({**given, "expected": {"secret": fixed("seed anna").hex(), "wrong": outcome}})
    return out


def graphs() -> list[Case]:
    out = []
    for n in (3, 15, 16, 24, 64, 100):
        ids = [DeviceId(f"d{i:03}") for i in range(n)]
        shape = parameters(n, corrupt_fraction=0.1, dropout_fraction=0.1, server_malicious=True)
        graph = Graph.of(ids, shape, sid=SID, roster_hash=ROSTER)
        some = {str(i): list(graph.neighbors(i)) for i in (0, 1, n // 2, n - 1)}
        expected = {
            "degree": shape.degree,
            "complete": shape.complete,
            "order": graph.order,
            "neighbors": some,
        }
        what = "complete" if shape.complete else "sparse"
        given = {"sid": SID.hex(), "roster_hash": ROSTER.hex(), "ids": f"d000 to d{n - 1:03}", "devices": n}
        out.append({"comment": f"{what}, {n} devices", **given, "expected": expected})
    return out


def shapes() -> list[Case]:
    """K and t beyond the 98 pairs of graph_parameters.csv: what the rules for small and dense graphs add."""
    out: list[Case] = []
    for n in (2, 3, 4, 5, 15, 16, 31, 32, 64, 100, 101, 512, 513, 1000, 10_000, 16_384, 16_385):
        for gamma, delta, malicious in (
            (0.0, 0.0, False),
            (0.1, 0.2, True),
            (0.3, 0.3, True),
            (0.45, 0.2, True),
        ):
            given = {
                "devices": n,
                "corrupt_fraction": gamma,
                "dropout_fraction": delta,
                "malicious": malicious,
            }
            try:
                p = parameters(n, corrupt_fraction=gamma, dropout_fraction=delta, server_malicious=malicious)
            except UsageError as exc:
                kind = "no_safe_graph" if "threshold" in str(exc) else "out_of_range"
                out.append({"comment": f"n = {n}", **given, "kind": kind})
                continue
            expected = {"degree": p.degree, "threshold": p.threshold, "least_survivors": p.min_survivors}
            out.append({"comment": f"n = {n}", **given, "expected": expected})
    for gamma, delta in ((0.5, 0.1), (-0.1, 0.1), (0.1, 0.5), (0.1, -1e-9)):
        given = {"devices": 100, "corrupt_fraction": gamma, "dropout_fraction": delta, "malicious": True}
        out.append({"comment": "a fraction out of range", **given, "kind": "out_of_range"})
    return out


def bitmaps() -> list[Case]:
    out: list[Case] = [
        {"comment": comment, "devices": n, "positions": positions, "expected": to_bitmap(positions, n).hex()}
        for comment, n, positions in (
            ("nobody", 3, []),
            ("all of eight fill a byte", 8, list(range(8))),
            ("the ninth begins another", 9, [8]),
            ("some", 20, [0, 3, 7, 8, 19]),
        )
    ]
    for comment, n, data, kind in (
        ("a spare bit", 9, "0002", "wrong_length"),
        ("a byte too many", 8, "0100", "wrong_length"),
        ("a byte too few", 9, "01", "wrong_length"),
        ("empty", 3, "", "wrong_length"),
    ):
        out.append({"comment": comment, "devices": n, "bitmap": data, "kind": kind})
    return out


def signatures() -> list[Case]:
    key, out = signing_key("anna"), []
    for label in (CREDENTIAL_LABEL, POLICY_LABEL, QUERY_LABEL, JOIN_LABEL, CONFIRM_LABEL):
        body = enc(SID, ROSTER, b"\x07")
        base = {"key": key.public.raw.hex(), "label": label, "body": body.hex()}
        out.append(
            {"comment": f"under {label}", **base, "signature": key.sign(label, body).hex(), "expected": True}
        )
    right = key.sign(JOIN_LABEL, body)
    order = 2**252 + 27742317777372353535851937790883648493
    again = (int.from_bytes(right[32:], "little") + order).to_bytes(32, "little")
    for comment, label, changed, signature in (
        ("the label of another use", CONFIRM_LABEL, body, right),
        ("another body", JOIN_LABEL, body + b"\x00", right),
        ("a bit of R", JOIN_LABEL, body, bytes([right[0] ^ 1]) + right[1:]),
        (
            "S plus the group's order: a second form (RFC 8032, section 5.1.7)",
            JOIN_LABEL,
            body,
            right[:32] + again,
        ),
        ("cut", JOIN_LABEL, body, right[:63]),
        ("empty", JOIN_LABEL, body, b""),
    ):
        base = {"key": key.public.raw.hex(), "label": label, "body": changed.hex()}
        out.append({"comment": comment, **base, "signature": signature.hex(), "kind": "bad_signature"})
    base = {"key": signing_key("bert").public.raw.hex(), "label": JOIN_LABEL, "body": body.hex()}
    out.append({"comment": "another's key", **base, "signature": right.hex(), "kind": "bad_signature"})
    return out


def _signed(label: str, body: bytes, *, by: str = "authority") -> bytes:
    key = signing_key(by)
    return identity_pb2.Signed(body=body, signature=key.sign(label, body)).SerializeToString()


def credentials() -> list[Case]:
    good = credential_of("anna")
    body = identity_pb2.Signed.FromString(good).body
    signature = identity_pb2.Signed.FromString(good).signature
    inner = identity_pb2.Credential.FromString(body)

    def with_(**changes: Any) -> bytes:
        fields = {
            "fleet_id": inner.fleet_id,
            "device_id": inner.device_id,
            "identity_key": inner.identity_key,
            "not_after_s": inner.not_after_s,
        }
        message = identity_pb2.Credential(**{**fields, **changes})
        return _signed(CREDENTIAL_LABEL, message.SerializeToString(deterministic=True))

    half = identity_pb2.Signed(body=body[:-1], signature=signature).SerializeToString()
    failing = [
        ("another fleet's", credential_of("anna", fleet="forest"), "foreign"),
        ("of yesterday", credential_of("anna", not_after_s=NOW_S - 86_400), "expired"),
        ("of this very second", credential_of("anna", not_after_s=NOW_S), "expired"),
        ("signed by the device itself", _signed(CREDENTIAL_LABEL, body, by="anna"), "bad_signature"),
        ("signed as a policy", _signed(POLICY_LABEL, body), "bad_signature"),
        ("its body cut", half, "bad_signature"),
        ("no signature", identity_pb2.Signed(body=body).SerializeToString(), "bad_signature"),
        ("no protobuf", b"\xff\xff\xff", "malformed"),
        ("a body that is no protobuf", _signed(CREDENTIAL_LABEL, b"\xff"), "malformed"),
        ("a key of 31 bytes", with_(identity_key=inner.identity_key[:31]), "malformed"),
        ("an id that leaves its directory", with_(device_id="../anna"), "malformed"),
        ("no id", with_(device_id=""), "malformed"),
        ("4097 bytes", good + b"\x00" * (4097 - len(good)), "oversized"),
    ]
    expected = {
        "fleet": FLEET,
        "device": "anna",
        "identity_key": signing_key("anna").public.raw.hex(),
        "not_after_s": NOW_S + 3600,
    }
    base = {"authority": AUTHORITY.public.raw.hex(), "fleet": FLEET, "now_s": NOW_S}
    return [
        {"comment": "valid for an hour", **base, "signed": good.hex(), "expected": expected},
        *({"comment": c, **base, "signed": signed.hex(), "kind": kind} for c, signed, kind in failing),
    ]


def policies() -> list[Case]:
    good = sign_policy(AUTHORITY, policy())
    body = identity_pb2.Signed.FromString(good).body

    def with_(**changes: Any) -> bytes:
        message = identity_pb2.Policy.FromString(body)
        for name, value in changes.items():
            setattr(message, name, value)
        return _signed(POLICY_LABEL, message.SerializeToString(deterministic=True))

    failing = [
        ("another fleet's", with_(fleet_id="forest"), "foreign"),
        ("signed by a device", _signed(POLICY_LABEL, body, by="anna"), "bad_signature"),
        ("signed as a credential", _signed(CREDENTIAL_LABEL, body), "bad_signature"),
        ("half of the devices corrupt", with_(corrupt_fraction=0.5), "malformed"),
        ("corrupt is not a number", with_(corrupt_fraction=float("nan")), "malformed"),
        ("half of the devices lost", with_(dropout_fraction=0.5), "malformed"),
        ("a sum over two", with_(min_cohort=2), "malformed"),
        ("a noise floor below 0", with_(noise_floor=-1.0), "malformed"),
        ("an infinite noise floor", with_(noise_floor=float("inf")), "malformed"),
        ("no budget", with_(budget_epsilon=0.0), "malformed"),
        ("a delta of 1", with_(budget_delta=1.0), "malformed"),
        ("no protobuf", b"\xff\xff\xff", "malformed"),
        ("4097 bytes", good + b"\x00" * (4097 - len(good)), "oversized"),
    ]
    p = policy()
    expected = {
        "fleet": p.fleet,
        "corrupt_fraction": p.corrupt_fraction,
        "dropout_fraction": p.dropout_fraction,
        "server_malicious": p.server_malicious,
        "min_cohort": p.min_cohort,
        "noise_floor": p.noise_floor,
        "budget_epsilon": p.budget_epsilon,
        "budget_delta": p.budget_delta,
        "version": p.version,
    }
    base = {"authority": AUTHORITY.public.raw.hex(), "fleet": FLEET}
    training = Rules(charging=True, min_battery=0.25, unknown="refuse")
    conditional = sign_policy(AUTHORITY, replace(p, training=training))
    return [
        {"comment": "valid", **base, "signed": good.hex(), "expected": expected},
        {
            "comment": "with conditions of training",
            **base,
            "signed": conditional.hex(),
            "expected": {**expected, "training": asdict(training)},
        },
        *({"comment": c, **base, "signed": signed.hex(), "kind": kind} for c, signed, kind in failing),
    ]

"""The vectors of messages.json: every message as bytes, and bytes that are no message, with the kind of failure.

What can be said of a message alone stands here; what a session, a roster or a turn makes of it is in
round.json. A case's bytes are hex; ``zeros_to`` appends zero bytes up to that length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from umbel_proto.secagg import messages as m
from umbel_proto.secagg.session import MAX_DESCRIPTOR_BYTES
from vectors.fixed import FLEET, NOW_S, PRIME, credential_of, fixed
from vectors.independent import field

Case = dict[str, Any]
Field = tuple[int, int | float | bytes]
SID, ROSTER = fixed("sid"), fixed("roster")
BOUND: list[Field] = [(1, SID), (2, ROSTER)]
SIZES = {
    "TrainRequest": m.MAX_SMALL_BYTES,
    "TrainPlan": m.MAX_SMALL_BYTES,
    "SessionDescriptor": MAX_DESCRIPTOR_BYTES,
    "JoinEntry": m.MAX_ENTRY_BYTES,
    "Roster": m.MAX_ROSTER_BYTES,
    "SealedShares": m.MAX_LIST_BYTES,
    "Masked": m.MAX_SMALL_BYTES,
    "Survivors": m.MAX_SMALL_BYTES,
    "Confirmation": m.MAX_SMALL_BYTES,
    "Confirmations": m.MAX_LIST_BYTES,
    "RevealedShares": m.MAX_LIST_BYTES,
}


def vectors() -> dict[str, Any]:
    return {
        "about": "Messages of docs/spec/secure-aggregation.md, section 5, one list for each type. A case has "
        "`expected`, the fields read, or the `kind` of failure (section 9). zeros_to: append zero bytes.",
        "TrainRequest": train_requests(),
        "TrainPlan": train_plans(),
        "SessionDescriptor": descriptors(),
        "JoinEntry": join_entries(),
        "Roster": rosters(),
        "SealedShares": sealed_shares(),
        "Masked": masked(),
        "Survivors": survivors(),
        "Confirmation": confirmation(),
        "Confirmations": confirmations(),
        "RevealedShares": revealed_shares(),
    }


def wire(fields: Sequence[Field]) -> bytes:
    return b"".join(field(number, value) for number, value in fields)


def good(comment: str, fields: Sequence[Field], expected: Case) -> Case:
    return {"comment": comment, "bytes": wire(fields).hex(), "expected": expected}


def bad(comment: str, kind: str, data: bytes | Sequence[Field]) -> Case:
    return {
        "comment": comment,
        "bytes": (data if isinstance(data, bytes) else wire(data)).hex(),
        "kind": kind,
    }


def put(fields: Sequence[Field], number: int, value: int | float | bytes) -> list[Field]:
    """The fields with another value for one of them."""
    return [(n, value if n == number else v) for n, v in fields]


def without(fields: Sequence[Field], number: int) -> list[Field]:
    return [(n, v) for n, v in fields if n != number]


def broken(name: str, fields: Sequence[Field], *, empty: str = "wrong_length") -> list[Case]:
    """What is wrong with any message's bytes, whatever it says."""
    whole, (number, first) = wire(fields), fields[0]
    out = [
        bad("cut by a byte", "malformed", whole[:-1]),
        bad("a tag of field 0", "malformed", b"\x00\x00" + whole),
        bad("a length beyond the end", "malformed", whole + field(30, bytes(9))[:-5]),
        bad("a field nobody knows", "not_canonical", whole + field(30, b"?")),
        bad("the first field twice", "not_canonical", field(number, first) + whole),
        bad(
            "the first field's integer padded",
            "not_canonical",
            field(number, first, padded=True) + wire(fields[1:]),
        ),
        bad("empty", empty, b""),
    ]
    if len(fields) > 1:
        out.append(bad("fields out of order", "not_canonical", wire(list(reversed(fields)))))
    limit = SIZES[name]
    out.append({**bad(f"one byte over {limit}", "oversized", whole), "zeros_to": limit + 1})
    return out


def lengths(fields: Sequence[Field], number: int, what: str) -> list[Case]:
    """A field of fixed length, a byte shorter, longer, and left out."""
    value = next(v for n, v in fields if n == number)
    assert isinstance(value, bytes)
    return [
        bad(f"{what} cut by a byte", "wrong_length", put(fields, number, value[:-1])),
        bad(f"{what} with a byte more", "wrong_length", put(fields, number, value + b"\x00")),
        bad(f"no {what}", "wrong_length", without(fields, number)),
    ]


def bound(fields: Sequence[Field]) -> list[Case]:
    return lengths(fields, 1, "session id") + lengths(fields, 2, "roster hash")


def in_session(**more: Any) -> Case:
    return {"sid": SID.hex(), "roster_hash": ROSTER.hex(), **more}


def train_requests() -> list[Case]:
    fields: list[Field] = [(1, wire(DESCRIPTOR)), (2, wire(PLAN))]
    expected = {"descriptor": wire(DESCRIPTOR).hex(), "plan": wire(PLAN).hex()}
    failing = broken("TrainRequest", fields, empty="")
    return [good("as sent", fields, expected), *(case for case in failing if case["kind"])]


PLAN: list[Field] = [
    (1, 2),
    (2, 16),
    (3, 0.125),
    (4, 0.5),
    (5, 7),
    (6, fixed("package")),
    (7, b"digits"),
    (8, 3),
]
WITHIN, WEIGHT = [(1, b"within_clip"), (3, 1.0)], [(1, b"weight"), (3, 64.0)]
LOSS = [(1, b"loss"), (2, 0.5), (3, 8.0)]
TWO: list[Field] = [(9, wire(WITHIN)), (9, wire(LOSS))]
LENGTHS: list[Field] = [
    (9, wire([(1, b"within_quarter_clip"), (3, 1.0)])),
    (9, wire([(1, b"within_fourfold_clip"), (3, 1.0)])),
]


def train_plans() -> list[Case]:
    plain = {
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 0.125,
        "momentum": 0.5,
        "seed": 7,
        "package_sha256": fixed("package").hex(),
        "model": "digits",
        "package_version": 3,
        "holdback": 0.0,
        "auxiliary": [],
    }
    asked = [["within_clip", 0.0, 1.0], ["loss", 0.5, 8.0]]
    # The session of these sums two quantities; of the first and of the broken ones, none.
    unasked = [
        ("a quantity nobody knows", "out_of_range", [(9, wire([(1, b"heart_rate"), (3, 9.0)])), TWO[1]]),
        ("a quantity twice", "duplicate", [TWO[1], TWO[1]]),
        (
            "bounds the wrong way round",
            "out_of_range",
            [(9, wire([(1, b"loss"), (2, 8.0), (3, 1.0)])), TWO[0]],
        ),
        (
            "a bound that is no number",
            "out_of_range",
            [(9, wire([*LOSS[:2], (3, float("nan"))])), TWO[0]],
        ),
        ("weights from 1", "out_of_range", [(9, wire([(1, b"weight"), (2, 1.0), (3, 64.0)])), TWO[0]]),
        ("within_clip up to 2", "out_of_range", [(9, wire([(1, b"within_clip"), (3, 2.0)])), TWO[1]]),
        (
            "within_half_clip up to 2",
            "out_of_range",
            [(9, wire([(1, b"within_half_clip"), (3, 2.0)])), TWO[1]],
        ),
        ("one of two", "wrong_length", TWO[:1]),
        ("three of two", "wrong_length", [*TWO, (9, wire(WEIGHT))]),
        ("none of two", "wrong_length", []),
    ]
    plan: list[Field] = list(PLAN)
    adam: list[Field] = [(11, b"adam"), (13, 0.99), (14, 1e-4)]
    shared: list[Field] = [(15, 0.01), (16, 5.0), (17, 0.1), (18, 3), (19, 90.0)]
    told = {
        "weight_decay": 0.01,
        "gradient_clip": 5.0,
        "fedprox_mu": 0.1,
        "patience": 3,
        "time_limit_s": 90.0,
    }
    unwanted: list[tuple[str, list[Field]]] = [
        ("an optimizer nobody knows", [(11, b"lion")]),
        ("SGD by its name", [(11, b"sgd"), *adam[1:]]),
        ("Adam without its numbers", adam[:1]),
        ("Adam with a beta_2 of 1", [adam[0], (13, 1.0), adam[2]]),
        ("Nesterov's momentum by Adam", [adam[0], (12, 1), *adam[1:]]),
        ("a gradient clip below 0", [(16, -1.0)]),
        ("a FedProx term that is no number", [(17, float("nan"))]),
        ("patience with nothing held back", [(18, 3)]),
        ("patience with private examples", [(10, 0.2), (18, 3), (20, 1.0), (21, 1.5)]),
        ("a time limit without end", [(19, float("inf"))]),
    ]
    cases = broken("TrainPlan", plan, empty="")
    return [
        good("the update alone", plan, plain),
        {**good("two quantities and a holdback", [*plan, *TWO, (10, 0.2)], plain), "summed": 2}
        | {"expected": {**plain, "auxiliary": asked, "holdback": 0.2}},
        {**good("two lengths", [*plan, *LENGTHS], plain), "summed": 2}
        | {
            "expected": {
                **plain,
                "auxiliary": [["within_quarter_clip", 0.0, 1.0], ["within_fourfold_clip", 0.0, 1.0]],
            }
        },
        good(
            "Adam and every limit",
            [*plan, (10, 0.2), *adam, *shared],
            {
                **plain,
                **told,
                "holdback": 0.2,
                "optimizer": "adam",
                "second_momentum": 0.99,
                "adaptivity": 1e-4,
            },
        ),
        good("Nesterov's momentum", [*plan, (12, 1)], {**plain, "optimizer": "sgd", "nesterov": True}),
        *(case for case in cases if case["kind"]),
        *(bad(comment, "out_of_range", [*plan, *more]) for comment, more in unwanted),
        bad("a model that is not UTF-8", "malformed", put(plan, 7, b"\xff\xfe")),
        *({**bad(c, kind, [*plan, *more]), "summed": 2} for c, kind, more in unasked),
        bad("one of none", "wrong_length", [*plan, TWO[0]]),
    ]


ENCODING: list[Field] = [(1, 10), (2, 10), (3, 21), (4, 0.5), (5, 64.0), (6, 1500), (7, 1001), (8, 8)]
AUXILIARY: list[Field] = [(9, b"\x05\x07")]  # Packed: amplitudes 5 and 7.
DESCRIPTOR: list[Field] = [
    (1, 1),
    (2, FLEET.encode()),
    (3, b"run-7"),
    (4, 3),
    (5, 1),
    (6, b"digits"),
    (7, fixed("model")),
    (8, fixed("plan")),
    (9, wire(ENCODING)),
    (10, 3),
    (11, 64),
    (12, 0.1),
    (13, 0.2),
    (14, 1),
    (15, NOW_S + 60),
]


def encoded(number: int, value: int | float | bytes) -> list[Field]:
    return put(DESCRIPTOR, 9, wire(put(ENCODING, number, value)))


def descriptors() -> list[Case]:
    plain = {
        "protocol": 1,
        "fleet": FLEET,
        "run": "run-7",
        "round": 3,
        "attempt": 1,
        "task": "digits",
        "model_hash": fixed("model").hex(),
        "plan_hash": fixed("plan").hex(),
        "encoding": {
            "dim": 10,
            "padded": 10,
            "bits": 21,
            "clip": 0.5,
            "scale": 64.0,
            "bound_sq": 1500,
            "noise": [1001, 8],
            "auxiliary": [],
        },
        "min_cohort": 3,
        "max_cohort": 64,
        "corrupt_fraction": 0.1,
        "dropout_fraction": 0.2,
        "server_malicious": True,
        "closes_at_s": NOW_S + 60,
    }
    first = without(without(DESCRIPTOR, 4), 5)
    silent = without(put(first, 9, wire([*ENCODING[:6], (8, 1)])), 14)
    quiet = {**plain, "round": 0, "attempt": 0, "server_malicious": False}
    quiet["encoding"] = {**plain["encoding"], "noise": [0, 1]}  # type: ignore[dict-item]
    beside = {**plain, "encoding": {**plain["encoding"], "auxiliary": [5, 7]}}  # type: ignore[dict-item]
    values = [
        ("protocol 2", put(DESCRIPTOR, 1, 2)),
        ("no protocol", without(DESCRIPTOR, 1)),
        ("a fleet that is no name", put(DESCRIPTOR, 2, b"../meadow")),
        ("a run of 64 letters", put(DESCRIPTOR, 3, b"r" * 64)),
        ("no task", without(DESCRIPTOR, 6)),
        ("a model hash of 31 bytes", put(DESCRIPTOR, 7, fixed("model")[:31])),
        ("a plan hash of 33 bytes", put(DESCRIPTOR, 8, fixed("plan", 33))),
        ("a cohort of two", put(DESCRIPTOR, 10, 2)),
        ("the smallest cohort above the largest", put(DESCRIPTOR, 10, 65)),
        ("a cohort of 16,385", put(DESCRIPTOR, 11, 16_385)),
        ("half corrupt", put(DESCRIPTOR, 12, 0.5)),
        ("corrupt is not a number", put(DESCRIPTOR, 12, float("nan"))),
        ("lost below 0", put(DESCRIPTOR, 13, -0.1)),
        ("no parameter", put(DESCRIPTOR, 9, wire(without(ENCODING, 1)))),
        ("2^30 + 1 parameters", encoded(1, 2**30 + 1)),
        ("padded to more than needed", encoded(2, 12)),
        ("slots of 20 bits", encoded(3, 20)),
        ("a clip of 0", put(DESCRIPTOR, 9, wire(without(ENCODING, 4)))),
        ("an infinite clip", encoded(4, float("inf"))),
        ("a scale that is not a number", encoded(5, float("nan"))),
        ("a negative scale", encoded(5, -64.0)),
        ("a scaled clip of 2^30", encoded(5, 2.0**31)),
        ("a bound below the scaled clip", encoded(6, 1023)),
        ("a bound of 2^60", encoded(6, 2**60)),
        ("noise above 2^28", encoded(7, 2**31 + 1)),
        ("noise with a denominator above 2^20", encoded(8, 2**20 + 1)),
        ("an amplitude of 0", put(DESCRIPTOR, 9, wire([*ENCODING, (9, b"\x05\x00")]))),
        ("an amplitude of 2^30", put(DESCRIPTOR, 9, wire([*ENCODING, (9, b"\x80\x80\x80\x80\x04")]))),
        ("65 amplitudes", put(DESCRIPTOR, 9, wire([*ENCODING, (9, b"\x01" * 65)]))),
        ("amplitudes that leave too little bound", put(DESCRIPTOR, 9, wire([*ENCODING, (9, b"\x16")]))),
    ]
    zero = put(DESCRIPTOR, 9, wire(without(ENCODING, 8)))
    return [
        good("as sent", DESCRIPTOR, plain),
        good("round 0, no noise, a curious server: defaults are left out", silent, quiet),
        good("two quantities beside the update", put(DESCRIPTOR, 9, wire(ENCODING + AUXILIARY)), beside),
        *broken("SessionDescriptor", DESCRIPTOR, empty="out_of_range"),
        bad("a default that is there: attempt 0", "not_canonical", put(DESCRIPTOR, 5, 0)),
        bad("a fleet that is not UTF-8", "malformed", put(DESCRIPTOR, 2, b"\xff")),
        bad(
            "amplitudes one by one, not packed",
            "not_canonical",
            put(DESCRIPTOR, 9, wire([*ENCODING, (9, 5), (9, 7)])),
        ),
        bad(
            "noise of 2002/16",
            "not_lowest_terms",
            put(DESCRIPTOR, 9, wire([*ENCODING[:6], (7, 2002), (8, 16)])),
        ),
        bad("noise of 0/8", "not_lowest_terms", put(DESCRIPTOR, 9, wire([*ENCODING[:6], (8, 8)]))),
        bad("noise with denominator 0", "out_of_range", zero),
        *(bad(comment, "out_of_range", fields) for comment, fields in values),
    ]


def join_entries() -> list[Case]:
    fields: list[Field] = [
        (1, credential_of("anna")),
        (2, fixed("mask key")),
        (3, fixed("share key")),
        (4, fixed("commitment")),
        (5, fixed("signature", 64)),
    ]
    names = ("credential", "mask_key", "share_key", "seed_commitment", "signature")
    expected = {
        name: value.hex() for name, (_, value) in zip(names, fields, strict=True) if isinstance(value, bytes)
    }
    return [
        good("as sent", fields, expected),
        *broken("JoinEntry", fields),
        *lengths(fields, 2, "mask key"),
        *lengths(fields, 3, "share key"),
        *lengths(fields, 4, "seed commitment"),
        *lengths(fields, 5, "signature"),
    ]


def _row(device: bytes, hash_: bytes) -> Field:
    return (2, wire([(1, device), (2, hash_)]))


def rosters() -> list[Case]:
    anna, bert, carl = (_row(name.encode(), fixed(f"hash {name}")) for name in ("anna", "bert", "carl"))
    sid: Field = (1, SID)
    fields: list[Field] = [sid, anna, bert, carl, (3, b"entry of bert"), (3, b"entry of carl")]
    rows = [[name, fixed(f"hash {name}").hex()] for name in ("anna", "bert", "carl")]
    entries = [b"entry of bert".hex(), b"entry of carl".hex()]
    empty = bytes.fromhex(wire([sid, _row(b"", fixed("hash anna"))]).hex())
    return [
        good("three devices, anna's view", fields, {"sid": SID.hex(), "rows": rows, "entries": entries}),
        *broken("Roster", fields),
        *lengths(fields, 1, "session id"),
        bad("a device twice", "not_ascending", [sid, anna, anna, bert]),
        bad("out of order", "not_ascending", [sid, bert, anna, carl]),
        bad("an id that is no name", "bad_name", [sid, _row(b"../anna", fixed("hash anna")), bert, carl]),
        bad("an id with a capital", "bad_name", [sid, _row(b"Anna", fixed("hash anna")), bert, carl]),
        bad("an id of 64 letters", "bad_name", [sid, _row(b"a" * 64, fixed("hash anna")), bert, carl]),
        bad("no id, left out", "bad_name", [sid, (2, wire([(2, fixed("hash anna"))])), bert]),
        bad("no id, but there", "not_canonical", empty),
        bad("an id that is not UTF-8", "malformed", [sid, _row(b"\xff\xfe", fixed("hash anna"))]),
        bad("a hash of 31 bytes", "wrong_length", [sid, _row(b"anna", fixed("hash anna", 31)), bert, carl]),
        bad(
            "a row with a field more", "not_canonical", [sid, (2, wire([(1, b"anna"), (2, SID), (3, b"?")]))]
        ),
    ]


def _listed(number: int, peer: int, value: bytes) -> Field:
    """A position and a value; position 0 is the default and left out."""
    return (number, wire([(1, peer), (2, value)] if peer else [(2, value)]))


def listed(number: int, what: str, value: bytes, kind: str = "wrong_length") -> list[Case]:
    """What is wrong with any list of positions."""
    near, far, top = (_listed(number, peer, value) for peer in (0, 300, 16_383))
    short = _listed(number, 4, value[:-1])
    return [
        bad(f"{what} of a position twice", "not_ascending", [*BOUND, near, near]),
        bad(f"{what} out of order", "not_ascending", [*BOUND, far, near]),
        bad(f"{what} of position 16,384", "out_of_range", [*BOUND, near, _listed(number, 16_384, value)]),
        bad(f"{what} of position 2^32 - 1", "out_of_range", [*BOUND, _listed(number, 2**32 - 1, value)]),
        bad(f"{what} cut by a byte", kind, [*BOUND, near, short]),
        bad(f"{what} with a byte more", kind, [*BOUND, _listed(number, 4, value + b"\x00")]),
        bad(f"an empty entry among {what}s", kind, [*BOUND, (number, b"")]),
        bad("position 0, but there", "not_canonical", [*BOUND, (number, wire([(1, 0), (2, value)])), top]),
    ]


def sealed_shares() -> list[Case]:
    box = fixed("box", m.BOX_BYTES)
    fields = [*BOUND, *(_listed(3, peer, box) for peer in (0, 300, 16_383))]
    expected = [[peer, box.hex()] for peer in (0, 300, 16_383)]
    return [
        good("to or from three neighbors", fields, in_session(boxes=expected)),
        good("none", BOUND, in_session(boxes=[])),
        *broken("SealedShares", fields),
        *bound(fields),
        *listed(3, "box", box),
    ]


def masked() -> list[Case]:
    return [good("beside the words", BOUND, in_session()), *broken("Masked", BOUND), *bound(BOUND)]


def survivors() -> list[Case]:
    fields: list[Field] = [*BOUND, (3, b"\x05\x02")]
    return [
        good("three of ten", fields, in_session(bitmap="0502")),
        good("nobody", BOUND, in_session(bitmap="")),
        *broken("Survivors", fields),
        *bound(fields),
        bad("an empty bitmap, but there", "not_canonical", [*BOUND, (3, b"")]),
    ]


def confirmation() -> list[Case]:
    fields: list[Field] = [*BOUND, (3, fixed("signature", 64))]
    return [
        good("as sent", fields, in_session(signature=fixed("signature", 64).hex())),
        *broken("Confirmation", fields),
        *bound(fields),
        *lengths(fields, 3, "signature"),
    ]


def confirmations() -> list[Case]:
    signature = fixed("signature", 64)
    fields = [*BOUND, *(_listed(3, peer, signature) for peer in (0, 300))]
    return [
        good("of two neighbors", fields, in_session(signatures=[[p, signature.hex()] for p in (0, 300)])),
        good("of none", BOUND, in_session(signatures=[])),
        *broken("Confirmations", fields),
        *bound(fields),
        *listed(3, "signature", signature),
    ]


def revealed_shares() -> list[Case]:
    share, largest = fixed("share"), (PRIME - 1).to_bytes(32, "big")
    fields = [*BOUND, _listed(3, 0, share), _listed(3, 2, largest), _listed(4, 1, share)]
    seeds, keys = [[0, share.hex()], [2, largest.hex()]], [[1, share.hex()]]
    high = PRIME.to_bytes(32, "big")
    return [
        good("two survivors', one lost device's", fields, in_session(seeds=seeds, keys=keys)),
        good("nothing", BOUND, in_session(seeds=[], keys=[])),
        *broken("RevealedShares", fields),
        *bound(fields),
        *listed(3, "seed share", share, "not_an_element"),
        *listed(4, "key share", share, "not_an_element"),
        bad("a seed share of p", "not_an_element", [*BOUND, _listed(3, 0, high)]),
        bad("a key share of 2^256 - 1", "not_an_element", [*BOUND, _listed(4, 0, b"\xff" * 32)]),
    ]

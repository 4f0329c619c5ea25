"""messages.json: every message reads and writes as frozen, and what is none is refused for its own reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from umbel._rounds.contribution import asked_for, settings_of
from umbel_proto.errors import UmbelError
from umbel_proto.secagg import messages
from umbel_proto.secagg.canonical import parse, serialize
from umbel_proto.secagg.session import Descriptor
from umbel_proto.wire import rounds_pb2 as pb
from vectors.fixed import descriptor, encoding
from vectors.kinds import fails_as

KNOWN: dict[str, Any] = json.loads((Path(__file__).resolve().parent / "messages.json").read_text())
KINDS = [name for name in KNOWN if name != "about"]
CASES = [(name, case) for name in KINDS for case in KNOWN[name]]
Case = dict[str, Any]


def pairs(values: tuple[tuple[int, bytes], ...]) -> list[list[Any]]:
    return [[position, value.hex()] for position, value in values]


def read_train_request(data: bytes, case: Case) -> tuple[Case, bytes]:
    m = parse(pb.TrainRequest, data, limit=messages.MAX_SMALL_BYTES, peer="server")
    return {"descriptor": m.descriptor.hex(), "plan": m.plan.hex()}, serialize(m)


def read_train_plan(data: bytes, case: Case) -> tuple[Case, bytes]:
    m = parse(pb.TrainPlan, data, limit=messages.MAX_SMALL_BYTES, peer="server")
    summed = encoding(auxiliary=(3,) * case.get("summed", 0))
    quantities = asked_for(m, descriptor(encoding=summed))
    names = (
        "epochs",
        "batch_size",
        "learning_rate",
        "momentum",
        "seed",
        "model",
        "package_version",
        "holdback",
    )
    fields = {name: getattr(m, name) for name in names}
    fields["package_sha256"] = m.package_sha256.hex()
    fields["auxiliary"] = [[q.name, q.low, q.high] for q in quantities]
    settings = settings_of(m)
    for name in case["expected"].keys() - fields.keys() if "expected" in case else ():
        fields[name] = getattr(settings, name)
    return fields, serialize(m)


def read_descriptor(data: bytes, case: Case) -> tuple[Case, bytes]:
    m = Descriptor.from_bytes(data)
    names = ("protocol", "fleet", "run", "round", "attempt", "task", "min_cohort", "max_cohort")
    names += ("corrupt_fraction", "dropout_fraction", "server_malicious", "closes_at_s")
    fields: Case = {name: getattr(m, name) for name in names}
    e = m.encoding
    fields["encoding"] = {
        name: getattr(e, name) for name in ("dim", "padded", "bits", "clip", "scale", "bound_sq")
    }
    fields["encoding"] |= {"noise": [e.noise.numerator, e.noise.denominator], "auxiliary": list(e.auxiliary)}
    return {**fields, "model_hash": m.model_hash.hex(), "plan_hash": m.plan_hash.hex()}, m.to_bytes()


def read_entry(data: bytes, case: Case) -> tuple[Case, bytes]:
    m = messages.JoinEntry.from_bytes(data, "server")
    names = ("credential", "mask_key", "share_key", "seed_commitment", "signature")
    return {name: getattr(m, name).hex() for name in names}, m.to_bytes()


def read_roster(data: bytes, case: Case) -> tuple[Case, bytes]:
    m = messages.Roster.from_bytes(data, "server")
    rows = [[device, hash_.hex()] for device, hash_ in m.rows]
    return {"sid": m.sid.hex(), "rows": rows, "entries": [e.hex() for e in m.entries]}, m.to_bytes()


def bound(name: str) -> Callable[[bytes, Case], tuple[Case, bytes]]:
    """How to read a message that carries the session and the roster."""

    def read(data: bytes, case: Case) -> tuple[Case, bytes]:
        m = getattr(messages, name).from_bytes(data, "server")
        fields = {"sid": m.sid.hex(), "roster_hash": m.roster_hash.hex()}
        for part in case["expected"].keys() - fields.keys():
            value = getattr(m, part)
            fields[part] = value.hex() if isinstance(value, bytes) else pairs(value)
        return fields, m.to_bytes()

    return read


READ: dict[str, Callable[[bytes, Case], tuple[Case, bytes]]] = {
    "TrainRequest": read_train_request,
    "TrainPlan": read_train_plan,
    "SessionDescriptor": read_descriptor,
    "JoinEntry": read_entry,
    "Roster": read_roster,
}


def data_of(case: Case) -> bytes:
    data = bytes.fromhex(case["bytes"])
    return data + bytes(case.get("zeros_to", len(data)) - len(data))


def some(valid: bool) -> pytest.MarkDecorator:
    found = [(name, case) for name, case in CASES if ("expected" in case) is valid]
    return pytest.mark.parametrize(("name", "case"), found, ids=[f"{n}: {c['comment']}" for n, c in found])


@some(valid=True)
def test_a_message_reads_and_writes_as_frozen(name: str, case: Case) -> None:
    fields, again = READ.get(name, bound(name))(data_of(case), case)
    assert fields == case["expected"]
    assert again == data_of(case)


@some(valid=False)
def test_what_is_no_message_is_refused_for_its_own_reason(name: str, case: Case) -> None:
    with fails_as(case["kind"]):
        READ.get(name, bound(name))(data_of(case), {**case, "expected": {}})


def test_every_message_of_the_wire_has_vectors_of_both_sorts() -> None:
    inner = {"RosterRow", "SealedShare", "PeerSignature", "PlainShare", "SumEncoding", "Quantity"}
    assert set(pb.DESCRIPTOR.message_types_by_name) - inner == set(KINDS)
    for name in KINDS:
        assert {"expected" in case for case in KNOWN[name]} == {True, False}


@some(valid=True)
def test_every_cut_of_a_message_is_refused(name: str, case: Case) -> None:
    """Whatever is missing, what is left is never taken for the whole."""
    data = data_of(case)
    for size in range(len(data)):
        try:
            fields, again = READ.get(name, bound(name))(data[:size], case)
        except UmbelError:
            continue
        assert again == data[:size]
        assert fields != case["expected"]

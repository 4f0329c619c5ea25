"""Rounds in memory in which one message is a lie: what the honest side must do with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from simulation.fleet import Fleet
from simulation.freeze import freeze
from umbel_proto.encoding import enc
from umbel_proto.errors import RemoteProtocolError
from umbel_proto.ids import DeviceId
from umbel_proto.secagg import device
from umbel_proto.secagg.entries import JOIN_LABEL
from umbel_proto.secagg.messages import (
    JoinEntry,
    Roster,
)
from umbel_proto.secagg.session import entry_hash, session_id

D0, D1, D2 = DeviceId("d0"), DeviceId("d1"), DeviceId("d2")


def refuses(fleet: Fleet, request: bytes, reason: str, name: str = "d0") -> None:
    """The device refuses the request for this reason, and nothing in it changes."""
    before = freeze(fleet.devices[DeviceId(name)])
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        fleet.ask(name, request)
    assert caught.value.peer == "server"
    assert freeze(fleet.devices[DeviceId(name)]) == before


def rejects(fleet: Fleet, reply: device.Reply, reason: str, name: str = "d0") -> None:
    """The server rejects the reply for this reason, and nothing in it changes."""
    before = freeze(fleet.server)
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        fleet.tell(fleet.reply_event(name, reply))
    assert caught.value.peer == name
    assert freeze(fleet.server) == before


def at(phase: str, n: int = 5, **changes: object) -> Fleet:
    fleet = Fleet(n, **changes)  # type: ignore[arg-type]
    fleet.run_to(phase)
    return fleet


def roster_of(fleet: Fleet, name: str = "d0") -> Roster:
    return Roster.from_bytes(fleet.requests[DeviceId(name)], "server")


def altered(roster: Roster, victim: str, entry: bytes) -> bytes:
    """The roster for d0 with another entry, and its hash put right."""
    rows = tuple((name, entry_hash(entry) if name == victim else hash_) for name, hash_ in roster.rows)
    place = [name for name, _ in roster.rows if name != D0].index(DeviceId(victim))
    entries = (*roster.entries[:place], entry, *roster.entries[place + 1 :])
    return replace(roster, rows=rows, entries=entries).to_bytes()


def join_entry(fleet: Fleet, member: device.Member, name: str = "d0", sid: bytes | None = None) -> bytes:
    """A join entry that ``member`` signed under a name, with keys drawn anew."""
    keys = [X25519PrivateKey.generate().public_key().public_bytes_raw() for _ in range(2)]
    return signed_entry(fleet, member, keys, name, sid)


def signed_entry(
    fleet: Fleet, member: device.Member, keys: list[bytes], name: str = "d0", sid: bytes | None = None
) -> bytes:
    """The same with these keys: of its masks and of its shares."""
    sid = sid or session_id(fleet.descriptor.to_bytes())
    signature = member.identity.sign(JOIN_LABEL, enc(sid, name, *keys, bytes(32)))
    return JoinEntry(member.credential, *keys, bytes(32), signature).to_bytes()

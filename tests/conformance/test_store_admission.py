"""Laws of letting devices in, on every store: each token as often as it says, no quota passed by many at once, nobody in
two places, and what is kept apart kept once."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import URL

from service_fleet import HOUR_S, ManualClock, PlainDevice
from umbel_proto.enrollment import fingerprint
from umbel_proto.errors import RefusedError, TokenError
from umbel_proto.ids import DeviceId
from umbel_server.access.actor import local_actor
from umbel_server.store import quarantine
from umbel_server.store.admission import QuotaError, WaitingError
from umbel_server.store.batches import Arrival
from umbel_server.store.devices import Device
from umbel_server.store.store import Store, open_store
from umbel_server.store.terms import OPEN, Terms

ROSE = DeviceId("rose")
AT_ONCE = 8


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(place: Path | URL, clock: ManualClock) -> Iterator[Store]:
    with open_store(place, clock=clock) as opened:
        yield opened


def enter(store: Store, device: PlainDevice, token: bytes, *, name: str = "", terms: Terms = OPEN) -> Device:
    return store.devices.enroll(device.application(token, name=name), certificate_life_s=HOUR_S, terms=terms)


def all_at_once(act: Callable[[PlainDevice], object]) -> list[object]:
    """Let as many devices as threads do something; return what each got, its error if it was one."""
    devices = [PlainDevice() for _ in range(AT_ONCE)]

    def one(device: PlainDevice) -> object:
        try:
            return act(device)
        except Exception as exc:
            return exc

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, devices))


def test_a_tokens_uses_are_taken_once_each_by_however_many_at_once(store: Store) -> None:
    token = store.tokens.issue(valid_s=HOUR_S, uses=3)
    got = all_at_once(lambda device: enter(store, device, token))
    assert sorted(type(each).__name__ for each in got) == ["Device"] * 3 + ["TokenError"] * (AT_ONCE - 3)
    assert len(store.devices.all()) == 3


@pytest.mark.parametrize(
    ("terms", "state"),
    [
        (Terms(max_devices=2), "Device"),
        (Terms(per_minute=2), "Device"),
        (Terms(approve=True, max_pending=2), "WaitingError"),
        (Terms(approve=True, per_minute=2), "WaitingError"),
    ],
)
def test_no_quota_is_passed_by_many_at_once(store: Store, terms: Terms, state: str) -> None:
    token = store.tokens.issue(valid_s=HOUR_S, uses=AT_ONCE)
    got = all_at_once(lambda device: enter(store, device, token, terms=terms))
    assert sorted(type(each).__name__ for each in got) == sorted([state] * 2 + ["QuotaError"] * (AT_ONCE - 2))
    assert len(store.devices.all()) + len(store.applications.pending()) == 2


def test_of_many_successors_at_once_one_has_the_name_and_the_others_nothing(store: Store) -> None:
    enter(store, PlainDevice(), store.tokens.issue(valid_s=HOUR_S), name="rose")
    token = store.tokens.issue(valid_s=HOUR_S, device="rose", replaces=True)
    got = all_at_once(lambda device: enter(store, device, token))
    (device,) = [each for each in got if isinstance(each, Device)]
    assert [type(each) for each in got if each is not device] == [TokenError] * (AT_ONCE - 1)
    assert store.devices.all() == (device,)
    assert len(store.devices.shut_out()) == 1


def test_what_waits_is_decided_once_and_then_it_is_in(store: Store, clock: ManualClock) -> None:
    device, token = PlainDevice(), store.tokens.issue(valid_s=HOUR_S, approval=True)
    for _ in range(2):
        with pytest.raises(WaitingError):
            enter(store, device, token, name="rose")
    (pending,) = store.applications.pending()
    assert pending.fingerprint == fingerprint(device.identity.public)

    def approve(_: PlainDevice) -> object:
        return store.applications.approve(pending.id, fingerprint=pending.fingerprint, actor=local_actor())

    got = all_at_once(approve)
    assert sorted(type(each).__name__ for each in got) == ["Pending"] + ["UsageError"] * (AT_ONCE - 1)
    clock.advance(2 * HOUR_S)
    assert enter(store, device, token, name="rose").id == "rose"
    assert store.applications.pending() == ()


def test_a_place_that_was_taken_is_never_taken_back(store: Store) -> None:
    old, new = PlainDevice(), PlainDevice()
    enter(store, old, store.tokens.issue(valid_s=HOUR_S), name="rose")
    store.devices.set_node_id(ROSE, 2**64 - 1)
    enter(store, new, store.tokens.issue(valid_s=HOUR_S, device="rose", replaces=True))
    ((key, node),) = store.devices.retired()
    assert (key, node) == (old.application(b"").node_key, 2**64 - 1)
    store.devices.forgotten(key)
    assert store.devices.retired() == []
    assert store.devices.shut_out() == {key}
    with pytest.raises(RefusedError, match="is gone"):
        enter(store, old, store.tokens.issue(valid_s=HOUR_S), name="lily")


def test_a_quarantine_is_seen_by_every_reader_and_ends(store: Store) -> None:
    device = PlainDevice()
    enter(store, device, store.tokens.issue(valid_s=HOUR_S), name="rose")
    for reason in ("odd", "odder"):
        store.devices.quarantine(ROSE, reason=reason)
    found = store.devices.admit(ROSE)
    assert (found.quarantined, found.quarantine_reason, found.trusted) == (True, "odder", False)
    assert store.devices.untrusted() == {ROSE}
    store.devices.release(ROSE)
    store.devices.release(ROSE)
    assert (store.devices.admit(ROSE).trusted, store.devices.untrusted()) == (True, frozenset())


def test_batches_of_a_quarantined_device_are_kept_once_apart_and_not_without_end(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "KEPT_BATCHES", 3)
    for name in ("rose", "lily"):
        enter(store, PlainDevice(), store.tokens.issue(valid_s=HOUR_S), name=name)
    store.devices.quarantine(ROSE, reason="odd")
    for _ in range(5):
        clock.advance(1)
        arrival = Arrival(secrets.token_bytes(16), "key", b"header", b"sealed")
        for _ in range(2):
            store.batches.append(ROSE, [arrival])
        store.batches.append(DeviceId("lily"), [arrival])
    assert store.quarantine.counts() == {ROSE: 3}
    assert {batch.device for batch in store.batches.sealed(limit=100)} == {"lily"}


def test_a_refusal_spends_no_token(store: Store) -> None:
    token = store.tokens.issue(valid_s=HOUR_S)
    enter(store, PlainDevice(), store.tokens.issue(valid_s=HOUR_S))
    with pytest.raises(QuotaError):
        enter(store, PlainDevice(), token, terms=Terms(max_devices=1))
    enter(store, PlainDevice(), token)

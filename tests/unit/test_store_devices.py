"""Tokens and devices in the store: who gets in, once, and who does not."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import URL

from service_fleet import DAY_S, ManualClock, PlainDevice
from umbel_proto.errors import RefusedError, TokenError, UmbelError, UsageError
from umbel_proto.ids import DeviceId
from umbel_server.store.devices import Device
from umbel_server.store.store import Store, open_store

HOUR_S = 3600


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000.0)


@pytest.fixture
def store(place: Path | URL, clock: ManualClock) -> Iterator[Store]:
    with open_store(place, clock=clock) as opened:
        yield opened


def enroll(store: Store, device: PlainDevice, token: bytes, *, name: str = "") -> Device:
    return store.devices.enroll(device.application(token, name=name), certificate_life_s=DAY_S)


def test_a_token_lets_one_device_in(store: Store, clock: ManualClock) -> None:
    device = PlainDevice()
    entered = enroll(store, device, store.tokens.issue(valid_s=HOUR_S), name="rose")
    assert entered.id == "rose"
    assert entered.active
    assert entered.identity_key == device.identity.public
    assert (entered.enrolled_s, entered.last_seen_s) == (clock.now_s, clock.now_s)
    assert entered.certificate_not_after_s == clock.now_s + DAY_S
    assert store.devices.all() == (entered,)


def test_a_second_device_with_the_same_token_is_refused_as_used(store: Store) -> None:
    token = store.tokens.issue(valid_s=HOUR_S)
    enroll(store, PlainDevice(), token)
    with pytest.raises(TokenError, match="already used"):
        enroll(store, PlainDevice(), token)
    assert len(store.devices.all()) == 1


def test_the_same_device_with_the_same_token_is_told_again(store: Store) -> None:
    token, device = store.tokens.issue(valid_s=HOUR_S), PlainDevice()
    assert enroll(store, device, token).id == enroll(store, device, token).id
    assert len(store.devices.all()) == 1


def test_a_repeat_uses_up_nothing(store: Store) -> None:
    token, device = store.tokens.issue(valid_s=HOUR_S, uses=2), PlainDevice()
    enroll(store, device, token)
    enroll(store, device, token)
    enroll(store, PlainDevice(), token)
    with pytest.raises(TokenError, match="used"):
        enroll(store, PlainDevice(), token)


@pytest.mark.parametrize("swapped", ["identity", "node"])
def test_a_repeat_with_another_key_is_no_repeat(store: Store, swapped: str) -> None:
    token, device = store.tokens.issue(valid_s=HOUR_S), PlainDevice()
    enroll(store, device, token)
    setattr(device, swapped, getattr(PlainDevice(), swapped))
    with pytest.raises(RefusedError, match="belong to another device"):
        enroll(store, device, token)


def test_a_device_that_comes_back_with_its_keys_and_a_new_token_keeps_its_name(store: Store) -> None:
    device = PlainDevice()
    first = enroll(store, device, store.tokens.issue(valid_s=HOUR_S))
    device.tls = PlainDevice().tls
    again = enroll(store, device, store.tokens.issue(valid_s=HOUR_S))
    assert again.id == first.id
    assert len(store.devices.all()) == 1


def test_a_device_cannot_come_back_on_a_used_token(store: Store) -> None:
    device, token = PlainDevice(), store.tokens.issue(valid_s=HOUR_S)
    enroll(store, device, token)
    device.tls = PlainDevice().tls
    with pytest.raises(TokenError, match="used"):
        enroll(store, device, token)


def test_a_device_cannot_come_back_on_a_token_for_another(store: Store) -> None:
    device = PlainDevice()
    enroll(store, device, store.tokens.issue(valid_s=HOUR_S), name="rose")
    device.tls = PlainDevice().tls
    with pytest.raises(RefusedError, match="for lily, and this device is rose"):
        enroll(store, device, store.tokens.issue(valid_s=HOUR_S, device="lily"))


def test_a_revoked_device_comes_back_with_no_token(store: Store) -> None:
    device, token = PlainDevice(), store.tokens.issue(valid_s=HOUR_S)
    store.devices.revoke(enroll(store, device, token).id)
    with pytest.raises(RefusedError, match="revoked"):
        enroll(store, device, token)
    device.tls = PlainDevice().tls
    with pytest.raises(RefusedError, match="revoked"):
        enroll(store, device, store.tokens.issue(valid_s=HOUR_S))


def test_a_token_is_refused_from_the_second_it_expires(store: Store, clock: ManualClock) -> None:
    token, device = store.tokens.issue(valid_s=HOUR_S, uses=2), PlainDevice()
    clock.advance(HOUR_S - 1)
    enroll(store, device, token)
    clock.advance(1)
    for late in (device, PlainDevice()):
        with pytest.raises(TokenError, match="expired"):
            enroll(store, late, token)


@pytest.mark.parametrize("token", [bytes(32), b"", b"short"])
def test_an_unknown_token_is_refused(store: Store, token: bytes) -> None:
    store.tokens.issue(valid_s=HOUR_S)
    with pytest.raises(TokenError, match="unknown"):
        enroll(store, PlainDevice(), token)


def test_the_store_does_not_hold_the_secret(tmp_path: Path, store: Store) -> None:
    secret = store.tokens.issue(valid_s=HOUR_S)
    store.close()
    assert all(secret not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_refused_enrollment_uses_up_nothing(store: Store) -> None:
    enroll(store, PlainDevice(), store.tokens.issue(valid_s=HOUR_S), name="rose")
    token = store.tokens.issue(valid_s=HOUR_S)
    with pytest.raises(UsageError, match="already a device rose"):
        enroll(store, PlainDevice(), token, name="rose")
    assert enroll(store, PlainDevice(), token, name="lily").id == "lily"


def test_a_name_is_never_given_out_twice(store: Store) -> None:
    store.devices.revoke(enroll(store, PlainDevice(), store.tokens.issue(valid_s=HOUR_S), name="rose").id)
    with pytest.raises(UsageError, match="already a device rose"):
        enroll(store, PlainDevice(), store.tokens.issue(valid_s=HOUR_S), name="rose")


def test_a_device_that_names_nothing_gets_a_name(store: Store) -> None:
    names = {enroll(store, PlainDevice(), store.tokens.issue(valid_s=HOUR_S)).id for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("dev-") and len(name) == 12 for name in names)


def test_a_token_for_a_name_gives_that_name_whatever_the_device_would_like(store: Store) -> None:
    token = store.tokens.issue(valid_s=HOUR_S, device="rose")
    assert enroll(store, PlainDevice(), token, name="lily").id == "rose"


@pytest.mark.parametrize("name", ["Rose", "../rose", "x" * 64, "-rose", "a b"])
def test_what_is_no_name_is_refused(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="not a name"):
        enroll(store, PlainDevice(), store.tokens.issue(valid_s=HOUR_S), name=name)


@pytest.mark.parametrize(
    ("valid_s", "uses", "device"),
    [
        (0, 1, None),
        (-1, 1, None),
        (1e9, 1, None),
        (60, 0, None),
        (60, 10**9, None),
        (60, 2, "rose"),
        (60, 1, "?"),
    ],
)
def test_a_token_out_of_range_is_not_issued(
    store: Store, valid_s: float, uses: int, device: str | None
) -> None:
    with pytest.raises(UsageError):
        store.tokens.issue(valid_s=valid_s, uses=uses, device=device)


def test_of_many_devices_that_race_for_one_token_one_gets_in(
    place: Path | URL, store: Store, clock: ManualClock
) -> None:
    token = store.tokens.issue(valid_s=HOUR_S)

    def attempt(device: PlainDevice) -> str:
        # Each opens the store for itself, as gateways in several processes do.
        with open_store(place, clock=clock) as own:
            try:
                return enroll(own, device, token).id
            except UmbelError as exc:
                return type(exc).__name__

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, [PlainDevice() for _ in range(16)]))
    assert outcomes.count("TokenError") == 15
    assert len(store.devices.all()) == 1


def test_of_many_repeats_at_once_all_are_the_same_device(store: Store) -> None:
    token, device = store.tokens.issue(valid_s=HOUR_S), PlainDevice()
    with ThreadPoolExecutor(8) as pool:
        names = set(pool.map(lambda _: enroll(store, device, token).id, range(16)))
    assert len(names) == 1


def test_only_active_devices_are_admitted(store: Store) -> None:
    rose = enroll(store, PlainDevice(), store.tokens.issue(valid_s=HOUR_S), name="rose").id
    assert store.devices.admit(rose).id == rose
    store.devices.revoke(rose)
    with pytest.raises(RefusedError, match="rose is revoked"):
        store.devices.admit(rose)
    with pytest.raises(RefusedError, match="lily is not enrolled"):
        store.devices.admit(DeviceId("lily"))


def test_flower_is_told_of_active_devices_until_they_have_a_node(store: Store, clock: ManualClock) -> None:
    devices = {}
    for name in ("rose", "lily", "fern"):
        clock.advance(1)
        devices[name] = PlainDevice()
        enroll(store, devices[name], store.tokens.issue(valid_s=HOUR_S), name=name)
    store.devices.set_node_id(DeviceId("rose"), 2**64 - 1)
    store.devices.revoke(DeviceId("fern"))
    node_key = devices["lily"].application(b"").node_key
    assert store.devices.unregistered() == [("lily", node_key)]
    rose = store.devices.get(DeviceId("rose"))
    assert rose is not None
    assert rose.node_id == 2**64 - 1


def test_changes_to_a_device_that_is_not_there_are_errors(store: Store) -> None:
    for change in (store.devices.revoke, lambda device: store.devices.set_node_id(device, 1)):
        with pytest.raises(UsageError, match="no device rose"):
            change(DeviceId("rose"))


def test_a_device_was_last_seen_at_the_latest_of_its_calls(store: Store, clock: ManualClock) -> None:
    rose = enroll(store, PlainDevice(), store.tokens.issue(valid_s=HOUR_S), name="rose").id
    store.devices.seen({rose: clock.now_s + 20, DeviceId("lily"): clock.now_s})
    store.devices.seen({rose: clock.now_s + 10})
    found = store.devices.get(rose)
    assert found is not None
    assert found.last_seen_s == clock.now_s + 20
    store.devices.seen({})

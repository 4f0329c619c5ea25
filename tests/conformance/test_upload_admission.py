"""Who may send is asked in the transaction that stores: whatever else is in it, each upload has its own answer."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from service_fleet import ManualClock, PlainDevice, make_fleet, running, upload
from umbel_proto.errors import RefusedError
from umbel_proto.ids import DeviceId
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.batches import Arrival
from umbel_server.store.store import Store

DAY_S = 86400


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDir:
    return make_fleet(tmp_path / "garden")


def stored(store: Store) -> list[str]:
    return [line.device for line in store.batches.deliveries()]


def code_of(device: PlainDevice, fleet: FleetDir) -> grpc.StatusCode:
    try:
        device.upload(fleet, [device.sealed(fleet)])
    except grpc.RpcError as exc:
        code: grpc.StatusCode = exc.code()
        return code
    return grpc.StatusCode.OK


def test_a_certificate_for_a_key_that_the_device_no_longer_has_sends_nothing(fleet: FleetDir) -> None:
    rose, other = PlainDevice(), PlainDevice()
    with running(fleet) as (_, store):
        rose.admit(fleet, store, name="rose")
        other.id = rose.id
        other.certify(fleet.authority(), now_s=store.clock())
        assert code_of(other, fleet) is grpc.StatusCode.PERMISSION_DENIED
        assert stored(store) == []
        assert code_of(rose, fleet) is grpc.StatusCode.OK


def test_a_revoked_device_sends_nothing_from_its_next_call_on(fleet: FleetDir) -> None:
    rose = PlainDevice()
    with running(fleet) as (_, store):
        rose.admit(fleet, store, name="rose")
        with rose.channel(fleet) as channel:
            assert list(_upload(channel)) == []
            store.devices.revoke(rose.id)
            with pytest.raises(grpc.RpcError) as refused:
                _upload(channel)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert code_of(rose, fleet) is grpc.StatusCode.PERMISSION_DENIED
        assert stored(store) == []


def test_a_certificate_that_ends_during_a_connection_ends_it(fleet: FleetDir) -> None:
    clock = ManualClock()
    rose = PlainDevice()
    with running(fleet, clock=clock) as (_, store):
        rose.admit(fleet, store, now_s=clock.now_s)
        with rose.channel(fleet) as channel:
            _upload(channel)
            clock.advance(DAY_S + 1)
            with pytest.raises(grpc.RpcError) as refused:
                _upload(channel)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_in_one_commit_the_refused_cost_the_others_nothing(fleet: FleetDir) -> None:
    together = threading.Barrier(30)
    with fleet.open_store() as store:
        devices = [PlainDevice() for _ in range(3)]
        hashes = {}
        for device in devices:
            device.admit(fleet, store)
            hashes[device.id] = store.devices.admit(device.id).tls_key_hash
        active, revoked, changed = (device.id for device in devices)
        store.devices.revoke(revoked)
        hashes |= {changed: bytes(32), DeviceId("nobody"): bytes(32)}

        def send(number: int) -> bool:
            device = list(hashes)[number % 4]
            arrival = Arrival(number.to_bytes(16, "big"), "k", b"header", b"ciphertext")
            together.wait()
            try:
                store.batches.append(device, [arrival], key_hash=hashes[device])
            except RefusedError:
                return False
            assert device == active
            return True

        with ThreadPoolExecutor(30) as pool:
            taken = sum(pool.map(send, range(30)))
        (line,) = store.batches.deliveries()
        assert (line.device, line.sealed, taken) == (active, 8, 8)


def _upload(channel: grpc.Channel) -> list[bytes]:

    return list(upload(channel, ()).acknowledged)

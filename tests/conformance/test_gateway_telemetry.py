"""The gateway over real gRPC and TLS: what it keeps of reports, and when it says so."""

from __future__ import annotations

import functools
import secrets
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import event

from gateway_world import HOUR_S, Served, refusal, stored
from service_fleet import PlainDevice, make_fleet, running
from umbel_proto.seal import generate_keypair
from umbel_proto.wire import telemetry_pb2
from umbel_server.gateway.rpc import RETRY_AFTER
from umbel_server.gateway.telemetry import MAX_BATCH_BYTES, MAX_BATCHES


def test_what_is_acknowledged_is_stored_as_it_came(served: Served, member: PlainDevice) -> None:
    fleet, store, _ = served
    ids = [secrets.token_bytes(16) for _ in range(3)]
    batches = [member.sealed(fleet, batch_id=batch_id) for batch_id in ids]
    assert list(member.upload(fleet, batches).acknowledged) == ids
    assert [(batch.header, batch.ciphertext) for batch in store.batches.sealed(limit=9)] == [
        (batch.header, batch.ciphertext) for batch in batches
    ]


def test_a_batch_that_is_sent_twice_is_acknowledged_twice_and_stored_once(
    served: Served, member: PlainDevice
) -> None:
    fleet, store, _ = served
    batch = member.sealed(fleet)
    assert member.upload(fleet, [batch]) == member.upload(fleet, [batch])
    assert stored(store) == 1


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"device_id": "lily"}, grpc.StatusCode.PERMISSION_DENIED),
        ({"device_id": ""}, grpc.StatusCode.PERMISSION_DENIED),
        ({"fleet_id": "meadow"}, grpc.StatusCode.PERMISSION_DENIED),
        ({"schema": 0}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"batch_id": b"short"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"key_id": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"key_id": "k" * 65}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"key_id": "k" * 2000}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_one_wrong_header_and_the_whole_upload_is_refused(
    served: Served, member: PlainDevice, header: dict[str, Any], code: grpc.StatusCode
) -> None:
    fleet, store, _ = served
    batches = [member.sealed(fleet), member.sealed(fleet, **header)]
    assert refusal(lambda: member.upload(fleet, batches))[0] == code
    assert stored(store) == 0


@pytest.mark.parametrize(
    "batch",
    [
        telemetry_pb2.SealedBatch(),
        telemetry_pb2.SealedBatch(header=b"\xff\xff", ciphertext=b"x"),
        telemetry_pb2.SealedBatch(header=b"", ciphertext=b"x"),
    ],
)
def test_a_malformed_batch_is_refused(
    served: Served, member: PlainDevice, batch: telemetry_pb2.SealedBatch
) -> None:
    code, _ = refusal(lambda: member.upload(served[0], [batch]))
    assert code == grpc.StatusCode.INVALID_ARGUMENT


def test_an_upload_is_limited_in_batches_and_a_batch_in_bytes(served: Served, member: PlainDevice) -> None:
    fleet, store, _ = served
    batch = member.sealed(fleet)
    fits = telemetry_pb2.SealedBatch(header=batch.header, ciphertext=bytes(MAX_BATCH_BYTES))
    too_long = telemetry_pb2.SealedBatch(header=batch.header, ciphertext=bytes(MAX_BATCH_BYTES + 1))
    for batches in ([too_long], [member.sealed(fleet) for _ in range(MAX_BATCHES + 1)]):
        code, _ = refusal(functools.partial(member.upload, fleet, batches))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
    code, _ = refusal(lambda: member.upload(fleet, [fits] * 17))  # More than 4 MiB.
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stored(store) == 0
    member.upload(fleet, [fits])
    member.upload(fleet, [member.sealed(fleet) for _ in range(MAX_BATCHES)])
    assert stored(store) == 1 + MAX_BATCHES


def test_a_batch_sealed_to_a_key_of_yesterday_is_kept_for_the_opener(
    served: Served, member: PlainDevice
) -> None:
    """Refused here, it would come again for ever."""
    fleet, store, _ = served
    member.upload(fleet, [member.sealed(fleet, key=generate_keypair()[1])])
    assert stored(store) == 1


def test_the_gateway_needs_no_key_that_opens_or_releases(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "garden")
    fleet.telemetry_key.unlink()
    fleet.release_key.unlink()
    device = PlainDevice()
    with running(fleet) as (_, store):
        device.enroll(fleet, store.tokens.issue(valid_s=HOUR_S))
        device.upload(fleet, [device.sealed(fleet)])
        assert stored(store) == 1


def test_a_full_disk_acknowledges_nothing_and_says_when_to_come_back(
    served: Served, member: PlainDevice
) -> None:
    fleet, store, _ = served

    def fill_disk(connection: Any, _record: object, _proxy: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(store.database.engine, "checkout", fill_disk)
    with pytest.raises(grpc.RpcError) as caught:
        member.upload(fleet, [member.sealed(fleet, plaintext=bytes(100_000))])
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "disk is full" in error.details()
    assert str(fleet.path) not in error.details()
    assert dict(error.trailing_metadata())[RETRY_AFTER] == "60"
    assert stored(store) == 0
    member.check(fleet)  # What needs no room goes on.


def test_a_bug_of_ours_is_logged_here_and_told_to_nobody(
    served: Served, member: PlainDevice, caplog: pytest.LogCaptureFixture
) -> None:
    fleet, store, _ = served
    with store.database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE devices RENAME COLUMN status TO state")
    with pytest.raises(grpc.RpcError) as caught:
        member.check(fleet)
    error: Any = caught.value
    assert error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
    assert "status" not in error.details()
    assert "no such column: devices.status" in caplog.text

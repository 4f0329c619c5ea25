"""Every method of every gRPC service against everybody who has no business there; a new one is here by itself."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

import umbel_proto.wire
from service_fleet import DAY_S, PlainDevice, invoke, make_fleet, running
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.store import Store

MODULES = [
    importlib.import_module(f"umbel_proto.wire.{each.name}")
    for each in pkgutil.iter_modules(umbel_proto.wire.__path__)
    if each.name.endswith("_pb2")
]
METHODS = [
    (module, service.name, method.name)
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
BY_TOKEN = {("Enrollment", "Enroll"), ("Readmission", "Challenge"), ("Readmission", "Readmit")}
"""What a device calls that has no certificate in force. Another one is a decision, to be written here."""
MUTUAL = [each for each in METHODS if each[1:] not in BY_TOKEN]
NO = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE}
"""The last is how TLS refuses a certificate, before there is a call."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FleetDir, Store]]:
    fleet = make_fleet(tmp_path_factory.mktemp("doors") / "fleet")
    with running(fleet) as (_, store):
        yield fleet, store


@pytest.fixture(scope="module")
def strangers(
    gateway: tuple[FleetDir, Store], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, PlainDevice]:
    fleet, store = gateway
    other = make_fleet(tmp_path_factory.mktemp("elsewhere") / "fleet")
    with other.open_store() as other_store:
        foreign = PlainDevice()
        foreign.admit(other, other_store, name="rose")
    expired, revoked, unknown, borrowed = (PlainDevice() for _ in range(4))
    expired.admit(fleet, store, name="expired")
    expired.certify(fleet.authority(), now_s=store.clock() - 2 * DAY_S)
    revoked.admit(fleet, store, name="revoked")
    store.devices.revoke(revoked.id)
    unknown.certify(fleet.authority(), now_s=store.clock(), device="never-enrolled")
    borrowed.admit(fleet, store, name="borrowed")
    borrowed.certificate = foreign.certificate  # Somebody's certificate without its key.
    return {
        "no certificate": PlainDevice(),
        "another fleet's device": foreign,
        "an expired certificate": expired,
        "a revoked device": revoked,
        "a device that never enrolled": unknown,
        "a certificate without its key": borrowed,
    }


def call(channel: grpc.Channel, module: Any, service: str, method: str) -> None:
    described = module.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    reply = invoke(channel, module, service, method, getattr(module, described.input_type.name)())
    if described.server_streaming:
        list(reply)


def code_of(channel: grpc.Channel, module: Any, service: str, method: str) -> grpc.StatusCode:
    try:
        call(channel, module, service, method)
    except grpc.RpcError as exc:
        code: grpc.StatusCode = exc.code()
        return code
    return grpc.StatusCode.OK


def test_every_service_is_looked_at() -> None:
    assert {"Enrollment", "Membership", "Delivery", "Telemetry"} <= {service for _, service, _ in METHODS}
    assert {each[1:] for each in METHODS} >= BY_TOKEN


@pytest.mark.parametrize(("module", "service", "method"), MUTUAL, ids=[f"{s}.{m}" for _, s, m in MUTUAL])
def test_nobody_calls_a_method_without_a_certificate_of_a_device_that_is_in(
    gateway: tuple[FleetDir, Store], strangers: dict[str, PlainDevice], module: Any, service: str, method: str
) -> None:
    fleet, store = gateway
    for who, device in strangers.items():
        with device.channel(fleet) as channel, pytest.raises(grpc.RpcError) as refused:
            call(channel, module, service, method)
        assert (refused.value.code() in NO, who) == (True, who)
        assert "Traceback" not in (refused.value.details() or "")
    insider = PlainDevice()
    insider.admit(fleet, store)
    with insider.channel(fleet) as channel:
        # What is sent is empty, and may be refused for that; who sends it is not.
        assert code_of(channel, module, service, method) in {
            grpc.StatusCode.OK,
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
        }


@pytest.mark.parametrize(
    ("service", "method"),
    [(f"umbel.wire.v1.{s}", m) for _, s, m in METHODS] + [("grpc.health.v1.Health", "Check")],
)
def test_bytes_that_are_no_message_get_one_sentence_and_no_line_of_the_log_is_a_traceback(
    gateway: tuple[FleetDir, Store], service: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    fleet, store = gateway
    insider = PlainDevice()
    insider.admit(fleet, store)
    stranger = grpc.ssl_channel_credentials(fleet.ca_pem.read_bytes())
    by_token = (service.rpartition(".")[2], method) in BY_TOKEN
    with (
        grpc.secure_channel(fleet.settings.enrollment, stranger)
        if by_token
        else insider.channel(fleet) as channel
    ):
        garbled: Any = channel.unary_stream(f"/{service}/{method}")
        replies = garbled(b"\xff" * 9, timeout=30)
        with pytest.raises(grpc.RpcError) as refused:
            list(replies)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "The call's message is malformed."
    assert [each.getMessage() for each in caplog.records if each.exc_info] == []


@pytest.mark.parametrize(("service", "method"), sorted(BY_TOKEN))
def test_nobody_gets_a_certificate_by_sending_nothing(
    gateway: tuple[FleetDir, Store], service: str, method: str
) -> None:
    fleet, store = gateway
    module = next(each[0] for each in METHODS if each[1:] == (service, method))
    before = len(store.devices.all())
    credentials = grpc.ssl_channel_credentials(fleet.ca_pem.read_bytes())
    with grpc.secure_channel(fleet.settings.enrollment, credentials) as channel:
        code = code_of(channel, module, service, method)
    # A challenge is for the asking; it opens nothing. One that was never given out may be another gateway's.
    given = {"Challenge": {grpc.StatusCode.OK}, "Readmit": {grpc.StatusCode.RESOURCE_EXHAUSTED}}
    assert code in NO | {grpc.StatusCode.INVALID_ARGUMENT} | given.get(method, set())
    assert len(store.devices.all()) == before

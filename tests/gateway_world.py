"""A gateway over real gRPC and TLS for tests of what it lets in, gives and keeps."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from service_fleet import ManualClock
from umbel_proto.ids import ModelName
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.store import Store

Served = tuple[FleetDir, Store, ManualClock]
HOUR_S = 3600


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code(), error.details()


def stored(store: Store) -> int:
    return len(store.batches.sealed(limit=10_000))


def release(served: Served, data: bytes, *, version: int = 1) -> bytes:
    fleet, store, _ = served
    sha256 = secrets.token_bytes(32)
    fleet.package(sha256).write_bytes(data)
    store.releases.publish(ModelName("digits"), version, sha256=sha256, size=len(data))
    return sha256

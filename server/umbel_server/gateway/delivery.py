"""Delivery: devices learn what is released, and fetch it from where they stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from google.protobuf.descriptor import ServiceDescriptor

from umbel_proto.errors import StorageError, UsageError
from umbel_proto.wire import delivery_pb2 as pb
from umbel_server.fleet.layout import FleetDir
from umbel_server.gateway.peer import Peers
from umbel_server.gateway.rpc import BusyError, Call, Method, NotFoundError
from umbel_server.store.releases import Releases

CHUNK_BYTES = 256 << 10
HASH_BYTES = 32


class Delivery:
    """The service that hands out released packages.

    Args:
        fleet: Where the packages lie.
        releases: Which of them devices may have.
        peers: Tells who calls.
        streams: How many may be fetched at once: a slow reader holds a thread.
    """

    descriptor: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["Delivery"]

    def __init__(self, fleet: FleetDir, releases: Releases, peers: Peers, *, streams: int) -> None:
        self._fleet = fleet
        self._releases = releases
        self._peers = peers
        self._streams = threading.BoundedSemaphore(streams)

    @property
    def methods(self) -> dict[str, Method]:
        """Its methods by name."""
        return {"Check": self.check, "Fetch": self.fetch}

    def check(self, _request: pb.CheckRequest, call: Call) -> pb.CheckReply:
        """Return the newest release of every model."""
        self._peers.authenticate(call)
        return pb.CheckReply(
            releases=[
                pb.Release(
                    model=release.model, version=release.version, sha256=release.sha256, size=release.size
                )
                for release in self._releases.newest()
            ]
        )

    def fetch(self, request: pb.FetchRequest, call: Call) -> Iterator[pb.Chunk]:
        """Return a released package from an offset on, in chunks."""
        self._peers.authenticate(call)
        release = self._releases.get(request.sha256) if len(request.sha256) == HASH_BYTES else None
        if release is None:
            raise NotFoundError("No package of that hash is released: check for releases again.")
        if request.offset > release.size:
            raise UsageError(f"The package ends at {release.size} bytes, before offset {request.offset}.")
        path = self._fleet.package(release.sha256)
        with self._stream():
            try:
                with path.open("rb") as file:
                    file.seek(request.offset)
                    while data := file.read(CHUNK_BYTES):
                        yield pb.Chunk(data=data)
            except OSError as exc:
                raise StorageError(f"The released package {path} cannot be read: {exc.strerror}.") from exc

    @contextmanager
    def _stream(self) -> Iterator[None]:
        if not self._streams.acquire(blocking=False):
            raise BusyError("As many packages are being fetched as the gateway has room for.")
        try:
            yield
        finally:
            self._streams.release()

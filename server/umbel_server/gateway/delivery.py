"""Delivery: devices learn what is released, and fetch it from where they stopped."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from umbel_proto.errors import StorageError, UsageError
from umbel_proto.wire import delivery_pb2 as pb
from umbel_proto.wire import identity_pb2
from umbel_server.fleet.facts import facts_json
from umbel_server.fleet.layout import FleetDir
from umbel_server.gateway.peer import Peers
from umbel_server.gateway.rpc import BusyError, Call, Method, NotFoundError
from umbel_server.rollouts.offers import Offer, Offers, Said
from umbel_server.store.releases import Releases
from umbel_server.store.reviews import Reviews
from umbel_server.trust.repository import Repository

CHUNK_BYTES = 256 << 10
HASH_BYTES = 32
COMPRESS_BYTES = 2048
"""From this length on metadata is compressed: lists of many models are the same few words again and again."""


class Delivery:
    """The service that hands out released packages.

    Args:
        fleet: Where the packages lie.
        releases: Which of them devices may have.
        offers: Which one of them each device is to have.
        repository: What devices trust releases by.
        reviews: What people answered to reviews of devices.
        peers: Tells who calls.
        streams: How many may be fetched at once: a slow reader holds a thread.
    """

    descriptor: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["Delivery"]

    def __init__(
        self,
        fleet: FleetDir,
        releases: Releases,
        offers: Offers,
        repository: Repository,
        reviews: Reviews,
        peers: Peers,
        *,
        streams: int,
    ) -> None:
        self._fleet = fleet
        self._releases = releases
        self._offers = offers
        self._repository = repository
        self._reviews = reviews
        self._peers = peers
        self._streams = threading.BoundedSemaphore(streams)

    @property
    def methods(self) -> dict[str, Method]:
        """Its methods by name."""
        return {"Check": self.check, "Fetch": self.fetch, "Metadata": self.metadata}

    def check(self, request: pb.CheckRequest, call: Call) -> pb.CheckReply:
        """Return the release of every model that the device is to have, and what people answered to its reviews."""
        device = self._peers.authenticate(call)
        failed = set(request.failed)
        installed = {package.sha256 for package in request.installed}
        if request.HasField("facts"):
            facts = facts_json(request.facts)
            if facts is not None and json.loads(facts) != dict(device.facts):
                self._offers.state_facts(device.id, facts)
        said = Said(request.may_shadow, {each.sha256: each.why for each in request.shadows})
        offers = self._offers.for_device(device.id, _active(request), failed, said)
        return pb.CheckReply(
            releases=[self._told(each, installed) for each in offers if each.one_in is None],
            shadows=[
                pb.Shadow(release=self._told(each, installed), one_in=each.one_in, within=each.within)
                for each in offers
                if each.one_in is not None
            ],
            answers=map(identity_pb2.Signed.FromString, self._reviews.answers_for(device.id)),
        )

    def fetch(self, request: pb.FetchRequest, call: Call) -> Iterator[pb.Chunk]:
        """Return a released package, or a delta, from an offset on, in chunks."""
        self._peers.authenticate(call)
        path, size = self._find(request.sha256)
        if request.offset > size:
            raise UsageError(f"The package ends at {size} bytes, before offset {request.offset}.")
        with self._stream():
            try:
                with path.open("rb") as file:
                    file.seek(request.offset)
                    while data := file.read(CHUNK_BYTES):
                        yield pb.Chunk(data=data)
            except OSError as exc:
                raise StorageError(f"The released package {path} cannot be read: {exc.strerror}.") from exc

    def metadata(self, request: pb.MetadataRequest, call: Call) -> pb.MetadataReply:
        """Return a file of signed metadata; what is due is signed anew before."""
        self._peers.authenticate(call)
        found = self._repository.file(request.role, request.version)
        if found is None:
            return (
                pb.MetadataReply()
            )  # A device asks for the next root at every check: that it is not there is no news.
        if len(found) >= COMPRESS_BYTES:
            call.set_compression(grpc.Compression.Gzip)
        return pb.MetadataReply(metadata=found)

    def _told(self, chosen: Offer, installed: Collection[bytes]) -> pb.Release:
        release = chosen.release
        offer = pb.Release(
            model=release.model,
            version=release.version,
            sha256=release.sha256,
            size=release.size,
            back=chosen.back,
        )
        if installed and release.sha256 not in installed:
            delta = self._releases.smallest_delta(release.sha256, bases=installed)
            if delta is not None:
                offer.delta.base_sha256 = delta.base_sha256
                offer.delta.sha256 = delta.sha256
                offer.delta.size = delta.size
        return offer

    def _find(self, sha256: bytes) -> tuple[Path, int]:
        """Return where the bytes with a hash lie, and how many they are, if devices may have them."""
        if len(sha256) == HASH_BYTES:
            release = self._releases.get(sha256)
            if release is not None:
                return self._fleet.package(sha256), release.size
            delta = self._releases.delta(sha256)
            path = self._fleet.delta(sha256)
            # One that cannot be read is no trouble of ours that passes: the device then fetches the package.
            if delta is not None and os.access(path, os.R_OK):
                return path, delta.size
        raise NotFoundError("No package of that hash is released: check for releases again.")

    @contextmanager
    def _stream(self) -> Iterator[None]:
        if not self._streams.acquire(blocking=False):
            raise BusyError("As many packages are being fetched as the gateway has room for.")
        try:
            yield
        finally:
            self._streams.release()


def _active(request: pb.CheckRequest) -> dict[str, int]:
    """Return the version of each model that answers on the device; of an older umbel, which does not say, the highest.

    Whatever a device says here decides only what it is offered itself.
    """
    versions: dict[str, int] = {}
    said: dict[str, int] = {}
    for package in request.installed:
        versions[package.model] = max(package.version, versions.get(package.model, 0))
        if package.active:
            said[package.model] = package.version
    return versions | said

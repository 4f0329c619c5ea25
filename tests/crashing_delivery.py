"""Kill the fetching of a delta at each of its changes of the disk, one after another, and fetch on.

    python tests/crashing_delivery.py HOME NEW DELTA KEY     a home with a package on its shelf, the next version, what it
                                                             differs by, and the release key

It prints one line for each instant at which it was killed: which version was active afterwards, how many bytes of the
delta were there, and whether the new version was then taken at once or only after it was asked to retry.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime  # noqa: F401  # Once here, instead of in every child.

from crashing import in_child, instants
from release_trust import MemoryTrust
from umbel._fleet.delivery import Delivery
from umbel._home.directory import DeviceHome
from umbel._releases.packages import Installed
from umbel._releases.shelf import Shelf
from umbel_proto.keys import VerifyKey
from umbel_proto.wire import delivery_pb2 as pb

CHUNK = 8192
TRUST = MemoryTrust()


class MemoryGateway:
    """A gateway without a network that gives a delta."""

    address = "memory"

    def __init__(self, package: bytes, delta: bytes, base: bytes) -> None:
        self._delta, self._package = delta, package
        self._base = base
        self.delivery = self

    def Check(self, request: pb.CheckRequest, timeout: float) -> pb.CheckReply:  # noqa: N802
        """Offer the package, and the delta to those who have its base."""
        offer = pb.Release(
            model="digits", version=3, sha256=hashlib.sha256(self._package).digest(), size=len(self._package)
        )
        if self._base in {each.sha256 for each in request.installed}:
            sha256 = hashlib.sha256(self._delta).digest()
            offer.delta.CopyFrom(pb.Delta(base_sha256=self._base, sha256=sha256, size=len(self._delta)))
        return pb.CheckReply(releases=[TRUST.offer(offer)])

    def Metadata(self, request: pb.MetadataRequest, timeout: float) -> pb.MetadataReply:  # noqa: N802
        """Say what devices may install."""
        return TRUST.Metadata(request, timeout)

    def fetch(self, request: pb.FetchRequest) -> Iterator[pb.Chunk]:
        """Give the delta; nobody is to ask for the package."""
        assert request.sha256 == hashlib.sha256(self._delta).digest()
        for at in range(request.offset, len(self._delta), CHUNK):
            Path("no such file").unlink(
                missing_ok=True
            )  # An instant at which to be killed, between two writes.
            yield pb.Chunk(data=self._delta[at : at + CHUNK])


class CountingShelf(Shelf):
    """A shelf that times variants by a clock that counts: trying a package takes no longer than computing with it."""

    def install(self, *args: Any, **options: Any) -> Installed:
        return super().install(*args, **options, clock=itertools.count().__next__)


def check(root: Path, gateway: MemoryGateway, key: VerifyKey) -> None:
    """Fetch what is new."""
    home = DeviceHome(root)
    TRUST.admit(home)
    Delivery(home, CountingShelf(home.shelf, key)).check(gateway)  # type: ignore[arg-type]


def main(template: Path, package: bytes, delta: bytes, key: VerifyKey) -> None:
    """Do what the module says."""
    base = bytes.fromhex(Shelf(template / "shelf", key).installed()[0].sha256)

    def fetch(root: Path) -> None:
        check(root, MemoryGateway(package, delta, base), key)

    for root, _, killed in instants(template, fetch):
        if not killed:
            return
        shelf = Shelf(root / "shelf", key)
        active = shelf.active("digits")
        assert active is not None
        assert shelf.package(active).manifest.version == active.version
        begun = sum(part.stat().st_size for part in (root / "incoming").glob("*"))
        shelf.versions.collect()
        retried = bool(shelf.versions.retry("digits"))
        assert in_child(lambda root=root: fetch(root)) == 0  # type: ignore[misc]
        taken = shelf.active("digits")
        assert taken is not None
        assert shelf.package(taken).manifest.version == 3
        assert not list((root / "incoming").iterdir())
        print(active.version, begun, "retried" if retried else "at once", flush=True)


if __name__ == "__main__":
    _, device, new, delta, key = sys.argv
    main(Path(device), Path(new).read_bytes(), Path(delta).read_bytes(), VerifyKey(bytes.fromhex(key)))

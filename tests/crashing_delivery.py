"""Kill the fetching of a delta at each of its changes of the disk, one after another, and fetch on.

A program that tests run: its children are forked from a process that has no threads.

    python tests/crashing_delivery.py HOME NEW DELTA KEY     a home with a package on its shelf, the next version, what it
                                                             differs by, and the release key

It prints one line for each instant at which it was killed: which version was active afterwards, how many bytes of the
delta were there, and whether the new version was then taken at once or only after it was asked to retry.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime  # noqa: F401  # Once here, instead of in every child.

from crashing import kill_at
from release_trust import MemoryTrust
from umbel._fleet.delivery import Delivery
from umbel._home.directory import DeviceHome
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


def check(root: Path, gateway: MemoryGateway, key: bytes, kill: int | None) -> int:
    """Fetch what is new in a child, and return how that ended: 0, or minus a signal's number."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        if kill is not None:
            kill_at(kill)
        home = DeviceHome(root)
        TRUST.admit(home)
        Delivery(home, Shelf(home.shelf, VerifyKey(key))).check(gateway)  # type: ignore[arg-type]
        code = 0
    finally:
        os._exit(code)


def main(template: Path, package: bytes, delta: bytes, key: bytes) -> None:
    """Do what the module says."""
    number = 0
    while True:
        number += 1
        root = template.with_name(f"killed-{number}")
        shutil.copytree(template, root)
        shelf = Shelf(root / "shelf", VerifyKey(key))
        base = bytes.fromhex(shelf.installed()[0].sha256)
        code = check(root, MemoryGateway(package, delta, base), key, number)
        if code == 0:
            return
        assert code == -signal.SIGKILL, f"{number}: {code}"
        active = shelf.active("digits")
        assert active is not None
        assert shelf.package(active).manifest.version == active.version
        begun = sum(part.stat().st_size for part in (root / "incoming").glob("*"))
        shelf.versions.collect()
        retried = bool(shelf.versions.retry("digits"))
        assert check(root, MemoryGateway(package, delta, base), key, None) == 0
        taken = shelf.active("digits")
        assert taken is not None
        assert shelf.package(taken).manifest.version == 3
        assert not list((root / "incoming").iterdir())
        print(active.version, begun, "retried" if retried else "at once", flush=True)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]).read_bytes(),
        Path(sys.argv[3]).read_bytes(),
        bytes.fromhex(sys.argv[4]),
    )

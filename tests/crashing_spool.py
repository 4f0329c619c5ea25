"""Kill changes of the spool at each SQL statement and each change of the disk, and look at what is left.

    python tests/crashing_spool.py ROOT     an empty directory

It prints one line for each instant at which something was killed: what was going on, how many batches waited
afterwards, how many the gateway had, and how many were counted as dropped.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from crashing import instants
from umbel._fleet.uplink import upload
from umbel._home.directory import DeviceHome, Identity
from umbel._telemetry.spool import Sealed, Spool
from umbel._telemetry.telemetry import Telemetry
from umbel_proto.errors import UsageError
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.seal import SealPrivateKey
from umbel_proto.wire import telemetry_pb2 as pb

HELD = 6
SIZE = 2000
BAD = b"bad"


class Store:
    """A gateway that keeps the names of what it took in a file, and takes no batch whose header is ``BAD``."""

    address = "here:1"

    def __init__(self, path: Path) -> None:
        self.telemetry = self
        self._path = path

    def taken(self) -> set[bytes]:
        raw = self._path.read_bytes() if self._path.exists() else b""
        return {raw[at : at + 16] for at in range(0, len(raw), 16)}

    def Upload(self, request: pb.UploadRequest, *, timeout: float) -> pb.UploadReply:  # noqa: N802 - gRPC's name
        del timeout
        if any(batch.header == BAD for batch in request.batches):
            raise UsageError("A batch's header is malformed.")
        ids = [batch.ciphertext[:16] for batch in request.batches]
        # In one step: what a gateway has does not go with the device's disk.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, b"".join(ids))
        os.close(descriptor)
        return pb.UploadReply(acknowledged=ids)


def open_spool(home: DeviceHome) -> Spool:
    return Spool(home.spool, max_bytes=HELD * SIZE)


def send(home: DeviceHome) -> None:
    with open_spool(home) as spool:
        upload(Store(home.path / "store"), spool, now_s=lambda: 5.0)  # type: ignore[arg-type]


def flush(home: DeviceHome) -> None:
    """Seal a window; the oldest batches make room for it."""
    with open_spool(home) as spool:
        telemetry = Telemetry(home, spool, clock=lambda: 5.0)
        telemetry.window(model="digits", version=1, variant="fp32", engine="onnx").observe(1000, 1, 0.9)
        telemetry.flush()


def keep(home: DeviceHome) -> None:
    """Give up what is of another identity."""
    with open_spool(home) as spool:
        spool.keep(lambda header: header != BAD)


def make(root: Path) -> DeviceHome:
    """Make a home whose spool is full; the gateway takes all but two batches."""
    home = DeviceHome(root)
    home.make()
    home.write_identity(Identity(FleetId("garden"), DeviceId("d1"), "127.0.0.1:1", ""))
    home.write_telemetry_key(SealPrivateKey(bytes(32)).public)
    with open_spool(home) as spool:
        for number in range(HELD):
            batch_id, header = number.to_bytes(16, "big"), BAD if number in (1, 4) else b"ok!"
            spool.next_sequence()
            spool.append(Sealed(batch_id, header, batch_id + bytes(SIZE - 16 - len(header))))
    return home


def look(home: DeviceHome, change: str) -> None:
    """Check that every batch that was ever made waits, is at the gateway, or is counted as dropped."""
    with open_spool(home) as spool:
        waiting = spool.oldest(max_batches=1000, max_bytes=10**9)
        depth, made = spool.depth(), spool.made()
        taken = Store(home.path / "store").taken()
        assert depth.bytes == sum(batch.size for batch in waiting) <= HELD * SIZE, change
        new = sum(batch.batch_id[:8] != bytes(8) for batch in waiting)
        known = {batch.batch_id for batch in waiting} | taken
        assert len(known) + depth.dropped == HELD + new, (change, len(known), depth.dropped, new)
        assert made >= HELD + new, change
        assert spool.next_sequence() == made + 1, change
    print(change, depth.batches, len(taken), depth.dropped, flush=True)


def try_all(root: Path) -> None:
    make(root / "home")
    for change in (send, flush, keep):
        work = lambda copy, change=change: change(DeviceHome(copy))  # noqa: E731
        for place, number, _ in instants(root / "home", work):
            home = DeviceHome(place)
            look(home, change.__name__)
            if change is send:  # Nothing stands in the way of going on.
                with Spool(home.spool) as spool:
                    spool.append(Sealed(b"\xff" * 16, b"ok!", b"\xff" * 16))
                send(home)
                with open_spool(home) as spool:
                    assert (spool.depth().batches, spool.depth().dropped) == (0, 2), number
                assert len(Store(home.path / "store").taken()) == HELD - 2 + 1


if __name__ == "__main__":
    try_all(Path(sys.argv[1]))

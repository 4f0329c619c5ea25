"""Kill a release, or a check for releases, at each of its changes of the disk, and look at what a device then trusts.

    python tests/crashing_trust.py release FLEET HOME     a fleet with release 1 of a line, and a device that trusts it
    python tests/crashing_trust.py rotate FLEET HOME
    python tests/crashing_trust.py check FLEET HOME

It prints one line for each instant at which it was killed: the newest release that the device could install afterwards,
before anybody repaired anything.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from crashing import instants
from umbel._fleet.updater import Listed
from umbel._home.directory import DeviceHome
from umbel_proto.errors import PackageError
from umbel_proto.keys import SigningKey
from umbel_proto.wire import delivery_pb2 as pb
from umbel_server.fleet.layout import FleetDir
from umbel_server.trust.metadata import Released, file_name, signer, with_release
from umbel_server.trust.repository import Repository

NOW_S = 1_800_000_000.0


@dataclass(slots=True)
class DiskGateway:
    """Hands out what lies in a fleet's directory; with a service behind it or, after a crash, without."""

    fleet: FleetDir
    repository: Repository | None = None
    address: str = "disk"

    @property
    def delivery(self) -> DiskGateway:
        """Itself."""
        return self

    def Metadata(self, request: pb.MetadataRequest, timeout: float) -> pb.MetadataReply:  # noqa: N802
        """Answer as the gateway does."""
        if self.repository is not None:
            return pb.MetadataReply(metadata=self.repository.file(request.role, request.version) or b"")
        path = self.fleet.trust / "metadata" / file_name(request.role, request.version)
        return pb.MetadataReply(metadata=path.read_bytes() if path.exists() else b"")


def repository(fleet: FleetDir) -> Repository:
    """Return a fleet's signed metadata, at a fixed time."""
    return Repository.of(fleet, clock=lambda: NOW_S)


def release(fleet: FleetDir, version: int) -> None:
    """Sign a release of digits."""
    signed, key = repository(fleet), signer(fleet.release_signer())
    if version == 1:
        targets = signer(SigningKey.from_pem(fleet.targets_key.read_bytes()))
        signed.rotate_line("digits", [key.public_key], [targets, key])
    released = Released("digits", version, bytes([version] * 32), 1000)
    signed.update(lambda state: with_release(state, released, key, lives=signed.lives, now_s=NOW_S))


def rotate(fleet: FleetDir) -> None:
    """Give every role that is not a line's other keys, in one ceremony after the other."""
    signed = repository(fleet)
    root = signer(SigningKey.from_pem(fleet.root_key.read_bytes()))
    targets = signer(SigningKey.from_pem(fleet.path.joinpath("new-targets.key").read_bytes()))
    if signed.read().root.signed.version < 3:
        signed.rotate_online([root])
        signed.rotate("targets", [targets.public_key], 1, [root, targets])


def newest(fleet: FleetDir, home: DeviceHome, *, service: Repository | None = None) -> int:
    """Return the newest release that a device may install; 0 if it can be told nothing."""
    gateway = DiskGateway(fleet, service)
    try:
        listed = Listed(home, gateway, now_s=NOW_S)  # type: ignore[arg-type]
    except PackageError as exc:
        print(exc, file=sys.stderr)
        return 0
    for version in (2, 1):
        try:
            listed.require(
                pb.Release(model="digits", version=version, sha256=bytes([version] * 32), size=1000)
            )
        except PackageError:
            continue
        return version
    return 0


def main(what: str, template: FleetDir, device: Path) -> None:
    """Do what the module says."""
    place = template.path.with_name(what)  # A fleet and a device beside each other.
    shutil.copytree(template.path, place / "fleet")
    shutil.copytree(device, place / "home")
    if what == "check":
        release(FleetDir(place / "fleet", template.settings), 2)

    service: Repository

    def start(copy: Path) -> None:
        """Let a service run before anything is killed."""
        nonlocal service
        service = repository(FleetDir(copy / "fleet", template.settings))
        service.file("timestamp", 0)

    def work(copy: Path) -> None:
        fleet = FleetDir(copy / "fleet", template.settings)
        match what:
            case "release":
                release(fleet, 2)
            case "rotate":
                rotate(fleet)
            case "check":
                newest(fleet, DeviceHome(copy / "home"))

    for copy, number, killed in instants(place, work, before=start):
        if not killed:
            return
        fleet, home = FleetDir(copy / "fleet", template.settings), DeviceHome(copy / "home")
        for path in home.trust.rglob("[!.]*.json"):
            json.loads(path.read_bytes())
        found = newest(fleet, home)
        served = newest(fleet, home, service=service)
        work(copy)
        assert newest(fleet, home, service=service) == (1 if what == "rotate" else 2), number
        if what == "rotate":
            # One of the ceremonies may have come twice.
            assert repository(fleet).read().root.signed.version in (3, 4)
        left = [path for path in fleet.trust.rglob(".*") if path.is_file()]
        assert not left, left
        print(found, served, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], FleetDir.open(Path(sys.argv[2])), Path(sys.argv[3]))

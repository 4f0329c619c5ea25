"""Kill a release, or a check for releases, at each of its changes of the disk, and look at what a device then trusts.

A program that tests run: its children are forked from a process that has no threads.

    python tests/crashing_trust.py release FLEET HOME     a fleet with release 1 of a line, and a device that trusts it
    python tests/crashing_trust.py rotate FLEET HOME
    python tests/crashing_trust.py check FLEET HOME

It prints one line for each instant at which it was killed: the newest release that the device could install afterwards,
before anybody repaired anything.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crashing import kill_at
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


def in_child(work: Callable[[], object], kill: int) -> int:
    """Do something in a child that is killed, and return how that ended: 0, or minus a signal's number."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        kill_at(kill)
        work()
        code = 0
    finally:
        os._exit(code)


def main(what: str, template: FleetDir, device: Path) -> None:
    """Do what the module says."""
    number = 0
    while True:
        number += 1
        fleet = FleetDir(template.path.with_name(f"{what}-{number}"), template.settings)
        home = DeviceHome(device.with_name(f"device-{what}-{number}"))
        shutil.copytree(template.path, fleet.path)
        shutil.copytree(device, home.path)
        work: dict[str, Callable[[], object]] = {
            "release": lambda fleet=fleet: release(fleet, 2),
            "rotate": lambda fleet=fleet: rotate(fleet),
            "check": lambda fleet=fleet, home=home: newest(fleet, home),
        }  # type: ignore[dict-item, misc]
        if what == "check":
            release(fleet, 2)
        service = repository(fleet)
        service.file("timestamp", 0)  # It runs already.
        code = in_child(work[what], number)
        if code == 0:
            return
        assert code == -signal.SIGKILL, f"{number}: {code}"
        for path in home.trust.rglob("[!.]*.json"):
            json.loads(path.read_bytes())
        found = newest(fleet, home)
        served = newest(fleet, home, service=service)
        work[what]()
        assert newest(fleet, home, service=service) == (1 if what == "rotate" else 2), number
        if what == "rotate":
            assert repository(fleet).read().root.signed.version in (
                3,
                4,
            )  # One of the ceremonies may have come twice.
        left = [path for path in fleet.trust.rglob(".*") if path.is_file()]
        assert not left, left
        print(found, served, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], FleetDir.open(Path(sys.argv[2])), Path(sys.argv[3]))

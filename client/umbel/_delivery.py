"""Released packages: learning of them, and fetching them from where the last attempt stopped."""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from umbel._channel import Gateway, call
from umbel._files import make_private_directory, storage_error
from umbel._home import DeviceHome
from umbel_proto.errors import PackageError, RefusedError, RemoteProtocolError, UnavailableError, UsageError
from umbel_proto.ids import check_name
from umbel_proto.wire import delivery_pb2 as pb

if TYPE_CHECKING:
    from umbel._shelf import Installed, Shelf

MAX_PACKAGE_BYTES = 1 << 30
FRUITLESS_ATTEMPTS = 3
RECONNECT_S = 0.2
HASH_BYTES = 32

log = logging.getLogger(__name__)


class Delivery:
    """Keeps a shelf at the newest releases.

    Args:
        home: The enrolled device.
        shelf: Where verified packages go.
    """

    def __init__(self, home: DeviceHome, shelf: Shelf) -> None:
        self._incoming = home.incoming
        self._shelf = shelf
        self._refused: set[bytes] = set()

    def check(self, gateway: Gateway) -> list[Installed]:
        """Ask for releases, and fetch, verify and install those that are newer than ours.

        A package that does not verify is left, and not fetched again by this process: the
        active one stays.

        Returns:
            What was installed.

        Raises:
            PackageError: A release did not verify; every other one was installed first.
            UnavailableError: The gateway does not answer; what was fetched so far is kept.
            StorageError: The disk is full.
        """
        ours = [
            pb.Release(model=item.model, version=item.version, sha256=bytes.fromhex(item.sha256))
            for item in self._shelf.installed()
        ]
        reply: pb.CheckReply = call(gateway.delivery.Check, pb.CheckRequest(installed=ours), gateway.address)
        wanted = [release for release in map(_checked, reply.releases) if self._is_newer(release)]
        self._tidy({release.sha256 for release in wanted})
        done, refusal = [], None
        for release in wanted:
            data = self._fetch(gateway, release)
            try:
                if hashlib.sha256(data).digest() != release.sha256:
                    raise PackageError(f"The package of {release.model} {release.version} arrived altered.")
                installed = self._shelf.install(data)
            except (PackageError, RefusedError) as exc:
                # Refused by the shelf: it is signed, but not the version that was announced.
                self._refused.add(release.sha256)
                refusal = exc if isinstance(exc, PackageError) else PackageError(str(exc))
            else:
                log.info("installed %s %d", release.model, release.version)
                done.append(installed)
            self._part(release.sha256).unlink(missing_ok=True)
        if refusal is not None:
            raise refusal
        return done

    def _is_newer(self, release: pb.Release) -> bool:
        # Never back to an older version on the gateway's word alone: it could hold a flaw that was mended.
        active = self._shelf.active(release.model)
        return release.sha256 not in self._refused and (active is None or release.version > active.version)

    def _fetch(self, gateway: Gateway, release: pb.Release) -> bytes:
        """Return a package's bytes, going on from what is here; tries again while that brings more."""
        make_private_directory(self._incoming)
        part = self._part(release.sha256)
        fruitless = 0
        while True:
            before = part.stat().st_size if part.exists() else 0
            if before == release.size:
                return part.read_bytes()
            try:
                self._append(gateway, release, part, before)
            except UnavailableError:
                fruitless = fruitless + 1 if part.stat().st_size == before else 0
                if fruitless == FRUITLESS_ATTEMPTS:
                    raise
                time.sleep(RECONNECT_S)

    def _append(self, gateway: Gateway, release: pb.Release, part: Path, offset: int) -> None:
        try:
            with part.open("ab") as file:
                for chunk in gateway.fetch(pb.FetchRequest(sha256=release.sha256, offset=offset)):
                    if file.tell() + len(chunk.data) > release.size:
                        raise RemoteProtocolError("server", "a package is longer than announced")
                    file.write(chunk.data)
                if file.tell() < release.size:
                    raise RemoteProtocolError("server", "a package is shorter than announced")
        except OSError as exc:
            raise storage_error(exc, part) from exc

    def _part(self, sha256: bytes) -> Path:
        return self._incoming / f"{sha256.hex()}.part"

    def _tidy(self, wanted: set[bytes]) -> None:
        """Forget what was begun and is not wanted any more."""
        keep = {self._part(sha256).name for sha256 in wanted}
        if self._incoming.is_dir():
            for part in self._incoming.glob("*.part"):
                if part.name not in keep:
                    part.unlink(missing_ok=True)


def _checked(release: pb.Release) -> pb.Release:
    try:
        check_name(release.model, "model")
    except UsageError as exc:
        raise RemoteProtocolError("server", str(exc)) from exc
    if len(release.sha256) != HASH_BYTES or not 0 < release.size <= MAX_PACKAGE_BYTES:
        raise RemoteProtocolError("server", f"the release of {release.model} is malformed")
    return release

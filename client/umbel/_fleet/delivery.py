"""Released packages: learning of them, and fetching them, or what changed, from where the last attempt stopped."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from umbel._fleet.approval import facts
from umbel._fleet.channel import FETCH_TIMEOUT_S, Gateway, call
from umbel._home.directory import DeviceHome
from umbel._home.files import locked, make_private_directory, storage_error
from umbel._releases.slots import Beside
from umbel_proto.delta import ReadAt, patched, worth_sending
from umbel_proto.errors import (
    CertificateError,
    MissingExtraError,
    PackageError,
    RefusedError,
    RemoteProtocolError,
    UmbelError,
    UnavailableError,
    UsageError,
)
from umbel_proto.ids import check_name
from umbel_proto.wire import delivery_pb2 as pb

if TYPE_CHECKING:
    from umbel._fleet.updater import Listed
    from umbel._releases.packages import Installed
    from umbel._releases.shelf import Shelf

MAX_PACKAGE_BYTES = 1 << 30
FRUITLESS_ATTEMPTS = 3
RECONNECT_S = 0.2
HASH_BYTES = 32
MAX_WHY = 200
MAX_ANSWERS = 100
"""To reviews, of one check; the others come with the next."""

log = logging.getLogger(__name__)


class Delivery:
    """Keeps a shelf at the newest releases.

    Args:
        home: The enrolled device.
        shelf: Where verified packages go.
        tell: Is told a counter of telemetry and what to add to it.
        answered: Takes what people of the fleet answered to reviews, signed; it never raises.
        clock: Returns Unix time, seconds: judges whether what the fleet signed still holds.
    """

    def __init__(
        self,
        home: DeviceHome,
        shelf: Shelf,
        *,
        tell: Callable[[str, int], None] = lambda name, by: None,
        answered: Callable[[Sequence[bytes]], None] = lambda answers: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._home = home
        self._clock = clock
        self._incoming = home.incoming
        self._shelf = shelf
        self._tell = tell
        self._answered = answered
        self._refused: set[bytes] = set()

    def check(self, gateway: Gateway) -> list[Installed]:
        """Ask for releases, and fetch, verify and install those that are newer than ours and signed by the fleet.

        Where the fleet has taken a version back, the one before it answers again: from this disk if it is still
        here. That, too, has to be signed still.

        A package that does not verify is left, and not fetched again by this process: the
        active one stays. One that failed on this device is not fetched again by any.

        Returns:
            What was installed.

        Raises:
            PackageError: A release did not verify, every other one was installed first; or what the fleet signed of
                its releases does not verify or has expired, and none was.
            UnavailableError: The gateway does not answer; what was fetched so far is kept. Or another of this device
                fetches for longer than one fetch may take.
            StorageError: The disk is full.
        """
        from umbel._fleet.updater import Listed  # It takes time to import.

        ours = [
            pb.Release(
                model=item.model,
                version=item.version,
                sha256=bytes.fromhex(item.sha256),
                active=item.sha256 == self._shelf.versions.slots(item.model).active,
            )
            for item in self._shelf.installed()
        ]
        failed = map(bytes.fromhex, self._shelf.versions.failed())
        request = pb.CheckRequest(
            installed=ours, failed=failed, shadows=shadowing(self._shelf), may_shadow=True, facts=facts()
        )
        reply: pb.CheckReply = call(gateway.delivery.Check, request, gateway.address)
        if reply.answers:
            self._answered([each.SerializeToString() for each in reply.answers[:MAX_ANSWERS]])
        offers = list(map(_checked, reply.releases))
        shadows = {shadow.release.model: shadow for shadow in reply.shadows if _checked(shadow.release)}
        # In this order: what is offered was signed before.
        listed = Listed(self._home, gateway, now_s=self._clock())
        # Whoever comes second, of all threads and processes with this device, finds installed what it would have fetched.
        with contextlib.ExitStack() as alone:
            try:
                alone.enter_context(locked(self._home.delivery_lock, within_s=FETCH_TIMEOUT_S))
            except TimeoutError:
                raise UnavailableError(
                    f"Another thread or process of this device has fetched releases for {FETCH_TIMEOUT_S:g} s: "
                    "try again when it is done."
                ) from None
            return self._bring(gateway, listed, offers, shadows)

    def _bring(
        self, gateway: Gateway, listed: Listed, offers: Sequence[pb.Release], shadows: Mapping[str, pb.Shadow]
    ) -> list[Installed]:
        """Fetch, verify and install what is offered and newer than ours; return what was installed."""
        wanted = [release for release in offers if self._is_wanted(release)]
        coming = [*wanted, *(shadow.release for shadow in shadows.values())]
        self._tidy({sha256 for release in coming for sha256 in (release.sha256, release.delta.sha256)})
        done: list[Installed] = []
        refusal = None
        for release in wanted:
            try:
                listed.require(release)
            except PackageError as exc:
                refusal = exc
                continue
            try:
                done.append(self._take(gateway, release))
            except PackageError as exc:
                # What the shelf does not remember itself: a package that is not signed has no version.
                if self._is_wanted(release):
                    self._refused.add(release.sha256)
                refusal = exc
            self._forget(release)
        refusal = self._accompany(gateway, listed, shadows) or refusal
        if refusal is not None:
            raise refusal
        return done

    def _accompany(
        self, gateway: Gateway, listed: Listed, shadows: Mapping[str, pb.Shadow]
    ) -> PackageError | None:
        """Have what the fleet wants to be run beside what answers, and nothing else; return what did not verify."""
        slots = {model: self._shelf.versions.slots(model) for model in self._shelf.versions.models()}
        refusal = None
        for model, each in slots.items():
            shadow, before = shadows.get(model), each.beside
            if before is not None and (shadow is None or shadow.release.sha256.hex() != before.sha256):
                self._shelf.leave_beside(model)
                before = None
            if shadow is None or each.active is None or not self._is_wanted(shadow.release):
                continue
            beside = _beside(shadow, now_s=self._clock())
            if before is not None and not before.why and self._shelf.file(beside.sha256).exists():
                self._shelf.versions.accompany(model, beside)
                continue
            try:
                listed.require(shadow.release)
                self._take_beside(gateway, shadow.release, beside)
            except (RefusedError, MissingExtraError) as exc:
                log.info("%s %d is not run beside the active version: it %s", model, beside.version, exc)
                self._shelf.versions.accompany(model, replace(beside, why=str(exc)[:MAX_WHY]))
            except PackageError as exc:
                if self._is_wanted(shadow.release):
                    self._refused.add(shadow.release.sha256)
                refusal = exc
            self._forget(shadow.release)
        return refusal

    def _take_beside(self, gateway: Gateway, release: pb.Release, beside: Beside) -> None:
        """Fetch a release that is to be run beside the active one, if there is room for it.

        Raises:
            RefusedError: There is not.
        """
        others = _total(self._begun(besides=release))
        self._shelf.require_spare(beside.sha256, release.size, begun=others)
        data, part = self._whole(gateway, release)
        self._shelf.install_beside(data, beside, file=part)
        log.info("%s %d is run beside the active version", release.model, release.version)

    def _forget(self, release: pb.Release) -> None:
        """Remove what was fetched of a release: it is installed, or will not be."""
        for sha256 in (release.sha256, release.delta.sha256):
            self._part(sha256).unlink(missing_ok=True)

    def _take(self, gateway: Gateway, release: pb.Release) -> Installed:
        """Fetch a release and install it, or go back to it."""
        if release.back:
            returned = self._shelf.go_back(release.model, release.sha256.hex())
            if returned is not None:
                log.info("%s goes back to version %d", returned.model, returned.version)
                return returned
        if not self._accompanies(release):
            try:
                self._make_room(release)
            except RefusedError as exc:
                raise PackageError(str(exc)) from exc
        data, part = self._whole(gateway, release)
        try:
            installed = self._shelf.install(data, file=part, back=release.back)
        except (RefusedError, MissingExtraError) as exc:
            # The shelf may also refuse what is signed, but is not the version that was announced.
            raise PackageError(str(exc)) from exc
        log.info("installed %s %d", installed.model, installed.version)
        return installed

    def _whole(self, gateway: Gateway, release: pb.Release) -> tuple[bytes, Path | None]:
        """Return the package of a release, and where it was written if it came whole.

        Raises:
            PackageError: It arrived altered.
        """
        if self._accompanies(release):
            data = self._shelf.file(release.sha256.hex()).read_bytes()
            if hashlib.sha256(data).digest() == release.sha256:
                return data, None
        made = self._made(gateway, release)
        if made is not None:
            return made, None
        part = self._fetch(gateway, release.sha256, release.size)
        data = part.read_bytes()
        if hashlib.sha256(data).digest() != release.sha256:
            raise PackageError(f"The package of {release.model} {release.version} arrived altered.")
        return data, part

    def _accompanies(self, release: pb.Release) -> bool:
        """Whether a release was run beside the active one, so that it is here."""
        beside = self._shelf.versions.slots(release.model).beside
        sha256 = release.sha256.hex()
        return beside is not None and beside.sha256 == sha256 and self._shelf.file(sha256).exists()

    def _is_wanted(self, release: pb.Release) -> bool:
        if release.sha256 in self._refused:
            return False
        what = release.model, release.version, release.sha256.hex()
        return self._shelf.wants(*what) or (release.back and self._shelf.wants_back(*what))

    def _made(self, gateway: Gateway, release: pb.Release) -> bytes | None:
        """Make a package of one that is here and a delta; None where there is none, or it comes to nothing.

        A package that has begun to come whole goes on so: its delta may have failed before.
        """
        delta = release.delta
        base = self._shelf.file(delta.base_sha256.hex())
        if not (
            delta.size
            and worth_sending(delta.size, release.size)
            and base.exists()
            and not self._part(release.sha256).exists()
            and self._fits(release)
        ):
            return None
        part = self._part(delta.sha256)
        try:
            self._fetch(gateway, delta.sha256, delta.size)
            data = _patched(part, base, release)
        except (UnavailableError, CertificateError):
            raise  # It goes on with the delta when the gateway answers again.
        except (UmbelError, OSError) as exc:  # A disk without room for both may have it for the package.
            log.warning("%s %d is fetched whole, not as a delta: %s", release.model, release.version, exc)
            part.unlink(missing_ok=True)
            return None
        saved = release.size - delta.size
        log.info("%s %d came as a delta, %d bytes less", release.model, release.version, saved)
        self._tell("delivery.saved_bytes", saved)
        return data

    def _fetch(self, gateway: Gateway, sha256: bytes, size: int) -> Path:
        """Fetch what has a hash, going on from what is here; tries again while that brings more.

        Returns:
            Where it is now, whole; nobody has compared the hash.
        """
        make_private_directory(self._incoming)
        part = self._part(sha256)
        fruitless = 0
        while True:
            before = _total([part])
            if before == size:
                return part
            try:
                self._append(gateway, pb.FetchRequest(sha256=sha256, offset=before), size, part)
            except UnavailableError:
                fruitless = fruitless + 1 if _total([part]) == before else 0
                if fruitless == FRUITLESS_ATTEMPTS:
                    raise
                time.sleep(RECONNECT_S)

    def _append(self, gateway: Gateway, request: pb.FetchRequest, size: int, part: Path) -> None:
        received = 0
        try:
            with part.open("ab") as file:
                for chunk in gateway.fetch(request):
                    if file.tell() + len(chunk.data) > size:
                        raise RemoteProtocolError("server", "a package is longer than announced")
                    received += len(chunk.data)
                    file.write(chunk.data)
                if file.tell() < size:
                    raise RemoteProtocolError("server", "a package is shorter than announced")
        except OSError as exc:
            raise storage_error(exc, part) from exc
        finally:
            if received:
                self._tell("delivery.bytes", received)

    def _make_room(self, release: pb.Release) -> None:
        """Make room for a package beside what is installed and what has begun to come.

        Raises:
            RefusedError: It does not fit into the quota.
        """
        others = self._begun(besides=release)
        try:
            self._shelf.make_room(release.size + _total(others))
        except RefusedError:
            # What has begun to come is only time saved.
            for part in others:
                part.unlink(missing_ok=True)
            self._shelf.make_room(release.size)

    def _fits(self, release: pb.Release) -> bool:
        """Whether a package and its delta fit into the quota, with nothing removed: the base may be what goes first."""
        quota = self._shelf.quota_bytes
        beside = self._shelf.used_bytes() + _total(self._begun(besides=release))
        return quota is None or beside + release.size + release.delta.size <= quota

    def _begun(self, *, besides: pb.Release | None = None) -> list[Path]:
        """Return what has begun to come, but for a release and its delta."""
        own = {self._part(sha256) for sha256 in (besides.sha256, besides.delta.sha256)} if besides else set()
        return [part for part in self._incoming.glob("*.part") if part not in own]

    def _part(self, sha256: bytes) -> Path:
        return self._incoming / f"{sha256.hex()}.part"

    def _tidy(self, wanted: set[bytes]) -> None:
        """Forget what was begun and is not wanted any more."""
        keep = {self._part(sha256).name for sha256 in wanted}
        for part in self._begun():
            if part.name not in keep:
                part.unlink(missing_ok=True)


def _patched(part: Path, base: Path, release: pb.Release) -> bytes:
    """Return a package, made of its delta and base.

    Raises:
        PackageError: It is not the package that was announced.
        OSError: A file cannot be read: another process may have removed the base.
    """
    made = io.BytesIO()
    with part.open("rb") as delta, base.open("rb") as old:
        if hashlib.file_digest(delta, "sha256").digest() != release.delta.sha256:
            raise PackageError("The delta arrived altered.")
        delta.seek(0)
        for piece in patched(delta.read, _reader(old), release.size):
            made.write(piece)
    data = made.getvalue()
    if hashlib.sha256(data).digest() != release.sha256:
        raise PackageError("The delta makes another package than was announced.")
    return data


def _reader(file: BinaryIO) -> ReadAt:
    def read(offset: int, length: int) -> bytes:
        file.seek(offset)
        return file.read(length)

    return read


def _total(parts: list[Path]) -> int:
    total = 0
    for part in parts:
        with contextlib.suppress(FileNotFoundError):  # Another process may be done with it.
            total += part.stat().st_size
    return total


def shadowing(shelf: Shelf) -> list[pb.Shadowing]:
    """Return what became of the candidates that a device was asked to run beside what answers."""
    found = ((model, shelf.versions.slots(model).beside) for model in shelf.versions.models())
    return [
        pb.Shadowing(model=model, version=each.version, sha256=bytes.fromhex(each.sha256), why=each.why)
        for model, each in found
        if each is not None
    ]


def _beside(shadow: pb.Shadow, *, now_s: float) -> Beside:
    release = shadow.release
    within = shadow.within if 0 <= shadow.within < math.inf else 0.0
    return Beside(release.sha256.hex(), release.version, max(shadow.one_in, 1), within, since_s=now_s)


def _checked(release: pb.Release) -> pb.Release:
    try:
        check_name(release.model, "model")
    except UsageError as exc:
        raise RemoteProtocolError("server", str(exc)) from exc
    if len(release.sha256) != HASH_BYTES or not 0 < release.size <= MAX_PACKAGE_BYTES:
        raise RemoteProtocolError("server", f"the release of {release.model} is malformed")
    # Hashes become names of files. A package comes without a delta as well.
    if not len(release.delta.sha256) == len(release.delta.base_sha256) == HASH_BYTES:
        release.ClearField("delta")
    return release

"""What a device has installed: one package of every model active, the one before it kept.

::

    shelf/                     and what ``umbel._releases.versions`` keeps in it
      lock                     held while installing
      packages/                ``umbel._releases.packages``

Any number of processes may read while one installs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from umbel._home.directory import DeviceHome
from umbel._home.files import locked, make_private_directory
from umbel._home.settings import read_settings
from umbel._releases.package import choose_variant
from umbel._releases.packages import Installed, Packages
from umbel._releases.quota import Quota
from umbel._releases.slots import Beside
from umbel._releases.trial import TRIAL_S, Mark, Purpose, within
from umbel._releases.turns import yielding
from umbel._releases.versions import Versions, umbel_version
from umbel_proto.errors import PackageError, RefusedError, StorageError
from umbel_proto.keys import VerifyKey
from umbel_proto.package import Package, read_package

if TYPE_CHECKING:
    from umbel._releases.choice import Clock


class Shelf:
    """The packages of one device.

    Args:
        root: Its directory; made if it is not there.
        release_key: The key that the fleet's packages are signed with.
        quota_bytes: How much packages may take; None for as much as there is.
        shadow_bytes: How much memory a version may take that is run beside the active one; None for a share of what
            is free.
        now_s: Returns Unix time, seconds.

    Raises:
        StorageError: The directory cannot be made.
    """

    def __init__(
        self,
        root: Path,
        release_key: VerifyKey,
        *,
        quota_bytes: int | None = None,
        shadow_bytes: int | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._release_key = release_key
        make_private_directory(root)
        self._packages = Packages(root / "packages", release_key)
        self.versions = Versions(root, clock=now_s)
        self._quota = Quota(self._packages, self.versions, disk_bytes=quota_bytes, shadow_bytes=shadow_bytes)

    @property
    def quota_bytes(self) -> int | None:
        """How much packages may take; None for as much as there is."""
        return self._quota.disk_bytes

    def install(
        self,
        data: bytes,
        *,
        file: Path | None = None,
        clock: Clock = time.perf_counter,
        limit_s: float = TRIAL_S,
        back: bool = False,
    ) -> Installed:
        """Verify a package, try it out, and make it the active one of its model.

        It is on the disk, whole, before it becomes active; after a crash the shelf holds the old state or
        the new. A version that fails its trial, or ends the process in it, is remembered and not tried again.
        Installing the active package again changes nothing.

        Args:
            data: The package file.
            file: Where it lies on this disk, if it does: then it is not written a second time.
            clock: What variants are timed with, seconds.
            limit_s: How long the trial may take, seconds.
            back: Whether also in place of a newer version: the fleet has taken that back, and still signs this one.

        Raises:
            PackageError: It is not signed by the fleet, altered, or does not compute here what it should.
            RefusedError: The device has had a newer version, or the same with other contents; this one failed
                here before; or it does not fit into the quota.
            StorageError: The disk is full or damaged.
        """
        with yielding():
            return self._install(data, file, clock, limit_s, back)

    def install_beside(
        self,
        data: bytes,
        beside: Beside,
        *,
        file: Path | None = None,
        clock: Clock = time.perf_counter,
        limit_s: float = TRIAL_S,
    ) -> Installed:
        """Verify a package and try it out, as ``install`` does, and let it be run beside the active one.

        It takes no room from what is here: neither from what answers nor from what there is to go back to.

        Args:
            data: The package file.
            beside: How it is to be run; its hash is the file's.
            file: As for ``install``.
            clock: As for ``install``.
            limit_s: As for ``install``.

        Raises:
            PackageError: As for ``install``.
            RefusedError: As for ``install``; or nothing answers here that it could be beside.
            StorageError: As for ``install``.
        """
        with yielding():
            return self._install(data, file, clock, limit_s, back=False, beside=beside)

    def _install(
        self,
        data: bytes,
        file: Path | None,
        clock: Clock,
        limit_s: float,
        back: bool,
        beside: Beside | None = None,
    ) -> Installed:
        package = read_package(data, release_key=self._release_key)
        model, version, sha256 = package.manifest.model, package.manifest.version, package.sha256
        with locked(self._root / "lock"):
            with self.versions.changing():
                active = self.active(model)
                self._check_succession(package, active, back=back)
                if active is not None and active.sha256 == sha256 and self._packages.is_whole(active):
                    return active
                missing = self._packages.missing_bytes(sha256, package.size)
                if beside is None:
                    self.require_room(missing)
                else:
                    self._check_beside(package, active, beside)
                mark = self.versions.begin(Purpose.trial, model, version, sha256)
            try:
                choice = within(limit_s, lambda: choose_variant(package, clock=clock), f"{model} {version}")
            except PackageError as exc:
                self.versions.refuse(
                    model, self.versions.failure(sha256, version, f"failed its trial: {exc}")
                )
                raise
            finally:
                mark.end()
            installed = Installed(model, version, sha256, package.size, choice.variant, choice.latency_us)
            with self.versions.changing():
                if beside is None:
                    self._quota.make_room(missing)
                self._packages.place(installed, data, file)
                slots = self.versions.slots(model)
                if beside is not None:
                    self.versions.write(model, slots.accompanied(beside))
                elif slots.active != sha256:
                    older = version < slots.newest
                    self.versions.write(
                        model, slots.returned(sha256) if older else slots.taken(sha256, version)
                    )
                self._quota.prune()
        return installed

    def go_back(self, model: str, sha256: str) -> Installed | None:
        """Let the version before the active one answer again, because the fleet has taken the active one back.

        Whoever calls has seen that the fleet still signs it.

        Args:
            model: The model.
            sha256: Hash of the package to go back to.

        Returns:
            It; None if that is not the version before, or not whole any more: then it has to be installed.

        Raises:
            StorageError: The disk is full or damaged.
        """
        with locked(self._root / "lock"), self.versions.changing():
            previous = self.previous(model)
            if previous is None or previous.sha256 != sha256 or not self._packages.is_whole(previous):
                return None
            self.versions.write(model, self.versions.slots(model).returned(sha256))
            self._quota.prune()
        return previous

    def wants(self, model: str, version: int, sha256: str) -> bool:
        """Return whether a release would be installed, were it what it is said to be.

        Never an older version than this device has had: it could hold a flaw that was mended.

        Raises:
            StorageError: The shelf's own files are damaged.
        """
        slots, active = self.versions.slots(model), self.active(model)
        if slots.failure(sha256, umbel=umbel_version()) is not None:
            return False
        return version >= slots.newest and (active is None or version > active.version)

    def wants_back(self, model: str, version: int, sha256: str) -> bool:
        """Return whether a release would be installed in place of a newer one that the fleet has taken back.

        Raises:
            StorageError: The shelf's own files are damaged.
        """
        slots, active = self.versions.slots(model), self.active(model)
        if slots.failure(sha256, umbel=umbel_version()) is not None:
            return False
        return active is None or version < active.version

    def begin(self, model: str) -> tuple[Installed, Mark | None] | None:
        """Return the package that is to answer, and the mark of its start where it has not run here before.

        Raises:
            StorageError: The shelf's own files are damaged.
        """
        self.versions.collect()
        with contextlib.ExitStack() as stack:
            if not self.versions.slots(model).proven:
                stack.enter_context(self.versions.changing())
            active, slots = self.active(model), self.versions.slots(model)
            if active is None:
                return None
            if slots.proven:
                return active, None
            return active, self.versions.begin(Purpose.start, model, active.version, active.sha256)

    def active(self, model: str) -> Installed | None:
        """Return the active package of a model, or None if there is none.

        Raises:
            StorageError: The shelf's own files are damaged.
        """
        return self._pointed(model, "active")

    def previous(self, model: str) -> Installed | None:
        """Return the package of a model that was active before, or None if there was none.

        Raises:
            StorageError: The shelf's own files are damaged.
        """
        return self._pointed(model, "previous")

    def installed(self) -> list[Installed]:
        """Return every package on the shelf, by model and version.

        Raises:
            StorageError: The shelf's own files are damaged.
        """
        return self._packages.all()

    def package(self, installed: Installed) -> Package:
        """Read a package from the disk, and verify it again: disks lose bits, and so do attackers.

        Raises:
            PackageError: It is not, byte for byte, what was installed.
            StorageError: It cannot be read.
        """
        return self._packages.load(installed)

    def file(self, sha256: str) -> Path:
        """Return where the file of a package is, if it is here."""
        return self._packages.file(sha256)

    def folder(self, sha256: str) -> Path:
        """Return where a package is: what this device makes of it is kept there, and goes when the package goes."""
        return self._packages.folder(sha256)

    def used_bytes(self) -> int:
        """Return how much the packages take."""
        return self._packages.used_bytes()

    def beside(self, model: str) -> tuple[Installed, Beside] | None:
        """Return the package that is to be run beside the active one of its model, if it is here.

        Raises:
            StorageError: The shelf's own files are damaged.
        """
        slots = self.versions.slots(model)
        if slots.beside is None or slots.active in (None, slots.beside.sha256):
            return None
        try:
            return self._packages.record(slots.beside.sha256), slots.beside
        except FileNotFoundError:
            return None

    def leave_beside(self, model: str) -> None:
        """Let nothing be run beside the active version of a model any more, and take away what was.

        Raises:
            StorageError: The disk is full or damaged.
        """
        with locked(self._root / "lock"):
            self.versions.accompany(model, None)
            with self.versions.changing():
                self._quota.prune()

    def require_spare(self, sha256: str, size: int, *, begun: int = 0) -> None:
        """Check that a package to be run beside another fits, as `Quota.require_spare` does."""
        self._quota.require_spare(sha256, size, begun=begun)

    def require_room(self, size: int) -> None:
        """Check that a package fits beside those that are active, as `Quota.require_room` does."""
        self._quota.require_room(size)

    def make_room(self, size: int) -> None:
        """Remove packages that are not active, oldest first, until one of ``size`` bytes fits into the quota.

        Raises:
            RefusedError: It does not fit.
            StorageError: The shelf's own files are damaged.
        """
        self.require_room(size)
        with self.versions.changing():
            self._quota.make_room(size)

    def _check_succession(self, package: Package, active: Installed | None, *, back: bool) -> None:
        manifest = package.manifest
        model, version = manifest.model, manifest.version
        slots = self.versions.slots(model)
        if active is not None and version < active.version and not back:
            raise RefusedError(
                f"Version {version} of {model} is older than the active {active.version}: "
                "a device does not go back by itself."
            )
        if active is not None and version == active.version and package.sha256 != active.sha256:
            raise RefusedError(
                f"Version {version} of {model} is installed with other contents: "
                "release the change under a new version."
            )
        failure = slots.failure(package.sha256, umbel=umbel_version())
        if failure is not None:
            raise RefusedError(
                f"Version {version} of {model} is not tried again on this device, for it {failure.why}: "
                f"run  umbel model retry {model}  or release a newer version."
            )
        if version < slots.newest and not back:
            raise RefusedError(
                f"Version {version} of {model} is older than {slots.newest}, which this device has had: "
                "release a newer one."
            )

    def _check_beside(self, package: Package, active: Installed | None, beside: Beside) -> None:
        if active is None or package.sha256 != beside.sha256:
            raise RefusedError(
                f"Version {package.manifest.version} of {package.manifest.model} is not what is to be run beside the "
                "active version."
            )
        self.require_spare(package.sha256, package.size)

    def _pointed(self, model: str, which: Literal["active", "previous"]) -> Installed | None:
        # A process that read the slots just before two installs may find its package gone: read them again.
        for _ in range(3):
            slots = self.versions.slots(model)
            sha256 = slots.active if which == "active" else slots.previous
            if sha256 is None:
                return None
            with contextlib.suppress(FileNotFoundError):
                return self._packages.record(sha256)
        raise StorageError(f"The {which} package of {model} is missing from {self._root}: install it again.")


def open_shelf(home: DeviceHome, *, clock: Callable[[], float]) -> Shelf:
    """Return the shelf of an enrolled device, within the quota that its owner has set.

    Args:
        home: The device.
        clock: Returns Unix time, seconds.

    Raises:
        UsageError: The device's settings are wrong.
        StorageError: One of its files is damaged.
    """
    settings = read_settings(home.settings_file)
    return Shelf(
        home.shelf,
        home.release_authority(),
        quota_bytes=settings.quota_bytes,
        shadow_bytes=settings.shadow_bytes,
        now_s=clock,
    )

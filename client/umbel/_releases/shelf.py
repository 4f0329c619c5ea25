"""Packages on disk: each under its hash, one of every model active, the one before it kept.

::

    shelf/                     and what ``umbel._releases.versions`` keeps in it
      lock                     held while installing
      packages/SHA256/
        package.umbel          the package
        record.json            what installing it found: its variant here, its latencies
        quantized.bin          the int8 form that was made of it here, if one was: ``umbel._releases.kept``

Any number of processes may read while one installs.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from umbel._home.directory import DeviceHome
from umbel._home.files import (
    linked,
    locked,
    make_private_directory,
    storage_error,
    sync_directory,
    write_atomically,
)
from umbel._home.settings import read_settings
from umbel._releases.package import choose_variant, load_package
from umbel._releases.room import require_memory
from umbel._releases.slots import Beside
from umbel._releases.trial import TRIAL_S, Mark, Purpose, within, yielding
from umbel._releases.versions import Versions, umbel_version
from umbel_proto.errors import PackageError, RefusedError, StorageError, UsageError
from umbel_proto.ids import ModelName, check_name
from umbel_proto.keys import VerifyKey
from umbel_proto.package import Package, read_package

if TYPE_CHECKING:
    from umbel._releases.choice import Clock

_PACKAGE = "package.umbel"
_RECORD = "record.json"
QUANTIZED = "quantized.bin"


@dataclass(frozen=True, slots=True)
class Installed:
    """A package on the shelf.

    Args:
        model: Its model.
        version: Its version.
        sha256: Hash of the package file, 64 hexadecimal digits.
        size: Length of the package file, bytes.
        variant: The variant that was fastest on this device.
        latency_us: Median time of one prediction by variant, microseconds, when it was installed.
    """

    model: ModelName
    version: int
    sha256: str
    size: int
    variant: str
    latency_us: Mapping[str, float]


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
        self._quota_bytes = quota_bytes
        self._shadow_bytes = shadow_bytes
        self._packages = root / "packages"
        for folder in (root, self._packages):
            make_private_directory(folder)
        self.versions = Versions(root, clock=now_s)

    @property
    def quota_bytes(self) -> int | None:
        """How much packages may take; None for as much as there is."""
        return self._quota_bytes

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
                if active is not None and active.sha256 == sha256 and self._is_whole(active):
                    return active
                missing = 0 if self._folder(sha256).exists() else package.size
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
                    self._make_room(missing)
                self._place(installed, data, file)
                slots = self.versions.slots(model)
                if beside is not None:
                    self.versions.write(model, slots.accompanied(beside))
                elif slots.active != sha256:
                    older = version < slots.newest
                    self.versions.write(
                        model, slots.returned(sha256) if older else slots.taken(sha256, version)
                    )
                self._prune()
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
            if previous is None or previous.sha256 != sha256 or not self._is_whole(previous):
                return None
            self.versions.write(model, self.versions.slots(model).returned(sha256))
            self._prune()
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
        found = []
        for folder in self._packages.iterdir():
            # Another process may take an old package away while we look.
            with contextlib.suppress(FileNotFoundError):
                if not folder.name.startswith("."):
                    found.append(_read_record(folder / _RECORD))
        return sorted(found, key=lambda package: (package.model, package.version))

    def package(self, installed: Installed) -> Package:
        """Read a package from the disk, and verify it again: disks lose bits, and so do attackers.

        Raises:
            PackageError: It is not, byte for byte, what was installed.
            StorageError: It cannot be read.
        """
        path = self._folder(installed.sha256) / _PACKAGE
        damaged = PackageError(
            f"The package of {installed.model} {installed.version} on this device is damaged or gone: "
            "install it again."
        )
        if not path.exists():
            raise damaged
        try:
            package = load_package(path, release_key=self._release_key)
        except PackageError as exc:
            raise damaged from exc
        if not hmac.compare_digest(package.sha256, installed.sha256):
            raise damaged
        return package

    def file(self, sha256: str) -> Path:
        """Return where the file of a package is, if it is here."""
        return self._folder(sha256) / _PACKAGE

    def folder(self, sha256: str) -> Path:
        """Return where a package is: what this device makes of it is kept there, and goes when the package goes."""
        return self._folder(sha256)

    def used_bytes(self) -> int:
        """Return how much the packages take."""
        return sum(map(_size, self._packages.iterdir()))

    def beside(self, model: str) -> tuple[Installed, Beside] | None:
        """Return the package that is to be run beside the active one of its model, if it is here.

        Raises:
            StorageError: The shelf's own files are damaged.
        """
        slots = self.versions.slots(model)
        if slots.beside is None or slots.active in (None, slots.beside.sha256):
            return None
        try:
            return _read_record(self._folder(slots.beside.sha256) / _RECORD), slots.beside
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
                self._prune()

    def require_spare(self, sha256: str, size: int, *, begun: int = 0) -> None:
        """Check that a package to be run beside another fits on the disk and into memory, with nothing removed for it.

        Args:
            sha256: Its hash.
            size: Its length, bytes.
            begun: Bytes of others that are on their way.

        Raises:
            RefusedError: It does not.
        """
        quota = self._quota_bytes
        missing = 0 if self._folder(sha256).exists() else size
        if quota is not None and self.used_bytes() + begun + missing > quota:
            raise RefusedError(
                f"does not fit into the quota of {quota:,} bytes beside what is here: raise quota_mib in device.toml"
            )
        require_memory(size, limit_bytes=self._shadow_bytes)

    def require_room(self, size: int) -> None:
        """Check that a package fits into the quota beside those that are active.

        Args:
            size: Its length, bytes.

        Raises:
            RefusedError: It does not.
            StorageError: The shelf's own files are damaged.
        """
        if self._quota_bytes is None:
            return
        active = {self.versions.slots(model).active for model in self.versions.models()} - {None}
        stays = sum(_size(self._folder(sha256)) for sha256 in active if sha256 is not None)
        if stays + size > self._quota_bytes:
            beside = f" beside the {stays:,} that are in use" if stays else ""
            raise RefusedError(
                f"A package of {size:,} bytes does not fit into the quota of {self._quota_bytes:,}{beside}: "
                "raise quota_mib in device.toml."
            )

    def make_room(self, size: int) -> None:
        """Remove packages that are not active, oldest first, until one of ``size`` bytes fits into the quota.

        Raises:
            RefusedError: It does not fit.
            StorageError: The shelf's own files are damaged.
        """
        self.require_room(size)
        with self.versions.changing():
            self._make_room(size)

    def _make_room(self, size: int) -> None:
        if self._quota_bytes is None:
            return
        self._prune()
        slots = {model: self.versions.slots(model) for model in self.versions.models()}
        for model, each in slots.items():
            # What is only asked beside another goes first.
            if each.beside is not None and self.used_bytes() + size > self._quota_bytes:
                slots[model] = each.accompanied(None)
                self.versions.write(model, slots[model])
                self._prune()
        spare = {model: each.previous for model, each in slots.items() if each.previous is not None}
        for model in sorted(spare, key=lambda model: _age(self._folder(spare[model]))):
            if self.used_bytes() + size <= self._quota_bytes:
                return
            self.versions.write(model, slots[model].without_previous())
            self._prune()

    def _is_whole(self, installed: Installed) -> bool:
        try:
            self.package(installed)
        except (PackageError, StorageError):
            return False
        return True

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

    def _place(self, installed: Installed, data: bytes, file: Path | None) -> None:
        record = json.dumps(asdict(installed)).encode()
        folder = self._folder(installed.sha256)
        if folder.exists():  # damaged, or left by a crash between here and the slots
            write_atomically(folder / _PACKAGE, data)
            write_atomically(folder / _RECORD, record)
            return
        new = self._packages / f".new-{secrets.token_hex(4)}"
        make_private_directory(new)
        try:
            if file is None or not linked(file, new / _PACKAGE):
                write_atomically(new / _PACKAGE, data)
            write_atomically(new / _RECORD, record)
            new.rename(folder)
            sync_directory(self._packages)
        except OSError as exc:
            raise storage_error(exc, folder) from exc
        finally:
            _remove(new)

    def _prune(self) -> None:
        slots = [self.versions.slots(model) for model in self.versions.models()]
        kept = {sha256 for each in slots for sha256 in (each.active, each.previous)}
        kept |= {each.beside.sha256 for each in slots if each.beside is not None}
        for folder in self._packages.iterdir():
            if folder.name not in kept:
                _remove(folder)

    def _pointed(self, model: str, which: Literal["active", "previous"]) -> Installed | None:
        # A process that read the slots just before two installs may find its package gone: read them again.
        for _ in range(3):
            slots = self.versions.slots(model)
            sha256 = slots.active if which == "active" else slots.previous
            if sha256 is None:
                return None
            with contextlib.suppress(FileNotFoundError):
                return _read_record(self._folder(sha256) / _RECORD)
        raise StorageError(f"The {which} package of {model} is missing from {self._root}: install it again.")

    def _folder(self, sha256: str) -> Path:
        return self._packages / sha256


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


def _remove(folder: Path) -> None:
    import shutil  # With three compressors: only what changes a shelf waits for them.

    shutil.rmtree(folder, ignore_errors=True)


def _size(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except OSError:  # Another process takes it away while we look.
        return 0


def _age(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _read_record(path: Path) -> Installed:
    record = _read_json(path)
    try:
        installed = Installed(
            model=ModelName(check_name(record["model"], "model")),
            version=int(record["version"]),
            sha256=str(record["sha256"]),
            size=int(record["size"]),
            variant=check_name(record["variant"], "variant"),
            latency_us={str(name): float(value) for name, value in record["latency_us"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as exc:
        raise _damaged(path) from exc
    if installed.sha256 != path.parent.name:
        raise _damaged(path)
    return installed


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as exc:
        raise _damaged(path) from exc
    if not isinstance(value, dict):
        raise _damaged(path)
    return value


def _damaged(path: Path) -> StorageError:
    return StorageError(f"{path} is damaged: remove it and install the package again.")

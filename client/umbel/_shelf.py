"""Packages on disk: each under its hash, one of every model active, the one before it kept.

::

    shelf/
      lock                     held while installing
      models/MODEL.json        which package is active, which was before: replaced in one step
      packages/SHA256/
        package.umbel          the package
        record.json            what installing it found: its variant here, its latencies

Any number of processes may read while one installs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from umbel._choice import Clock
from umbel._files import make_private_directory, storage_error, sync_directory, write_atomically
from umbel._package import choose_variant, load_package
from umbel_proto.errors import PackageError, RefusedError, StorageError, UsageError
from umbel_proto.ids import ModelName, check_name
from umbel_proto.keys import VerifyKey
from umbel_proto.package import Package, read_package

_PACKAGE = "package.umbel"
_RECORD = "record.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


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

    Raises:
        StorageError: The directory cannot be made.
    """

    def __init__(self, root: Path, release_key: VerifyKey) -> None:
        self._root = root
        self._release_key = release_key
        for folder in (root, root / "models", root / "packages"):
            make_private_directory(folder)

    def install(self, data: bytes, *, clock: Clock = time.perf_counter) -> Installed:
        """Verify a package, try it out, and make it the active one of its model.

        It is on the disk, whole, before it becomes active; after a crash the shelf holds the old state or
        the new. Installing the active package again changes nothing.

        Args:
            data: The package file.
            clock: What variants are timed with, seconds.

        Raises:
            PackageError: It is not signed by the fleet, altered, or does not compute here what it should.
            RefusedError: The model's active version is newer, or the same with other contents.
            StorageError: The disk is full or damaged.
        """
        package = read_package(data, release_key=self._release_key)
        model = package.manifest.model
        with self._lock():
            active = self.active(model)
            if active is not None:
                _check_succession(package, active)
            if active is not None and active.sha256 == package.sha256 and self._is_whole(active):
                return active
            choice = choose_variant(package, clock=clock)
            installed = Installed(
                model,
                package.manifest.version,
                package.sha256,
                package.size,
                choice.variant,
                choice.latency_us,
            )
            self._place(installed, data)
            if active is None or active.sha256 != installed.sha256:
                pointer = {"active": installed.sha256, "previous": active.sha256 if active else None}
                write_atomically(self._root / "models" / f"{model}.json", json.dumps(pointer).encode())
            self._prune()
        return installed

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
        for folder in (self._root / "packages").iterdir():
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

    def _is_whole(self, installed: Installed) -> bool:
        try:
            self.package(installed)
        except (PackageError, StorageError):
            return False
        return True

    def _place(self, installed: Installed, data: bytes) -> None:
        record = json.dumps(asdict(installed)).encode()
        folder = self._folder(installed.sha256)
        if folder.exists():  # damaged, or left by a crash between here and the pointer
            write_atomically(folder / _PACKAGE, data)
            write_atomically(folder / _RECORD, record)
            return
        packages = self._root / "packages"
        new = packages / f".new-{secrets.token_hex(4)}"
        make_private_directory(new)
        try:
            write_atomically(new / _PACKAGE, data)
            write_atomically(new / _RECORD, record)
            new.rename(folder)
            sync_directory(packages)
        except OSError as exc:
            raise storage_error(exc, folder) from exc
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _prune(self) -> None:
        kept: set[str | None] = set()
        for path in (self._root / "models").glob("*.json"):
            kept.update(_read_pointer(path).values())
        for folder in (self._root / "packages").iterdir():
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def _pointed(self, model: str, which: str) -> Installed | None:
        path = self._root / "models" / f"{check_name(model, 'model')}.json"
        # A process that read the pointer just before two installs may find its package gone: read it again.
        for _ in range(3):
            try:
                sha256 = _read_pointer(path)[which]
            except FileNotFoundError:
                return None
            if sha256 is None:
                return None
            with contextlib.suppress(FileNotFoundError):
                return _read_record(self._folder(sha256) / _RECORD)
        raise StorageError(f"The {which} package of {model} is missing from {self._root}: install it again.")

    def _folder(self, sha256: str) -> Path:
        return self._root / "packages" / sha256

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        path = self._root / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise storage_error(exc, path) from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _check_succession(package: Package, active: Installed) -> None:
    manifest = package.manifest
    if manifest.version < active.version:
        raise RefusedError(
            f"Version {manifest.version} of {manifest.model} is older than the active {active.version}: "
            "a device does not go back by itself."
        )
    if manifest.version == active.version and package.sha256 != active.sha256:
        raise RefusedError(
            f"Version {manifest.version} of {manifest.model} is installed with other contents: "
            "release the change under a new version."
        )


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


def _read_pointer(path: Path) -> dict[str, str | None]:
    pointer = _read_json(path)
    hashes = [value for value in pointer.values() if value is not None]
    # A hash becomes part of a path: nothing else may stand here.
    legal = all(isinstance(value, str) and _SHA256.fullmatch(value) for value in hashes)
    if pointer.keys() != {"active", "previous"} or not legal:
        raise _damaged(path)
    return pointer


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

"""Packages on a device's disk, each in a folder under its hash.

::

    packages/SHA256/
      package.umbel          the package
      record.json            what installing it found: its variant here, its latencies
      quantized.bin          the int8 form that was made of it here, if one was: ``umbel._releases.kept``

Which of them answers is the shelf's to say, ``umbel._releases.shelf``.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from umbel._home.files import (
    linked,
    make_private_directory,
    storage_error,
    sync_directory,
    write_atomically,
)
from umbel._releases.package import load_package
from umbel_proto.errors import PackageError, StorageError, UsageError
from umbel_proto.ids import ModelName, check_name
from umbel_proto.keys import VerifyKey
from umbel_proto.package import Package

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


class Packages:
    """The packages of one device, whatever they are for.

    Args:
        root: Their directory; made if it is not there.
        release_key: The key that the fleet's packages are signed with.

    Raises:
        StorageError: The directory cannot be made.
    """

    def __init__(self, root: Path, release_key: VerifyKey) -> None:
        self._root = root
        self._release_key = release_key
        make_private_directory(root)

    def folder(self, sha256: str) -> Path:
        """Return where a package is, if it is here."""
        return self._root / sha256

    def file(self, sha256: str) -> Path:
        """Return where the file of a package is, if it is here."""
        return self.folder(sha256) / _PACKAGE

    def missing_bytes(self, sha256: str, size: int) -> int:
        """Return how much of a package of ``size`` bytes is not here."""
        return 0 if self.folder(sha256).exists() else size

    def record(self, sha256: str) -> Installed:
        """Return what installing a package found.

        Raises:
            FileNotFoundError: It is not here, or not any more.
            StorageError: Its record is damaged.
        """
        return _read_record(self.folder(sha256) / _RECORD)

    def all(self) -> list[Installed]:
        """Return every package, by model and version.

        Raises:
            StorageError: A record is damaged.
        """
        found = []
        for folder in self._root.iterdir():
            # Another process may take an old package away while we look.
            with contextlib.suppress(FileNotFoundError):
                if not folder.name.startswith("."):
                    found.append(_read_record(folder / _RECORD))
        return sorted(found, key=lambda package: (package.model, package.version))

    def load(self, installed: Installed) -> Package:
        """Read a package from the disk, and verify it again: disks lose bits, and so do attackers.

        Raises:
            PackageError: It is not, byte for byte, what was installed.
            StorageError: It cannot be read.
        """
        path = self.file(installed.sha256)
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

    def is_whole(self, installed: Installed) -> bool:
        """Return whether a package is here, byte for byte as it was installed."""
        try:
            self.load(installed)
        except (PackageError, StorageError):
            return False
        return True

    def place(self, installed: Installed, data: bytes, file: Path | None) -> None:
        """Put a package here, whole or not at all.

        Args:
            installed: What installing it found.
            data: The package file.
            file: Where it lies on this disk, if it does: then it is not written a second time.

        Raises:
            StorageError: The disk is full or damaged.
        """
        record = json.dumps(asdict(installed)).encode()
        folder = self.folder(installed.sha256)
        if folder.exists():  # damaged, or left by a crash between here and the slots
            write_atomically(folder / _PACKAGE, data)
            write_atomically(folder / _RECORD, record)
            return
        new = self._root / f".new-{secrets.token_hex(4)}"
        make_private_directory(new)
        try:
            if file is None or not linked(file, new / _PACKAGE):
                write_atomically(new / _PACKAGE, data)
            write_atomically(new / _RECORD, record)
            new.rename(folder)
            sync_directory(self._root)
        except OSError as exc:
            raise storage_error(exc, folder) from exc
        finally:
            _remove(new)

    def keep_only(self, kept: Collection[str]) -> None:
        """Remove every package but those with these hashes."""
        for folder in self._root.iterdir():
            if folder.name not in kept:
                _remove(folder)

    def used_bytes(self) -> int:
        """Return how much the packages take."""
        return sum(map(_size, self._root.iterdir()))

    def size(self, sha256: str) -> int:
        """Return how much a package takes, bytes; 0: it is not here."""
        return _size(self.folder(sha256))

    def age(self, sha256: str) -> float:
        """Return when a package came, Unix seconds; 0: it is not here."""
        try:
            return self.folder(sha256).stat().st_mtime
        except OSError:
            return 0.0


def _remove(folder: Path) -> None:
    import shutil  # With three compressors: only what changes a shelf waits for them.

    shutil.rmtree(folder, ignore_errors=True)


def _size(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except OSError:  # Another process takes it away while we look.
        return 0


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

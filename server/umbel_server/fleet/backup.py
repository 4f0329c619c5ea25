"""A copy of a fleet in one file, taken while its services run, and a fleet made of such a file.

The file is a tar archive. Its first member, ``backup.json``, says whose it is; its last, ``contents.json``, names every
other with its SHA-256: a copy that is damaged or cut is refused whole. The store is in it as a SQLite file, wherever it was kept.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from umbel_proto.errors import StorageError, UsageError
from umbel_server.clock import system_clock
from umbel_server.files import SECRET_MODE, storage_error, sync_directory
from umbel_server.fleet.layout import DIRECTORIES, SETTINGS_FILE, FleetDir
from umbel_server.store.copying import copy_store
from umbel_server.store.database import Database
from umbel_server.store.schema import HEAD, prepare, schema_of

FORMAT = 1
ABOUT, CONTENTS = "backup.json", "contents.json"
STORE = "store.db"
_FLOWERS = PurePosixPath("superlink/state.db")
_PASSING = ("metrics", "log")
"""Directories of what is counted and said anew by each process."""
_PRIVATE = (".key", ".secret", ".token")
MAX_JSON_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Backup:
    """What a copy holds.

    Args:
        fleet: The fleet's name.
        taken_s: When, Unix seconds.
        files: How many files it has.
        size: Their bytes.
        keys: Whether private keys are among them.
    """

    fleet: str
    taken_s: float
    files: int
    size: int
    keys: bool


def back_up(fleet: FleetDir, where: Path, *, keys: bool = True) -> Backup:
    """Write a copy of a fleet into a file that only its owner may read.

    The store is as it was at one moment; files that it names are copied after it, so that none is missing.

    Args:
        fleet: The fleet; its services may run.
        where: The file; it must not exist.
        keys: Whether to copy private keys. Without them the copy cannot be a service's alone.

    Raises:
        UsageError: The file exists.
        StorageError: Something cannot be read, or the disk is full.
        UnavailableError: The store does not answer.
    """
    if where.exists():
        raise UsageError(f"{where} exists: choose another file.")
    try:
        with tempfile.TemporaryDirectory(dir=where.parent, prefix=".backup-") as scratch:
            copies = {PurePosixPath(STORE): _copy_store(fleet, Path(scratch) / STORE)}
            if (fleet.path / _FLOWERS).exists():
                copies[_FLOWERS] = _copy_sqlite(fleet.path / _FLOWERS, Path(scratch) / "state.db")
            chosen = {**copies, **{name: fleet.path / name for name in _names(fleet.path, keys=keys)}}
            made = Path(scratch) / "backup.tar"
            contents = _write(fleet, made, chosen, keys=keys)
            made.replace(where)
            sync_directory(where.parent)
    except OSError as exc:
        raise storage_error(exc, where) from exc
    return contents


def restore(where: Path, directory: Path) -> Backup:
    """Make a fleet's directory of a copy: all of it, or nothing.

    A copy that an older umbel made is brought up to date. Where its settings keep the store in PostgreSQL, that database
    gets the rows; it must be empty.

    Args:
        where: The file.
        directory: The directory to make; it may exist if it is empty.

    Raises:
        UsageError: The directory or the database is not empty, or the file is no copy of a fleet or one of a newer umbel.
        StorageError: The copy is damaged, or the disk is full.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory} is not empty: choose another directory for the fleet.")
    draft = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir(mode=0o700)
        for name in DIRECTORIES:  # A copy has none in which nothing lies.
            (draft / name).mkdir(mode=0o700)
        contents = _extract(where, draft)
        fleet = FleetDir.open(draft)
        place = fleet.store_place(new=True)
        _bring_up_to_date(draft / STORE, where)
        if not isinstance(place, Path):
            with_rows, empty = Database(draft / STORE), Database(place)
            try:
                copy_store(with_rows, empty)
            finally:
                with_rows.close()
                empty.close()
            (draft / STORE).unlink()
        draft.replace(directory)
        sync_directory(directory.parent)
    except FileNotFoundError as exc:
        raise UsageError(f"There is no file {where}.") from exc
    except OSError as exc:
        raise storage_error(exc, directory) from exc
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return contents


def _bring_up_to_date(store: Path, where: Path) -> None:
    database = Database(store)
    try:
        schema = schema_of(database)
        if schema is None:
            raise _damaged(where)
        if schema > HEAD:
            raise UsageError(
                f"The copy {where} is of a newer umbel, its store's schema is {schema} and this umbel knows {HEAD}: update umbel."
            )
        prepare(database)
    finally:
        database.close()


def _names(root: Path, *, keys: bool) -> Iterator[PurePosixPath]:
    """Return the files to copy besides databases, in order."""
    for path in sorted(root.rglob("*")):
        name = PurePosixPath(path.relative_to(root).as_posix())
        if not path.is_file() or path.is_symlink() or name.parts[0] in _PASSING:
            continue
        if path.name.startswith(".") or path.name == "lock" or ".db" in path.name:
            continue  # What is being written, locks, and databases, which are copied as such.
        if keys or path.suffix not in _PRIVATE:
            yield name


def _copy_store(fleet: FleetDir, target: Path) -> Path:
    with fleet.open_store() as store:
        copy = Database(target)
        try:
            copy_store(store.database, copy, moment=True)
        finally:
            copy.close()
    return _single(target)


def _copy_sqlite(source: Path, target: Path) -> Path:
    try:
        reading, writing = sqlite3.connect(f"file:{source}?mode=ro", uri=True), sqlite3.connect(target)
        try:
            reading.backup(writing)
        finally:
            reading.close()
            writing.close()
    except sqlite3.Error as exc:
        raise StorageError(f"{source} cannot be copied: {exc}.") from exc
    return target


def _single(path: Path) -> Path:
    """Bring what is in a database's log into its file, so that the file alone is the database."""
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
    return path


def _write(fleet: FleetDir, made: Path, chosen: Mapping[PurePosixPath, Path], *, keys: bool) -> Backup:
    taken_s = system_clock()
    listed: dict[str, dict[str, Any]] = {}
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SECRET_MODE)
    with os.fdopen(descriptor, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            about = {"format": FORMAT, "fleet": fleet.name, "taken_s": taken_s, "keys": keys}
            _add(archive, ABOUT, SECRET_MODE, io.BytesIO(json.dumps(about).encode()))
            for name, path in chosen.items():
                try:
                    part = path.open("rb")
                except FileNotFoundError:
                    continue  # A leftover that a service has tidied away meanwhile.
                with part:
                    listed[str(name)] = _add(
                        archive, str(name), os.fstat(part.fileno()).st_mode & 0o777, part
                    )
            _add(archive, CONTENTS, SECRET_MODE, io.BytesIO(json.dumps(listed).encode()))
        file.flush()
        os.fsync(file.fileno())
    return Backup(fleet.name, taken_s, len(listed), sum(each["size"] for each in listed.values()), keys)


def _add(archive: tarfile.TarFile, name: str, mode: int, content: IO[bytes]) -> dict[str, Any]:
    """Add a member, as long as it is now, and return its size and SHA-256."""
    about = tarfile.TarInfo(name)
    about.mode = mode
    about.size = content.seek(0, os.SEEK_END)
    content.seek(0)
    reader = _Hashing(content)
    archive.addfile(about, reader)
    return {"size": about.size, "sha256": reader.digest.hexdigest()}


class _Hashing:
    """Reads from a file and hashes what it gave."""

    def __init__(self, content: IO[bytes]) -> None:
        self._content = content
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._content.read(size)
        self.digest.update(data)
        return data


def _extract(where: Path, draft: Path) -> Backup:
    found: dict[str, dict[str, Any]] = {}
    listed: Any = None
    try:
        with tarfile.open(where, mode="r:") as archive:
            about = _json(archive, archive.next(), where)
            for member in archive:
                if member.name == ABOUT:
                    continue
                if member.name == CONTENTS:
                    listed = _json(archive, member, where)
                    break
                found[member.name] = _take(archive, member, where, draft)
            if about.get("format") != FORMAT:
                raise UsageError(f"{where} is no copy of a fleet that this umbel knows: update umbel.")
            if found != listed or SETTINGS_FILE not in found:
                raise _damaged(where)
            size = sum(each["size"] for each in found.values())
            return Backup(about["fleet"], about["taken_s"], len(found), size, about["keys"])
    except (tarfile.TarError, EOFError, KeyError) as exc:
        raise _damaged(where) from exc


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, where: Path, draft: Path) -> dict[str, Any]:
    """Write a member to where its name says, if that lies within, and return its size and SHA-256."""
    name = PurePosixPath(member.name)
    content = archive.extractfile(member) if member.isreg() else None
    if content is None or name.is_absolute() or ".." in name.parts:
        raise _damaged(where)
    target = draft / name
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    reader = _Hashing(content)
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, member.mode & 0o777)
    except FileExistsError as exc:
        raise _damaged(where) from exc
    with os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(reader, file)
        file.flush()
        os.fsync(file.fileno())
    return {"size": member.size, "sha256": reader.digest.hexdigest()}


def _json(archive: tarfile.TarFile, member: tarfile.TarInfo | None, where: Path) -> dict[str, Any]:
    if member is None or member.name not in (ABOUT, CONTENTS) or member.size > MAX_JSON_BYTES:
        raise UsageError(f"{where} is no copy of a fleet: umbel fleet backup makes one.")
    file = archive.extractfile(member)
    try:
        raw = json.loads(b"" if file is None else file.read())
    except ValueError as exc:
        raise _damaged(where) from exc
    if not isinstance(raw, dict):
        raise _damaged(where)
    return raw


def _damaged(where: Path) -> StorageError:
    return StorageError(f"The copy {where} is damaged or cut: take another one. Nothing was restored.")

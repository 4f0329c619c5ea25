"""What the commands of ``umbel model`` read and write: keys, arrays, facts of a card, packages."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import secrets
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from umbel_models.task import Examples
from umbel_proto.errors import PackageError, StorageError, UsageError
from umbel_proto.keys import SigningKey, VerifyKey
from umbel_proto.manifest import FloatVector, Scalar
from umbel_proto.package import Package
from umbel_proto.tensors import load_tensors
from umbel_proto.update import is_update, read_update

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DRAFT_BYTES = 4
_RELEASE_KEY = "Give a fleet's keys/release.key, which  umbel fleet create  makes."
_RELEASE_PUB = "Give a fleet's keys/release.pub, which  umbel fleet create  makes."


def read(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror or exc}.") from exc


def write(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all: under its name only when it is on the disk.

    What a killed write leaves beside it, a draft with a dot before the name, goes with the next write of the file.

    Raises:
        StorageError: It cannot be written; what was there before is still there.
    """
    try:
        _remove_drafts(path)
        descriptor, draft = _draft(path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as exc:
        raise _unwritten(exc, path) from exc


def _draft(path: Path) -> tuple[int, Path]:
    """Make an empty file beside another, and lock it: as long as it is locked somebody writes it."""
    while True:
        draft = path.with_name(f".{path.name}.{secrets.token_hex(_DRAFT_BYTES)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        # Where a file system has no locks nobody can take the draft for abandoned either: that takes its lock.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, draft
        os.close(descriptor)  # Somebody took it for abandoned before it was locked.


def _remove_drafts(path: Path) -> None:
    """Remove the drafts of a file whose writers were killed."""
    for draft in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * (2 * _DRAFT_BYTES)}"):
        # Somebody writes it, has just finished it, or owns it.
        with contextlib.suppress(OSError):
            descriptor = os.open(draft, os.O_WRONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                draft.unlink()
            finally:
                os.close(descriptor)


def require_writable(path: Path) -> None:
    """Refuse a file that could not be written, before the minutes of work that end in it.

    Raises:
        StorageError: Its folder is not there or takes no new file, or a folder has its name.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as exc:
        raise _unwritten(exc, path) from exc


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, where there is none.

    Raises:
        StorageError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StorageError(
            f"{path} cannot be made a folder: {exc.strerror or exc}. Name a folder, or a place where you may make one."
        ) from exc


def _unwritten(exc: OSError, path: Path) -> StorageError:
    if isinstance(exc, FileNotFoundError) and not path.parent.exists():
        cure = f"Make the folder {path.parent} first."
    elif isinstance(exc, IsADirectoryError):
        cure = "Name a file in it."
    elif exc.errno in (errno.ENOSPC, errno.EDQUOT):
        cure = "Free some space, or name a file on another disk."
    else:
        cure = "Name a file in a folder that you may write to."
    return StorageError(f"{path} cannot be written: {exc.strerror or exc}. {cure}")


def signing_key(path: Path) -> SigningKey:
    """Return the fleet's release key of a PEM file.

    Raises:
        UsageError: The file cannot be read or holds something else.
    """
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise UsageError(f"The key {path} cannot be read: {exc.strerror or exc}. {_RELEASE_KEY}") from exc
    try:
        return SigningKey.from_pem(raw)
    except UsageError as exc:
        raise UsageError(f"{path}: {exc} {_RELEASE_KEY}") from exc


def verify_key(path: Path) -> VerifyKey:
    """Return the public release key of a file: its 32 bytes, or PEM.

    Raises:
        UsageError: The file cannot be read or holds something else.
    """
    raw = read(path)
    try:
        return VerifyKey.read(raw)
    except UsageError as exc:
        raise UsageError(f"{path}: {exc} {_RELEASE_PUB}") from exc


def calibration(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the arrays x and y of an .npz file; None for y where it has none.

    Raises:
        UsageError: The file cannot be read or has no x.
    """
    x, *y = _arrays(path, "x", also="y")
    return x, (y[0] if y else None)


def examples(path: Path) -> Examples:
    """Return the examples of an .npz file: its arrays x and y, labels if these are whole numbers, else targets.

    Raises:
        UsageError: The file cannot be read, lacks one, or y is neither.
    """
    import numpy as np

    x, y = _arrays(path, "x", "y")
    if len(x) != len(y) or y.dtype.kind not in "fiu":
        raise UsageError(
            f"{path} holds no y for each x: give labels as whole numbers, or targets as numbers."
        )
    return Examples(x, y.astype(np.float32 if y.dtype.kind == "f" else np.int64))


def parameters(path: Path, base: Package) -> FloatVector:
    """Return new parameters for a package: of a run's update, or of a .safetensors file.

    Raises:
        UsageError: The file cannot be read or holds other arrays.
        PackageError: The update was not made from this package.
    """
    raw = read(path)
    if is_update(raw):
        return read_update(raw, base)
    # Arrays that somebody trained elsewhere: nothing says from which package.
    try:
        return base.manifest.join(load_tensors(raw, path.name))
    except PackageError as exc:
        raise UsageError(f"{exc} Give a run's trained.params, or a .safetensors file.") from exc


def facts(text: str | None) -> dict[str, Scalar]:
    """Return what ``--lineage`` says: one flat JSON object, or the name of a file that holds one.

    Raises:
        UsageError: It is something else.
    """
    if text is None:
        return {}
    if not text.lstrip().startswith("{"):
        text = read(Path(text)).decode(errors="replace")
    try:
        found = json.loads(text)
    except ValueError as exc:
        raise UsageError("--lineage is neither a JSON object nor a file that holds one.") from exc
    if not isinstance(found, dict) or not all(
        isinstance(value, str | int | float) and not isinstance(value, bool) for value in found.values()
    ):
        raise UsageError("--lineage must be one flat JSON object of text and numbers.")
    return found


class Sections(NamedTuple):
    """Sections for a card, and what they are about.

    Args:
        figures: Figures by section and by name.
        parameters: SHA-256 of the ``params.safetensors`` that they were measured on; empty where there are none.
    """

    figures: dict[str, dict[str, Scalar]]
    parameters: str


def sections(path: Path | None) -> Sections:
    """Return the sections of a card that ``umbel model assess --json`` printed to a file; none of no file.

    Raises:
        UsageError: The file holds something else.
    """
    if path is None:
        return Sections({}, "")
    try:
        found = json.loads(read(path))
    except ValueError as exc:
        raise UsageError(f"{path} is not JSON: write what  umbel model assess --json  prints to it.") from exc
    match found:
        case {"parameters": str(parameters), "sections": dict(figures)} if parameters and all(
            isinstance(each, dict) for each in figures.values()
        ):
            return Sections(figures, parameters)
    raise UsageError(
        f"{path} holds no sections of figures, or does not say of which parameters: write what  umbel model assess "
        "--json  prints."
    )


def _arrays(path: Path, *names: str, also: str = "") -> list[NDArray[Any]]:
    import numpy as np

    wanted = f"an array {names[0]}" if len(names) == 1 else f"arrays {' and '.join(names)}"
    cure = f"Write one with numpy.savez(file, {', '.join(f'{name}=...' for name in names)})."
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in names if name not in arrays]
            if missing:
                raise UsageError(f"{path} holds no {' and no '.join(missing)}. {cure}")
            there = [*names, *([also] if also in arrays else [])]
            return [np.asarray(arrays[name]) for name in there]
    except (FileNotFoundError, IsADirectoryError, PermissionError) as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}. Give an .npz file with {wanted}.") from exc
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as exc:
        raise UsageError(f"{path} is not an .npz file with {wanted}. {cure}") from exc

"""What the device keeps of its user's data is unreadable without one key file: destroying that erases the data.

AES-256-GCM with a random nonce of 96 bits for every row: safe for 2**32 rows of one key (NIST SP 800-38D,
section 8.3).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from umbel._home.files import read_file, storage_error, sync_directory, write_atomically
from umbel_proto.encoding import digest
from umbel_proto.errors import StorageError, VerificationError

KEY_BYTES = 32
_NONCE_BYTES = 12


class Cipher:
    """Seals rows, each bound to its place, and marks equal contents without showing them.

    Args:
        key: 32 random bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._rows = AESGCM(digest("umbel/1/local-rows", key))
        self._marks = digest("umbel/1/local-marks", key)
        self.id: bytes = digest("umbel/1/local-key-id", key)[:8]
        """Tells keys apart, and says nothing about them."""

    def __repr__(self) -> str:
        return f"Cipher({self.id.hex()})"

    def seal(self, plain: bytes, place: bytes) -> bytes:
        """Encrypt a row.

        Args:
            plain: What it says.
            place: What it belongs to; only there can it be opened.
        """
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._rows.encrypt(nonce, plain, place)

    def open(self, sealed: bytes, place: bytes) -> bytes:
        """Return what a row says.

        Raises:
            VerificationError: It was altered, or belongs to another place or key.
        """
        try:
            return self._rows.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place)
        except (InvalidTag, ValueError):
            raise VerificationError("A row of local data was altered, or belongs elsewhere.") from None

    def mark(self, label: str, content: bytes) -> bytes:
        """Return 16 bytes that are the same for the same content, and say nothing without the key."""
        return hmac.digest(self._marks, label.encode() + b"\0" + content, hashlib.sha256)[:16]


def load_cipher(file: Path) -> Cipher | None:
    """Return the cipher whose key a file holds, or None if there is no such file.

    Raises:
        StorageError: The file is damaged, or others may read it.
    """
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise storage_error(exc, file) from exc
    if mode & 0o077:
        raise StorageError(
            f"Others may read {file}, the key to this device's data (mode {mode:o}): run  chmod 600 {file}"
        )
    key = read_file(file)
    if len(key) != KEY_BYTES:
        raise StorageError(f"{file} is damaged: restore it, or what it is the key to cannot be read.")
    return Cipher(key)


def new_cipher(file: Path) -> Cipher:
    """Make a key, and put it on disk where only its owner can read it.

    Raises:
        StorageError: The disk is full.
    """
    key = os.urandom(KEY_BYTES)
    write_atomically(file, key)
    return Cipher(key)


def destroy_key(file: Path) -> None:
    """Delete a key: nothing that it sealed can be read any more, on whatever block of the disk it is left.

    The file is overwritten first. A flash disk may keep the old block for some time all the same; so may a
    backup.

    Raises:
        StorageError: The directory cannot be written.
    """
    try:
        try:
            descriptor = os.open(file, os.O_WRONLY)
        except FileNotFoundError:
            return
        try:
            os.write(descriptor, bytes(KEY_BYTES))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        file.unlink(missing_ok=True)
        sync_directory(file.parent)
    except OSError as exc:
        raise storage_error(exc, file) from exc

"""The sentences for what can go wrong with a store, whichever database keeps it."""

from __future__ import annotations

from umbel_proto.errors import StorageError, UnavailableError
from umbel_server.files import DiskFullError as DiskFullError
from umbel_server.files import disk_full as disk_full


class RepeatableError(UnavailableError):
    """The database gave a transaction up in favor of another: the same again may well go through."""


def damaged(name: str) -> StorageError:
    """Return the error for a store that its database cannot make sense of."""
    return StorageError(f"The store {name} is corrupted: stop the services and restore it from a backup.")


def busy(name: str) -> UnavailableError:
    """Return the error for a store that others keep from being changed."""
    return UnavailableError(f"The store {name} is busy: try again.")

"""The sentences for what can go wrong with a store, whichever database keeps it."""

from __future__ import annotations

from umbel_proto.errors import StorageError, UnavailableError


class DiskFullError(StorageError):
    """The disk is full: nothing of the transaction was kept."""


class RepeatableError(UnavailableError):
    """The database gave a transaction up in favor of another: the same again may well go through."""


def disk_full(name: str) -> DiskFullError:
    """Return the error for a store that has no room left."""
    return DiskFullError(f"No space is left on the disk of {name}: free some and try again.")


def damaged(name: str) -> StorageError:
    """Return the error for a store that its database cannot make sense of."""
    return StorageError(f"The store {name} is corrupted: stop the services and restore it from a backup.")


def busy(name: str) -> UnavailableError:
    """Return the error for a store that others keep from being changed."""
    return UnavailableError(f"The store {name} is busy: try again.")

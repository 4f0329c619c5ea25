"""Releases: which packages devices may have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.exc import IntegrityError

from umbel_proto.errors import RefusedError
from umbel_proto.ids import ModelName
from umbel_server.clock import Clock
from umbel_server.store.database import Database
from umbel_server.store.tables import releases


@dataclass(frozen=True, slots=True)
class Release:
    """A released package.

    Args:
        model: The model.
        version: Its version; devices get the highest.
        sha256: Hash of the whole package file, 32 bytes.
        size: The package's size, bytes.
        published_s: When it was released, Unix seconds.
    """

    model: ModelName
    version: int
    sha256: bytes
    size: int
    published_s: float


class Releases:
    """The releases of a store."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def publish(self, model: ModelName, version: int, *, sha256: bytes, size: int) -> Release:
        """Release a package that is in place; the same one again is no error.

        Raises:
            RefusedError: This version of the model is out already, with other content.
        """
        release = Release(model, version, sha256, size, self._clock())
        present = self.get(sha256)
        if present is not None:
            return present
        try:
            with self._database.write() as connection:
                connection.execute(
                    insert(releases).values(
                        sha256=sha256,
                        model=model,
                        version=version,
                        size=size,
                        published_s=release.published_s,
                    )
                )
        except IntegrityError as exc:
            raise RefusedError(
                f"Version {version} of {model} is released already, with other content: give this one a "
                "new version."
            ) from exc
        return release

    def get(self, sha256: bytes) -> Release | None:
        """Return the release with this hash; None if there is none."""
        with self._database.read() as connection:
            row = connection.execute(select(releases).where(releases.c.sha256 == sha256)).one_or_none()
        return None if row is None else _release(row)

    def all(self) -> tuple[Release, ...]:
        """Return every release, by model and version."""
        with self._database.read() as connection:
            rows = connection.execute(select(releases).order_by(releases.c.model, releases.c.version)).all()
        return tuple(map(_release, rows))

    def newest(self) -> tuple[Release, ...]:
        """Return the newest release of every model, by model."""
        return tuple({release.model: release for release in self.all()}.values())


def _release(row: Row[Any]) -> Release:
    return Release(ModelName(row.model), row.version, row.sha256, row.size, row.published_s)

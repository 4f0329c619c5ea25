"""Releases: which packages devices may have."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, insert, or_, select
from sqlalchemy.exc import IntegrityError

from umbel_proto.errors import RefusedError
from umbel_proto.ids import ModelName
from umbel_server.clock import Clock
from umbel_server.store.database import Database
from umbel_server.store.tables import deltas, releases
from umbel_server.store.tables_registry import withdrawals


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


@dataclass(frozen=True, slots=True)
class Delta:
    """What a released package differs by from another.

    Args:
        base_sha256: Hash of the release that it is applied to, 32 bytes.
        sha256: Hash of the delta itself, 32 bytes.
        size: The delta's size, bytes.
    """

    base_sha256: bytes
    sha256: bytes
    size: int


class Releases:
    """The releases of a store. One that was withdrawn is none any more, but its version stays taken."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def publish(
        self,
        model: ModelName,
        version: int,
        *,
        sha256: bytes,
        size: int,
        made_of: Collection[Delta] = (),
        also: Callable[[Connection], None] = lambda connection: None,
    ) -> Release:
        """Release a package that is in place; the same one again is no error.

        Args:
            model: The model.
            version: Its version. Deltas to older ones are forgotten.
            sha256: Hash of the whole package file, 32 bytes.
            size: Its size, bytes.
            made_of: Deltas that are in place, by which it is made of other releases.
            also: What is done in the same transaction.

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
                older = select(releases.c.sha256).where(
                    releases.c.model == model, releases.c.version < version
                )
                connection.execute(delete(deltas).where(deltas.c.package_sha256.in_(older)))
                for delta in made_of:
                    connection.execute(
                        insert(deltas).values(
                            package_sha256=sha256,
                            base_sha256=delta.base_sha256,
                            sha256=delta.sha256,
                            size=delta.size,
                        )
                    )
                also(connection)
        except IntegrityError as exc:
            raise RefusedError(
                f"Version {version} of {model} is released already, with other content: give this one a "
                "new version."
            ) from exc
        return release

    def get(self, sha256: bytes) -> Release | None:
        """Return the release with this hash; None if there is none."""
        with self._database.read() as connection:
            row = connection.execute(_offered().where(releases.c.sha256 == sha256)).one_or_none()
        return None if row is None else _release(row)

    def of_version(self, connection: Connection, model: str, version: int) -> Release | None:
        """Return the release of a version, withdrawn or not; None if there never was one."""
        row = connection.execute(select(releases).filter_by(model=model, version=version)).one_or_none()
        return None if row is None else _release(row)

    def withdraw(self, connection: Connection, sha256: bytes) -> None:
        """Let no device fetch a release any more, nor a delta of it or to it, if there is such a release."""
        released = connection.execute(_offered().where(releases.c.sha256 == sha256)).one_or_none()
        if released is None:
            return
        connection.execute(insert(withdrawals).values(sha256=sha256, withdrawn_s=self._clock()))
        either = or_(deltas.c.package_sha256 == sha256, deltas.c.base_sha256 == sha256)
        connection.execute(delete(deltas).where(either))

    def all(self) -> tuple[Release, ...]:
        """Return every release, by model and version."""
        with self._database.read() as connection:
            rows = connection.execute(_offered().order_by(releases.c.model, releases.c.version)).all()
        return tuple(map(_release, rows))

    def before(self, model: ModelName, version: int, *, count: int) -> tuple[Release, ...]:
        """Return the releases of a model before a version, newest first, at most ``count``."""
        query = _offered().where(releases.c.model == model, releases.c.version < version)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(releases.c.version.desc()).limit(count)).all()
        return tuple(map(_release, rows))

    def deltas(self) -> tuple[Delta, ...]:
        """Return every delta."""
        with self._database.read() as connection:
            rows = connection.execute(select(deltas)).all()
        return tuple(map(_delta, rows))

    def delta(self, sha256: bytes) -> Delta | None:
        """Return the delta with this hash; None if there is none."""
        with self._database.read() as connection:
            row = connection.execute(select(deltas).where(deltas.c.sha256 == sha256)).first()
        return None if row is None else _delta(row)

    def smallest_delta(self, sha256: bytes, *, bases: Collection[bytes]) -> Delta | None:
        """Return the smallest delta that makes a release of one of some others; None if there is none.

        Args:
            sha256: The release's hash.
            bases: Hashes of what there is to make it of.
        """
        query = select(deltas).where(deltas.c.package_sha256 == sha256).order_by(deltas.c.size)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return next((delta for delta in map(_delta, rows) if delta.base_sha256 in bases), None)

    def newest(self, *, besides: Collection[bytes] = ()) -> tuple[Release, ...]:
        """Return the newest release of every model, by model.

        Args:
            besides: Hashes of releases that do not count.
        """
        others = (release for release in self.all() if release.sha256 not in besides)
        return tuple({release.model: release for release in others}.values())


def _offered() -> Select[Any]:
    return select(releases).where(releases.c.sha256.not_in(select(withdrawals.c.sha256)))


def _release(row: Row[Any]) -> Release:
    return Release(ModelName(row.model), row.version, row.sha256, row.size, row.published_s)


def _delta(row: Row[Any]) -> Delta:
    return Delta(row.base_sha256, row.sha256, row.size)

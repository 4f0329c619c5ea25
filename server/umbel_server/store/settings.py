"""The settings of a store: where it is, and for how long it keeps what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from umbel_proto.errors import StorageError, UsageError
from umbel_server.fleet.table import Table, setting

if TYPE_CHECKING:
    from sqlalchemy import URL

ENVIRONMENT = "UMBEL_STORE_URL"
LONGEST_DAYS = 36_500
_PLACEHOLDER = "postgresql://USER@HOST/DATABASE"


@dataclass(frozen=True, slots=True)
class StoreSettings(Table):
    """Where the store is. With neither it is ``store.db`` in the fleet's directory.

    Args:
        url: A PostgreSQL database, without a password.
        url_file: A file that has such a URL, and may have its password: relative to the fleet's directory.
    """

    TABLE: ClassVar[str] = "store"
    NOTE: ClassVar[str] = (
        f"empty: store.db beside this file; the environment's {ENVIRONMENT} goes before both"
    )

    url: str = setting(f'"{_PLACEHOLDER}", without a password', "")
    url_file: str = setting("a file that has the URL, password and all", "")

    def __post_init__(self) -> None:
        if self.url and self.url_file:
            raise UsageError("fleet.toml: [store] has a url and a url_file: keep one of them.")
        if self.url:
            url_without_password(self.url)


@dataclass(frozen=True, slots=True)
class RetentionPolicy(Table):
    """For how many days what devices report is kept.

    Args:
        raw_days: Batches, once the opener is done with them, since they came. A batch that is sent again is known
            by its id for so long: longer than devices keep what they could not send.
        hours_days: Sums by the hour, of each device and of cohorts.
        days_days: Sums by the day, of cohorts.
    """

    TABLE: ClassVar[str] = "retention"
    NOTE: ClassVar[str] = "for how many days what devices report is kept"

    raw_days: int = setting("batches, once opened", 60, between=(1, LONGEST_DAYS))
    hours_days: int = setting("sums by the hour, of devices and of cohorts", 90, between=(1, LONGEST_DAYS))
    days_days: int = setting("sums by the day, of cohorts", 1095, between=(1, LONGEST_DAYS))


def store_place(directory: Path, settings: StoreSettings, environment: Mapping[str, str]) -> Path | URL:
    """Return where a fleet's store is.

    Args:
        directory: The fleet's directory.
        settings: What its ``fleet.toml`` says.
        environment: Environment variables; ``UMBEL_STORE_URL`` goes before the settings.

    Raises:
        UsageError: A URL cannot be used.
        StorageError: ``url_file`` cannot be read.
    """
    text = environment.get(ENVIRONMENT, "") or settings.url
    if not text and settings.url_file:
        path = directory / settings.url_file
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise StorageError(f"[store] url_file, {path}, cannot be read: see that it holds a URL.") from exc
    if not text:
        return directory / "store.db"
    from umbel_server.store.postgresql import postgresql_url

    return postgresql_url(text)


def url_without_password(text: str) -> URL:
    """Read a URL from where others may read it too.

    Raises:
        UsageError: It is none, or holds a password. Neither is told.
    """
    from umbel_server.store.postgresql import postgresql_url

    url = postgresql_url(text)
    if url.password is not None or "password" in url.query:
        raise UsageError(
            "The store's URL holds a password where others may read it: put the URL into a file that is "
            "yours alone, and name that as url_file."
        )
    return url

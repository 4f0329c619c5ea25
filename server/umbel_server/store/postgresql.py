"""The store in PostgreSQL: for many gateways, and for fleets that outgrow a file.

Changes wait for each other by an advisory lock, as they do for SQLite's only one, so that every subject's
laws hold on both. What arrives by the thousand, each row of its own, goes beside that lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event

from umbel_proto.errors import StorageError, UnavailableError, UsageError
from umbel_server.store.arrays import Array
from umbel_server.store.failures import RepeatableError, busy, damaged, disk_full

BUSY_TIMEOUT_MS = 10_000
IDLE_TIMEOUT_MS = 300_000
"""A process that stops amid a transaction keeps the others waiting no longer than this."""
WRITERS_LOCK = 0x756D_6265_6C00_0001
"""Whoever changes more than rows of its own holds this: \"umbel\", 1."""
CONNECTIONS = 8
SPARE_CONNECTIONS = 16
LEAST_VERSION = 14
_LOCAL = ("localhost", "127.0.0.1", "::1")
_VERIFIED = ("verify-full", "verify-ca")


@dataclass(frozen=True, slots=True)
class Postgresql:
    """A store in a database of a PostgreSQL server.

    Args:
        url: Where it is, and as whom; made by ``postgresql_url``.
    """

    url: URL

    @property
    def name(self) -> str:
        """What operators call it; without the password."""
        return _without_password(self.url)

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What the driver raises."""
        import psycopg

        return (psycopg.Error,)

    def engine(self) -> Engine:
        """Return an engine whose connections are tried before they are used: a restart costs the pool nothing."""
        engine = create_engine(
            self.url,
            pool_size=CONNECTIONS,
            max_overflow=SPARE_CONNECTIONS,
            pool_timeout=BUSY_TIMEOUT_MS / 1000,
            pool_pre_ping=True,
            pool_use_lifo=True,
            hide_parameters=True,
            connect_args={"connect_timeout": 10, "application_name": "umbel", "client_encoding": "utf8"},
        )
        event.listen(engine, "connect", _configure)
        return engine

    def make(self) -> None:
        """Do nothing: the database is made by whoever runs the server."""

    def check(self, connection: Connection) -> None:
        """Check that the server can keep a store.

        Raises:
            StorageError: It is too old, or the database's encoding is not UTF-8.
        """
        version, encoding = connection.exec_driver_sql(
            "SELECT current_setting('server_version_num')::int / 10000, current_setting('server_encoding')"
        ).one()
        if version < LEAST_VERSION:
            raise StorageError(
                f"The store {self.name} is PostgreSQL {version}: use {LEAST_VERSION} or newer."
            )
        if encoding != "UTF8":
            raise StorageError(
                f"The store {self.name} has the encoding {encoding}: make its database with"
                "  createdb --template template0 --encoding UTF8."
            )

    def check_all(self, connection: Connection) -> None:
        """Do what ``check`` does: a server looks after its own pages, and says of a damaged one when it reads it."""
        self.check(connection)

    def reading(self, connection: Connection) -> Connection:
        """Return the connection, about to read one moment of the store."""
        return connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def writing(self, connection: Connection) -> Connection:
        """Return the connection, about to write."""
        # After the lock each statement must see what the writer before left: no snapshot may be older.
        return connection.execution_options(isolation_level="READ COMMITTED")

    def wait_for_turn(self, connection: Connection) -> None:
        """Wait until no other process changes the store; the transaction's end lets the next one in."""
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS_LOCK})")

    def failure(self, exc: BaseException | None) -> StorageError | UnavailableError:
        """Return our error for one of PostgreSQL's."""
        # Source: PostgreSQL 15 manual, appendix A, "PostgreSQL Error Codes".
        code = getattr(exc, "sqlstate", None) or ""
        match code:
            case "53100":
                return disk_full(self.name)
            case "40001" | "40P01":
                return RepeatableError(f"The store {self.name} is busy: try again.")
            case "55P03" | "57014" | "25P03":
                return busy(self.name)
            case "XX001" | "XX002":
                return damaged(self.name)
            case "25006" | "42501":
                return StorageError(
                    f"The store {self.name} cannot be changed: check the rights of its user, and that the "
                    "server is no standby."
                )
        if code[:2] in ("08", "53", "57", "58") or (not code and _is_operational(exc)):
            return self._no_answer(str(exc))
        # The rest of what the server says may show rows.
        told = getattr(getattr(exc, "diag", None), "message_primary", None) or type(exc).__name__
        return StorageError(f"The store {self.name} fails: {told}.")

    def _no_answer(self, told: str) -> StorageError | UnavailableError:
        if "authentication failed" in told or "no password supplied" in told or "pg_hba.conf" in told:
            return StorageError(f"The store {self.name} refuses its user: check the password in url_file.")
        if "does not exist" in told:
            return StorageError(
                f"The store {self.name} has no such database or user: make them with createuser and createdb."
            )
        return UnavailableError(f"The store {self.name} does not answer: start it, or wait and try again.")


def postgresql_url(text: str) -> URL:
    """Read the URL of a database: ``postgresql://USER@HOST/DATABASE``.

    Over a network its server is verified by its certificate; what would not is refused.

    Raises:
        UsageError: It is not one, or its server would not be verified. The password is not told.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text.strip())
    except (ArgumentError, ValueError):
        raise UsageError("The store's URL is not one: write  postgresql://USER@HOST/DATABASE.") from None
    if url.drivername not in ("postgresql", "postgres", "postgresql+psycopg") or not url.database:
        raise UsageError(
            "The store's URL is of no PostgreSQL database: write  postgresql://USER@HOST/DATABASE."
        )
    url = url.set(drivername="postgresql+psycopg")
    host = url.query.get("host", url.host or "")
    hosts = (host,) if isinstance(host, str) else host
    if all(not each or each.startswith("/") or each in _LOCAL for each in hosts):
        return url
    url = url.update_query_dict({"sslmode": url.query.get("sslmode", _VERIFIED[0])})
    if url.query["sslmode"] not in _VERIFIED:
        raise UsageError(
            f"The store's URL has sslmode={url.query['sslmode']}, which does not verify the server: "
            "use verify-full, with sslrootcert=FILE for a CA of your own."
        )
    return url


def _without_password(url: URL) -> str:
    # Options may hold one too: of those only the host is told.
    plain = URL.create(
        "postgresql", username=url.username, host=url.host, port=url.port, database=url.database
    )
    host = url.query.get("host")
    return plain.render_as_string() + (f" at {host}" if host else "")


def _is_operational(exc: BaseException | None) -> bool:
    import psycopg

    return isinstance(exc, psycopg.OperationalError | psycopg.InterfaceError)


def _configure(connection: Any, _record: object) -> None:
    from umbel_server.store.array_dumper import ArrayDumper

    connection.adapters.register_dumper(Array, ArrayDumper)
    autocommit, connection.autocommit = connection.autocommit, True
    # A server whose commits do not wait for its disk would have us acknowledge what it may yet lose.
    connection.execute(
        f"SELECT set_config('lock_timeout', '{BUSY_TIMEOUT_MS}', false), "
        f"set_config('idle_in_transaction_session_timeout', '{IDLE_TIMEOUT_MS}', false), "
        "CASE current_setting('synchronous_commit') WHEN 'off' "
        "THEN set_config('synchronous_commit', 'on', false) END, "
        # Where nobody set it, it is that of disks with arms: an index would be passed by for all of a table.
        "CASE current_setting('random_page_cost') WHEN '4' "
        "THEN set_config('random_page_cost', '1.1', false) END, "
        # A plan for any list of devices, which it makes after some lists, reads a whole version for five hundred of them.
        "set_config('plan_cache_mode', 'force_custom_plan', false), "
        # What is counted beside a page shall leave the other cores to pages.
        "set_config('max_parallel_workers_per_gather', '0', false)"
    )
    connection.autocommit = autocommit

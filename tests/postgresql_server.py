"""A PostgreSQL server for tests: Debian's, in a directory of its own, on a Unix socket only."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import URL

from umbel_server.store.database import Database
from umbel_server.store.postgresql import postgresql_url
from umbel_server.store.schema import prepare

START_S = 60.0
MISSING = "PostgreSQL is missing: install Debian's package postgresql (no cluster is needed)."


class PostgresqlServer:
    """A running server; ``database`` makes a migrated database in it.

    What tests kill is the server's processes, not the machine: it needs no fsync to keep what it committed.

    Args:
        durable: It waits for the disk all the same, as in service: what is measured must.
    """

    def __init__(self, *, durable: bool = False) -> None:
        self._durable = durable
        self._programs = programs()
        self._password = secrets.token_hex(16)
        self._user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self.directory = Path(tempfile.mkdtemp(prefix="umbel-pg-"))  # Short: a socket's path has 107 bytes.
        if os.geteuid() == 0:
            shutil.chown(self.directory, self._user)
        password = self.directory / "password"
        password.write_text(self._password)
        password.chmod(0o600)
        if os.geteuid() == 0:
            shutil.chown(password, self._user)
        self._run(
            "initdb",
            f"--pgdata={self.data}",
            "--username=umbel",
            "--auth=scram-sha-256",
            f"--pwfile={password}",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._template = ""
        self._made = 0
        self.start()

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def url(self, name: str) -> URL:
        """Return the URL of a database, as ``[store] url_file`` would hold it."""
        return postgresql_url(f"postgresql://umbel:{self._password}@/{name}?host={self.directory}")

    def start(self) -> None:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.directory),
            "max_connections": "200",
        }
        if not self._durable:
            settings |= {"fsync": "off", "full_page_writes": "off", "shared_buffers": "64MB"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.data, *options],
                stdout=log,
                stderr=log,
                cwd=self.directory,
                **self._identity(),
            )
        give_up_s = time.monotonic() + START_S
        while True:
            try:
                psycopg.connect(self._dsn("postgres")).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > give_up_s:
                    raise RuntimeError((self.directory / "log").read_text()[-2000:]) from None
                time.sleep(0.02)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stop it: SIGQUIT as a crash does, SIGINT as an administrator does, disconnecting everybody."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(START_S)
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def database(self, *, empty: bool = False) -> URL:
        """Return the URL of a new database; a store that is up to date, unless it is to be empty."""
        if not self._template and not empty:
            template = self.database(empty=True)
            database = Database(template)
            prepare(database)
            database.close()
            self._template = str(template.database)
        self._made += 1
        name = f"store_{self._made}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {'template1' if empty else self._template}")
        return self.url(name)

    def drop(self, url: URL) -> None:
        self.execute(f"DROP DATABASE {url.database} WITH (FORCE)")

    def execute(self, statement: str, *, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement as an administrator would, beside the store."""
        with psycopg.connect(self._dsn(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def _dsn(self, name: str) -> str:
        return f"host={self.directory} user=umbel password={self._password} dbname={name}"

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments],
            check=False,
            capture_output=True,
            text=True,
            cwd=self.directory,
            timeout=START_S,
            **self._identity(),
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])

    def _identity(self) -> dict[str, Any]:
        """PostgreSQL refuses to run as root."""
        env = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        if os.geteuid():
            return {"env": env}
        return {"env": env, "user": self._user, "group": self._user, "extra_groups": []}


def programs() -> Path:
    """Return where PostgreSQL's programs are.

    Raises:
        RuntimeError: Nowhere.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    here = shutil.which("postgres")
    if here is None:
        raise RuntimeError(MISSING)
    return Path(here).resolve().parent

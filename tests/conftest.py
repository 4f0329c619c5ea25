"""What every test needs: one Hypothesis profile, so that no test fails for being slow today; and stores to try."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

import umbel_server  # noqa: F401  # Before gRPC: tests fork, and gRPC's handlers of forks have stopped a worker for good.
from port_shares import take_share

if TYPE_CHECKING:
    from sqlalchemy import URL

    from postgresql_server import PostgresqlServer
    from security_module import SecurityModule

settings.register_profile(
    "umbel", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("umbel")
take_share()


@pytest.fixture(scope="session")
def security_module(tmp_path_factory: pytest.TempPathFactory) -> SecurityModule:
    """A PKCS#11 token; where there is none to make, tests that need it fail and say so."""
    from security_module import MISSING, MODULE, SecurityModule

    if not MODULE.exists():
        pytest.fail(MISSING, pytrace=False)
    return SecurityModule(tmp_path_factory.mktemp("security-module"))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """A PostgreSQL server; where there is none to start, tests that need it fail and say so."""
    from postgresql_server import MISSING, PostgresqlServer, programs

    try:
        programs()
    except RuntimeError:
        pytest.fail(MISSING, pytrace=False)
    server = PostgresqlServer()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | URL]:
    """As ``place``, with nothing there yet: what opens it first makes the tables."""
    yield from _place(request, tmp_path, empty=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | URL]:
    """Where a store may be: what opens it here, ``open_store(place)``, is tried on every database there is."""
    yield from _place(request, tmp_path, empty=False)


def _place(request: pytest.FixtureRequest, folder: Path, *, empty: bool) -> Iterator[Path | URL]:
    if request.param == "sqlite":
        yield folder / "store.db"
        return
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    url = server.database(empty=empty)
    yield url
    server.drop(url)

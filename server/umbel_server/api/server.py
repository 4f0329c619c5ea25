"""The API's process, and the console's: HTTPS by uvicorn, with the fleet's server certificate, renewed while it runs."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import uvicorn
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from umbel_proto.errors import StorageError, UmbelError, UnavailableError
from umbel_server.access.chain import keep_checkpoint
from umbel_server.api.app import create_app
from umbel_server.fleet.create import renew_server_certificate
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.settings import address
from umbel_server.store.store import Store

DRAIN_S = 5
"""How long requests that are being answered may take to end when the service stops."""
TICK_S = 60
IDLE_S = 30
MAX_CONNECTIONS = 512

log = logging.getLogger(__name__)


class HttpsServer:
    """An app of a fleet, listening while the ``with`` block runs.

    Args:
        fleet: The fleet.
        store: Its store.
        app: The app.
        name: What it is called.
        host: The address it binds.
        port: Its port; 0: any that is free.

    Raises:
        UnavailableError: The port is taken.
        StorageError: The server's certificate cannot be read.
    """

    def __init__(self, fleet: FleetDir, store: Store, app: ASGIApp, name: str, host: str, port: int) -> None:
        self._fleet = fleet
        self._store = store
        renew_server_certificate(fleet, now_s=store.clock())
        self._socket = _bind(name, host, port)
        self._config = uvicorn.Config(
            app,
            log_config=None,  # The program decides how it looks.
            access_log=False,
            server_header=False,
            proxy_headers=False,  # Nobody between says who calls.
            lifespan="off",
            ws="none",
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=IDLE_S,
            timeout_graceful_shutdown=DRAIN_S,
            timeout_notify=TICK_S,
            callback_notify=self._tick,
            ssl_certfile=fleet.server_pem,
            ssl_keyfile=fleet.server_key,
            ssl_context_factory=_context,
        )
        self._server = _Server(self._config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name=name, daemon=True
        )

    @property
    def address(self) -> str:
        """``host:port`` that it listens on."""
        host, port, *_ = self._socket.getsockname()
        return address(host, port)

    def __enter__(self) -> Self:
        try:
            self._config.load()
        except (OSError, ssl.SSLError) as exc:
            self._socket.close()
            raise StorageError(
                f"The server certificate {self._fleet.server_pem} cannot be used: {exc}."
            ) from exc
        self._thread.start()
        self._server.listening.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._sign()
        self._socket.close()

    async def _tick(self) -> None:
        try:
            await run_in_threadpool(self._renew)
        except UmbelError as exc:
            log.warning("the server certificate was not renewed: %s", exc)
        await run_in_threadpool(self._sign)

    def _sign(self) -> None:
        try:
            keep_checkpoint(self._fleet, self._store)
        except UmbelError as exc:
            log.error("the audit log got no checkpoint: %s", exc)

    def _renew(self) -> None:
        renew_server_certificate(self._fleet, now_s=self._store.clock())
        context = self._config.ssl
        assert context is not None
        # New connections get what was read last.
        context.load_cert_chain(self._fleet.server_pem, self._fleet.server_key)


class ApiServer(HttpsServer):
    """The API, listening while the ``with`` block runs.

    Args:
        fleet: The fleet.
        store: Its store.
        port: Where to listen; None: as the settings say; 0: anywhere.

    Raises:
        UnavailableError: The port is taken.
        StorageError: The server's certificate cannot be read.
    """

    def __init__(self, fleet: FleetDir, store: Store, *, port: int | None = None) -> None:
        settings = fleet.settings.api
        where = (settings.listen, settings.port if port is None else port)
        super().__init__(fleet, store, create_app(fleet, store), "API", *where)


class _Server(uvicorn.Server):
    """uvicorn's server, in a thread: it leaves signals alone, and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            super().run(sockets)
        finally:
            self.listening.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


def _context(_: uvicorn.Config, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    context = default()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _bind(name: str, host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as exc:
        made.close()
        raise UnavailableError(f"The {name} cannot listen on {address(host, port)}: {exc.strerror}.") from exc
    return made

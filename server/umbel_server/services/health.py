"""``umbel serve health``: how the services are, for load balancers and for Prometheus, over HTTPS.

``/healthz`` says that this process lives; ``/readyz``, whether the store and the gateway take work; both to anybody who
reaches the port, and no more than that. ``/metrics`` asks for the token in ``keys/metrics.token``.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import signal
from collections.abc import Callable
from typing import Any

import grpc
import uvicorn
from starlette.concurrency import run_in_threadpool

from umbel_proto.errors import UsageError
from umbel_server.files import read_file, write_atomically
from umbel_server.fleet.create import renew_server_certificate
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.settings import address
from umbel_server.gate import Receive, Scope, Send
from umbel_server.services.metrics import forget_ended, registry_of
from umbel_server.services.ready import ready
from umbel_server.services.vitals import Vitals
from umbel_server.store.store import Store
from umbel_server.superlink import bind

TOKEN_BYTES = 32
ASK_S = 2.0
"""How long the gateway may take to say that it takes calls."""
RENEW_EVERY_S = 3600
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"


def metrics_token(fleet: FleetDir) -> bytes:
    """Return the token that /metrics asks for; made when there is none."""
    path = fleet.path / "keys" / "metrics.token"
    if not path.exists():
        write_atomically(path, secrets.token_urlsafe(TOKEN_BYTES).encode())
    return read_file(path, "token for metrics").strip()


def serve_health(fleet: FleetDir, store: Store) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        UsageError: The fleet's settings name no port.
        UnavailableError: The port is taken.
    """
    settings = fleet.settings.health
    if not settings.port:
        raise UsageError("Health has no port: choose one, port in [health] of fleet.toml.")
    renew_server_certificate(fleet, now_s=store.clock())
    forget_ended(fleet.metrics)
    vitals = Vitals(fleet, store)
    app = _App(metrics_token(fleet), _exposition(fleet, vitals), lambda: _ready(fleet, vitals))
    sock = bind(settings.listen, settings.port)
    asyncio.run(_serve(fleet, store, app, sock, address(settings.listen, settings.port)))


class _App:
    """The three pages, as an ASGI application."""

    def __init__(self, token: bytes, exposition: Callable[[], bytes], is_ready: Callable[[], bool]) -> None:
        self._expected = b"Bearer " + token
        self._exposition = exposition
        self._is_ready = is_ready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, body = await self._answer(scope)
        headers = [(b"content-type", _TEXT), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Scope) -> tuple[int, bytes]:
        if scope["method"] not in ("GET", "HEAD"):
            return 405, b"Only GET.\n"
        match scope["path"]:
            case "/healthz":
                return 200, b"ok\n"
            case "/readyz":
                return (200, b"ready\n") if await run_in_threadpool(self._is_ready) else (503, b"not ready\n")
            case "/metrics":
                given = dict(scope["headers"]).get(b"authorization", b"")
                if not hmac.compare_digest(bytes(given), self._expected):
                    return 401, b"The token is in keys/metrics.token of the fleet's directory.\n"
                return 200, await run_in_threadpool(self._exposition)
        return 404, b"There are /healthz, /readyz and /metrics.\n"


def _exposition(fleet: FleetDir, vitals: Vitals) -> Callable[[], bytes]:
    from prometheus_client import generate_latest

    registry = registry_of(fleet.metrics, vitals)
    return lambda: generate_latest(registry)


def _ready(fleet: FleetDir, vitals: Vitals) -> bool:
    return vitals.store_answers() and _gateway_serves(fleet)


def _gateway_serves(fleet: FleetDir) -> bool:
    from grpc_health.v1 import health_pb2 as pb  # type: ignore[import-untyped]
    from grpc_health.v1 import health_pb2_grpc

    listen = fleet.settings.listen
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen, listen)  # noqa: S104 - nothing is bound
    credentials = grpc.ssl_channel_credentials(read_file(fleet.ca_pem, "CA certificate"))
    options = [
        ("grpc.ssl_target_name_override", "localhost"),  # The certificate names it beside the fleet's host.
        ("grpc.enable_http_proxy", 0),
    ]
    where = address(host, fleet.settings.ports.enrollment)
    with grpc.secure_channel(where, credentials, options) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(pb.HealthCheckRequest(), timeout=ASK_S)
        except grpc.RpcError:
            return False
    return bool(reply.status == pb.HealthCheckResponse.SERVING)


async def _serve(fleet: FleetDir, store: Store, app: _App, sock: Any, where: str) -> None:
    config = uvicorn.Config(
        app,
        ssl_keyfile=str(fleet.server_key),
        ssl_certfile=str(fleet.server_pem),
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=64,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    task = asyncio.create_task(server._serve([sock]))
    while not server.started and not task.done():
        await asyncio.sleep(0.02)
    ready(f"health {where}")
    while not stop.is_set() and not task.done():
        try:
            await asyncio.wait_for(stop.wait(), RENEW_EVERY_S)
        except TimeoutError:
            await run_in_threadpool(renew_server_certificate, fleet, now_s=store.clock())
            if config.ssl is not None:
                config.ssl.load_cert_chain(fleet.server_pem, fleet.server_key)  # For connections from now on.
    server.should_exit = True
    await task

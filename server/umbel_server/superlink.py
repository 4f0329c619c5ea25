"""A fleet's SuperLink: Flower's own, behind a gate.

Flower's Fleet API authenticates nodes and its Runtime API task processes, but the Control API of the
open-source edition lets in whoever reaches the port; so `serve_superlink` puts a gate in front of the
unmodified application that asks for a secret.

Written against Flower 1.41, as are `umbel_server.control` and `umbel_server.flower`: what they import
that is not public is checked by tests/conformance/test_flower_seams.py, which says so when a new Flower
moves it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Literal

import uvicorn

from umbel_proto.errors import UnavailableError
from umbel_server.gate import AsgiApp, Gate
from umbel_server.services.ready import ready
from umbel_server.shut_out import ShutOut
from umbel_server.superexec import LOOPBACK, flower_environment

if TYPE_CHECKING:
    from umbel_server.fleet.layout import FleetDir


def serve_superlink(fleet: FleetDir) -> None:
    """Run Flower's SuperLink for a fleet until SIGTERM or SIGINT.

    Args:
        fleet: Where its certificates, secrets and database are.
    """
    os.environ.update(flower_environment(fleet))
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, _parse_superlink_lifespan_config
    from flwr.superlink.main import create_app

    settings = fleet.settings
    sys.argv = [
        "flower-superlink",
        f"--host={LOOPBACK}",
        f"--port={settings.ports.control}",
        f"--ssl-ca-certfile={fleet.ca_pem}",
        f"--ssl-certfile={fleet.server_pem}",
        f"--ssl-keyfile={fleet.server_key}",
        "--enable-supernode-auth",
        f"--database={fleet.superlink / 'state.db'}",
        "--isolation=process",
        f"--superexec-auth-secret-file={fleet.superexec_secret}",
        "--disable-runtime-dependency-installation",
    ]
    logging.getLogger("flwr").setLevel(logging.WARNING)
    config = _parse_superlink_lifespan_config()
    flower = create_app(config, SuperLinkLifespan)
    turn = asyncio.Lock()
    with fleet.open_store() as store:
        shut_out = ShutOut(store.devices.shut_out)
        operators = Gate(flower, turn, fleet.control_secret.read_bytes().strip(), shut_out)
        devices = Gate(flower, turn, None, shut_out)
        asyncio.run(
            _serve_both(
                _listener(fleet, operators, LOOPBACK, settings.ports.control, "on"),
                _listener(fleet, devices, settings.listen, settings.ports.superlink, "off"),
            )
        )


def _listener(
    fleet: FleetDir, app: AsgiApp, host: str, port: int, lifespan: Literal["on", "off"]
) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            ssl_keyfile=str(fleet.server_key),
            ssl_certfile=str(fleet.server_pem),
            lifespan=lifespan,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=1,
            # Clients keep connections as long: closing one that is about to be used would lose a request.
            timeout_keep_alive=120,
        )
    )


async def _serve_both(operators: uvicorn.Server, devices: uvicorn.Server) -> None:
    """Serve both listeners until a signal; the operators' one owns the application's life."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    servers = (operators, devices)
    sockets = [bind(server.config.host, server.config.port) for server in servers]
    tasks = [
        asyncio.create_task(server._serve([sock])) for server, sock in zip(servers, sockets, strict=True)
    ]
    while not (operators.started and devices.started) and not any(task.done() for task in tasks):
        await asyncio.sleep(0.02)
    ready(f"superlink {devices.config.host}:{devices.config.port}")
    await asyncio.wait([*tasks, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
    for server in (devices, operators):
        server.should_exit = True
    await asyncio.gather(*tasks)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address.

    Raises:
        UnavailableError: Another program has it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(128)
    except OSError as exc:
        sock.close()
        raise UnavailableError(
            f"Port {port} of {host} is taken ({exc.strerror}): stop what uses it, or choose another in fleet.toml."
        ) from exc
    return sock

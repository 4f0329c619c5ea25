"""The gateway's ports: one process has them to itself, or several of one fleet share them and nobody else."""

from __future__ import annotations

import contextlib
import errno
import socket
from types import TracebackType

from umbel_proto.errors import UnavailableError
from umbel_server.fleet.settings import FleetSettings, address


class HeldPorts:
    """Holds the gateway's ports while several processes share them; use it with ``with``.

    Linux shares a port among sockets that all ask for it and belong to one user, so a second gateway of that user,
    started by mistake, would take a part of the devices. Whoever holds the ports has first seen that nobody else
    does, and as the holder does not listen, it gets no connection.

    Args:
        settings: Which ports.

    Raises:
        UnavailableError: One is taken, by whomever.
    """

    def __init__(self, settings: FleetSettings) -> None:
        self._held = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            for port in (settings.ports.gateway, settings.ports.enrollment):
                check_free(settings.listen, port)
                held = stack.enter_context(_socket(settings.listen))
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                try:
                    held.bind((settings.listen, port))
                except OSError as exc:
                    raise taken(address(settings.listen, port)) from exc
            self._held = stack.pop_all()

    def __enter__(self) -> HeldPorts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._held.close()


def check_free(listen: str, port: int) -> None:
    """Check that nobody has a port, shared or not.

    gRPC would say the same in six lines of its own on the standard error stream.

    Raises:
        UnavailableError: Somebody has it, or the address is not this machine's.
    """
    try:
        with _socket(listen) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((listen, port))
    except OSError as exc:
        where = address(listen, port)
        if exc.errno == errno.EADDRINUSE:
            raise taken(where) from exc
        raise UnavailableError(f"The gateway cannot listen on {where}: {exc.strerror}.") from exc


def taken(where: str) -> UnavailableError:
    """Return the error for a port that somebody has."""
    return UnavailableError(
        f"The port of {where} is taken: stop what listens there, or choose another port in fleet.toml."
    )


def _socket(listen: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in listen else socket.AF_INET, socket.SOCK_STREAM)

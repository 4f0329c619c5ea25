"""A TLS connection of which every wait ends by a deadline, whatever the other end sends.

TLS goes through memory and not through Python's SSL sockets: those read on for as long as records without data come.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

READ_BYTES = 1 << 16
MAX_RESTING_READS = 4
"""Of what came while a connection rested: whoever sends more then is not a gateway."""

T = TypeVar("T")


class Deadline:
    """Until when something may take.

    Args:
        timeout_s: From now on.
    """

    def __init__(self, timeout_s: float) -> None:
        self._ends_s = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Return how long there is, more than 0.

        Raises:
            TimeoutError: No time is left.
        """
        left_s = self._ends_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s

    def within(self, timeout_s: float) -> Deadline:
        """Return a deadline so long from now on, or this one if it is sooner."""
        sooner = Deadline(timeout_s)
        sooner._ends_s = min(sooner._ends_s, self._ends_s)
        return sooner


class Secured:
    """A connection, not made yet; whoever has it uses it alone. Only ``cut`` is for other threads.

    Every method that waits raises ``TimeoutError`` at its deadline and another ``OSError`` at the connection's end;
    after either there is only ``close``.

    Args:
        host: A name or an address, which the server's certificate has to name.
        port: Where it listens.
        context: Whom to trust and what to show.
    """

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        self._host, self._port = host, port
        self._context = context
        self._plain: socket.socket | None = None
        self._coming, self._going = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._is_deaf = False
        self.is_cut = False

    def reach(self, deadline: Deadline) -> None:
        """Connect to one of the addresses that the host has."""
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except UnicodeError as exc:
            raise OSError("no host has such a name") from exc
        failure: OSError = ConnectionError("the host has no address")
        for others, (family, kind, protocol, _, where) in zip(range(len(found))[::-1], found, strict=True):
            try:
                self._plain = socket.socket(family, kind, protocol)
                self._plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # One of several addresses that swallows everything leaves time for the rest.
                self._ready(deadline.left_s() / (others + 1)).connect(where)
            except OSError as exc:
                self.close()
                failure = exc
            else:
                return
        raise failure

    def agree(self, deadline: Deadline) -> str:
        """Shake hands; return the protocol that both want to speak, or nothing.

        Raises:
            ssl.SSLCertVerificationError: The server shows a certificate that is not trusted.
        """
        try:
            self._tls = self._context.wrap_bio(self._coming, self._going, server_hostname=self._host)
        except ValueError as exc:
            raise OSError("no certificate names such a host") from exc
        self._through(self._tls.do_handshake, deadline)
        return self._tls.selected_alpn_protocol() or ""

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Send bytes, all of them."""
        tls = self._open()
        rest = memoryview(data)
        while rest:
            rest = rest[self._through(partial(tls.write, rest), deadline) :]

    def read(self, deadline: Deadline) -> bytes:
        """Return the next bytes, at least one."""
        tls = self._open()
        return _some(self._through(partial(tls.read, READ_BYTES), deadline))

    def drain(self) -> bytes:
        """Return what came while nobody read; it waits for nothing."""
        tls, told = self._open(), bytearray()
        for _ in range(MAX_RESTING_READS):
            with contextlib.suppress(ssl.SSLWantReadError):
                while True:
                    told += _some(tls.read(READ_BYTES))
            try:
                self._feed(0.0)
            except BlockingIOError:
                return bytes(told)
        raise ConnectionError("it sends without being asked")

    def close(self) -> None:
        """End it, without a word: what was forked has its own end of it."""
        if self._plain is not None:
            self._plain.close()
            self._plain = None

    def cut(self) -> None:
        """End what its user waits for, who is to close it."""
        self.is_cut = True
        plain = self._plain
        if plain is not None:
            with contextlib.suppress(OSError):
                plain.shutdown(socket.SHUT_RDWR)

    @property
    def is_open(self) -> bool:
        """Whether it was made, and not ended by us."""
        return self._plain is not None and not (self.is_cut or self._is_deaf)

    def _through(self, act: Callable[[], T], deadline: Deadline) -> T:
        """Take a step of TLS, and move its bytes until it is done."""
        while True:
            try:
                done = act()
            except ssl.SSLWantReadError:
                self._flush(deadline)
                self._feed(deadline.left_s())
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._flush(deadline)  # Why not, for the other end's log.
                raise
            else:
                self._flush(deadline)
                return done

    def _flush(self, deadline: Deadline) -> None:
        rest = memoryview(self._going.read())
        try:
            while rest and not self._is_deaf:
                rest = rest[self._ready(deadline.left_s()).send(rest) :]
        except ConnectionError:
            self._is_deaf = True  # What it said before it left is still to be read; after that reading fails.

    def _feed(self, timeout_s: float) -> None:
        self._coming.write(_some(self._ready(timeout_s).recv(READ_BYTES)))

    def _open(self) -> ssl.SSLObject:
        if self._tls is None:
            raise ConnectionError("it was not made")
        return self._tls

    def _ready(self, timeout_s: float) -> socket.socket:
        if self._plain is None or self.is_cut:
            raise ConnectionAbortedError
        self._plain.settimeout(timeout_s)
        return self._plain


def _some(data: bytes) -> bytes:
    if not data:
        raise ConnectionResetError("it ended")
    return data

"""A TCP connection that a test can cut: between a device and its gateway, bytes as they are."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from types import TracebackType

BLOCK = 4096


class Cable:
    """Forwards connections to an address, until it is cut.

    Args:
        target: ``host:port`` of the real server.
        others: More of them, as behind a balancer: each connection goes to the next that takes it.
        delay_s: How late every block of bytes arrives, seconds.
        host: Where devices find it.
    """

    def __init__(self, target: str, *others: str, delay_s: float = 0.0, host: str = "127.0.0.1") -> None:
        places = [each.rsplit(":", 1) for each in (target, *others)]
        self._targets = deque((name, int(port)) for name, port in places)
        self._delay_s = delay_s
        self._listener = socket.create_server((host, 0))
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        self.down = 0
        """Bytes that went from the server to the device, over all connections."""
        self._limit: int | None = None
        self._hold: int | None = None
        self._silent = False
        self._mute = False
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def __enter__(self) -> Cable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    def cut(self) -> None:
        """End every connection; later ones work, and whole."""
        with self._lock:
            self._mute, self._limit, self._hold = False, None, None
            sockets, self._sockets = self._sockets, []
            self._moved.notify_all()
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def cut_after(self, size: int) -> None:
        """Cut once, when so many more bytes have reached the device."""
        with self._lock:
            self._limit = self.down + size

    def hold_after(self, size: int) -> None:
        """Hold back what the server sends after so many more bytes, until the next cut or ``let_go``."""
        with self._lock:
            self._hold = self.down + size

    def let_go(self) -> None:
        """Carry what is held back, and hold no more."""
        with self._lock:
            self._hold = None
            self._moved.notify_all()

    def mute(self) -> None:
        """Lose whatever the server answers, until the next cut."""
        with self._lock:
            self._mute = True

    def go_silent(self) -> None:
        """Take connections, and whatever is sent, and never answer."""
        self._silent = True

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                device, _ = self._listener.accept()
                with self._lock:
                    self._sockets.append(device)
                if self._silent:
                    continue
                server = self._connect()
                with self._lock:
                    is_cut = device not in self._sockets  # While the server was called.
                    if not is_cut:
                        self._sockets.append(server)
                if is_cut:
                    server.close()
                    continue
                self._start(self._forward, device, server, False)
                self._start(self._forward, server, device, True)

    def _connect(self) -> socket.socket:
        for _ in range(len(self._targets) - 1):
            target = self._targets[0]
            self._targets.rotate(-1)
            with contextlib.suppress(ConnectionRefusedError):
                return socket.create_connection(target)
        return socket.create_connection(self._targets[0])

    def _forward(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(BLOCK):
                time.sleep(self._delay_s)
                cut = False
                if counted:
                    with self._lock:
                        if self._mute:
                            continue
                        while self._hold is not None and self.down >= self._hold:
                            self._moved.wait()
                        if self._limit is not None and self.down + len(data) >= self._limit:
                            data = data[: self._limit - self.down]
                            cut = True
                        self.down += len(data)
                sink.sendall(data)
                if cut:
                    self.cut()
            sink.shutdown(socket.SHUT_WR)

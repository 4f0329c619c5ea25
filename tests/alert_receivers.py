"""Receivers of notices over real TLS, with a certificate of a fleet's authority: HTTPS that keeps what it gets, and SMTP."""

from __future__ import annotations

import base64
import contextlib
import email
import email.message
import email.policy
import socketserver
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from umbel_server.fleet.layout import FleetDir


@dataclass(eq=False)
class Received:
    """What an HTTPS receiver got, and what it answers.

    Args:
        url: Where it is.
        answers: The statuses that it answers with, in turn; then 200.
        requests: Path, headers and body of each request.
        headers: Headers that it answers with.
        body: What it answers.
    """

    url: str = ""
    answers: list[int] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(eq=False)
class Mailbox:
    """What a mail server got.

    Args:
        port: Where it is.
        messages: From whom, to whom, and what.
        secure: Whether the connection was encrypted when each arrived.
        signed_in: The accounts that signed in.
    """

    port: int = 0
    messages: list[tuple[str, list[str], email.message.EmailMessage]] = field(default_factory=list)
    secure: list[bool] = field(default_factory=list)
    signed_in: list[str] = field(default_factory=list)


USER, PASSWORD = "umbel", "hush"


def _trust(fleet: FleetDir) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(fleet.server_pem, fleet.server_key)
    return context


@contextlib.contextmanager
def https_receiver(fleet: FleetDir) -> Iterator[Received]:
    """Run an HTTPS receiver on loopback."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.requests.append((self.path, dict(self.headers), body))
            status = received.answers.pop(0) if received.answers else 200
            self.send_response(status)
            if status == 307:
                self.send_header("Location", received.url + "/elsewhere")
            for name, value in received.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(received.body)))
            self.end_headers()
            self.wfile.write(received.body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = _trust(fleet).wrap_socket(server.socket, server_side=True)
        received.url = f"https://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield received
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def mail_server(fleet: FleetDir, *, implicit: bool = False) -> Iterator[Mailbox]:
    """Run a mail server on loopback that takes mail only over TLS, from those who signed in."""
    mailbox = Mailbox()
    trust = _trust(fleet)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.secure, self.user, self.sender, self.to = False, "", "", []  # type: ignore[var-annotated]
            if implicit:
                self._encrypt()
            self._say("220 mail.example.org ESMTP")
            while (line := self.rfile.readline()).strip():
                words = line.decode().strip()
                if words.upper() == "QUIT":
                    self._say("221 Bye")
                    return
                self._command(words)

        def finish(self) -> None:
            super().finish()
            self.connection.close()

        def _encrypt(self) -> None:
            self.connection = trust.wrap_socket(self.connection, server_side=True)
            self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
            self.secure = True

        def _command(self, words: str) -> None:
            match words.split(maxsplit=2)[0].upper():
                case "EHLO":
                    self._say("250-mail.example.org")
                    self._say("250 AUTH PLAIN" if self.secure else "250 STARTTLS")
                case "STARTTLS":
                    self._say("220 Go on")
                    self._encrypt()
                case "AUTH" if self.secure:
                    _, user, password = base64.b64decode(words.split()[2]).decode().split("\0")
                    right = (user, password) == (USER, PASSWORD)
                    self.user = user if right else ""
                    mailbox.signed_in += [user] * right
                    self._say("235 Welcome" if right else "535 No")
                case "MAIL" if self.user:
                    self.sender = words.split("<")[1].split(">")[0]
                    self._say("250 OK")
                case "RCPT" if self.user:
                    self.to.append(words.split("<")[1].split(">")[0])
                    self._say("250 OK")
                case "DATA" if self.user:
                    self._say("354 Go on")
                    self._take()
                    self._say("250 Taken")
                case "RSET":
                    self._say("250 OK")
                case _:
                    self._say("530 Not so")

        def _take(self) -> None:
            lines = []
            while (line := self.rfile.readline()) != b".\r\n":
                lines.append(line.removeprefix(b"."))
            message = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
            assert isinstance(message, email.message.EmailMessage)
            mailbox.messages.append((self.sender, self.to, message))
            mailbox.secure.append(self.secure)

        def _say(self, line: str) -> None:
            self.wfile.write(line.encode() + b"\r\n")

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that hangs up on a certificate it does not trust is what a test may want."""

    with Server(("127.0.0.1", 0), Handler) as server:
        mailbox.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield mailbox
        finally:
            server.shutdown()
            thread.join()

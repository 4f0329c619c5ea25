"""The authority's process: it answers on a Unix socket, to the system users that may ask."""

from __future__ import annotations

import logging
import os
import pwd
import socket
import socketserver
import struct
import threading
from pathlib import Path
from types import TracebackType

from google.protobuf.message import DecodeError

from umbel_proto.errors import UmbelError, UnavailableError, UsageError
from umbel_proto.wire import authority_pb2 as pb
from umbel_server.ca.authority import Authority, Papers
from umbel_server.ca.messages import receive, refusal, send
from umbel_server.ca.remote import short_path, socket_path
from umbel_server.fleet.layout import FleetDir

PATIENCE_S = 5.0
"""For one message; a gateway sends it at once."""
WAITING = 64
"""Connections that may wait; gateways have fewer threads."""
_CREDENTIALS = struct.Struct("3i")

log = logging.getLogger(__name__)


class AuthorityService:
    """A running authority; use it with ``with``.

    Args:
        fleet: The fleet it serves.
        authority: Does what is asked.

    Raises:
        UnavailableError: Another one runs, or the socket cannot be made.
        UsageError: A user of the settings is unknown here.
    """

    def __init__(self, fleet: FleetDir, authority: Authority) -> None:
        self.path = socket_path(fleet)
        self._server = _listen(self.path, authority, _users(fleet.settings.ca.users))
        # Those besides the owner are told apart by the kernel's word, not by the file's mode.
        self.path.chmod(0o666 if fleet.settings.ca.users else 0o600)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    @property
    def users(self) -> frozenset[int]:
        """The system users that may ask, by number."""
        return self._server.users

    @users.setter
    def users(self, users: frozenset[int]) -> None:
        self._server.users = users

    def __enter__(self) -> AuthorityService:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take no more requests, and finish those under way."""
        self._server.shutdown()
        self._server.server_close()
        self.path.unlink(missing_ok=True)


def _listen(path: Path, authority: Authority, users: frozenset[int]) -> _Server:
    _remove_left(path)
    before = os.umask(0o177)  # So that at no moment anybody else can connect.
    try:
        with short_path(path) as short:
            return _Server(short, authority, users)
    except OSError as exc:
        raise UnavailableError(f"The authority cannot listen at {path}: {exc.strerror}.") from exc
    finally:
        os.umask(before)


def _remove_left(path: Path) -> None:
    """Remove the socket of an authority that was killed.

    Raises:
        UnavailableError: One runs.
    """
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe, short_path(path) as short:
        try:
            probe.connect(short)
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise UnavailableError(f"An authority runs already at {path}: stop it first.")


def _users(names: str) -> frozenset[int]:
    """Return who may ask: this user, root, and those of the settings."""
    found = {os.geteuid(), 0}
    for name in names.split():
        try:
            found.add(pwd.getpwnam(name).pw_uid)
        except KeyError as exc:
            raise UsageError(f"users of [ca] in fleet.toml names {name!r}, who is no user here.") from exc
    return frozenset(found)


class _Server(socketserver.ThreadingUnixStreamServer):
    request_queue_size = WAITING
    daemon_threads = False  # What is under way is finished.

    def __init__(self, path: str, authority: Authority, users: frozenset[int]) -> None:
        self.authority, self.users = authority, users
        super().__init__(path, _Conversation)


class _Conversation(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        connection: socket.socket = self.request
        connection.settimeout(PATIENCE_S)
        user = _user(connection)
        if user not in self.server.users:
            log.warning("user %d may not ask the authority", user)
            return
        try:
            reply = _answer(self.server.authority, receive(connection))
            send(connection, reply.SerializeToString())
        except OSError as exc:
            log.info("a conversation ended: %s", exc)


def _user(connection: socket.socket) -> int:
    """Return the system user at the other end, by the kernel's word."""
    if not hasattr(socket, "SO_PEERCRED"):
        return os.geteuid()  # Not Linux: the socket's mode lets nobody else in.
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])


def _answer(authority: Authority, raw: bytes) -> pb.AuthorityReply:
    try:
        request = pb.AuthorityRequest.FromString(raw)
        match request.WhichOneof("asked"):
            case "enroll":
                return _issued(authority.enroll(request.enroll))
            case "renew":
                return _issued(authority.renew(request.renew.certificate, request.renew.csr))
            case "readmit":
                return _issued(authority.readmit(request.readmit))
            case "service_csr":
                return pb.AuthorityReply(service_certificate=authority.certify_service(request.service_csr))
            case "policy":
                return pb.AuthorityReply(policy=authority.change_policy(request.policy))
            case "query":
                return pb.AuthorityReply(query=authority.sign_query(request.query))
            case "review":
                return pb.AuthorityReply(review=authority.answer_review(request.review))
            case _:
                raise UsageError("The authority was asked for nothing.")
    except DecodeError:
        return pb.AuthorityReply(refusal=refusal(UsageError("The authority was asked something malformed.")))
    except UmbelError as exc:
        log.info("refused: %s", exc)
        return pb.AuthorityReply(refusal=refusal(exc))
    except Exception:  # The gateway is told that we failed; how, is in our log only.
        log.exception("the authority failed")
        return pb.AuthorityReply(refusal=refusal(UnavailableError("The fleet's authority failed.")))


def _issued(papers: Papers) -> pb.AuthorityReply:
    return pb.AuthorityReply(
        issued=pb.Issued(
            device_id=papers.device,
            certificate=papers.certificate,
            credential=papers.credential,
            not_after_s=papers.not_after_s,
        )
    )

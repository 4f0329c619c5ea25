"""The authority in another process, asked over its socket."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from umbel_proto.ids import DeviceId
from umbel_proto.wire import authority_pb2, enrollment_pb2, identity_pb2
from umbel_server.ca.authority import Papers
from umbel_server.ca.messages import AuthorityDownError, receive, send, to_error
from umbel_server.fleet.layout import FleetDir

TIMEOUT_S = 15.0
"""Longer than a signing command may take, and shorter than a device waits for its answer."""
_MAX_PATH_BYTES = 100
"""The kernel takes 107."""


@dataclass(frozen=True, slots=True)
class RemoteAuthority:
    """An `Authority` behind a Unix socket.

    Args:
        path: The socket.
    """

    path: Path

    @classmethod
    def of(cls, fleet: FleetDir) -> RemoteAuthority:
        """Return a fleet's."""
        return cls(socket_path(fleet))

    def enroll(self, request: enrollment_pb2.EnrollRequest) -> Papers:
        """Let a device in by its token, or tell again one whose answer was lost."""
        return self._papers(authority_pb2.AuthorityRequest(enroll=request))

    def renew(self, certificate: bytes, csr: bytes) -> Papers:
        """Give a device new papers for the key of a certificate that still holds, PEM."""
        renewal = authority_pb2.Renewal(certificate=certificate, csr=csr)
        return self._papers(authority_pb2.AuthorityRequest(renew=renewal))

    def readmit(self, request: enrollment_pb2.ReadmitRequest) -> Papers:
        """Give new papers to a device that came back by its identity key."""
        return self._papers(authority_pb2.AuthorityRequest(readmit=request))

    def certify_service(self, csr: bytes) -> bytes:
        """Return a certificate for the services themselves, then the CA's, PEM."""
        return self._ask(authority_pb2.AuthorityRequest(service_csr=csr)).service_certificate

    def change_policy(self, change: authority_pb2.PolicyChange) -> identity_pb2.Signed:
        """Sign the fleet's next policy for an operator who shows a token that is for it; return the policy in force."""
        return self._ask(authority_pb2.AuthorityRequest(policy=change)).policy

    def sign_query(self, ask: authority_pb2.QueryAsk) -> identity_pb2.Signed:
        """Sign a question to the fleet for an operator who shows a token or a session that is for it."""
        return self._ask(authority_pb2.AuthorityRequest(query=ask)).query

    def answer_review(self, ask: authority_pb2.ReviewAsk) -> identity_pb2.Signed:
        """Sign an answer to a review, and put it on record, for an operator who shows a token or a session for it."""
        return self._ask(authority_pb2.AuthorityRequest(review=ask)).review

    def _papers(self, request: authority_pb2.AuthorityRequest) -> Papers:
        issued = self._ask(request).issued
        return Papers(DeviceId(issued.device_id), issued.certificate, issued.credential, issued.not_after_s)

    def _ask(self, request: authority_pb2.AuthorityRequest) -> authority_pb2.AuthorityReply:
        """Return the answer.

        Raises:
            UmbelError: What the authority raised.
            AuthorityDownError: It does not answer.
        """
        try:
            with short_path(self.path) as path, socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(TIMEOUT_S)
                connection.connect(path)
                send(connection, request.SerializeToString())
                reply = authority_pb2.AuthorityReply.FromString(receive(connection))
        except (OSError, DecodeError) as exc:
            raise AuthorityDownError(
                f"The fleet's authority does not answer at {self.path}: start it with  umbel serve ca."
            ) from exc
        if reply.HasField("refusal"):
            raise to_error(reply.refusal)
        return reply


def socket_path(fleet: FleetDir) -> Path:
    """Return where a fleet's authority listens."""
    return fleet.path / fleet.settings.ca.socket


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Give a name of a socket that the kernel takes, however deep it lies."""
    if len(os.fsencode(path)) <= _MAX_PATH_BYTES:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)

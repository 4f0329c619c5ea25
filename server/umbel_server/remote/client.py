"""One client of the REST API: it signs in, repeats what was lost on the way, and turns problems into errors."""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, cast
from urllib.parse import quote

import httpx

from umbel_proto.errors import (
    CertificateError,
    RefusedError,
    RemoteProtocolError,
    UmbelError,
    UnavailableError,
    UsageError,
)
from umbel_server.api.kinds import KINDS, kind_of_status

PREFIX = "/api/v1"
TIMEOUT_S = 60.0
TRIES = 3
PAUSE_S = 0.2
PAGE = 1000


class MissingError(UsageError):
    """There is nothing at a path."""


@dataclass(frozen=True, slots=True)
class Place:
    """A service, and how to sign in to it.

    Args:
        server: Its address, ``https://host:port``.
        token: What to show; None: nothing, for signing in.
        ca: The certificate that vouches for the service, PEM; None: those that this system trusts.
    """

    server: str
    token: str | None = field(repr=False)
    ca: str | None


class Client:
    """Talks to a service while the ``with`` block runs.

    Args:
        place: Which one.
        through: What carries requests there; None: a connection over TLS that the place vouches for.
    """

    def __init__(self, place: Place, *, through: httpx.BaseTransport | None = None) -> None:
        self.place = place
        headers = {} if place.token is None else {"Authorization": f"Bearer {place.token}"}
        self._http = httpx.Client(
            base_url=place.server + PREFIX,
            verify=trusting(place.ca),
            headers=headers,
            timeout=TIMEOUT_S,
            transport=through,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **query: object) -> Any:
        """Return what lies at a path; queries that are None are left out."""
        return _json(self.place.server, self._send("GET", path, query))

    def text(self, path: str) -> str:
        """Return a document that is not the API's own JSON, as it came."""
        return self._send("GET", path, {}).text

    def post(
        self,
        path: str,
        body: object = None,
        *,
        content: bytes | None = None,
        timeout_s: float = TIMEOUT_S,
        **query: object,
    ) -> Any:
        """Do something, once, however often it has to be asked; return what came of it."""
        answer = self._send("POST", path, query, body=body, content=content, timeout_s=timeout_s)
        return _json(self.place.server, answer)

    def replace(self, path: str, body: object, *, method: str = "PUT") -> Any:
        """Change what lies at a path, unless it is another than what is seen there now."""
        return _json(self.place.server, self._send(method, path, {}, body=body))

    def amend(self, seen: str, path: str, body: object, *, method: str = "PUT") -> Any:
        """Change something that is shown at ``seen``, if it is still what it is now when the change arrives."""
        tag = self._send("GET", seen, {}).headers.get("etag", "")
        answer = self._send(method, path, {}, body=body, headers={"If-Match": tag})
        return _json(self.place.server, answer)

    def pages(self, path: str, **query: object) -> Iterator[dict[str, Any]]:
        """Yield the items of a list, page after page."""
        cursor = None
        while True:
            page = self.get(path, **{"limit": PAGE, **query}, cursor=cursor)
            yield from page["items"]
            before, cursor = cursor, page["next"]
            if cursor is None:
                return
            if cursor == before:
                raise RemoteProtocolError(self.place.server, "its list never ends")

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, object],
        *,
        body: object = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> httpx.Response:
        asked = {**(headers or {})}
        if method != "GET":
            # The same for each try: what was done before the answer was lost is not done again.
            asked["Idempotency-Key"] = secrets.token_hex(16)
        if content is not None:
            asked["Content-Type"] = "application/octet-stream"
        request = self._http.build_request(
            method,
            path,
            params={name: cast(str, value) for name, value in query.items() if value is not None},
            json=body,
            content=content,
            headers=asked,
            timeout=timeout_s,
        )
        for left in reversed(range(TRIES)):
            try:
                response = self._http.send(request)
            except httpx.TransportError as exc:
                if left and not _untrusted(exc):
                    time.sleep(PAUSE_S)
                    continue
                raise unreachable(self.place.server, exc, timeout_s=timeout_s) from exc
            if response.is_success:
                return response
            raise error_of(self.place.server, response)
        raise AssertionError


def path(*parts: object) -> str:
    """Return a path of these parts, each one a part whatever is in it.

    Raises:
        UsageError: A part holds a slash, which a server reads as two parts however it is written.
    """
    slashed = next((str(part) for part in parts if "/" in str(part)), None)
    if slashed is not None:
        raise UsageError(f"{slashed[:80]!r} is no name: a name holds no slash.")
    return "".join(f"/{quote(str(part), safe='')}" for part in parts)


def trusting(ca: str | None) -> ssl.SSLContext:
    """Return how to check who answers.

    Args:
        ca: The only certificate that vouches for it, PEM; None: those that this system trusts.

    Raises:
        CertificateError: It is no certificate.
    """
    try:
        context = ssl.create_default_context(cadata=ca)
    except ssl.SSLError as exc:
        raise CertificateError("The service's CA certificate is no PEM certificate: fetch it again.") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def unreachable(server: str, exc: httpx.TransportError, *, timeout_s: float = TIMEOUT_S) -> UmbelError:
    """Return the error for an answer that never came."""
    if _untrusted(exc):
        return CertificateError(
            f"Who answers at {server} is not vouched for by the certificate that you trust: ask its operator, "
            f"then  umbel login --server {server} --ca FILE."
        )
    if isinstance(exc, httpx.TimeoutException):
        return UnavailableError(f"The service {server} did not answer in {timeout_s:g} s: try again later.")
    return UnavailableError(
        f"The service {server} cannot be reached: is it running, and is that its address?"
    )


def error_of(server: str, response: httpx.Response) -> UmbelError:
    """Return a problem as the error that the same command raises with the fleet's directory at hand."""
    try:
        problem = response.json()
        detail, status = str(problem["detail"]), response.status_code
        kind = str(problem.get("kind") or kind_of_status(status))
    except (ValueError, TypeError, KeyError, AttributeError):
        return RemoteProtocolError(
            server,
            f"it answered {response.status_code} and no problem of umbel's: is that a fleet's service?",
        )
    if status == httpx.codes.UNAUTHORIZED and "authorization" in response.request.headers:
        return RefusedError(f"{detail} Sign in:  umbel login --server {server}")
    if status == httpx.codes.NOT_FOUND:
        return MissingError(detail)
    return KINDS.get(kind, UmbelError)(detail)


def _untrusted(exc: BaseException | None) -> bool:
    while exc is not None:
        if isinstance(exc, ssl.SSLCertVerificationError):
            return True
        exc = exc.__cause__ or exc.__context__
    return False


def _json(server: str, response: httpx.Response) -> Any:
    if response.status_code == httpx.codes.NO_CONTENT:
        return None
    try:
        return response.json()
    except ValueError as exc:
        raise RemoteProtocolError(
            server, "it answered with something else than JSON: is that a fleet's service?"
        ) from exc

"""What an OpenID provider is asked for, and how often: whoever signs in makes the service call it, before anybody knows who.

What the provider says of itself and its keys are kept for some minutes, a failure for some seconds; only so many wait for
it at once, and for so long; and no answer of it is read beyond a size.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import httpx

from umbel_proto.errors import StorageError, UnavailableError
from umbel_server.clock import Clock
from umbel_server.store.api_tokens import SignInError

PATIENCE_S = 10.0
"""How long it may take to answer, all of it."""
MAX_BYTES = 1024 * 1024
AT_ONCE = 8
"""How many may wait for it: others have a service to use."""
KEPT_S = 300.0
"""For how long what it says of itself, and its keys, are believed: as long a key that it took back may sign."""
KEYS_S = 30.0
"""How old keys are at least before they are asked for again, because a token is of none of them."""
FAILED_S = 5.0


class Asking:
    """The questions to one provider.

    Args:
        issuer: Its https URL.
        ca_file: Certificates to check its own against; empty: the system's.
        clock: Tells how old an answer is.
    """

    WELL_KNOWN: ClassVar[str] = "/.well-known/openid-configuration"

    def __init__(self, issuer: str, ca_file: str, clock: Clock) -> None:
        self._issuer, self._ca_file, self._clock = issuer, ca_file, clock
        self._turns = threading.BoundedSemaphore(AT_ONCE)
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, dict[str, Any] | UnavailableError]] = {}

    def endpoint(self, name: str) -> str:
        """Return where the provider says that something is.

        Raises:
            UnavailableError: It does not answer, or not as a provider does.
        """
        described = self._remembered(self._issuer.rstrip("/") + self.WELL_KNOWN, KEPT_S)
        if described.get("issuer") != self._issuer:
            raise UnavailableError("The provider calls itself by another issuer than [oidc] of fleet.toml.")
        url = described.get(name)
        if not isinstance(url, str) or not url.startswith("https://"):
            raise UnavailableError(f"The provider names no {name} over https.")
        return url

    def exchange(self, form: Mapping[str, str], client_id: str, secret: str) -> dict[str, Any]:
        """Return what the provider gives for a code.

        Raises:
            SignInError: It gives nothing for it.
            UnavailableError: It does not answer, or not as a provider does.
        """
        auth = httpx.BasicAuth(client_id, secret) if secret else None
        url = self.endpoint("token_endpoint")
        with self._turn():
            return self._ask("POST", url, data=dict(form), auth=auth)

    def keys(self) -> dict[str, Any]:
        """Return the keys that the provider signs with.

        Raises:
            UnavailableError: It does not answer, or not as a provider does.
        """
        return self._remembered(self.endpoint("jwks_uri"), KEPT_S)

    def newer_keys(self) -> dict[str, Any] | None:
        """Return its keys, asked for again; None: those that are kept are of a moment ago.

        Raises:
            UnavailableError: It does not answer, or not as a provider does.
        """
        url = self.endpoint("jwks_uri")
        with self._lock:
            at_s, _ = self._kept.get(url, (0.0, {}))
        return None if self._clock() - at_s < KEYS_S else self._remembered(url, KEYS_S)

    def _remembered(self, url: str, life_s: float) -> dict[str, Any]:
        """Return an answer that is kept, or ask; also that it does not answer is kept for a moment."""
        with self._lock:
            at_s, told = self._kept.get(url, (0.0, None))
        age_s = self._clock() - at_s
        if isinstance(told, UnavailableError) and 0 <= age_s < FAILED_S:
            raise UnavailableError(str(told))
        if isinstance(told, dict) and 0 <= age_s < life_s:
            return told
        with self._turn():
            try:
                found: dict[str, Any] | UnavailableError = self._ask("GET", url)
            except UnavailableError as exc:
                found = exc
        with self._lock:
            if url not in self._kept and len(self._kept) >= 2:
                self._kept.clear()  # It says something else of itself now.
            self._kept[url] = (self._clock(), found)
        if isinstance(found, UnavailableError):
            raise found
        return found

    def _ask(self, method: str, url: str, **more: Any) -> dict[str, Any]:
        with self._client() as client:
            return _sent(client, method, url, **more)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._turns.acquire(blocking=False):
            raise UnavailableError("Too many sign in elsewhere at this moment: try again.")
        try:
            yield
        finally:
            self._turns.release()

    def _client(self) -> httpx.Client:
        try:
            trust = ssl.create_default_context(cafile=self._ca_file or None)
        except (OSError, ssl.SSLError) as exc:
            raise StorageError(f"The certificates {self._ca_file} of [oidc] cannot be read.") from exc
        # The environment's proxies would see codes and the secret, and a redirect would take them elsewhere.
        return httpx.Client(verify=trust, timeout=PATIENCE_S, follow_redirects=False, trust_env=False)


def _sent(client: httpx.Client, method: str, url: str, **more: Any) -> dict[str, Any]:
    late_s = time.monotonic() + PATIENCE_S
    try:
        # As it is: what is small when it is sent may be large when it is unpacked.
        with client.stream(method, url, headers={"Accept-Encoding": "identity"}, **more) as answer:
            body = bytearray()
            for part in answer.iter_raw():
                body += part
                if len(body) > MAX_BYTES:
                    raise UnavailableError("The provider's answer is too long.")
                if time.monotonic() > late_s:
                    raise UnavailableError("The provider takes too long to answer: try again later.")
            if answer.status_code in (400, 401, 403) and method == "POST":
                raise SignInError("The provider does not vouch for this sign-in: begin again.")
            if answer.status_code != 200:
                raise UnavailableError(f"The provider answers with {answer.status_code}.")
    except httpx.HTTPError as exc:
        raise UnavailableError("The provider of sign-ins does not answer: try again later.") from exc
    try:
        told = httpx.Response(200, content=bytes(body)).json()
    except (ValueError, RecursionError) as exc:
        raise UnavailableError("The provider's answer is no JSON.") from exc
    if not isinstance(told, dict):
        raise UnavailableError("The provider's answer is no JSON object.")
    return told

"""What a service that nobody vouches for yet says about itself: believed only by its fingerprint."""

from __future__ import annotations

import ssl

import httpx

from umbel_proto.errors import RemoteProtocolError
from umbel_server.remote.client import PREFIX, TIMEOUT_S, error_of, unreachable

MAX_BYTES = 16 * 1024


def shown_authority(server: str) -> str:
    """Return the certificate that a service shows as its authority's, PEM; who answers is not checked.

    Nothing is sent but this question, and whoever calls this compares the certificate's fingerprint.

    Raises:
        UnavailableError: Nobody answers.
        RemoteProtocolError: What answers is no service of a fleet.
    """
    unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unchecked.check_hostname = False
    unchecked.verify_mode = ssl.CERT_NONE
    try:
        with httpx.Client(verify=unchecked, timeout=TIMEOUT_S) as client:
            answer = client.get(f"{server}{PREFIX}/authority")
    except httpx.TransportError as exc:
        raise unreachable(server, exc) from exc
    if not answer.is_success:
        raise error_of(server, answer)
    try:
        shown = answer.json()["certificate"]
    except (ValueError, TypeError, KeyError) as exc:
        raise RemoteProtocolError(server, "it shows no authority: is that a fleet's service?") from exc
    if not isinstance(shown, str) or not shown.isascii() or len(shown) > MAX_BYTES:
        raise RemoteProtocolError(server, "what it shows as its authority is no certificate")
    return shown

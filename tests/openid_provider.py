"""A small OpenID provider over TLS, as strict as a real one, and as wrong as a test wants it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import json
import secrets
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey

from umbel_server.clock import Clock
from umbel_server.fleet.layout import FleetDir

CLIENT, SECRET = "umbel", "s3cret for nobody"
Claims = dict[str, Any]


@dataclass(slots=True)
class OpenIdProvider:
    """Who signs in is said by the test: ``people`` maps a name to what the provider says of it."""

    issuer: str
    clock: Clock
    key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", {"kid": "one"}))
    people: dict[str, Claims] = field(default_factory=dict)
    codes: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    spoil: Callable[[Claims], Claims] = lambda claims: claims
    sign: Callable[[Claims], str] | None = None
    described: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    broken: bool = False

    def authorize(self, url: str, name: str) -> dict[str, str]:
        """Let somebody say yes in their browser; return what it brings back."""
        asked = {key: values[0] for key, values in parse_qs(urlsplit(url).query).items()}
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        code = secrets.token_urlsafe(16)
        self.codes[code] = (name, asked)
        return {"code": code, "state": asked["state"]}

    def page(self, url: str) -> str:
        """Return the page that asks somebody's browser who they are: a link for each, and one to say no."""
        asked = {key: values[0] for key, values in parse_qs(urlsplit(url).query).items()}
        back, refused = asked["redirect_uri"], {"error": "access_denied", "state": asked["state"]}
        ways = [(name, self.authorize(url, name)) for name in self.people] + [("Say no", refused)]
        links = [
            f'<p><a href="{html.escape(f"{back}?{urlencode(brought)}")}">{html.escape(name)}</a></p>'
            for name, brought in ways
        ]
        return f"<!doctype html><title>Provider</title><link rel='icon' href='data:,'><h1>Who are you?</h1>{''.join(links)}"

    def answer(self, path: str, form: dict[str, str], authorization: str) -> tuple[int, Any]:
        self.asked.append(path)
        if self.broken:
            return 500, {}
        match path:
            case "/.well-known/openid-configuration":
                return 200, {
                    "issuer": self.issuer,
                    "authorization_endpoint": f"{self.issuer}/authorize",
                    "token_endpoint": f"{self.issuer}/token",
                    "jwks_uri": f"{self.issuer}/keys",
                    **self.described,
                }
            case "/keys":
                return 200, {"keys": [self.key.as_dict(private=False)]}
            case "/token":
                return self._token(form, authorization)
        return 404, {}

    def _token(self, form: dict[str, str], authorization: str) -> tuple[int, Any]:
        expected = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if authorization != f"Basic {expected}":
            return 401, {"error": "invalid_client"}
        name, asked = self.codes.pop(form.get("code", ""), ("", {}))
        proof = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        same = base64.urlsafe_b64encode(proof).rstrip(b"=").decode() == asked.get("code_challenge")
        if not name or not same or form.get("redirect_uri") != asked["redirect_uri"]:
            return 400, {"error": "invalid_grant"}
        now_s = int(self.clock())
        claims = {
            "iss": self.issuer,
            "aud": CLIENT,
            "sub": f"sub-{name}",
            "iat": now_s,
            "exp": now_s + 300,
            "nonce": asked["nonce"],
            **self.people[name],
        }
        spoiled = self.spoil(claims)
        sign = self.sign or (lambda each: jwt.encode({"alg": "ES256", "kid": "one"}, each, self.key))
        return 200, {"token_type": "Bearer", "access_token": "unused", "id_token": sign(spoiled)}


@contextlib.contextmanager
def openid_provider(
    certified: FleetDir, clock: Clock, *, host: str = "127.0.0.1"
) -> Iterator[OpenIdProvider]:
    """Run a provider that shows the server certificate of a fleet, under a name that browsers may hold for another site."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if urlsplit(self.path).path == "/authorize":
                self._send(200, "text/html; charset=utf-8", made.page(self.path).encode())
            else:
                self._say({})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            self._say({key: values[0] for key, values in parse_qs(body).items()})

        def _say(self, form: dict[str, str]) -> None:
            status, told = made.answer(urlsplit(self.path).path, form, self.headers.get("authorization", ""))
            self._send(status, "application/json", json.dumps(told).encode())

        def _send(self, status: int, kind: str, raw: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certified.server_pem, certified.server_key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    made = OpenIdProvider(f"https://{host}:{server.server_address[1]}", clock)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

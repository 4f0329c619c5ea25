"""Sign in elsewhere: OpenID Connect, the authorization code flow with PKCE, roles by a claim.

Two requests to the provider and a signed token: that is all there is to it, so there is no framework around it.

Source: OpenID Connect Core 1.0, section 3.1; RFC 7636 (PKCE); RFC 9700 (current best practice).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, KeySetSerialization

from umbel_proto.errors import RefusedError, StorageError, UsageError
from umbel_server.access.actor import Actor, Role
from umbel_server.access.oidc_asking import Asking
from umbel_server.access.oidc_settings import OidcSettings
from umbel_server.clock import Clock
from umbel_server.store.accounts import Account, Accounts
from umbel_server.store.api_tokens import SignInError

ITSELF = Actor("service:oidc", frozenset())
ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")
"""None with a shared secret, and not none."""
LEEWAY_S = 60
LIFE_S = 600
"""How long somebody may take at the provider."""
MAX_ERRANDS = 6000
"""As many as may begin within the time that each has: nobody is forgotten for others (`umbel_server.api.starts`)."""


@dataclass(frozen=True, slots=True)
class Errand:
    """Somebody who was sent to the provider, and is expected back.

    Args:
        url: Where they are sent.
        state: What they bring back; nobody else knows it.
        nonce: What their token says; so it is for this sign-in and no other.
        verifier: What proves to the provider that who fetches the token is who asked for it.
        redirect: Where they come back to, as the provider was told.
        there: The page of the console that they were on their way to.
    """

    url: str
    state: str = field(repr=False)
    nonce: str = field(repr=False)
    verifier: str = field(repr=False)
    redirect: str
    there: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Who somebody is elsewhere.

    Args:
        subject: Issuer, a space, subject: what they are known by for good.
        name: What they would like to be called.
        roles: What the settings make of what the provider says of them.
    """

    subject: str
    name: str
    roles: frozenset[Role]


class Errands:
    """Who was sent to the provider and is expected back; each once, and not after ten minutes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._out: OrderedDict[str, tuple[float, Errand]] = OrderedDict()
        self._lock = threading.Lock()

    def send(self, errand: Errand) -> None:
        """Remember somebody."""
        with self._lock:
            self._out[errand.state] = (self._clock() + LIFE_S, errand)
            while len(self._out) > MAX_ERRANDS:
                self._out.popitem(last=False)

    def back(self, state: str, kept: str) -> Errand | None:
        """Return somebody who comes back; None if nobody is expected.

        Args:
            state: What they bring.
            kept: What their browser kept since it was sent: nobody is signed in as somebody else.
        """
        if not hmac.compare_digest(state.encode(), kept.encode()):
            return None
        with self._lock:
            until_s, errand = self._out.pop(state, (0.0, None))
        return errand if self._clock() < until_s else None


class Provider:
    """An OpenID provider, as the settings name it. One for a service: it keeps what the provider says of itself.

    Args:
        settings: Which, and what its words mean here.
        clock: Tells whether a token is still in force.
    """

    def __init__(self, settings: OidcSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._asking = Asking(settings.issuer, settings.ca_file, clock)

    def begin(self, *, redirect: str = "", there: str = "/") -> Errand:
        """Send somebody to the provider.

        Args:
            redirect: Where they shall come back to; empty: as the settings say.
            there: The page of the console that they are on their way to.

        Raises:
            UnavailableError: It does not answer, or not as a provider does, or too many ask it now.
        """
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=")
        redirect = redirect or self._settings.redirect
        endpoint = self._asking.endpoint("authorization_endpoint")
        asked = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": redirect,
            "scope": self._settings.scope,
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge.decode(),
            "code_challenge_method": "S256",
        }
        url = f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(asked)}"
        return Errand(url, state, nonce, verifier, redirect, there)

    def finish(self, errand: Errand, code: str) -> Identity:
        """Exchange the code that somebody brought back for who they are.

        Args:
            errand: Who was expected.
            code: What they brought; empty: the provider gave them none, for they said no or may not.

        Raises:
            SignInError: The provider does not vouch for them, or its token is not for this sign-in.
            UnavailableError: It does not answer, or not as a provider does.
        """
        if not code:
            raise SignInError("Your provider did not sign you in: begin again, or ask whoever runs it.")
        asked = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": errand.redirect,
            "client_id": self._settings.client_id,
            "code_verifier": errand.verifier,
        }
        token = self._asking.exchange(asked, self._settings.client_id, self._secret()).get("id_token")
        if not isinstance(token, str):
            raise SignInError("The provider does not vouch for this sign-in: begin again.")
        try:
            claims = self._claims(token, self._asking.keys(), errand.nonce)
        except SignInError:
            # It may sign with a key by now that was not there when its keys were asked for.
            if (newer := self._asking.newer_keys()) is None:
                raise
            claims = self._claims(token, newer, errand.nonce)
        return self._identity(claims)

    def _claims(self, token: str, keys: dict[str, Any], nonce: str) -> dict[str, Any]:
        registry = jwt.JWTClaimsRegistry(
            now=lambda: int(self._clock()),
            leeway=LEEWAY_S,
            iss={"essential": True, "value": self._settings.issuer},
            aud={"essential": True, "value": self._settings.client_id},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
            nonce={"essential": True, "value": nonce},
        )
        try:
            claims = jwt.decode(
                token,
                KeySet.import_key_set(KeySetSerialization(keys=keys["keys"])),
                algorithms=list(ALGORITHMS),
            ).claims
            registry.validate(claims)
        except (JoseError, ValueError, TypeError, KeyError) as exc:
            raise SignInError("The provider's token is not one for this sign-in: begin again.") from exc
        party = claims.get("azp")
        if party is not None and party != self._settings.client_id:
            raise SignInError("The provider's token is for another client: begin again.")
        return dict(claims)

    def _identity(self, claims: dict[str, Any]) -> Identity:
        told = claims.get(self._settings.claim)
        several = told if isinstance(told, list) else [told]
        values = {each for each in several if isinstance(each, str)}
        wanted = claims.get("preferred_username") or claims.get("email") or claims["sub"]
        return Identity(
            subject=f"{self._settings.issuer} {claims['sub']}",
            name=_as_name(str(wanted)),
            roles=frozenset(role for value, role in self._settings.meaning() if value in values),
        )

    def _secret(self) -> str:
        if not self._settings.client_secret_file:
            return ""
        try:
            return Path(self._settings.client_secret_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise StorageError(
                f"The secret {self._settings.client_secret_file} of [oidc] cannot be read."
            ) from exc


def account_of_identity(accounts: Accounts, identity: Identity) -> Account:
    """Return the account of somebody from elsewhere, made at the first time, with the roles they have there now.

    Raises:
        SignInError: They have no role here, or their account is disabled.
    """
    if not identity.roles:
        raise SignInError("Your provider gives you no role in this fleet: ask whoever runs it.")
    account = accounts.of_subject(identity.subject)
    if account is None:
        account = _made(accounts, identity)
    if not account.active:
        raise SignInError("This account is disabled: ask whoever runs the fleet.")
    if account.roles != identity.roles:
        account = accounts.set_roles(ITSELF, account.name, identity.roles, reason="as the provider says")
    accounts.succeeded(account)
    return account


def _made(accounts: Accounts, identity: Identity) -> Account:
    # A name that somebody has already stays theirs: who comes from elsewhere gets another.
    other = hashlib.sha256(identity.subject.encode()).hexdigest()[:8]
    for name in (identity.name, f"{identity.name[:50]}-{other}"):
        if accounts.get(name) is None:
            return accounts.add(
                ITSELF, name, roles=identity.roles, subject=identity.subject, reason="signed in elsewhere"
            )
    raise RefusedError(f"There are already users {identity.name} and {identity.name[:50]}-{other}.")


def _as_name(text: str) -> str:
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")[:63]
    return name or "user"


def require_on(settings: OidcSettings) -> None:
    """Check that signing in elsewhere is set up.

    Raises:
        UsageError: It is not.
    """
    if not settings.issuer:
        raise UsageError("Signing in elsewhere is not set up: fill the table [oidc] of fleet.toml.")

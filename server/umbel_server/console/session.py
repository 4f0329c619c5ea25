"""Who is signed in with a browser: the cookie, and the token that every form carries.

The cookie comes along with nothing that another site begins. A form's token is a function of the session's secret,
so it needs no place of its own, ends with the session, and fits no other.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request, Response

from umbel_server.access.actor import Actor
from umbel_server.access.permissions import Permission, held
from umbel_server.api import cookies
from umbel_server.store.accounts import Account
from umbel_server.store.sessions import LIFE_S
from umbel_server.store.store import Store

_LABEL = b"umbel/1/console form"


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who is signed in.

    Args:
        account: Who.
        permissions: What they may do.
        secret: What the cookie holds.
        csrf: What each of their forms carries.
    """

    account: Account
    permissions: frozenset[Permission]
    secret: str = field(repr=False)
    csrf: str = field(repr=False)

    def owns(self, token: str) -> bool:
        """Return whether a form with this token is one of this session's."""
        return hmac.compare_digest(self.csrf.encode(), token.encode("utf-8", "replace"))


def session_of_cookie(store: Store, request: Request, *, busy: bool) -> Session | None:
    """Return who is signed in with a request's cookie; None: nobody, or no more.

    Args:
        store: Knows the sessions.
        request: The request.
        busy: Whether somebody is there; a screen that refreshes itself keeps no session alive.
    """
    secret = request.cookies.get(cookies.SESSION, "")
    account = store.sessions.find(secret, busy=busy) if secret else None
    return None if account is None else _session(account, secret)


def begin(store: Store, response: Response, account: Account) -> None:
    """Sign somebody in."""
    cookies.keep(response, cookies.SESSION, store.sessions.open(account), life_s=int(LIFE_S), strict=True)


def end(store: Store, response: Response, session: Session) -> None:
    """Sign somebody out."""
    store.sessions.close(session.secret)
    cookies.forget(response, cookies.SESSION)


def session_of(request: Request) -> Session:
    """Return who sent a request that was let in."""
    return cast(Session, request.state.session)


def _session(account: Account, secret: str) -> Session:
    csrf = hmac.new(secret.encode(), _LABEL, "sha256").hexdigest()
    return Session(account, held(account.roles), secret, csrf)


async def _session_of(request: Request) -> Session:
    return session_of(request)


async def _actor_of(request: Request) -> Actor:
    return session_of(request).account.actor


SessionOf = Annotated[Session, Depends(_session_of)]
ActorOf = Annotated[Actor, Depends(_actor_of)]

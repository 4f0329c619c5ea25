"""Cookies, all by one rule: over TLS only, for this host only, and out of every script's reach."""

from __future__ import annotations

from fastapi import Response

SIGN_IN = "__Host-umbel-oidc"
"""Who was sent to the provider. A browser takes this prefix only with Secure, path / and no domain (RFC 6265bis)."""
SESSION = "__Host-umbel-session"
"""Who is signed in with a browser: the secret of a session of the store."""
NOTICE = "__Host-umbel-notice"
"""What was done a moment ago, for the page that comes next."""
THEME = "__Host-umbel-theme"
"""Light or dark, where somebody chose."""


def keep(response: Response, name: str, value: str, *, life_s: int, strict: bool = False) -> None:
    """Give a browser a cookie.

    Args:
        response: What carries it.
        name: One of those above.
        value: A secret.
        life_s: How long the browser keeps it.
        strict: Whether it stays away even when another site leads here, as the provider of sign-ins does; no other
            site's form brings it either way.
    """
    response.set_cookie(
        name,
        value,
        max_age=life_s,
        path="/",
        secure=True,
        httponly=True,
        samesite="strict" if strict else "lax",
    )


def forget(response: Response, name: str) -> None:
    """Take a cookie back."""
    response.delete_cookie(name, path="/", secure=True, httponly=True, samesite="lax")

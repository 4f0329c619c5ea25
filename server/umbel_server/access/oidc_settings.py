"""The settings of signing in elsewhere: table [oidc] of ``fleet.toml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from umbel_proto.errors import UsageError
from umbel_server.access.actor import Role
from umbel_server.fleet.table import Table, setting


@dataclass(frozen=True, slots=True)
class OidcSettings(Table):
    """Which OpenID provider vouches for people, and what its words mean here.

    Args:
        issuer: The provider's https URL; empty: nobody signs in elsewhere.
        client_id: What the service is called there.
        client_secret_file: A file with its secret; empty: it has none, and PKCE alone protects.
        redirect: Where people come back to at the API, as the provider knows it.
        console_redirect: Where they come back to at the console; empty: as ``redirect`` says.
        ca_file: Certificates that the provider's is checked against; empty: the system's.
        scope: What is asked for.
        claim: The claim that says what somebody is there.
        roles: Values of the claim and roles here.
    """

    TABLE: ClassVar[str] = "oidc"
    NOTE: ClassVar[str] = "people sign in at an OpenID provider; off while issuer is empty"

    issuer: str = setting("the provider's https URL, as it calls itself", "")
    client_id: str = setting("what this service is called there", "")
    client_secret_file: str = setting("a file with its secret; empty: it has none", "")
    redirect: str = setting("https://HOST:PORT/api/v1/oidc/callback of the API, as the provider knows it", "")
    console_redirect: str = setting("the same of the console; empty: redirect is the console's", "")
    ca_file: str = setting("certificates to check the provider's against; empty: the system's", "")
    scope: str = setting("what is asked for", "openid profile email")
    claim: str = setting("the claim that says what somebody is there", "groups")
    roles: str = setting('what that means here, as "umbel-admins=admin staff=viewer"', "")

    def __post_init__(self) -> None:
        if not self.issuer:
            return
        for name in ("issuer", "redirect", "console_redirect"):
            optional = name == "console_redirect" and not self.console_redirect
            if not optional and not getattr(self, name).startswith("https://"):
                raise UsageError(f"{name} of [oidc] is no https URL.")
        if not self.client_id or "openid" not in self.scope.split():
            raise UsageError("[oidc] needs a client_id, and openid in its scope.")
        if not self.meaning():
            raise UsageError('[oidc] gives nobody a role: write roles = "VALUE=ROLE VALUE=ROLE".')

    def meaning(self) -> tuple[tuple[str, Role], ...]:
        """Return which value of the claim means which role.

        Raises:
            UsageError: It is not written so, or there is no such role.
        """
        pairs = []
        for word in self.roles.split():
            value, equals, role = word.rpartition("=")
            if not value or not equals or role not in set(Role):
                raise UsageError(
                    f"roles of [oidc]: {word[:60]!r} is not VALUE=ROLE with one of {', '.join(Role)}."
                )
            pairs.append((value, Role(role)))
        return tuple(pairs)

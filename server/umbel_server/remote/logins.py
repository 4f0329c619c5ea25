"""Where somebody is signed in: one file of theirs, which nobody else may read."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from umbel_proto.errors import StorageError, UsageError
from umbel_server.files import SECRET_MODE, storage_error, write_atomically

CONFIG_VARIABLE = "XDG_CONFIG_HOME"
_OPEN_TO_OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class Login:
    """A service, and what it knows somebody by.

    Args:
        server: Its address, ``https://host:port``.
        account: Whom the token stands for.
        token: Signs in until it expires; a secret.
        token_id: What the service calls it.
        expires_s: Until when it is in force, Unix seconds.
        ca: The certificate that vouches for the service, PEM; None: those that this system trusts.
    """

    server: str
    account: str
    token: str = field(repr=False)
    token_id: str
    expires_s: float
    ca: str | None


class Logins:
    """The file of logins.

    Args:
        path: Where it lies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of_user(cls) -> Logins:
        """Return those of whoever runs this process."""
        home = os.environ.get(CONFIG_VARIABLE) or str(Path.home() / ".config")
        return cls(Path(home) / "umbel" / "logins.json")

    def all(self) -> tuple[Login, ...]:
        """Return every login; the first is the one that is meant where none is named.

        Raises:
            StorageError: The file cannot be read, or others may read it.
        """
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_mode & _OPEN_TO_OTHERS:
                    raise StorageError(
                        f"{self.path} holds tokens, and others may read it: run  umbel logout --all,  or  chmod 600."
                    )
                return tuple(Login(**each) for each in json.load(file)["logins"])
        except FileNotFoundError:
            return ()
        except OSError as exc:
            raise StorageError(f"{self.path} cannot be read: {exc.strerror}.") from exc
        except (ValueError, TypeError, KeyError) as exc:
            raise StorageError(f"{self.path} is damaged: remove it, and run  umbel login.") from exc

    def to_leave(self) -> tuple[Login, ...]:
        """Return every login, to end it: also of a file that others may read.

        Raises:
            StorageError: The file cannot be read.
        """
        try:
            self.path.chmod(SECRET_MODE)
        except FileNotFoundError:
            return ()
        except OSError as exc:
            raise storage_error(exc, self.path) from exc
        return self.all()

    def find(self, server: str | None) -> Login | None:
        """Return the login at a service, or without one the newest; None: there is none."""
        return next((each for each in self.all() if server in (None, each.server)), None)

    def keep(self, login: Login) -> None:
        """Keep a login, in front of the others and instead of an older one at the same service."""
        self._write((login, *(each for each in self.all() if each.server != login.server)))

    def drop(self, server: str) -> None:
        """Forget the login at a service."""
        self._write(tuple(each for each in self.all() if each.server != server))

    def _write(self, logins: tuple[Login, ...]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as exc:
            raise storage_error(exc, self.path.parent) from exc
        body = {"version": 1, "logins": [asdict(each) for each in logins]}
        write_atomically(self.path, f"{json.dumps(body, indent=2)}\n".encode())


def server_of(text: str) -> str:
    """Return a service's address as logins know it, ``https://host`` or ``https://host:port``.

    Raises:
        UsageError: It is none.
    """
    whole = text if "://" in text else f"https://{text}"
    try:
        parts = urlsplit(whole)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    host = parts.hostname or ""
    if parts.scheme != "https" or not re.fullmatch(r"[A-Za-z0-9._:%-]+", host) or parts.path.strip("/"):
        raise UsageError(
            f"{text[:80]!r} is no service: write https://HOST:PORT, as  umbel serve api  says it."
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError("The service's address is host and port only: sign in with  umbel login.")
    named = f"[{host}]" if ":" in host else host
    return f"https://{named}" + (f":{port}" if port is not None else "")

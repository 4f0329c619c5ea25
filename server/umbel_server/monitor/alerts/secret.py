"""The secret of a channel: read from a file, the environment or a program each time, and never kept."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from umbel_proto.errors import StorageError, UnavailableError
from umbel_server.monitor.alerts.fields import Fields

TIMEOUT_S = 10.0
MAX_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret is: in one of three places.

    Args:
        file: A file, from the fleet's directory.
        environment: The name of an environment variable.
        command: A program that writes it, and its arguments.
    """

    file: str = ""
    environment: str = ""
    command: tuple[str, ...] = ()

    def read(self, directory: Path, environment: Mapping[str, str]) -> str:
        """Return the secret.

        Args:
            directory: The fleet's directory.
            environment: Environment variables.

        Raises:
            StorageError: The file or variable has none.
            UnavailableError: The program fails.
        """
        if self.command:
            text = self._told()
        elif self.environment:
            text = environment.get(self.environment, "")
        else:
            try:
                text = (directory / self.file).read_bytes()[: MAX_BYTES + 1].decode()
            except (OSError, UnicodeDecodeError) as exc:
                raise StorageError(
                    f"The secret in {self.file} cannot be read: write it there, as text."
                ) from exc
        text = text.strip()
        if not text or len(text) > MAX_BYTES:
            where = self.environment or self.file or self.command[0]
            raise StorageError(f"{where} holds no secret: 1 to {MAX_BYTES} characters of text.")
        return text

    def _told(self) -> str:
        program = self.command[0]
        try:
            ran = subprocess.run(self.command, capture_output=True, timeout=TIMEOUT_S, check=False)
        except OSError as exc:
            raise UnavailableError(f"The command {program} cannot be run: {exc.strerror}.") from exc
        except subprocess.TimeoutExpired as exc:
            raise UnavailableError(f"The command {program} took over {TIMEOUT_S:g} s.") from exc
        if ran.returncode != 0:
            # What it says may be the secret's neighborhood: it stays here.
            raise UnavailableError(f"The command {program} ended with {ran.returncode}: run it by hand.")
        return ran.stdout.decode(errors="replace")


def fits_header(secret: str) -> bool:
    """Return whether a secret can be sent in a header: visible ASCII on one line. What cannot, httpx's error would tell."""
    return secret.isascii() and secret.isprintable() and secret == secret.strip()


def read_secret(fields: Fields, name: str) -> Secret | None:
    """Return where a secret is, of the fields ``NAME_file``, ``NAME_env`` and ``NAME_command``; None: nowhere.

    Raises:
        UsageError: Two of them are given.
    """
    file, environment = fields.text(f"{name}_file", ""), fields.text(f"{name}_env", "")
    command = fields.text(f"{name}_command", "")
    given = [each for each in (file, environment, command) if each]
    if len(given) > 1:
        raise fields.error(f"{name}_file", f"{name}_env and {name}_command: keep one of them")
    try:
        words = tuple(shlex.split(command))
    except ValueError as exc:
        raise fields.error(f"{name}_command", "has an open quote: close it") from exc
    return Secret(file, environment, words) if given else None

"""The PIN of a security module's token: from the environment, a file or a program, and never from the settings."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from umbel_proto.errors import StorageError, UnavailableError, UsageError
from umbel_server.ca.settings import Ca
from umbel_server.files import read_file

ENVIRONMENT = "UMBEL_CA_PIN"
TIMEOUT_S = 30.0


def read_pin(directory: Path, settings: Ca, environment: Mapping[str, str]) -> str:
    """Return the PIN, without the line's end that files and programs put after it.

    Args:
        directory: The fleet's directory, from which ``pin_file`` is told.
        settings: The table ``[ca]``.
        environment: Environment variables; ``UMBEL_CA_PIN`` goes before the settings.

    Raises:
        UsageError: Nothing says it, or what is said is empty.
        StorageError: The file cannot be read.
        UnavailableError: The program ends badly.
    """
    if pin := environment.get(ENVIRONMENT, ""):
        return pin
    if settings.pin_file:
        raw, source = read_file(directory / settings.pin_file, "file with the token's PIN"), settings.pin_file
    elif words := settings.pin_words():
        raw, source = _told(words), words[0]
    else:
        raise UsageError(
            f"Nothing tells the token's PIN: set pin_file or pin_command of [ca], or {ENVIRONMENT}."
        )
    try:
        pin = raw.decode().rstrip("\r\n")
    except UnicodeDecodeError as exc:
        raise StorageError(f"What {source} says is no PIN: it is not text.") from exc
    if not pin or not pin.isprintable():
        raise StorageError(f"What {source} says is no PIN: it is empty, or has several lines.")
    return pin


def _told(words: tuple[str, ...]) -> bytes:
    # What such a program writes, to either end, is in no message: the PIN may be in it.
    try:
        ran = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except OSError as exc:
        raise UnavailableError(f"pin_command of [ca], {words[0]}, cannot be run: {exc.strerror}.") from exc
    except subprocess.TimeoutExpired as exc:
        raise UnavailableError(f"pin_command of [ca], {words[0]}, took over {TIMEOUT_S:g} s.") from exc
    if ran.returncode != 0:
        raise UnavailableError(f"pin_command of [ca], {words[0]}, ended with {ran.returncode}.")
    return ran.stdout

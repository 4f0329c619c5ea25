"""What an operator chooses about the authority, and about letting devices in."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import ClassVar

from umbel_proto.errors import UsageError
from umbel_server.fleet.table import Table, setting
from umbel_server.store.terms import Terms

FILE, COMMAND, PKCS11 = "file", "command", "pkcs11"
KEYS = ("ca", "authority")


@dataclass(frozen=True, slots=True)
class Ca(Table):
    """Where the authority's keys are, and who may ask for its signatures.

    Args:
        apart: Whether it is a process of its own; else each service reads its keys.
        signer: Who has the keys: ``file``, ``command`` or ``pkcs11``.
        command: The program that signs, and its arguments.
        module: The library of a security module.
        token: The label of its token.
        module_keys: Which keys the token has; the others lie in files.
        pin_file: A file with the token's PIN, from the fleet's directory.
        pin_command: A program that tells it, and its arguments.
        socket: Where it listens: a path, from the fleet's directory.
        users: Names of system users besides its own that may ask, with spaces between them.
    """

    TABLE: ClassVar[str] = "ca"
    NOTE: ClassVar[str] = "the fleet's authority, which signs who is a device"

    apart: bool = setting("true: only  umbel serve ca  has its keys, and the services ask it", False)
    signer: str = setting(
        "file: its keys lie in ca/; command: a program has them; pkcs11: a security module",
        FILE,
        of=(FILE, COMMAND, PKCS11),
    )
    command: str = setting(
        "that program: its last argument is ca or authority, it reads what to sign and writes the signature",
        "",
    )
    module: str = setting("the security module's PKCS#11 library, as /usr/lib/softhsm/libsofthsm2.so", "")
    token: str = setting("the label of its token", "")
    module_keys: str = setting(
        "private keys of the token, by their labels; one that is not named lies in ca/",
        "ca authority",
        of=("ca authority", *KEYS),
    )
    pin_file: str = setting("a file with the token's PIN; the environment's UMBEL_CA_PIN goes before it", "")
    pin_command: str = setting("or a program that writes the PIN", "")
    socket: str = setting("where it listens: a path, from this directory", "ca/ca.sock")
    users: str = setting("system users besides its own that may ask it, with spaces between them", "")

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one this was written in.
        Table.__post_init__(self)
        if self.signer == COMMAND and not self.words():
            raise UsageError('[ca] has signer = "command" but no command: name the program that signs.')
        if self.signer == PKCS11 and not (self.module and self.token):
            raise UsageError('[ca] has signer = "pkcs11" but no module or no token: name both.')
        if self.pin_words() and self.pin_file:
            raise UsageError("[ca] has a pin_file and a pin_command: keep one of them.")
        if not self.socket:
            raise UsageError("[ca] has no socket: name the path where the authority listens.")

    def words(self) -> tuple[str, ...]:
        """Return the command's words, as a shell would split them."""
        return _split("command", self.command)

    def pin_words(self) -> tuple[str, ...]:
        """Return the words of ``pin_command``, as a shell would split them."""
        return _split("pin_command", self.pin_command)


def _split(name: str, text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as exc:
        raise UsageError(f"The {name} of [ca] cannot be split into words: {exc}.") from exc


@dataclass(frozen=True, slots=True)
class Enrollment(Table):
    """On what terms devices are let in.

    Args:
        mode: ``token``: a token suffices; ``approve``: an operator approves each device besides.
        max_devices: Most devices of the fleet, besides revoked ones.
        per_minute: Most devices that enter, or begin to wait, in a minute.
        max_pending: Most devices that may wait for approval.
        approval_days: For how long one waits.
    """

    TABLE: ClassVar[str] = "enrollment"
    NOTE: ClassVar[str] = "on what terms devices are let in"

    mode: str = setting(
        "token: a token suffices; approve: an operator approves each device besides",
        "token",
        of=("token", "approve"),
    )
    max_devices: int = setting("most devices, besides revoked ones; 0: no limit", 0, between=(0, 10**9))
    per_minute: int = setting(
        "most that enter or begin to wait in a minute; 0: no limit", 0, between=(0, 10**6)
    )
    max_pending: int = setting("most that may wait for approval; 0: no limit", 1000, between=(0, 10**6))
    approval_days: int = setting("for so long one waits for approval", 7, between=(1, 365))

    def terms(self) -> Terms:
        """Return them as the store reads them."""
        return Terms(
            approve=self.mode == "approve",
            max_devices=self.max_devices,
            per_minute=self.per_minute,
            max_pending=self.max_pending,
            approval_days=self.approval_days,
        )

"""What the device's user allows, and since when. Whoever takes consent back gets the data deleted."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from umbel._data.store import erase
from umbel._home.cipher import destroy_key
from umbel._home.directory import DeviceHome
from umbel._home.files import overwrite, read_file
from umbel_proto.errors import RefusedError, StorageError, UsageError

TRAINING = "training"
QUERIES = "queries"
REVIEWS = "reviews"
PURPOSES = (TRAINING, QUERIES, REVIEWS)
"""What is asked for: keeping examples on the device and training on them; counting them for the fleet's queries; and
announcing to the fleet which predictions wait for a person."""

State = Literal["unasked", "granted", "revoked"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the user said of one purpose.

    Args:
        state: ``unasked``, ``granted`` or ``revoked``.
        at_s: When, Unix seconds of the device's clock; None if nobody was asked.
        by: Who said so.
    """

    state: State
    at_s: float | None = None
    by: str = ""


class Consent:
    """The user's consent, on disk.

    Reviews are announced only where the user said yes. Where nobody was asked about training, a program that trains has
    decided that itself, unless the conditions demand consent
    (``Conditions.require(consent=True)``), as they do on a device where ``umbel run`` trains on what is kept.

    Args:
        home: The device's files.
        clock: Returns Unix time, seconds.
    """

    def __init__(self, home: DeviceHome, *, clock: Callable[[], float] = time.time) -> None:
        self._home = home
        self._clock = clock

    def __repr__(self) -> str:
        return f"Consent({str(self._home.path)!r})"

    def decision(self, purpose: str = TRAINING) -> Decision:
        """Return what the user said last.

        Args:
            purpose: ``training``, ``queries`` or ``reviews``.

        Raises:
            UsageError: There is no such purpose.
            StorageError: The file is damaged.
        """
        return self._read().get(_known(purpose), Decision("unasked"))

    def grant(self, purpose: str = TRAINING, *, by: str = "user") -> None:
        """Allow a purpose from now on.

        Args:
            purpose: ``training``, ``queries`` or ``reviews``.
            by: Who allows it.

        Raises:
            UsageError: There is no such purpose, or nobody is named.
            StorageError: The disk is full, or the file damaged.
        """
        self._write(_known(purpose), Decision("granted", self._clock(), by))

    def revoke(self, purpose: str = TRAINING, *, by: str = "user") -> int:
        """Take consent back. Of training: every example on the device is deleted, and the key to them destroyed.

        Of reviews: with its next report the device withdraws what it announced. What rounds have released already
        cannot be taken back. After a crash in the middle of it, whoever looks at the data next completes it.

        Args:
            purpose: ``training``, ``queries`` or ``reviews``.
            by: Who takes it back.

        Returns:
            How many examples went.

        Raises:
            UsageError: There is no such purpose, or nobody is named.
            StorageError: The disk cannot be written: the examples may still be there, without the key to them. On a disk
                that is only full the no is kept all the same, and who looks at the data next deletes them.
        """
        said = Decision("revoked", self._clock(), by)
        try:
            self._write(_known(purpose), said)
        except StorageError:
            # A full disk takes no new file, but a word in the place of another. Torn by a crash, it is no consent either.
            if purpose == TRAINING:
                destroy_key(self._home.examples_key)
            if self._home.consent.exists():
                overwrite(self._home.consent, self._told(purpose, said))
            else:  # A home that was never enrolled. The key may have left room.
                self._write(purpose, said)
            with contextlib.suppress(StorageError):
                return erase(self._home.examples, self._home.examples_key) if purpose == TRAINING else 0
            return 0
        if purpose != TRAINING:
            return 0
        return erase(self._home.examples, self._home.examples_key)

    def require(self, purpose: str = TRAINING) -> None:
        """Go on only if the user did not take consent back.

        Args:
            purpose: ``training``, ``queries`` or ``reviews``.

        Raises:
            UsageError: There is no such purpose.
            RefusedError: The user did.
            StorageError: The file is damaged, and nobody knows.
        """
        if self.decision(purpose).state == "revoked":
            raise RefusedError(
                f"The user took back consent to {purpose}: ask, and call consent.grant({purpose!r}) before anything else."
            )

    def _read(self) -> dict[str, Decision]:
        file = self._home.consent
        if not file.exists():
            return {}
        try:
            return {
                _known(purpose): _decision(fields) for purpose, fields in json.loads(read_file(file)).items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, UsageError) as exc:
            raise StorageError(
                f"{file} is damaged, and nobody knows what the user allows: ask, and delete it before consent is granted."
            ) from exc

    def _write(self, purpose: str, decision: Decision) -> None:
        self._home.write(self._home.consent, self._told(purpose, decision), secret=True)

    def _told(self, purpose: str, decision: Decision) -> bytes:
        if not (isinstance(decision.by, str) and decision.by.strip()):
            raise UsageError("Say who decides: by=...")
        try:
            held = self._read()
        except StorageError:
            if decision.state != "revoked":
                raise
            held = {}  # A no is kept whatever was there before.
        held[purpose] = decision
        fields = {
            name: {"state": each.state, "at_s": each.at_s, "by": each.by} for name, each in held.items()
        }
        return json.dumps(fields, indent=2).encode() + b"\n"


def _decision(fields: dict[str, object]) -> Decision:
    state, at_s, by = fields["state"], fields["at_s"], fields["by"]
    match state, at_s, by:
        case ("granted" | "revoked") as said, float() | int() as when, str() as who if math.isfinite(when):
            return Decision(said, float(when), who)
        case _:
            raise ValueError("no decision")


def _known(purpose: str) -> str:
    if purpose not in PURPOSES:
        raise UsageError(f"There is no purpose {purpose!r}: name one of {', '.join(PURPOSES)}.")
    return purpose

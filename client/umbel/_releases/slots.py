"""What a device remembers of a model: the version that answers, the one before it, and those that failed here.

Values and how one follows from another; ``umbel._releases.shelf`` keeps them on disk.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

MAX_FAILURES = 16
"""Failed versions that are remembered; beyond it, the oldest are forgotten."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Failure:
    """A version that is not tried again on this device.

    Args:
        sha256: Hash of its package.
        version: Its number.
        why: What happened, the end of a sentence that begins with the version.
        at_s: When, Unix seconds.
        umbel: The umbel that it failed under: another one may run it.
        told: Whether telemetry has counted it.
    """

    sha256: str
    version: int
    why: str
    at_s: float
    umbel: str
    told: bool = False


@dataclass(frozen=True, slots=True)
class Beside:
    """A version that the fleet wants to be run beside the one that answers. What it says reaches nobody.

    Args:
        sha256: Hash of its package.
        version: Its number.
        one_in: Of so many predictions one is put to it as well, on average, >= 1.
        within: Of a model that answers with numbers, how far its may be from the active one's to agree, in standard
            deviations of its golden answers.
        why: Why this device does not run it, the end of a sentence that begins with the version; empty: it does.
        since_s: Since when the fleet wants it here, Unix seconds; 0 where an older umbel began it. What the device notes
            itself makes no other wish of it.
        examples: How many examples were put to it here.
    """

    sha256: str
    version: int
    one_in: int = 10
    within: float = 0.1
    why: str = ""
    since_s: float = field(default=0.0, compare=False)
    examples: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Slots:
    """The versions of one model on a device. A package is named by its hash.

    Args:
        active: The one that answers; None where there is none.
        previous: The one to go back to; None where there is none.
        newest: Highest version that was ever active here: below it nothing is installed.
        proven: Whether the active one has run here without a crash, or is the last resort.
        failed: Versions that are not tried again, oldest first.
        beside: The one that is to be run beside the active one; None where the fleet wants none.
    """

    active: str | None = None
    previous: str | None = None
    newest: int = 0
    proven: bool = False
    failed: tuple[Failure, ...] = ()
    beside: Beside | None = None

    def failure(self, sha256: str, *, umbel: str) -> Failure | None:
        """Return why a package is not tried again by this umbel, or None if it may be."""
        return next((each for each in self.failed if (each.sha256, each.umbel) == (sha256, umbel)), None)

    def taken(self, sha256: str, version: int) -> Slots:
        """Return the slots after a new version became active. Failures of older ones matter no more."""
        previous = self.previous if sha256 == self.active else self.active
        failed = tuple(each for each in self.failed if each.version > version)
        beside = None if self.beside is None or self.beside.version <= version else self.beside
        return Slots(sha256, previous, max(self.newest, version), False, failed, beside)

    def refused(self, failure: Failure) -> Slots:
        """Return the slots after a version failed before it was active."""
        others = tuple(each for each in self.failed if each.sha256 != failure.sha256)
        gone = self.beside is not None and self.beside.sha256 == failure.sha256
        failed = (*others, failure)[-MAX_FAILURES:]
        return replace(self, failed=failed, beside=None if gone else self.beside)

    def accompanied(self, beside: Beside | None) -> Slots:
        """Return the slots with a version, or none, to be run beside the active one; of the same one what is known stays."""
        known = self.beside
        if beside is not None and known is not None and beside.sha256 == known.sha256:
            beside = replace(beside, since_s=known.since_s, examples=known.examples)
        return replace(self, beside=beside)

    def asked(self, sha256: str, examples: int) -> Slots:
        """Return the slots after so many more examples were put to the version beside the active one, if it still is."""
        if self.beside is None or self.beside.sha256 != sha256:
            return self
        return replace(self, beside=replace(self.beside, examples=self.beside.examples + examples))

    def fell_back(self, failure: Failure) -> Slots:
        """Return the slots after the active version failed: the one before it answers again.

        It is the last resort, so nothing that happens to a process is held against it.
        """
        return replace(self.refused(failure), active=self.previous, previous=None, proven=True)

    def returned(self, sha256: str) -> Slots:
        """Return the slots after the fleet took the active version back for one before it.

        What was taken back is not kept to fall back to. How high versions were stays known: without the fleet's word
        nothing below is installed.
        """
        return replace(self, active=sha256, previous=None, proven=True)

    def lost(self) -> Slots:
        """Return the slots after the active package was found damaged: it may be fetched again."""
        return replace(self, active=self.previous, previous=None, proven=True)

    def proved(self) -> Slots:
        """Return the slots after the active version has run here without a crash."""
        return replace(self, proven=True)

    def without_previous(self) -> Slots:
        """Return the slots after the previous package made room for another."""
        return replace(self, previous=None)

    def retried(self) -> Slots:
        """Return the slots without what failed: the next release that is offered is tried."""
        return replace(self, failed=())

    def told(self) -> Slots:
        """Return the slots after telemetry has counted every failure."""
        return replace(self, failed=tuple(replace(each, told=True) for each in self.failed))

    def to_json(self) -> bytes:
        """Return the file that holds them."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Slots:
        """Read what ``to_json`` wrote; also the files of umbels that knew only the first two fields.

        Raises:
            ValueError: It is something else.
        """
        try:
            fields = json.loads(raw)
            return cls(
                _hash(fields["active"]),
                _hash(fields["previous"]),
                int(fields.get("newest", 0)),
                proven=bool(fields.get("proven", False)),
                failed=tuple(map(_failure, fields.get("failed", ()))),
                beside=_beside(fields.get("beside")),
            )
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError("these are no slots") from exc


def _failure(fields: dict[str, Any]) -> Failure:
    sha256 = _hash(fields["sha256"])
    if sha256 is None:
        raise ValueError("a failure of nothing")
    return Failure(
        sha256,
        int(fields["version"]),
        str(fields["why"]),
        float(fields["at_s"]),
        str(fields["umbel"]),
        told=bool(fields["told"]),
    )


def _beside(fields: dict[str, Any] | None) -> Beside | None:
    if fields is None:
        return None
    sha256 = _hash(fields["sha256"])
    if sha256 is None:
        raise ValueError("nothing beside the active version")
    return Beside(
        sha256,
        int(fields["version"]),
        max(int(fields["one_in"]), 1),
        float(fields["within"]),
        str(fields["why"]),
        float(fields.get("since_s", 0.0)),
        int(fields.get("examples", 0)),
    )


def _hash(value: object) -> str | None:
    # A hash becomes part of a path: nothing else may stand here.
    if value is None or (isinstance(value, str) and _SHA256.fullmatch(value)):
        return value
    raise ValueError("this is no hash")

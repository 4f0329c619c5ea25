"""Check the audit chain, and sign how far it goes, so that its end cannot be cut off or written anew unseen.

Source: docs/spec/audit.md.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from umbel_proto.encoding import enc
from umbel_proto.errors import UsageError, VerificationError
from umbel_proto.keys import SigningKey, VerifyKey
from umbel_server.files import PUBLIC_MODE, read_file, storage_error, write_atomically
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.audit import FIRST_PREVIOUS, Entry, entry_hash
from umbel_server.store.store import Store

CHECKPOINT_LABEL = "umbel/1/audit-checkpoint"
START = (0, FIRST_PREVIOUS)
Head = tuple[int, bytes]
"""The number and the hash of the last entry so far."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Somebody's signed word on how far the log went at a moment.

    Args:
        fleet: Whose log.
        sequence: The last entry's number.
        hash: The last entry's hash, 32 bytes.
        time_ms: When this was signed, Unix milliseconds.
        signature: Over all of it, 64 bytes.
    """

    fleet: str
    sequence: int
    hash: bytes
    time_ms: int
    signature: bytes

    @classmethod
    def sign(cls, key: SigningKey, fleet: str, head: Head, time_ms: int) -> Checkpoint:
        """Sign how far a log goes."""
        body = enc(fleet, *head, time_ms)
        return cls(fleet, *head, time_ms, key.sign(CHECKPOINT_LABEL, body))

    def check(self, key: VerifyKey, fleet: str) -> None:
        """Check that this is the fleet's own word.

        Raises:
            VerificationError: It is not.
        """
        if self.fleet != fleet:
            raise VerificationError(f"The checkpoint is of fleet {self.fleet[:63]!r}, not {fleet}.")
        try:
            key.verify(
                CHECKPOINT_LABEL, enc(self.fleet, self.sequence, self.hash, self.time_ms), self.signature
            )
        except (VerificationError, OverflowError) as exc:
            raise VerificationError("A checkpoint of the audit log is not signed by its key.") from exc

    def to_json(self) -> str:
        """Return it as a line of JSON."""
        return json.dumps(
            {
                "fleet": self.fleet,
                "sequence": self.sequence,
                "hash": self.hash.hex(),
                "time_ms": self.time_ms,
                "signature": self.signature.hex(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Checkpoint:
        """Read what ``to_json`` gave.

        Raises:
            VerificationError: It is something else.
        """
        try:
            raw = json.loads(text)
            fleet, sequence, time_ms = raw["fleet"], raw["sequence"], raw["time_ms"]
            if type(fleet) is not str or type(sequence) is not int or type(time_ms) is not int:
                raise ValueError
            return cls(fleet, sequence, bytes.fromhex(raw["hash"]), time_ms, bytes.fromhex(raw["signature"]))
        except (ValueError, TypeError, KeyError) as exc:
            raise VerificationError("A checkpoint of the audit log cannot be read: restore it.") from exc


def follow(entries: Iterable[Entry], head: Head = START) -> Iterator[Head]:
    """Check that entries are whole and follow each other, and yield the head after each.

    Args:
        entries: In the order of their numbers.
        head: Of what comes before them.

    Raises:
        VerificationError: One was altered, taken out, put in or moved; the sentence names the first.
    """
    sequence, previous = head
    for entry in entries:
        sequence += 1
        if entry.sequence != sequence:
            raise VerificationError(f"The audit log has no entry {sequence}: it was taken out or moved.")
        if entry.previous != previous:
            raise VerificationError(f"Entry {sequence} of the audit log does not follow the one before it.")
        *fields, kept = (getattr(entry, name) for name in Entry.__slots__)
        if _rehash(fields) != kept:
            raise VerificationError(f"Entry {sequence} of the audit log was altered.")
        previous = kept
        yield sequence, previous


def verify(fleet: FleetDir, store: Store, others: Sequence[Checkpoint] = ()) -> Head:
    """Check the whole log of a fleet, and that no checkpoint says it was another; return how far it goes.

    Args:
        fleet: The fleet.
        store: Its store.
        others: Checkpoints that were kept elsewhere, beside the fleet's own.

    Raises:
        VerificationError: The log is not what was written.
    """
    checkpoints = list(others)
    last = _last_checkpoint(fleet)
    if last is not None:
        checkpoints.append(last)
    signed: dict[int, set[bytes]] = {}
    for each in checkpoints:
        each.check(VerifyKey(read_file(_public_file(fleet), "public audit key")), fleet.name)
        signed.setdefault(each.sequence, set()).add(each.hash)
    head = START
    for head in follow(store.audit.all()):
        if signed.get(head[0], {head[1]}) != {head[1]}:
            raise VerificationError(
                f"Entry {head[0]} of the audit log is not the one that was signed: the log was written anew."
            )
    furthest = max(signed, default=0)
    if furthest > head[0]:
        raise VerificationError(
            f"The audit log ends with entry {head[0]}, and {furthest} were signed: its end was cut off."
        )
    return head


def keep_checkpoint(fleet: FleetDir, store: Store) -> Checkpoint | None:
    """Sign how far the log goes, if it went on since the last time; None: there is nothing to sign yet.

    What came since then is checked first: nobody's changes get a signature because time went on.

    Raises:
        VerificationError: The log is not what was written.
        StorageError: The key cannot be read, or the disk is full.
    """
    with _alone(fleet):
        last = _last_checkpoint(fleet)
        newest = store.audit.newest()
        if newest is None and last is None:
            return None
        key, head = _signer(fleet), START
        if last is not None:
            last.check(key.public, fleet.name)
            head = (last.sequence, last.hash)
            kept = store.audit.get(last.sequence)
            if kept is None or kept.hash != last.hash:
                raise VerificationError(
                    f"The audit log has lost entry {last.sequence}, which was signed: see  umbel audit verify."
                )
            if newest == kept:
                return last
        since = list(follow(store.audit.all(after=head[0]), head))
        made = Checkpoint.sign(key, fleet.name, since[-1], round(store.clock() * 1000))
        write_atomically(checkpoint_file(fleet), f"{made.to_json()}\n".encode(), mode=PUBLIC_MODE)
        if not _public_file(fleet).exists():
            write_atomically(_public_file(fleet), key.public.raw, mode=PUBLIC_MODE)
        return made


def checkpoint_file(fleet: FleetDir) -> Path:
    """Where the last checkpoint of a fleet's log lies."""
    return fleet.path / "audit.checkpoint"


def read_checkpoints(text: str) -> list[Checkpoint]:
    """Read checkpoints, a line each.

    Raises:
        VerificationError: A line is none.
        UsageError: There is none at all.
    """
    found = [Checkpoint.from_json(line) for line in text.splitlines() if line.strip()]
    if not found:
        raise UsageError("The file holds no checkpoint: take the lines of  umbel audit checkpoint.")
    return found


def _rehash(fields: Sequence[bytes | str | int]) -> bytes:
    try:
        return entry_hash(*fields)
    except OverflowError:
        return b""  # A negative number: nobody wrote that.


def _last_checkpoint(fleet: FleetDir) -> Checkpoint | None:
    path = checkpoint_file(fleet)
    if path.exists():
        return Checkpoint.from_json(read_file(path, "audit checkpoint").decode("utf-8", "replace"))
    # The public key is written last: where it is, there was a checkpoint.
    if _public_file(fleet).exists():
        raise VerificationError(f"{path} was taken away: restore it, and verify with a copy from elsewhere.")
    return None


def _key_file(fleet: FleetDir) -> Path:
    return fleet.path / "keys" / "audit.key"


def _public_file(fleet: FleetDir) -> Path:
    return fleet.path / "keys" / "audit.pub"


def _signer(fleet: FleetDir) -> SigningKey:
    path = _key_file(fleet)
    if not path.exists() and not _public_file(fleet).exists():
        write_atomically(path, SigningKey.generate().to_pem())  # The first time.
    return SigningKey.from_pem(read_file(path, "audit key"))


@contextmanager
def _alone(fleet: FleetDir) -> Iterator[None]:
    """Hold the directory of keys: two processes sign one after the other, and never the older head last."""
    directory = fleet.path / "keys"
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise storage_error(exc, directory) from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

"""The signed metadata of a fleet on the disk: one consistent set at every moment, whatever is killed.

::

    trust/lock               held while anything changes
    trust/metadata/          N.root.json N.targets.json N.MODEL.json N.snapshot.json, and timestamp.json
    trust/staged/ROLE.json   waits for signatures
    trust/online/ID.key      signs snapshot and timestamp

A file with a number is written before what names it, and ``timestamp.json``, which names all others, is written last.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner, Signer, SSlibKey
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from umbel_proto.errors import StorageError, UsageError
from umbel_proto.ids import check_name
from umbel_proto.keys import SigningKey
from umbel_server.clock import Clock, system_clock
from umbel_server.files import (
    PUBLIC_MODE,
    SECRET_MODE,
    read_file,
    remove_leftovers,
    storage_error,
    write_atomically,
)
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.settings import FleetSettings
from umbel_server.trust.metadata import (
    DAY_S,
    ONLINE,
    Lives,
    State,
    begin,
    changed,
    countersigned,
    due_s,
    file_name,
    in_force,
    lacking,
    renewed,
    resigned,
    signer,
    to_bytes,
    with_keys,
    with_line,
)

MAX_METADATA_BYTES = 2_000_000
"""What a device takes of one file at most, and so what is signed at most."""

_ROOT_FILE = re.compile(r"([1-9][0-9]{0,8})\.root\.json")


class Repository:
    """A fleet's signed metadata.

    Args:
        folder: Its directory.
        lives: For how long what it signs holds.
        clock: Dates it.
    """

    def __init__(self, folder: Path, *, lives: Lives, clock: Clock = system_clock) -> None:
        self._folder = folder
        self._metadata = folder / "metadata"
        self._staged = folder / "staged"
        self._online = folder / "online"
        self._lives = lives
        self._clock = clock
        self._due_s = 0.0
        self._seen = 0

    @classmethod
    def of(cls, fleet: FleetDir, *, clock: Clock = system_clock) -> Repository:
        """Return the metadata of a fleet, whether there is any or not."""
        return cls(fleet.trust, lives=lives_of(fleet.settings), clock=clock)

    @property
    def exists(self) -> bool:
        """Whether there is any metadata."""
        return (self._metadata / file_name(Timestamp.type, 0)).exists()

    @property
    def lives(self) -> Lives:
        """For how long what it signs holds."""
        return self._lives

    def create(self, *, root: SigningKey, targets: SigningKey) -> State:
        """Make the first metadata, and a key for the service; where a crash left a part of it, all of it anew.

        Raises:
            UsageError: There is metadata already.
            StorageError: The directory cannot be written.
        """
        with self._locked():
            self.require_none()
            state = begin(
                root=signer(root),
                targets=signer(targets),
                online=self._new_online(),
                lives=self._lives,
                now_s=self._clock(),
            )
            self._write(changed(None, state))
        return state

    def require_none(self) -> None:
        """Check that there is no metadata yet.

        Raises:
            UsageError: There is.
        """
        if self.exists:
            raise UsageError("This fleet's releases are signed already: see  umbel fleet trust show.")

    def update(self, change: Callable[[State], State] = lambda state: state) -> State:
        """Change what is in force, take what has all its signatures by now, and sign what is due.

        Args:
            change: Returns what follows; by default nothing changes.

        Raises:
            UsageError: There is no metadata yet; or of ``change``.
            StorageError: A file is missing or damaged, or the disk is full.
        """
        with self._locked():
            return self._update(change)

    def read(self) -> State:
        """Return what is in force."""
        return self.update()

    def file(self, role: str, version: int) -> bytes | None:
        """Return a file of metadata as a device asks for it; None if there is none.

        Args:
            role: A role.
            version: Its version; for the timestamp any, as there is one.
        """
        if self._clock() >= self._due_s or self._changed() != self._seen:
            self.update()
        try:
            return (self._metadata / file_name(check_name(role, "role"), version)).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StorageError(f"The metadata of {role} cannot be read: {exc.strerror}.") from exc

    def newest_root(self) -> bytes:
        """Return the root that is in force, for a device that has none."""
        return to_bytes(self.read().root)

    def staged(self) -> dict[str, Metadata[Any]]:
        """Return what waits for signatures, by role."""
        return {path.stem: _read(path) for path in sorted(self._staged.glob("[!.]*.json"))}

    def stage(self, change: Callable[[State], Mapping[str, Metadata[Any]]]) -> dict[str, int]:
        """Let metadata wait until it has all its signatures; at once, if it has.

        What waited of the same roles is given up.

        Args:
            change: Returns new metadata by role.

        Returns:
            How many signatures each lacks, by role; empty where all is in force.
        """
        with self._locked():
            state = self._update()
            for role, metadata in change(state).items():
                write_atomically(self._staged / f"{role}.json", to_bytes(metadata), mode=PUBLIC_MODE)
            state = self._update()
            return lacking(state, self.staged())

    def rotate_line(self, model: str, keys: Sequence[SSlibKey], signers: Sequence[Signer]) -> dict[str, int]:
        """Say who signs for a model line from now on; see ``stage``."""

        def change(state: State) -> dict[str, Metadata[Any]]:
            lists, line = with_line(state, model, keys, signers, lives=self._lives, now_s=self._clock())
            return {Targets.type: lists, model: line}

        return self.stage(change)

    def rotate(
        self, role: str, keys: Sequence[SSlibKey], threshold: int, signers: Sequence[Signer]
    ) -> dict[str, int]:
        """Say who signs as the root or for the list of lines from now on; see ``stage``."""

        def change(state: State) -> dict[str, Metadata[Any]]:
            now_s = self._clock()
            root = with_keys(state, [role], keys, threshold, signers, lives=self._lives, now_s=now_s)
            if role == Root.type:
                return {role: root}
            listed = renewed(state, role, (), lives=self._lives, now_s=now_s)
            named = {key.keyid for key in keys}
            for each in signers:
                if each.public_key.keyid in named:
                    listed.sign(each, append=True)
            return {Root.type: root, role: listed}

        return self.stage(change)

    def rotate_online(self, signers: Sequence[Signer]) -> dict[str, int]:
        """Make a new key for the service, for snapshot and timestamp; see ``stage``."""

        def change(state: State) -> dict[str, Metadata[Any]]:
            key = self._new_online().public_key
            root = with_keys(state, ONLINE, [key], 1, signers, lives=self._lives, now_s=self._clock())
            return {Root.type: root}

        return self.stage(change)

    def sign(self, signers: Sequence[Signer]) -> dict[str, int]:
        """Sign what waits, as far as these keys count for it; if they count for nothing that waits, renew what they can.

        Returns:
            How many signatures each role lacks that was signed now, 0 for what is in force.

        Raises:
            UsageError: The keys count for nothing.
        """
        keyids = {each.public_key.keyid for each in signers}
        signed: list[str] = []

        def change(state: State) -> dict[str, Metadata[Any]]:
            waiting = self.staged()
            new = countersigned(state, waiting, signers)
            if not new:
                now_s = self._clock()
                new = {
                    role: renewed(state, role, signers, lives=self._lives, now_s=now_s)
                    for role in state.offline()
                    if role not in waiting and keyids & set(state.role(role)[0].keyids)
                }
            if not new:
                raise UsageError(
                    "These keys sign for nothing in this fleet: umbel fleet trust show  names those that do."
                )
            signed.extend(new)
            return new

        left = self.stage(change)
        return {role: left.get(role, 0) for role in signed}

    def _update(self, change: Callable[[State], State] = lambda state: state) -> State:
        before = self._load()
        after, taken = in_force(before, self.staged())
        after = change(after)
        after = resigned(after, self._signer(after), lives=self._lives, now_s=self._clock())
        self._write(changed(before, after))
        for role in taken:
            (self._staged / f"{role}.json").unlink(missing_ok=True)
        self._forget_keys(after)
        self._due_s, self._seen = due_s(after, self._lives), self._changed()
        return after

    def _load(self) -> State:
        if not self.exists:
            raise UsageError(
                "This fleet's releases are not signed yet: run  umbel fleet trust init  once, then its devices learn "
                "whom to trust when they renew their certificates."
            )
        timestamp = _read(self._metadata / file_name(Timestamp.type, 0))
        snapshot = self._numbered(Snapshot.type, timestamp.signed.snapshot_meta.version)
        versions = {name.removesuffix(".json"): meta.version for name, meta in snapshot.signed.meta.items()}
        targets = self._numbered(Targets.type, versions.pop(Targets.type))
        lines = {model: self._numbered(model, version) for model, version in versions.items()}
        found = (_ROOT_FILE.fullmatch(path.name) for path in self._metadata.iterdir())
        root = self._numbered(Root.type, max(int(match[1]) for match in found if match))
        return State(root, targets, lines, snapshot, timestamp)

    def _numbered(self, role: str, version: int) -> Metadata[Any]:
        return _read(self._metadata / file_name(role, version))

    def _write(self, files: Iterable[tuple[str, bytes]]) -> None:
        for name, data in files:
            if len(data) > MAX_METADATA_BYTES:
                raise UsageError(
                    f"{name} would have {len(data):,} bytes, more than the {MAX_METADATA_BYTES:,} that devices take."
                )
            write_atomically(self._metadata / name, data, mode=PUBLIC_MODE)

    def _new_online(self) -> CryptoSigner:
        key = SigningKey.generate()
        new = signer(key)
        write_atomically(self._online / f"{new.public_key.keyid}.key", key.to_pem())
        return new

    def _forget_keys(self, state: State) -> None:
        """Delete keys of the service that no root names, or will name: none may sign any more."""
        roots = [state.root, *(each for role, each in self.staged().items() if role == Root.type)]
        named = {keyid for root in roots for keyid in root.signed.keys}
        for path in self._online.glob("*.key"):
            if path.stem not in named:
                path.unlink(missing_ok=True)

    def _signer(self, state: State) -> CryptoSigner:
        (keyid,) = state.root.signed.roles[Timestamp.type].keyids
        return signer(SigningKey.from_pem(read_file(self._online / f"{keyid}.key", "key of the service")))

    def _changed(self) -> int:
        try:
            return self._metadata.stat().st_mtime_ns ^ self._staged.stat().st_mtime_ns
        except OSError:
            return 0

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        path = self._folder / "lock"
        try:
            # A directory in which nothing lay may be missing: in a fleet that was restored, or copied by other tools.
            for folder in (self._folder, self._metadata, self._staged, self._online):
                folder.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, SECRET_MODE)
        except OSError as exc:
            raise storage_error(exc, path) from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for folder in (self._metadata, self._staged, self._online):
                remove_leftovers(folder)
            yield
        finally:
            os.close(descriptor)


def sign_releases(fleet: FleetDir, *, clock: Clock) -> Repository:
    """Make the keys of the root and of the list of model lines, as far as they are not here, and the first metadata.

    Raises:
        UsageError: The fleet has metadata already.
        StorageError: The directory cannot be written, or a key is damaged.
    """
    repository = Repository.of(fleet, clock=clock)
    repository.require_none()
    root, targets = (_key_at(path) for path in (fleet.root_key, fleet.targets_key))
    repository.create(root=root, targets=targets)
    return repository


def lives_of(settings: FleetSettings) -> Lives:
    """Return for how long a fleet's metadata holds."""
    return Lives(
        settings.trust.root_days * DAY_S,
        settings.trust.targets_days * DAY_S,
        settings.trust.snapshot_days * DAY_S,
        settings.trust.timestamp_days * DAY_S,
    )


def _read(path: Path) -> Metadata[Any]:
    try:
        return Metadata.from_bytes(read_file(path, "signed metadata"))
    except DeserializationError as exc:
        raise StorageError(f"{path} is damaged: restore the fleet's trust directory from a backup.") from exc


def _key_at(path: Path) -> SigningKey:
    if not path.exists():
        write_atomically(path, SigningKey.generate().to_pem())
    return SigningKey.from_pem(read_file(path, "key"))

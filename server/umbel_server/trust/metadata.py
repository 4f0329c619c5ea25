"""The signed metadata of a fleet's releases, as values: what is valid, and what follows it. No files, no clock.

Source:
    The Update Framework Specification 1.0.34, sections 4 (formats) and 6 (key management);
    docs/spec/delivery.md, section 5.
"""

from __future__ import annotations

import copy
import datetime
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, Signer, SSlibKey
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    T,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import check_name
from umbel_proto.keys import SigningKey, VerifyKey

DAY_S = 86400.0
ONLINE = (Snapshot.type, Timestamp.type)
TOP = (Root.type, Targets.type, *ONLINE)
"""Names of roles that no model may have."""


@dataclass(frozen=True, slots=True)
class Lives:
    """For how long metadata holds after it was signed, seconds.

    Args:
        root_s: The root.
        targets_s: The list of model lines, and each line's list of releases.
        snapshot_s: What belongs together. Signed anew at half its life.
        timestamp_s: What is newest. Signed anew at half its life.
    """

    root_s: float = 365 * DAY_S
    targets_s: float = 90 * DAY_S
    snapshot_s: float = 7 * DAY_S
    timestamp_s: float = DAY_S

    def of(self, role: str) -> float:
        """Return the life of a role's metadata, seconds."""
        lives = {Root.type: self.root_s, Snapshot.type: self.snapshot_s, Timestamp.type: self.timestamp_s}
        return lives.get(role, self.targets_s)


@dataclass(frozen=True, slots=True)
class Released:
    """A package that devices may install.

    Args:
        model: Its model, which is also its line.
        version: Its version.
        sha256: Hash of the package file, 32 bytes.
        size: Length of the package file, bytes.
        custom: What a device can choose by before it fetches the package.
    """

    model: str
    version: int
    sha256: bytes
    size: int
    custom: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Its target path."""
        return f"{self.model}/{self.version}.umbel"


@dataclass(frozen=True, slots=True)
class State:
    """All metadata that is in force. Values in it are never changed: what follows is another state.

    Args:
        root: Whom devices trust with what.
        targets: Which model lines there are, and who signs for each.
        lines: The releases of each line, by model.
        snapshot: Which versions of the lists belong together.
        timestamp: Which snapshot is the newest.
    """

    root: Metadata[Root]
    targets: Metadata[Targets]
    lines: Mapping[str, Metadata[Targets]]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]

    def get(self, role: str) -> Metadata[Any]:
        """Return the metadata of a role.

        Raises:
            UsageError: There is no such role.
        """
        top: dict[str, Metadata[Any]] = {
            Root.type: self.root,
            Targets.type: self.targets,
            Snapshot.type: self.snapshot,
            Timestamp.type: self.timestamp,
        }
        found = top.get(role) or self.lines.get(role)
        if found is None:
            names = ", ".join([*TOP, *sorted(self.lines)])
            raise UsageError(f"There is no role {role!r}: there are {names}.")
        return found

    def role(self, name: str) -> tuple[Role, Mapping[str, Any]]:
        """Return who signs for a role, and the keys that its ids name.

        Raises:
            UsageError: There is no such role.
        """
        if name in TOP:
            return self.root.signed.roles[name], self.root.signed.keys
        self.get(name)
        delegations = _delegations(self.targets.signed)
        assert delegations.roles is not None
        return delegations.roles[name], delegations.keys

    def offline(self) -> Iterator[str]:
        """Yield the roles whose keys the service does not have."""
        yield from (Root.type, Targets.type, *sorted(self.lines))


def signer(key: SigningKey) -> CryptoSigner:
    """Return what signs metadata with a key."""
    return CryptoSigner(load_pem_private_key(key.to_pem(), None))


def public(key: VerifyKey) -> SSlibKey:
    """Return a key as metadata names it."""
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(key.raw))


def begin(*, root: Signer, targets: Signer, online: Signer, lives: Lives, now_s: float) -> State:
    """Return the first metadata of a fleet, without any release."""
    first = Root(expires=_moment(now_s + lives.root_s), consistent_snapshot=True)
    for role, key in ((Root.type, root), (Targets.type, targets), *((each, online) for each in ONLINE)):
        first.add_key(key.public_key, role)
    lists = Targets(expires=_moment(now_s + lives.targets_s), delegations=Delegations({}, roles={}))
    snapshot = Snapshot(expires=_moment(now_s + lives.snapshot_s))
    timestamp = Timestamp(expires=_moment(now_s + lives.timestamp_s))
    return State(
        _signed(first, [root]),
        _signed(lists, [targets]),
        {},
        _signed(snapshot, [online]),
        _signed(timestamp, [online]),
    )


def with_release(state: State, release: Released, key: Signer, *, lives: Lives, now_s: float) -> State:
    """Return what follows when a package is added to its line; the same one again changes nothing.

    Raises:
        UsageError: Nobody may sign for its line, or not this key.
        RefusedError: This version of the model is out already, with other content.
    """
    require_signer(state, release.model, key)
    line = state.lines[release.model].signed
    target = TargetFile(
        release.size,
        {"sha256": release.sha256.hex()},
        release.path,
        {"custom": dict(release.custom)} if release.custom else None,
    )
    present = line.targets.get(release.path)
    if present is not None:
        if (present.length, present.hashes) == (target.length, target.hashes):
            return state
        raise RefusedError(
            f"Version {release.version} of {release.model} is released already, with other content: give this "
            "one a new version."
        )
    after = copy.deepcopy(line)
    after.targets[release.path] = target
    _follow(after, lives.targets_s, now_s)
    return replace(state, lines={**state.lines, release.model: _signed(after, [key])})


def without_release(
    state: State, model: str, version: int, key: Signer, *, lives: Lives, now_s: float
) -> State:
    """Return what follows when a package is taken from its line; one that is not in it changes nothing.

    Raises:
        UsageError: This key may not sign for its line.
    """
    path = Released(model, version, b"", 0).path
    if model not in state.lines or path not in state.lines[model].signed.targets:
        return state
    require_signer(state, model, key)
    after = copy.deepcopy(state.lines[model].signed)
    del after.targets[path]
    _follow(after, lives.targets_s, now_s)
    return replace(state, lines={**state.lines, model: _signed(after, [key])})


def require_signer(state: State, model: str, key: Signer) -> None:
    """Check that a key alone may sign for a line.

    Raises:
        UsageError: It may not.
    """
    if model not in state.lines:
        raise UsageError(
            f"Nobody signs for the model line {model} yet: run  umbel fleet trust rotate {model} --new KEY --sign "
            "TARGETS_KEY  with the release key's file and the targets key's."
        )
    role, _ = state.role(model)
    if key.public_key.keyid not in role.keyids or role.threshold > 1:
        raise UsageError(
            f"The release key does not sign for {model}: use the key that  umbel fleet trust show  names, or run  "
            f"umbel fleet trust rotate {model}  with the targets key."
        )


def with_line(
    state: State,
    model: str,
    keys: Sequence[SSlibKey],
    signers: Iterable[Signer],
    *,
    lives: Lives,
    now_s: float,
) -> tuple[Metadata[Targets], Metadata[Targets]]:
    """Return the list of lines and the line itself, for a line that is new or gets other keys.

    Args:
        state: What is in force.
        model: The line.
        keys: Who signs for it from now on; any one of them.
        signers: Who signs now.
        lives: For how long it holds.
        now_s: The time, Unix seconds.

    Returns:
        New targets metadata and a new list of the line's releases, each with the signatures that ``signers`` can give.
    """
    if model in TOP:
        raise UsageError(f"A model cannot be called {model}: the metadata of all releases is.")
    check_name(model, "model")
    signers = tuple(signers)
    lists = copy.deepcopy(state.targets.signed)
    delegations = _delegations(lists)
    assert delegations.roles is not None
    if model in delegations.roles:
        for keyid in tuple(delegations.roles[model].keyids):
            lists.revoke_key(keyid, model)
    delegations.roles[model] = DelegatedRole(model, [], 1, terminating=True, paths=[f"{model}/*"])
    for key in keys:
        lists.add_key(key, model)
    _follow(lists, lives.targets_s, now_s)
    if model in state.lines:
        line = copy.deepcopy(state.lines[model].signed)
        _follow(line, lives.targets_s, now_s)
    else:
        line = Targets(expires=_moment(now_s + lives.targets_s))
    ours, _ = state.role(Targets.type)
    named = {key.keyid for key in keys}
    return _signed(lists, _among(signers, ours.keyids)), _signed(line, _among(signers, named))


def with_keys(
    state: State,
    roles: Collection[str],
    keys: Sequence[SSlibKey],
    threshold: int,
    signers: Iterable[Signer],
    *,
    lives: Lives,
    now_s: float,
) -> Metadata[Root]:
    """Return a new root in which some roles have other keys.

    Args:
        state: What is in force.
        roles: Some of ``root``, ``targets``, ``snapshot`` and ``timestamp``.
        keys: All keys of each from now on.
        threshold: How many of them must sign.
        signers: Who signs now; the old keys of the root and the new ones must.
        lives: For how long it holds.
        now_s: The time, Unix seconds.

    Raises:
        UsageError: The threshold is not one that the keys can reach.
    """
    named = {key.keyid: key for key in keys}
    if not 1 <= threshold <= len(named):
        raise UsageError(f"{len(named)} keys cannot give {threshold} signatures: choose 1 to {len(named)}.")
    after = copy.deepcopy(state.root.signed)
    for role in roles:
        for keyid in tuple(after.roles[role].keyids):
            after.revoke_key(keyid, role)
        for key in named.values():
            after.add_key(key, role)
        after.roles[role].threshold = threshold
    _follow(after, lives.root_s, now_s)
    may = {*state.root.signed.roles[Root.type].keyids, *after.roles[Root.type].keyids}
    return _signed(after, _among(tuple(signers), may))


def renewed(
    state: State, role: str, signers: Iterable[Signer], *, lives: Lives, now_s: float
) -> Metadata[Any]:
    """Return the metadata of a role that the service cannot sign, with nothing new but when it ends."""
    after = copy.deepcopy(state.get(role).signed)
    _follow(after, lives.of(role), now_s)
    return _signed(after, _among(tuple(signers), state.role(role)[0].keyids))


def countersigned(
    state: State, waiting: Mapping[str, Metadata[Any]], signers: Iterable[Signer]
) -> dict[str, Metadata[Any]]:
    """Return what waits for signatures and gets some, with those that these keys can give."""
    after, signers, signed = proposed(state, waiting), tuple(signers), {}
    for role, metadata in waiting.items():
        ours = _among(signers, _may_sign(state, after, role))
        if ours:
            signed[role] = copy.deepcopy(metadata)
            for key in ours:
                signed[role].sign(key, append=True)
    return signed


def lacking(state: State, waiting: Mapping[str, Metadata[Any]]) -> dict[str, int]:
    """Return how many signatures each role lacks that waits for some; 0 where it waits for another role."""
    after = proposed(state, waiting)
    return {role: missing(state if role == Root.type else after, waiting[role], role) for role in waiting}


def proposed(state: State, waiting: Mapping[str, Metadata[Any]]) -> State:
    """Return what would be in force if nothing waited for signatures any more."""
    for role, metadata in waiting.items():
        state = _with(state, role, metadata)
    return state


def missing(state: State, waiting: Metadata[Any], role: str) -> int:
    """Return how many signatures metadata lacks before it may come into force; 0 if none."""
    body, signatures = waiting.signed_bytes, waiting.signatures
    if role == Root.type:
        root: Root = waiting.signed
        result = root.get_root_verification_result(state.root.signed, body, signatures)
        return max(result.first.missing, result.second.missing)
    owner: Root | Targets = state.root.signed if role in TOP else state.targets.signed
    return owner.get_verification_result(role, body, signatures).missing


def in_force(state: State, waiting: Mapping[str, Metadata[Any]]) -> tuple[State, tuple[str, ...]]:
    """Return what follows of metadata that waited for signatures, and which roles' need wait no more.

    What belongs together comes into force together: a list, and the root or list that says who signs for it.
    What is in force already, or was overtaken by another, waits no more either.
    """
    old = tuple(role for role in waiting if _is_old(state, waiting[role], role))
    after, taken = state, []
    for role in sorted(
        waiting.keys() - old, key=lambda name: (name != Root.type, name != Targets.type, name)
    ):
        known = role in TOP or role in (_delegations(after.targets.signed).roles or {})
        if known and not missing(after, waiting[role], role):
            after = _with(after, role, waiting[role])
            taken.append(role)
    return (after, (*old, *taken)) if taken and is_whole(after) else (state, old)


def is_whole(state: State) -> bool:
    """Return whether every list is signed by those who may, and none is missing."""
    lines = _delegations(state.targets.signed).roles or {}
    return set(lines) == set(state.lines) and not any(
        missing(state, state.get(role), role) for role in (Targets.type, *lines)
    )


def resigned(state: State, online: Signer, *, lives: Lives, now_s: float) -> State:
    """Return what follows when the service brings snapshot and timestamp up to date; the same state if they are.

    Each is signed anew when what it lists has changed, at half its life, and when its key has changed.
    """
    lists = {"targets.json": state.targets, **{f"{model}.json": line for model, line in state.lines.items()}}
    versions = {name: listed.signed.version for name, listed in lists.items()}
    snapshot = state.snapshot
    same = versions == {name: meta.version for name, meta in snapshot.signed.meta.items()}
    if not same or _is_due(state, snapshot, lives, now_s):
        after = copy.deepcopy(snapshot.signed)
        after.meta = {name: MetaFile(version) for name, version in versions.items()}
        _follow(after, lives.snapshot_s, now_s)
        snapshot = _signed(after, [online])
    timestamp = state.timestamp
    if snapshot is not state.snapshot or _is_due(state, timestamp, lives, now_s):
        newest = copy.deepcopy(timestamp.signed)
        newest.snapshot_meta = MetaFile.from_data(snapshot.signed.version, to_bytes(snapshot), ["sha256"])
        _follow(newest, lives.timestamp_s, now_s)
        timestamp = _signed(newest, [online])
    if timestamp is state.timestamp:
        return state
    return replace(state, snapshot=snapshot, timestamp=timestamp)


def due_s(state: State, lives: Lives) -> float:
    """Return when the service next has something to sign, Unix seconds."""
    return min(
        state.snapshot.signed.expires.timestamp() - lives.snapshot_s / 2,
        state.timestamp.signed.expires.timestamp() - lives.timestamp_s / 2,
    )


def changed(before: State | None, after: State) -> Iterator[tuple[str, bytes]]:
    """Yield the files that make one state of another, by name; each is of use only once the later ones are there.

    The timestamp is the last one: before it is written nothing has changed for anybody, but that a new root
    is in force from the moment it is there.
    """
    for role in (Targets.type, *after.lines, Snapshot.type, Root.type, Timestamp.type):
        metadata = after.get(role)
        if before is None or role not in (*TOP, *before.lines) or before.get(role) is not metadata:
            yield file_name(role, metadata.signed.version), to_bytes(metadata)


def file_name(role: str, version: int) -> str:
    """Return the name of a file of metadata, as TUF's consistent snapshots have it."""
    return f"{role}.json" if role == Timestamp.type else f"{version}.{role}.json"


def to_bytes(metadata: Metadata[Any]) -> bytes:
    """Return metadata as it is stored and sent."""
    return metadata.to_bytes(JSONSerializer(compact=True))


def _may_sign(state: State, after: State, role: str) -> set[str]:
    if role not in TOP and role not in (_delegations(after.targets.signed).roles or {}):
        return set()  # The list that delegates to it was given up.
    keyids = set(after.role(role)[0].keyids)
    return keyids | set(state.root.signed.roles[role].keyids) if role == Root.type else keyids


def _with(state: State, role: str, metadata: Metadata[Any]) -> State:
    if role == Root.type:
        return replace(state, root=metadata)
    if role == Targets.type:
        return replace(state, targets=metadata)
    return replace(state, lines={**state.lines, role: metadata})


def _is_old(state: State, waiting: Metadata[Any], role: str) -> bool:
    known = role in TOP or role in state.lines
    return known and waiting.signed.version <= state.get(role).signed.version


def _is_due(state: State, metadata: Metadata[Any], lives: Lives, now_s: float) -> bool:
    role = metadata.signed.type
    if now_s >= metadata.signed.expires.timestamp() - lives.of(role) / 2:
        return True
    try:
        state.root.signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError:
        return True
    return False


def _delegations(lists: Targets) -> Delegations:
    if lists.delegations is None or lists.delegations.roles is None:
        raise UsageError(
            "The targets metadata delegates nothing: restore the fleet's trust directory from a backup."
        )
    return lists.delegations


def _among(signers: Collection[Signer], keyids: Collection[str]) -> list[Signer]:
    return [each for each in signers if each.public_key.keyid in keyids]


def _follow(signed: Signed, life_s: float, now_s: float) -> None:
    signed.version += 1
    signed.expires = _moment(now_s + life_s)


def _signed(signed: T, signers: Iterable[Signer]) -> Metadata[T]:
    metadata = Metadata(signed)
    for key in signers:
        metadata.sign(key, append=True)
    return metadata


def _moment(unix_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(unix_s), datetime.UTC)

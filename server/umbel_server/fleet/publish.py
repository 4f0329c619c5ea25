"""Release a package: verify it, put it in place with its deltas, then tell devices of it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator

from umbel_proto.delta import difference
from umbel_proto.errors import PackageError, StorageError
from umbel_proto.keys import SigningKey
from umbel_proto.manifest import Manifest
from umbel_proto.package import read_package
from umbel_server.access.actor import Actor, local_actor
from umbel_server.files import PUBLIC_MODE, read_file, write_atomically
from umbel_server.fleet.layout import FleetDir
from umbel_server.registry.releasing import admit, release
from umbel_server.store.releases import Delta, Release
from umbel_server.store.store import Store
from umbel_server.trust.release import sign_release

DELTA_BASES = 3
"""Versions before a new one that it is given a delta from: one may have failed on a device, or a device been away."""

log = logging.getLogger(__name__)


def publish(
    fleet: FleetDir,
    store: Store,
    data: bytes,
    *,
    key: SigningKey | None = None,
    actor: Actor | None = None,
) -> Release:
    """Release a package to the fleet's devices; the same one again is no error.

    Args:
        fleet: The fleet.
        store: Its store.
        data: The whole package file.
        key: The release key; by default the one in the fleet's directory.
        actor: Who releases it; by default whoever runs this process.

    Raises:
        PackageError: It is malformed, altered, or not signed by the fleet's release key.
        UsageError: The release key may not sign for this model, or nobody yet and the targets key is not here.
        RefusedError: This version of the model is out already, with other content, or is not approved.
        StorageError: The disk is full.
    """
    package = read_package(data, release_key=fleet.release_public())
    sha256 = bytes.fromhex(package.sha256)
    actor = actor or local_actor()
    version = admit(fleet, store, package, actor)
    released = release(store, version, actor)
    # First the files, then what devices trust, then the rows: a crash between them leaves what nobody is told of.
    write_atomically(fleet.package(sha256), data, mode=PUBLIC_MODE)
    sign_release(fleet, package, key=key or fleet.release_signer(), clock=store.clock)
    present = store.releases.get(sha256)
    if present is not None:
        return present
    manifest = package.manifest
    made_of = tuple(_deltas(fleet, store, manifest, data))
    out = store.releases.publish(
        manifest.model,
        manifest.version,
        sha256=sha256,
        size=package.size,
        made_of=made_of,
        also=released,
    )
    _tidy(fleet, store)
    return out


def _deltas(fleet: FleetDir, store: Store, manifest: Manifest, data: bytes) -> Iterator[Delta]:
    """Put what the package differs by from the versions before it in place, as far as that is worth sending."""
    for before in store.releases.before(manifest.model, manifest.version, count=DELTA_BASES):
        try:
            delta = difference(read_file(fleet.package(before.sha256), "released package"), data)
        except (StorageError, PackageError) as exc:
            log.warning(
                "%s %d has no delta from %d: %s", manifest.model, manifest.version, before.version, exc
            )
            continue
        if delta is None:
            continue
        sha256 = hashlib.sha256(delta).digest()
        write_atomically(fleet.delta(sha256), delta, mode=PUBLIC_MODE)
        yield Delta(before.sha256, sha256, len(delta))


def _tidy(fleet: FleetDir, store: Store) -> None:
    """Delete deltas to what is not the newest any more, and what a crash left. Who misses one fetches the package."""
    kept = {fleet.delta(delta.sha256) for delta in store.releases.deltas()}
    for path in fleet.packages.glob("*.delta"):
        if path not in kept:
            path.unlink(missing_ok=True)

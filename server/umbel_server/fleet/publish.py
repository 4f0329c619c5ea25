"""Release a package: verify it, put it in place, then tell devices of it."""

from __future__ import annotations

from umbel_proto.package import read_package
from umbel_server.files import PUBLIC_MODE, write_atomically
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.releases import Release
from umbel_server.store.store import Store


def publish(fleet: FleetDir, store: Store, data: bytes) -> Release:
    """Release a package to the fleet's devices; the same one again is no error.

    Args:
        fleet: The fleet.
        store: Its store.
        data: The whole package file.

    Raises:
        PackageError: It is malformed, altered, or not signed by the fleet's release key.
        RefusedError: This version of the model is out already, with other content.
        StorageError: The disk is full.
    """
    package = read_package(data, release_key=fleet.release_public())
    sha256 = bytes.fromhex(package.sha256)
    # First the file, then the row: a crash between them leaves a file that nobody is told of.
    write_atomically(fleet.package(sha256), data, mode=PUBLIC_MODE)
    manifest = package.manifest
    return store.releases.publish(manifest.model, manifest.version, sha256=sha256, size=package.size)

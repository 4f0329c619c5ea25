"""Put a package among those that devices may install, signed with the release key of its line, or take it out."""

from __future__ import annotations

from typing import Any

from umbel_proto.errors import RefusedError
from umbel_proto.keys import SigningKey
from umbel_proto.package import Package
from umbel_server.clock import Clock
from umbel_server.files import read_file
from umbel_server.fleet.layout import FleetDir
from umbel_server.trust.metadata import Released, State, signer, with_release, without_release
from umbel_server.trust.repository import Repository


def sign_release(fleet: FleetDir, package: Package, *, key: SigningKey, clock: Clock) -> None:
    """Say that devices may install a package; the same one again is no error.

    A model that is new gets a line of its own, for which the release key signs, if the targets key is here.

    Args:
        fleet: The fleet.
        package: A package that verified.
        key: The release key of its model line.
        clock: Dates it.

    Raises:
        UsageError: The release key may not sign for this model, or nobody yet and the targets key is not here.
        RefusedError: This version of the model is out already, with other content; or other keys for it wait for
            signatures.
        StorageError: The disk is full, or a file is damaged.
    """
    manifest = package.manifest
    repository = Repository.of(fleet, clock=clock)
    release_key = signer(key)
    if manifest.model in repository.staged():
        raise RefusedError(
            f"The keys of {manifest.model} are about to change: let  umbel fleet trust sign  finish that, or run  umbel "
            f"fleet trust rotate {manifest.model}  anew."
        )
    if manifest.model not in repository.read().lines and fleet.targets_key.exists():
        targets = signer(SigningKey.from_pem(read_file(fleet.targets_key, "targets key")))
        repository.rotate_line(manifest.model, [release_key.public_key], [targets, release_key])
    released = Released(
        manifest.model, manifest.version, bytes.fromhex(package.sha256), package.size, _custom(package)
    )

    def change(state: State) -> State:
        return with_release(state, released, release_key, lives=repository.lives, now_s=clock())

    repository.update(change)


def is_listed(fleet: FleetDir, model: str, version: int, *, clock: Clock) -> bool:
    """Return whether devices may install a version."""
    repository = Repository.of(fleet, clock=clock)
    if not repository.exists:
        return False
    line = repository.read().lines.get(model)
    return line is not None and Released(model, version, b"", 0).path in line.signed.targets


def unlist(fleet: FleetDir, model: str, version: int, *, key: SigningKey, clock: Clock) -> None:
    """Say that devices may not install a version any more.

    Raises:
        UsageError: The release key may not sign for this model.
        StorageError: The disk is full, or a file is damaged.
    """
    repository, release_key = Repository.of(fleet, clock=clock), signer(key)

    def change(state: State) -> State:
        return without_release(state, model, version, release_key, lives=repository.lives, now_s=clock())

    repository.update(change)


def _custom(package: Package) -> dict[str, Any]:
    """Return what a device can choose by before it fetches a package: what would run it."""
    manifest = package.manifest
    engines = sorted({variant.engine for variant in manifest.variants.values()})
    return {"format": manifest.format, "engines": engines, "variants": sorted(manifest.variants)}

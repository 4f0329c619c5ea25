"""How much of a device's disk and memory packages may take, and which of them make room for another."""

from __future__ import annotations

from umbel._releases.packages import Packages
from umbel._releases.room import require_memory
from umbel._releases.versions import Versions
from umbel_proto.errors import RefusedError


class Quota:
    """What the owner of a device lets its packages take.

    Args:
        packages: Those that are here.
        versions: Which of them are for what.
        disk_bytes: How much they may take; None for as much as there is.
        shadow_bytes: How much memory a version may take that is run beside the active one; None for a share of what
            is free.
    """

    def __init__(
        self, packages: Packages, versions: Versions, *, disk_bytes: int | None, shadow_bytes: int | None
    ) -> None:
        self._packages = packages
        self._versions = versions
        self.disk_bytes = disk_bytes
        self._shadow_bytes = shadow_bytes

    def require_spare(self, sha256: str, size: int, *, begun: int = 0) -> None:
        """Check that a package to be run beside another fits on the disk and into memory, with nothing removed for it.

        Args:
            sha256: Its hash.
            size: Its length, bytes.
            begun: Bytes of others that are on their way.

        Raises:
            RefusedError: It does not.
        """
        quota = self.disk_bytes
        missing = self._packages.missing_bytes(sha256, size)
        if quota is not None and self._packages.used_bytes() + begun + missing > quota:
            raise RefusedError(
                f"does not fit into the quota of {quota:,} bytes beside what is here: raise quota_mib in device.toml"
            )
        require_memory(size, limit_bytes=self._shadow_bytes)

    def require_room(self, size: int) -> None:
        """Check that a package fits into the quota beside those that are active.

        Args:
            size: Its length, bytes.

        Raises:
            RefusedError: It does not.
            StorageError: The shelf's own files are damaged.
        """
        if self.disk_bytes is None:
            return
        active = {self._versions.slots(model).active for model in self._versions.models()} - {None}
        stays = sum(self._packages.size(sha256) for sha256 in active if sha256 is not None)
        if stays + size > self.disk_bytes:
            beside = f" beside the {stays:,} that are in use" if stays else ""
            raise RefusedError(
                f"A package of {size:,} bytes does not fit into the quota of {self.disk_bytes:,}{beside}: "
                "raise quota_mib in device.toml."
            )

    def make_room(self, size: int) -> None:
        """Let packages go that are not active, the oldest first, until one of ``size`` bytes fits.

        Whoever calls holds the versions, `Versions.changing`, and has seen that it can fit.
        """
        if self.disk_bytes is None:
            return
        self.prune()
        slots = {model: self._versions.slots(model) for model in self._versions.models()}
        for model, each in slots.items():
            # What is only asked beside another goes first.
            if each.beside is not None and self._packages.used_bytes() + size > self.disk_bytes:
                slots[model] = each.accompanied(None)
                self._versions.write(model, slots[model])
                self.prune()
        spare = {model: each.previous for model, each in slots.items() if each.previous is not None}
        for model in sorted(spare, key=lambda model: self._packages.age(spare[model])):
            if self._packages.used_bytes() + size <= self.disk_bytes:
                return
            self._versions.write(model, slots[model].without_previous())
            self.prune()

    def prune(self) -> None:
        """Remove every package that no version is kept for."""
        slots = [self._versions.slots(model) for model in self._versions.models()]
        kept = {sha256 for each in slots for sha256 in (each.active, each.previous)}
        kept |= {each.beside.sha256 for each in slots if each.beside is not None}
        self._packages.keep_only({sha256 for sha256 in kept if sha256 is not None})

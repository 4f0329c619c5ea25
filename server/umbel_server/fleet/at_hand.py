"""A fleet's devices, policy and spending where its directory is at hand, as commands read and change them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from umbel_proto.credentials import FleetPolicy
from umbel_proto.errors import UsageError
from umbel_proto.ids import DeviceId
from umbel_proto.keys import SigningKey
from umbel_server.access.actor import local_actor
from umbel_server.access.chain import keep_checkpoint
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.devices import Device
from umbel_server.store.store import Store
from umbel_server.store.wanted import Status, Wanted

PAGE = 500
"""Devices that are read at a time."""


class FleetAtHand:
    """A fleet in its directory.

    Args:
        fleet: The directory.
        store: Its store.
        token_file: The token of ``--as``, where a command has it.
    """

    def __init__(self, fleet: FleetDir, store: Store, token_file: Path | None = None) -> None:
        self._fleet = fleet
        self._store = store
        self._token_file = token_file

    def devices(
        self,
        *,
        limit: int | None = None,
        after: str = "",
        status: Status | None = None,
        tag: str | None = None,
        model: str | None = None,
        version: int | None = None,
        group: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return devices with what they reported, by name, those after a name; a page at a time is read."""
        from umbel_server.monitor.report import devices

        wanted = Wanted(status=status, tag=tag, model=model, version=version, group=group)
        found: list[dict[str, Any]] = []
        for page in pages(self._store, wanted, limit=limit, after=after):
            found += [line.to_json() for line in devices(self._store, page, now_s=self._store.clock())]
        return found

    def device(self, name: str) -> dict[str, Any]:
        """Return a device with what it reported."""
        from umbel_server.monitor.report import devices

        found = self._store.devices.get(DeviceId(name))
        if found is None:
            raise UsageError(f"There is no device {name}: see  umbel fleet devices.")
        (line,) = devices(self._store, [found], now_s=self._store.clock())
        return line.to_json()

    def groups(self) -> list[dict[str, Any]]:
        """Return every group, by name, each with how many devices are in it now."""
        from umbel_server.fleet.groups import groups_json

        return groups_json(self._store, self._store.inventory.tags(), self._fleet.policy().min_cohort)

    def save_group(self, name: str, wanted: Wanted, reason: str) -> dict[str, Any]:
        """Save a filter as a group."""
        from umbel_server.fleet.groups import group_json

        made = self._store.groups.save(name, wanted, actor=local_actor(), reason=reason)
        keep_checkpoint(self._fleet, self._store)
        return group_json(made, self._store.groups.count(made), self._fleet.policy().min_cohort)

    def remove_group(self, name: str, reason: str) -> None:
        """Forget a filter that was saved as a group."""
        self._store.groups.remove(name, actor=local_actor(), reason=reason)
        keep_checkpoint(self._fleet, self._store)

    def invite(
        self, *, device: str | None, uses: int, hours: float, approval: bool, replaces: bool
    ) -> dict[str, Any]:
        """Return a new enrollment token, and until when it may be used."""
        from umbel_server.fleet.invite import invite

        token = invite(
            self._fleet,
            self._store,
            device=device,
            uses=uses,
            valid_s=hours * 3600,
            approval=approval,
            replaces=replaces,
        )
        return {"token": token.to_text(), "expires_s": self._store.clock() + hours * 3600}

    def revoke(self, device: str, reason: str) -> None:
        """Refuse every further call of a device."""
        self._store.devices.revoke(DeviceId(device), reason=reason)
        keep_checkpoint(self._fleet, self._store)

    def quarantine(self, device: str, reason: str) -> None:
        """Keep a device apart."""
        self._store.devices.quarantine(DeviceId(device), reason=reason)

    def release(self, device: str, reason: str) -> None:
        """End a device's quarantine."""
        self._store.devices.release(DeviceId(device), reason=reason)

    def pending(self) -> list[dict[str, Any]]:
        """Return the devices that wait for approval, the longest first."""
        return [{**asdict(each), "facts": dict(each.facts)} for each in self._store.applications.pending()]

    def approve(self, waiting: str, *, fingerprint: str, name: str, reason: str) -> None:
        """Let a device in that waits."""
        self._store.applications.approve(
            waiting, fingerprint=fingerprint, actor=local_actor(), reason=reason, name=name
        )

    def reject(self, waiting: str, reason: str) -> None:
        """Turn a device away that waits."""
        self._store.applications.reject(waiting, actor=local_actor(), reason=reason)

    def policy(self) -> dict[str, Any]:
        """Return the fleet policy."""
        return policy_json(self._fleet.policy())

    def change_policy(self, asked: dict[str, Any], reason: str) -> dict[str, Any]:
        """Change when devices may train or what they announce, and return the policy as it is then."""
        from umbel_server.fleet.policy_command import change_policy

        changed = change_policy(self._fleet, self._store, asked, actor=local_actor(), reason=reason)
        keep_checkpoint(self._fleet, self._store)
        return policy_json(changed)

    def spending(self, *, limit: int | None = None, after: str = "") -> list[dict[str, Any]]:
        """Return what each device was charged in each run, by name, those after a name."""
        from umbel_server.monitor.spending import spending

        delta = self._fleet.policy().budget_delta
        lines = spending(self._store, self._fleet.runs, delta, after=after, limit=limit)
        return [line.to_json() for line in lines]

    def publish(self, package: bytes, *, key: SigningKey | None) -> dict[str, Any]:
        """Release a package to the fleet's devices."""
        from umbel_server.access.acting import acting_as
        from umbel_server.access.permissions import Permission
        from umbel_server.fleet.publish import publish

        actor = acting_as(self._store, self._token_file, Permission.RELEASES_WRITE)
        out = publish(self._fleet, self._store, package, key=key, actor=actor)
        keep_checkpoint(self._fleet, self._store)
        return {"model": out.model, "version": out.version, "sha256": out.sha256.hex(), "size": out.size}


def pages(
    store: Store, wanted: Wanted, *, limit: int | None = None, after: str = ""
) -> Iterator[tuple[Device, ...]]:
    """Yield devices by name, those after a name, a page at a time.

    Args:
        store: The store.
        wanted: Which devices.
        limit: At most so many; None: all.
        after: The name.
    """
    while limit is None or limit > 0:
        size = PAGE if limit is None else min(PAGE, limit)
        page = store.device_list.page(wanted, limit=size, after=after)
        if page:
            yield page
            after = page[-1].id
        if len(page) < size:
            return
        limit = None if limit is None else limit - size


def policy_json(policy: FleetPolicy) -> dict[str, Any]:
    """Return a policy as JSON values; no limit is null."""
    return {name: None if value == math.inf else value for name, value in asdict(policy).items()}

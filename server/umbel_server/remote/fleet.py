"""A fleet's devices, policy and spending at its service, as commands read and change them."""

from __future__ import annotations

from dataclasses import asdict, fields
from itertools import islice
from typing import TYPE_CHECKING, Any

from umbel_proto.credentials import FleetPolicy
from umbel_proto.errors import UsageError
from umbel_proto.keys import SigningKey
from umbel_server.fleet.policy_command import ANNOUNCE
from umbel_server.remote.client import PAGE, Client, path
from umbel_server.remote.place import needed

if TYPE_CHECKING:
    from umbel_server.store.wanted import Status, Wanted

_LINE = (
    "id", "status", "enrolled_s", "last_seen_s", "certificate_not_after_s", "node_id", "models", "rounds",
    "rounds_missed",
)  # fmt: skip


class FleetFar:
    """A fleet at its service.

    Args:
        client: Talks to it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

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
        """Return devices with what they reported, by name, those after a name."""
        query = {"status": status, "tag": tag, "model": model, "version": version, "group": group}
        query |= {"after": after or None}
        found = self._client.pages("/device-reports", limit=min(limit or PAGE, PAGE), **query)
        return [_line(each) for each in islice(found, limit)]

    def device(self, name: str) -> dict[str, Any]:
        """Return a device with what it reported."""
        return _line(self._client.get(path("device-reports", name)))

    def groups(self) -> list[dict[str, Any]]:
        """Return every group, by name, each with how many devices are in it now."""
        return list(self._client.pages("/groups", limit=PAGE))

    def save_group(self, name: str, wanted: Wanted, reason: str) -> dict[str, Any]:
        """Save a filter as a group."""
        asked = {key: value for key, value in asdict(wanted).items() if value is not None}
        made: dict[str, Any] = self._client.replace(path("groups", name), {**asked, "reason": needed(reason)})
        return made

    def remove_group(self, name: str, reason: str) -> None:
        """Forget a filter that was saved as a group."""
        self._client.post(path("groups", name, "remove"), {"reason": needed(reason)})

    def invite(
        self, *, device: str | None, uses: int, hours: float, approval: bool, replaces: bool
    ) -> dict[str, Any]:
        """Return a new enrollment token, and until when it may be used."""
        asked = {
            "device": device,
            "uses": uses,
            "hours": hours,
            "approval": approval,
            "replaces": replaces,
        }
        made: dict[str, Any] = self._client.post("/enrollment/tokens", asked)
        return made

    def revoke(self, device: str, reason: str) -> None:
        """Refuse every further call of a device."""
        self._client.post(path("devices", device, "revoke"), {"reason": needed(reason)})

    def quarantine(self, device: str, reason: str) -> None:
        """Keep a device apart."""
        self._client.post(path("devices", device, "quarantine"), {"reason": needed(reason)})

    def release(self, device: str, reason: str) -> None:
        """End a device's quarantine."""
        self._client.post(path("devices", device, "release"), {"reason": needed(reason)})

    def pending(self) -> list[dict[str, Any]]:
        """Return the devices that wait for approval, the longest first."""
        found: list[dict[str, Any]] = self._client.get("/enrollment/pending")["items"]
        return found

    def approve(self, waiting: str, *, fingerprint: str, name: str, reason: str) -> None:
        """Let a device in that waits."""
        asked = {"fingerprint": fingerprint, "name": name or None, "reason": reason}
        self._client.post(path("enrollment", "pending", waiting, "approve"), asked)

    def reject(self, waiting: str, reason: str) -> None:
        """Turn a device away that waits."""
        self._client.post(path("enrollment", "pending", waiting, "reject"), {"reason": needed(reason)})

    def policy(self) -> dict[str, Any]:
        """Return the fleet policy."""
        return _policy(self._client.get("/policy"))

    def change_policy(self, asked: dict[str, Any], reason: str) -> dict[str, Any]:
        """Change when devices may train or what they announce, and return the policy as it is then."""
        rules = {name: value for name, value in asked.items() if name != ANNOUNCE}
        changes = {"training": rules, "reviews": {name: asked[name] for name in asked if name == ANNOUNCE}}
        for what, fields_ in changes.items():
            if fields_:
                body = {**fields_, "reason": needed(reason)}
                shown = self._client.amend("/policy", f"/policy/{what}", body, method="PATCH")
        return _policy(shown)

    def spending(self, *, limit: int | None = None, after: str = "") -> list[dict[str, Any]]:
        """Return what each device was charged in each run, by name, those after a name."""
        found = self._client.pages("/privacy", limit=min(limit or PAGE, PAGE), after=after or None)
        return list(islice(found, limit))

    def publish(self, package: bytes, *, key: SigningKey | None) -> dict[str, Any]:
        """Release a package to the fleet's devices; the release key is the service's own."""
        if key is not None:
            raise UsageError("A release key is not sent to a service: sign where the fleet's directory is.")
        out = self._client.post("/releases", content=package)
        return {name: out[name] for name in ("model", "version", "sha256", "size")}


def _policy(shown: dict[str, Any]) -> dict[str, Any]:
    # In the order that people read it in.
    return {each.name: shown[each.name] for each in fields(FleetPolicy)}


def _line(shown: dict[str, Any]) -> dict[str, Any]:
    return {name: shown[name] for name in _LINE}

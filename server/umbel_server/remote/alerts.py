"""Alerts at a fleet's service, as commands read and change them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from umbel_server.remote.client import Client, path
from umbel_server.remote.place import needed


class AlertsFar:
    """The alerts at a service.

    Args:
        client: Talks to it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def all(self, states: Sequence[str], rule: str | None) -> list[dict[str, Any]]:
        """Return alerts in some states, those that began last first."""
        found = [
            each
            for each in self._client.pages("/alerts")
            if each["state"] in states and rule in (None, each["rule"])
        ]
        return sorted(found, key=lambda each: (-each["since_s"], each["fingerprint"]))

    def show(self, name: str) -> dict[str, Any]:
        """Return an alert, and what happened to it."""
        found: dict[str, Any] = self._client.get(path("alerts", name))
        return found

    def acknowledge(self, name: str, reason: str) -> dict[str, Any]:
        """Note that somebody takes care of an alert."""
        return self._post(path("alerts", name, "acknowledge"), {"reason": needed(reason)})

    def silence(self, name: str, seconds: float, reason: str) -> dict[str, Any]:
        """Hear nothing of an alert for so long."""
        return self._post(path("alerts", name, "silence"), {"seconds": seconds, "reason": needed(reason)})

    def unsilence(self, name: str, reason: str) -> dict[str, Any]:
        """End a silence."""
        return self._post(path("alerts", name, "unsilence"), {"reason": needed(reason)})

    def rules(self) -> dict[str, Any]:
        """Return the rules and channels."""
        found: dict[str, Any] = self._client.get("/alert-rules")
        return found

    def test(self, channel: str) -> str:
        """Let the service tell a channel something; return what comes of it."""
        number = self._post(path("alert-channels", channel, "test"), {})["id"]
        return f"Notice {number} waits for umbel serve alerts:  umbel alert notices  shows what came of it."

    def notices(self, limit: int) -> list[dict[str, Any]]:
        """Return what was told, or is to be, the newest first."""
        found: list[dict[str, Any]] = self._client.get(f"/alert-notices?limit={limit}")["items"]
        return found

    def proposals(self) -> list[dict[str, Any]]:
        """Return the runs that alerts propose, the newest first."""
        return sorted(self._client.pages("/proposed-runs"), key=lambda each: -each["id"])

    def accept(self, number: int, reason: str) -> dict[str, Any]:
        """Let a proposed run begin."""
        return self._post(path("proposed-runs", str(number), "accept"), {"reason": needed(reason)})

    def decline(self, number: int, reason: str) -> dict[str, Any]:
        """Let a proposed run be."""
        return self._post(path("proposed-runs", str(number), "decline"), {"reason": needed(reason)})

    def _post(self, where: str, body: dict[str, Any]) -> dict[str, Any]:
        told: dict[str, Any] = self._client.post(where, body)
        return told

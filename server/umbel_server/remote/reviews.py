"""Reviews at a fleet's service, as commands show and answer them."""

from __future__ import annotations

from itertools import islice
from typing import Any

from umbel_server.remote.client import PAGE, Client, path


class ReviewsFar:
    """The announced reviews at a service.

    Args:
        client: Talks to it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def export(self) -> None:
        """Do nothing: the service puts on record whoever lists them."""

    def page(
        self, *, waiting: bool | None, model: str | None, device: str | None, limit: int
    ) -> list[dict[str, Any]]:
        """Return reviews, those that came last first."""
        asked = {"waiting": waiting, "model": model, "device": device}
        return list(islice(self._client.pages("/reviews", limit=min(limit, PAGE), **asked), limit))

    def show(self, number: int) -> dict[str, Any]:
        """Return a review, with the labels that it may be answered with."""
        shown: dict[str, Any] = self._client.get(path("reviews", str(number)))
        return shown

    def answer(self, number: int, label: str, reason: str) -> dict[str, Any]:
        """Say what holds, and return the review as it is then."""
        asked = {"label": label, "reason": reason}
        done: dict[str, Any] = self._client.post(path("reviews", str(number), "answer"), asked)
        return done

    def agreement(self) -> list[dict[str, Any]]:
        """Return how often answers were what each version had said."""
        found: list[dict[str, Any]] = self._client.get("/review-agreement")["items"]
        return found

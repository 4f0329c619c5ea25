"""Reviews where the fleet's directory is at hand, as commands show and answer them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from umbel_server.access.actor import local_actor
from umbel_server.access.chain import keep_checkpoint
from umbel_server.access.reads import Read, on_record
from umbel_server.fleet.layout import FleetDir
from umbel_server.reviews.answer import answer, labels_of
from umbel_server.reviews.shown import agreement_json, review_json
from umbel_server.store.reviews import Review
from umbel_server.store.store import Store


class ReviewsAtHand:
    """The announced reviews of a fleet in its directory.

    Args:
        fleet: The directory.
        store: Its store.
        token_file: Of no use here: whoever has the directory needs no token.
    """

    def __init__(self, fleet: FleetDir, store: Store, token_file: Path | None = None) -> None:
        self._fleet = fleet
        self._store = store

    def export(self) -> None:
        """Put on record that what devices announced leaves as data; a look at a table is not."""
        on_record(self._store, local_actor(), Read.REVIEWS, fleet=self._fleet.name)
        keep_checkpoint(self._fleet, self._store)

    def page(
        self, *, waiting: bool | None, model: str | None, device: str | None, limit: int
    ) -> list[dict[str, Any]]:
        """Return reviews, those that came last first."""
        found = self._store.reviews.page(waiting=waiting, model=model, device=device, limit=limit)
        return [review_json(self._fleet, self._store, each) for each in found]

    def show(self, number: int) -> dict[str, Any]:
        """Return a review, with the labels that it may be answered with."""
        return self._whole(self._store.reviews.get(number))

    def answer(self, number: int, label: str, reason: str) -> dict[str, Any]:
        """Say what holds, and return the review as it is then."""
        done = answer(self._fleet, self._store, number, label, actor=local_actor(), reason=reason)
        keep_checkpoint(self._fleet, self._store)
        return self._whole(done)

    def agreement(self) -> list[dict[str, Any]]:
        """Return how often answers were what each version had said."""
        return [agreement_json(each) for each in self._store.reviews.agreement()]

    def _whole(self, review: Review) -> dict[str, Any]:
        labels = labels_of(self._fleet, self._store, review.model, review.version)
        return {**review_json(self._fleet, self._store, review), "labels": list(labels)}

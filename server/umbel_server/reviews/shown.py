"""A review as JSON values, for the API and for commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.reviews import share
from umbel_server.reviews.answer import labels_of
from umbel_server.store.reviews import Agreement, Review
from umbel_server.store.store import Store


def review_json(fleet: FleetDir, store: Store, review: Review) -> dict[str, Any]:
    """Return a review with the names of its labels."""
    labels = labels_of(fleet, store, review.model, review.version)
    return {
        "review": review.id,
        "device": review.device,
        "model": review.model,
        "version": review.version,
        "label": review.label,
        "name": name_of(labels, review.label),
        "percent": review.percent,
        "predicted_s": review.predicted_s,
        "unsure": review.unsure,
        "flagged": review.flagged,
        "announced_s": review.announced_s,
        "expires_s": review.expires_s,
        "state": review.state,
        "waits": review.waits(store.clock()),
        "answer": review.answer,
        "answer_name": name_of(labels, review.answer),
        "answered_s": review.answered_s,
        "answered_by": review.answered_by,
        "reason": review.reason,
        "ended_s": review.ended_s,
    }


def agreement_json(each: Agreement) -> dict[str, Any]:
    """Return how often answers were what a version had said, with the interval of 95 %."""
    rate = share(each.agreed, each.answered)
    return {
        "model": each.model,
        "version": each.version,
        "waiting": each.waiting,
        "answered": each.answered,
        "agreed": each.agreed,
        "rate": None if rate is None else rate.value,
        "low": None if rate is None else rate.low,
        "high": None if rate is None else rate.high,
    }


def name_of(labels: Sequence[str], label: int | None) -> str | None:
    """Return a label's name; where the version has none such, its number."""
    if label is None:
        return None
    return labels[label] if label < len(labels) else str(label)

"""A query as programs read it, at the command line and over the API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umbel_server.store.queries import QueryRecord
    from umbel_server.store.store import Store

RATES: Mapping[str, str] = {
    "selection_rate": "selection rate",
    "true_positive_rate": "true positive rate",
    "false_positive_rate": "false positive rate",
    "accuracy": "accuracy",
    "base_rate": "base rate",
}
"""What the rates of a fairness query are called."""


def query_json(store: Store, record: QueryRecord) -> dict[str, Any]:
    """Return a query, how far it is, and what it answered, as JSON values."""
    asked = json.loads(record.plan)["query"]
    running = store.runs.running_attempt(record.id)
    return {
        "query": record.id,
        "kind": record.kind,
        "model": record.model,
        "version": asked["version"],
        "field": asked["field"],
        "asked_by": record.asked_by,
        "why": record.why,
        "state": record.state,
        "reason": record.reason,
        "phase": None if running is None else running.phase,
        "created_s": record.created_s,
        "finished_s": record.finished_s,
        "question": asked,
        "result": None if record.result is None else dict(record.result),
    }


def cell_words(cell: Mapping[str, Any]) -> str:
    """Return from where to where a cell of numbers goes, in words."""
    low, high = cell.get("from"), cell.get("to")
    if low is None:
        return f"below {high:g}"
    return f"from {low:g}" if high is None else f"{low:g} to {high:g}"

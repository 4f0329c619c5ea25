"""A query as programs read it, at the command line and over the API."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umbel_server.store.queries import QueryRecord
    from umbel_server.store.store import Store


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

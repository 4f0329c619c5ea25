"""The groups of a fleet as programs read them: tags, which people give, and filters, which hold for whoever fulfills them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from umbel_server.store.groups import Group
from umbel_server.store.store import Store

STATIC, DYNAMIC = "static", "dynamic"


def groups_json(store: Store, tags: Iterable[tuple[str, int]], least: int) -> list[dict[str, Any]]:
    """Return every group, by name.

    Args:
        store: The store.
        tags: How many devices have which tag.
        least: Devices of the smallest cohort whose figures are told.
    """
    found = [group_json(group, store.groups.count(group), least) for group in store.groups.all()]
    found += [
        {
            "name": tag,
            "kind": STATIC,
            "filter": {"tag": tag},
            "devices": count,
            "fewer_than_cohort": count < least,
            "saved_s": None,
            "saved_by": None,
        }
        for tag, count in tags
    ]
    return sorted(found, key=lambda each: str(each["name"]))


def group_json(group: Group, devices: int, least: int) -> dict[str, Any]:
    """Return a filter that is saved.

    Args:
        group: The filter.
        devices: How many devices fulfill it now.
        least: Devices of the smallest cohort whose figures are told.
    """
    return {
        "name": group.name,
        "kind": DYNAMIC,
        "filter": group.filter,
        "devices": devices,
        "fewer_than_cohort": devices < least,
        "saved_s": group.saved_s,
        "saved_by": group.saved_by,
    }

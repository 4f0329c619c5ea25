"""What devices are, counted: one look at all of them for all who look, whatever each filters by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from umbel_proto.errors import UnavailableError
from umbel_server.console.seen.kept import Kept
from umbel_server.rollouts.classes import class_of
from umbel_server.store.census import Census
from umbel_server.store.facets import Facets
from umbel_server.store.placed import facts_of
from umbel_server.store.store import Store
from umbel_server.store.wanted import ANY, Wanted

FRESH_S = 5.0
"""Counts so old are shown as they are: a device is online for two minutes after it called."""
OLDEST_S = 60.0
"""Older ones are never shown; those between are at once, and are counted anew beside."""
WAIT_S, PATIENCE = 0.05, 600
SOON_S = 0.01
"""A list that is there waits no longer for its numbers: they follow it a second later."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Looked:
    """What came of a look at all devices; None: they differ too much."""

    census: Census | None


_kept: WeakKeyDictionary[Store, Kept[Any]] = WeakKeyDictionary()


def counted(store: Store, wanted: Wanted = ANY) -> Facets:
    """Return what the devices are that somebody wants to see; what a person changed is in it at once.

    Args:
        store: The store.
        wanted: Which ones.

    Raises:
        UnavailableError: The database takes half a minute and more.
    """
    for _ in range(PATIENCE):
        found = counted_soon(store, wanted, wait_s=WAIT_S)
        if found is not None:
            return found
    raise _late()


def counted_soon(store: Store, wanted: Wanted, *, wait_s: float = SOON_S) -> Facets | None:
    """Return what ``counted`` does; None: it is being counted, for a list is there before its numbers are.

    Args:
        store: The store.
        wanted: Which devices.
        wait_s: For how long to wait for it, seconds; 0: only let it begin.
    """
    filters, kept = store.device_list.filters(wanted), _kept_of(store)
    if not any(each.begins for each in filters):
        # One look at all devices answers every filter, but one by names.
        found: _Looked | None = kept.get(
            _key(store, "census"), lambda: _Looked(store.device_list.census()), wait_s=wait_s
        )
        if found is None:
            return None
        if found.census is not None:
            return found.census.facets(filters)
    return cast(
        "Facets | None",
        kept.get(_key(store, wanted), lambda: store.device_list.facets(wanted), wait_s=wait_s),
    )


def answering(store: Store) -> dict[tuple[str, int], int]:
    """Return on how many devices which version of which model answers.

    Raises:
        UnavailableError: The database takes half a minute and more.
    """

    def made() -> dict[tuple[str, int], int]:
        return {(model, version): count for model, version, count in store.inventory.versions()}

    return _made(store, "answering", made)


def arrived(store: Store, *, within_s: float) -> int:
    """Return how many batches came lately.

    Args:
        store: The store.
        within_s: In so many seconds until now.

    Raises:
        UnavailableError: The database takes half a minute and more.
    """
    return _made(store, ("arrived", within_s), lambda: store.placed.arrived(since_s=store.clock() - within_s))


def classes(store: Store) -> list[tuple[str, int]]:
    """Return how many active devices are of which class, the largest first.

    Raises:
        UnavailableError: The database takes half a minute and more.
    """

    def made() -> list[tuple[str, int]]:
        counts: Counter[str] = Counter()
        for facts, count in store.placed.stated():
            counts[class_of(facts_of(facts))] += count
        return counts.most_common()

    return _made(store, "classes", made)


def _made(store: Store, what: Hashable, make: Callable[[], T]) -> T:
    key, kept = _key(store, what), _kept_of(store)
    for _ in range(PATIENCE):
        found = kept.get(key, make)
        if found is not None:
            return cast("T", found)
    raise _late()


def _late() -> UnavailableError:
    return UnavailableError("The devices are still being counted: open the page again in a minute.")


def _key(store: Store, what: Hashable) -> Hashable:
    # Every change by a person is in the audit log, and so is every device that was let in.
    newest = store.audit.newest()
    return what, newest.sequence if newest else 0


def _kept_of(store: Store) -> Kept[Any]:
    return _kept.setdefault(store, Kept(store.clock, fresh_s=FRESH_S, oldest_s=OLDEST_S, wait_s=WAIT_S))

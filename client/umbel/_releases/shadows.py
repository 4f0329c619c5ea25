"""What a device shows of versions that a rollout tries on it beside those that answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from umbel._releases.room import beside_bytes

if TYPE_CHECKING:
    from umbel._releases.shelf import Shelf


@dataclass(frozen=True, slots=True)
class ShadowRelease:
    """A version that a rollout tries on this device beside the one that answers. What it says reaches nobody.

    Args:
        model: Its model.
        version: Its version.
        beside: The version that answers.
        since_s: Since when the fleet wants it here, Unix seconds; None where that was not noted.
        examples: How many examples were put to it; of a process that was killed the last minute is missing.
        one_in: Of so many predictions one is put to it, on average.
        core_share: Of the time of one core, what it takes at most.
        memory_bytes: What it is taken to need of memory: a device that has less room does not run it. None where its
            package is not here.
        why: Why this device does not run it, the end of a sentence that begins with the version; empty: it does.
    """

    model: str
    version: int
    beside: int
    since_s: float | None
    examples: int
    one_in: int
    core_share: float
    memory_bytes: int | None
    why: str


def shadows(shelf: Shelf) -> tuple[ShadowRelease, ...]:
    """Return the versions that the fleet wants to be tried beside those that answer, by model.

    Args:
        shelf: The device's packages.

    Raises:
        StorageError: The shelf's own files are damaged.
    """
    found = []
    for model in shelf.versions.models():
        wanted, active = shelf.versions.slots(model).beside, shelf.active(model)
        if wanted is None or active is None or wanted.sha256 == active.sha256:
            continue
        # What runs a candidate takes time to import, and few devices have one.
        from umbel._predict.shadow import SHARE

        here = shelf.beside(model)
        found.append(
            ShadowRelease(
                model=model,
                version=wanted.version,
                beside=active.version,
                since_s=wanted.since_s or None,
                examples=wanted.examples,
                one_in=wanted.one_in,
                core_share=SHARE,
                memory_bytes=None if here is None else beside_bytes(here[0].size),
                why=wanted.why,
            )
        )
    return tuple(found)


def bounds(shadow: ShadowRelease) -> str:
    """Return how often a candidate is asked, and what it may take, in words."""
    memory = (
        "" if shadow.memory_bytes is None else f" and {shadow.memory_bytes / (1 << 20):.0f} MiB of memory"
    )
    often = "every prediction" if shadow.one_in == 1 else f"one in {shadow.one_in} predictions"
    return f"{often}, within {100 * shadow.core_share:g} % of one core{memory}"

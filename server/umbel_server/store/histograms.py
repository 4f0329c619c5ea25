"""Histograms as the store keeps them: JSON, with the number of their scale where they have one, not its 57 edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from umbel_proto.histogram import SCALES, Histogram

Scale: TypeAlias = int | tuple[float, ...]
"""Where a histogram's cells end: the number of a scale that has one, or the edges."""

_SCALE_OF = {edges: number for number, edges in SCALES.items()}


def body_of(
    edges: tuple[float, ...], counts: Sequence[int], total: float, epsilon: float | None
) -> dict[str, Any]:
    """Return what JSON says of a histogram, but its name."""
    scale = _SCALE_OF.get(edges)
    return {
        **({"edges": edges} if scale is None else {"scale": scale}),
        "counts": counts,
        "sum": total,
        **({} if epsilon is None else {"epsilon": epsilon}),
    }


def scale_of(body: Mapping[str, Any]) -> Scale:
    """Return the scale of a body: of the same edges always the same."""
    if (number := body.get("scale")) is not None:
        return int(number)
    edges = tuple(body["edges"])
    return _SCALE_OF.get(edges, edges)


def edges_on(scale: Scale) -> tuple[float, ...]:
    """Return a scale's edges."""
    return SCALES[scale] if isinstance(scale, int) else scale


def edges_of(body: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the edges that a body names or lists."""
    return edges_on(scale_of(body))


def histogram_of(name: str, body: Mapping[str, Any]) -> Histogram:
    """Return the histogram of a body."""
    return Histogram(name, edges_of(body), tuple(body["counts"]), body["sum"], body.get("epsilon"))

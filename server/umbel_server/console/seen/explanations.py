"""What the screen of explanations shows: which inputs decide, as packages tell, and which of them are not as they were."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from umbel_proto.errors import UmbelError
from umbel_proto.package import read_unsigned
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.drift_report import Drift
from umbel_server.monitor.report import COLUMN
from umbel_server.registry.figures import Metric, figures_of
from umbel_server.store.store import Store

SECTION, LOST = "explanations", "accuracy lost without "
WITHIN = f", {LOST}"
"""Between the name of a part of the data and the input without which accuracy is lost there."""
ENDS = (" low", " high")
"""After the name of a figure: the ends of its interval."""
RESIDUAL = "integrated gradients, greatest completeness residual"
MOST_VERSIONS = 6


@dataclass(frozen=True, slots=True)
class Input:
    """How much an input decides, and whether it is as it was.

    Args:
        name: The input: a column, or a region of an image.
        lost: Accuracy that is lost when it is shuffled among examples.
        low: Where its interval of 95 % begins; None: the card does not tell.
        high: Where it ends.
        before: The same of the version before; None: there is none that tells.
        moved: The share of its values that moved on devices; None: nothing is known.
        drifted: Whether chance does not explain that.
    """

    name: str
    lost: float
    low: float | None
    high: float | None
    before: float | None
    moved: float | None
    drifted: bool

    @property
    def weight(self) -> float:
        """How much of what decides has moved: what to look at first."""
        return max(self.lost, 0.0) * (self.moved or 0.0)


@dataclass(frozen=True, slots=True)
class Lost:
    """How much an input decides within a part of the data.

    Args:
        value: Accuracy that is lost there when it is shuffled among the examples of the part.
        low: Where its interval of 95 % begins; None: the card does not tell.
        high: Where it ends.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Part:
    """What decides within a part of the data.

    Args:
        name: The part, as ``cohort older``.
        examples: How many held-out examples it has; None: the card does not tell.
        lost: By input: those that decide most there.
    """

    name: str
    examples: int | None
    lost: Mapping[str, Lost]


@dataclass(frozen=True, slots=True)
class Explained:
    """All of it.

    Args:
        inputs: What decides most first; empty: the package does not tell.
        versions: By version, the oldest first, accuracy lost without each input.
        residual: How far local explanations are from complete at most; None: the card does not tell.
        parts: How good the model is on parts of the data, as its card tells.
        slices: What decides within each part of which the card tells; empty: of none.
        graph: Whether the package brings what explains single predictions on the device.
        made_s: When it was made, Unix seconds.
    """

    inputs: tuple[Input, ...]
    versions: Mapping[int, Mapping[str, float]]
    residual: float | None
    parts: tuple[Metric, ...]
    slices: tuple[Part, ...]
    graph: bool
    made_s: float

    @property
    def inputs_of_slices(self) -> tuple[str, ...]:
        """The inputs that the parts tell of, in the order of what decides most overall."""
        told = dict.fromkeys(name for part in self.slices for name in part.lost)
        overall = [each.name for each in self.inputs if each.name in told]
        return tuple(dict.fromkeys((*overall, *told)))


def explained(fleet: FleetDir, store: Store, model: str, version: int, drift: Drift | None) -> Explained:
    """Return which inputs decide.

    Args:
        fleet: The fleet, for packages.
        store: Its store.
        model: The model.
        version: Its version.
        drift: What is known of its drift; None: nothing.
    """
    cards: dict[int, Mapping[str, str]] = {}
    parts: tuple[Metric, ...] = ()
    graph = False
    released = sorted(
        (each for each in store.releases.all() if each.model == model and each.version <= version),
        key=lambda each: -each.version,
    )
    for release in released[:MOST_VERSIONS]:
        try:
            package = read_unsigned(fleet.package(release.sha256).read_bytes())
            told = figures_of(package)
        except (OSError, UmbelError):
            continue
        cards[release.version] = told.sections.get(SECTION, {})
        if release.version == version:
            parts = tuple(each for each in told.metrics if each.part)
            graph = "explain" in package.manifest.graphs
    own = cards.get(version, {})
    versions = {number: _lost(cards[number]) for number in sorted(cards) if _lost(cards[number])}
    before = next((versions[number] for number in sorted(versions, reverse=True) if number < version), {})
    moved = _moved(drift)
    inputs = [
        Input(
            name,
            value,
            *_interval(own, f"{LOST}{name}"),
            before.get(name),
            *moved.get(name, (None, False)),
        )
        for name, value in _lost(own).items()
    ]
    return Explained(
        tuple(sorted(inputs, key=lambda each: (-each.lost, each.name))),
        versions,
        _number(own, RESIDUAL),
        parts,
        _slices(own),
        graph,
        store.clock(),
    )


def importance(found: Explained) -> dict[str, Any]:
    """Return the chart of what decides."""
    return {
        "kind": "bar",
        "x": {"type": "category", "name": "input", "values": [each.name for each in found.inputs]},
        "unit": "%",
        "y": {"name": "accuracy lost without it"},
        "series": [
            {
                "name": "accuracy lost without it",
                "tone": "accent",
                "values": [each.lost for each in found.inputs],
                "low": [each.low for each in found.inputs],
                "high": [each.high for each in found.inputs],
            }
        ],
        **({} if found.inputs else {"empty": "The package's card does not tell which inputs decide."}),
    }


def by_version(found: Explained, names: Sequence[str]) -> dict[str, Any]:
    """Return the chart of how what decides changed from version to version."""
    tones = ("accent", "info", "warn", "ok", "bad", "muted")
    versions = list(found.versions)
    return {
        "kind": "line",
        "x": {"type": "category", "name": "version", "values": [str(number) for number in versions]},
        "unit": "%",
        "y": {"name": "accuracy lost without it"},
        "series": [
            {"name": name, "tone": tone, "values": [found.versions[number].get(name) for number in versions]}
            for name, tone in zip(names, tones, strict=False)
        ],
        **(
            {}
            if len(versions) > 1
            else {"empty": "Fewer than two released versions tell which inputs decide."}
        ),
    }


def _slices(section: Mapping[str, str]) -> tuple[Part, ...]:
    found: dict[str, dict[str, Lost]] = {}
    for name in section:
        part, within, column = name.partition(WITHIN)
        if not within or _is_end(section, name) or (value := _number(section, name)) is None:
            continue
        found.setdefault(part, {})[column] = Lost(value, *_interval(section, name))
    counts = {part: _number(section, f"{part}, examples") for part in found}
    return tuple(
        Part(part, None if (count := counts[part]) is None else round(count), lost)
        for part, lost in found.items()
    )


def _lost(section: Mapping[str, str]) -> dict[str, float]:
    names = [name for name in section if name.startswith(LOST) and not _is_end(section, name)]
    told = {name.removeprefix(LOST): _number(section, name) for name in names}
    return {name: value for name, value in told.items() if value is not None}


def _is_end(section: Mapping[str, str], name: str) -> bool:
    """Return whether a figure is the end of another's interval: an input may be called so that it looks like one."""
    of = next((name.removesuffix(end) for end in ENDS if name.endswith(end)), "")
    return of in section and not any(f"{name}{end}" in section for end in ENDS)


def _interval(section: Mapping[str, str], name: str) -> tuple[float | None, float | None]:
    """Return both ends of a figure's interval; none where an input of its own has the name that one of them would have."""
    ends = [f"{name}{end}" for end in ENDS]
    low, high = (_number(section, each) if _is_end(section, each) else None for each in ends)
    return low, high


def _number(section: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(section[name])  # Cards write texts.
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _moved(drift: Drift | None) -> dict[str, tuple[float | None, bool]]:
    if drift is None:
        return {}
    return {
        line.finding.feature.removeprefix(COLUMN): (line.finding.comparison.moved, line.finding.drifted)
        for line in drift.lines
        if line.against == "baseline" and line.finding.comparison is not None
    }

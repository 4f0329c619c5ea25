"""Two versions beside each other: figures with what may be chance, sizes, contracts, lineage, privacy. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from umbel_proto.package import Package
from umbel_server.registry.figures import Metric, figures_of, variants_of
from umbel_server.store.registry import Version

_HIGHER = frozenset({"accuracy", "recall", "precision", "R2"})
_LOWER = frozenset(
    {"log loss", "mean squared error", "root mean squared error", "mean absolute error"},
)
_PRIVATE = ("guarantee", "epsilon_server", "epsilon_release", "delta")


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of two versions.

    Args:
        kind: What was measured.
        part: On which part of the data; empty: on all of it.
        before: Of the first version; None: it was not measured.
        after: Of the second.
        interval: Where the true difference lies with 95 % confidence; None where nobody can tell.
    """

    kind: str
    part: str
    before: Metric | None
    after: Metric | None
    interval: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``changed``; ``no clear difference``; empty where nobody can tell."""
        if self.interval is None:
            return ""
        low, high = self.interval
        if low <= 0 <= high:
            return "no clear difference"
        if self.kind in _HIGHER | _LOWER:
            return "better" if (low > 0) == (self.kind in _HIGHER) else "worse"
        return "changed"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "kind": self.kind,
            "part": self.part,
            "before": None if self.before is None else self.before.value,
            "after": None if self.after is None else self.after.value,
            "interval": None if self.interval is None else list(self.interval),
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions beside each other.

    Args:
        before: Name of the first one.
        after: Name of the second.
        metrics: Every figure that either has.
        facts: By subject and name, what the first and the second say, where they differ.
    """

    before: str
    after: str
    metrics: tuple[Change, ...]
    facts: Mapping[str, Mapping[str, tuple[Any, Any]]]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "before": self.before,
            "after": self.after,
            "metrics": [each.to_json() for each in self.metrics],
            **{
                subject: {name: {"before": old, "after": new} for name, (old, new) in differences.items()}
                for subject, differences in self.facts.items()
            },
        }


def compare(before: tuple[Version, Package], after: tuple[Version, Package]) -> Comparison:
    """Return two versions beside each other.

    Raises:
        PackageError: The card of one is none.
    """
    (old, old_package), (new, new_package) = before, after
    old_figures, new_figures = figures_of(old_package), figures_of(new_package)
    facts = {
        "sizes": _differing(_sizes(old_package), _sizes(new_package)),
        "contract": dict(contract_differences(old_package, new_package)),
        "lineage": _differing(_lineage(old), _lineage(new)),
        "privacy": _differing(
            _privacy(old_figures.sections.get("privacy", {})),
            _privacy(new_figures.sections.get("privacy", {})),
        ),
        "quantization": _differing(
            dict(old_figures.sections.get("quantization", {})),
            dict(new_figures.sections.get("quantization", {})),
        ),
    }
    return Comparison(old.name, new.name, tuple(changes(old_figures.metrics, new_figures.metrics)), facts)


def changes(before: tuple[Metric, ...], after: tuple[Metric, ...]) -> Iterator[Change]:
    """Yield each figure that either version has, in the order of the second."""
    old = {(each.kind, each.part): each for each in before}
    new = {(each.kind, each.part): each for each in after}
    for kind, part in [*new, *(key for key in old if key not in new)]:
        first, second = old.get((kind, part)), new.get((kind, part))
        yield Change(kind, part, first, second, difference(first, second))


def difference(before: Metric | None, after: Metric | None) -> tuple[float, float] | None:
    """Return where the true difference ``after - before`` lies with 95 % confidence; None where nobody can tell.

    Both may have been measured on the same examples, which makes the true interval narrower: this one errs on the
    side of seeing no difference.

    Source:
        Newcombe, "Interval Estimation for the Difference Between Independent Proportions", Statistics in Medicine 17,
        1998, method 10, for shares; Zou & Donner, "Construction of Confidence Limits about Effect Measures", Statistics
        in Medicine 27, 2008, equation 3, for anything with an interval.
    """
    if before is None or after is None or before.interval is None or after.interval is None:
        return None
    delta = after.value - before.value
    low = delta - math.hypot(after.value - after.interval[0], before.interval[1] - before.value)
    high = delta + math.hypot(after.interval[1] - after.value, before.value - before.interval[0])
    return low, high


def contract_differences(before: Package, after: Package) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield what two data contracts say differently, field by field: its name, and what each says."""
    old, new = _contract(before), _contract(after)
    for name in [*old, *(name for name in new if name not in old)]:
        first, second = old.get(name), new.get(name)
        if first is None or second is None:
            yield name, (None if first is None else "there", None if second is None else "there")
            continue
        for what in [*first, *(what for what in second if what not in first)]:
            if first.get(what) != second.get(what):
                yield f"{name}.{what}", (first.get(what), second.get(what))


def _contract(package: Package) -> dict[str, dict[str, Any]]:
    """Return what a data contract says of each field, and of each column of a field."""
    found: dict[str, dict[str, Any]] = {}
    for field in json.loads(package.manifest.to_json())["contract"]:
        columns = field.pop("columns", [])
        found[field["name"]] = field
        for column in columns:
            found[f"{field['name']}[{column['name']}]"] = column
    return found


def _sizes(package: Package) -> dict[str, int]:
    variants = {
        f"{name} ({each['engine']})": each["bytes"] for name, each in variants_of(package.manifest).items()
    }
    return {"package": package.size, **variants, "parameters sent in a round": package.manifest.dim}


def _lineage(version: Version) -> dict[str, Any]:
    return {
        **version.lineage,
        "task": version.task,
        "run": version.run or version.lineage.get("run"),
        "rounds": version.lineage.get("rounds") if version.rounds is None else version.rounds,
        "parent": version.parent,
        "code": version.code or None,
    }


def _privacy(section: Mapping[str, str]) -> dict[str, str]:
    return {name: section[name] for name in _PRIVATE if name in section}


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*before, *(name for name in after if name not in before)]
    pairs = {name: (before.get(name), after.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

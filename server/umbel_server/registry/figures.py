"""What a package says of itself: its figures, as its card has them. The service never makes a card, it reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from umbel_proto.encoding import digest
from umbel_proto.errors import PackageError
from umbel_proto.manifest import CARD, INSIDE, Manifest
from umbel_proto.package import Package

CONTRACT_LABEL = "umbel/1/registry/contract"
_PREFIX = "umbel:"
COHORT = "cohort "
"""Begins the name of a part of the data that is a cohort."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured figure.

    Args:
        kind: What was measured: ``accuracy``, ``recall``.
        value: What came out.
        part: The part of the data it was measured on: ``label 3``, ``cohort older``; empty for all of it.
        interval: Where the true value lies with 95 % confidence, where that is known.
    """

    kind: str
    value: float
    part: str = ""
    interval: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "kind": self.kind,
            "part": self.part,
            "value": self.value,
            "interval": None if self.interval is None else list(self.interval),
        }


@dataclass(frozen=True, slots=True)
class Figures:
    """What a package's card tells.

    Args:
        metrics: How good it is on data that it did not learn from.
        sections: Other figures, by section and name, as the card writes them: texts.
    """

    metrics: tuple[Metric, ...] = ()
    sections: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def document(package: Package, purpose: str) -> bytes | None:
    """Return one of a package's documents; None if it has none of that purpose."""
    name = package.manifest.documents.get(purpose)
    return None if name is None else package.file(name)


def card_of(package: Package) -> dict[str, Any] | None:
    """Return the CycloneDX document of a package; None if it has none.

    Raises:
        PackageError: It is no CycloneDX document that describes a model.
    """
    raw = document(package, CARD)
    if raw is None:
        return None
    try:
        found = json.loads(raw)
        found["metadata"]["component"]["modelCard"].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise _no_card(package) from exc
    return dict(found)


def figures_of(package: Package) -> Figures:
    """Return what a package's card tells; nothing, if it has no card.

    Raises:
        PackageError: The card is no model card.
    """
    document_ = card_of(package)
    if document_ is None:
        return Figures()
    card = document_["metadata"]["component"]["modelCard"]
    sections: dict[str, dict[str, str]] = {}
    try:
        metrics = tuple(map(_metric, card.get("quantitativeAnalysis", {}).get("performanceMetrics", ())))
        for item in card.get("properties", ()):
            section, _, name = str(item["name"]).removeprefix(_PREFIX).partition(":")
            sections.setdefault(section, {})[name] = str(item.get("value", ""))
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise _no_card(package) from exc
    return Figures(metrics, sections)


def variants_of(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Return each variant's engine, and the bytes of its graph and weights."""
    found = {}
    for name, variant in sorted(manifest.variants.items()):
        files = {variant.file} | ({variant.weights} - {INSIDE})
        found[name] = {"engine": variant.engine, "bytes": sum(manifest.files[file].size for file in files)}
    return found


def contract_sha256(manifest: Manifest) -> bytes:
    """Return the hash of a data contract, 32 bytes: equal for two versions that take the same input."""
    contract = json.loads(manifest.to_json())["contract"]
    return digest(CONTRACT_LABEL, json.dumps(contract, sort_keys=True, separators=(",", ":")))


def _metric(item: Mapping[str, Any]) -> Metric:
    bounds = item.get("confidenceInterval")
    interval = None if bounds is None else (float(bounds["lowerBound"]), float(bounds["upperBound"]))
    value = float(item["value"])
    if not all(map(math.isfinite, (value, *(interval or ())))):
        raise ValueError("a figure that is not finite")
    return Metric(str(item["type"]), value, str(item.get("slice", "")), interval)


def _no_card(package: Package) -> PackageError:
    manifest = package.manifest
    return PackageError(
        f"The card of {manifest.model} {manifest.version} is no model card: build the package again."
    )

"""The data sheet of a version: what its data contract, its baseline and its lineage tell of the data behind it.

Source: Gebru et al., "Datasheets for Datasets", Communications of the ACM 64(12), 2021, arXiv:1803.09010: its headings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from umbel_proto.contract import Column, Field
from umbel_proto.manifest import BASELINE, DATASHEET, Manifest
from umbel_server.registry.card import Subject
from umbel_server.registry.figures import card_of, document
from umbel_server.registry.tables import cell, table

UNSAID = "Nobody said."
_CLAIMS = ("epsilon_server", "epsilon_release", "delta")


def to_markdown(subject: Subject) -> str:
    """Return the data sheet.

    Raises:
        PackageError: The package's card is none.
    """
    version, line, manifest = subject.version, subject.line, subject.package.manifest
    sections = {
        "Motivation": [
            f"For what purpose: {cell(line.purpose) or UNSAID}",
            f"Who answers for it: {cell(line.owner) or UNSAID}",
            f"Of the data, its maker says: {cell(_description(subject)) or UNSAID}",
        ],
        "Composition": list(_composition(subject)),
        "Collection process": list(_collection(subject)),
        "Preprocessing, cleaning, labeling": list(_cleaning(manifest)),
        "Uses": [
            f"Trained for: {cell(version.task)}.",
            *(f"Limit: {cell(limit)}" for limit in _limits(subject)),
            f"Risk class (EU AI Act): {line.risk}.",
        ],
        "Distribution": list(_distribution(subject)),
        "Maintenance": [
            f"Next review: {line.review_date or UNSAID}",
            f"Given up when: {cell(line.decommission) or UNSAID}",
            f"This version is {version.stage}; what it was made of: {_parent(subject)}.",
        ],
    }
    lines = [f"# Data sheet of {cell(version.name)}"]
    for heading, texts in sections.items():
        lines += [f"## {heading}", *texts]
    own = document(subject.package, DATASHEET)
    if own is not None:
        lines += ["## In the words of the model's maker", own.decode(errors="replace").strip()]
    return "\n\n".join(lines) + "\n"


def _composition(subject: Subject) -> Iterator[str]:
    manifest = subject.package.manifest
    yield f"An example is, by the data contract (sha256 {subject.version.contract_sha256.hex()[:16]}…):"
    rows = [row for field in manifest.contract.fields for row in _field(field)]
    yield table(("field", "type", "shape", "least", "greatest", "unit", "may be missing"), rows)
    if manifest.labels:
        yield f"Labels: {cell(', '.join(manifest.labels))}."
    raw = document(subject.package, BASELINE)
    seen = [] if raw is None else list(_histograms(raw))
    if seen:
        yield "What the model was made for looked like this:"
        yield table(("histogram", "values", "mean"), seen)


def _field(field: Field) -> Iterator[tuple[str, ...]]:
    shape = "x".join(map(str, field.shape)) or "one number"
    if not field.columns:
        yield (field.name, field.dtype, shape, *_range(field))
    for column in field.columns:
        yield (f"{field.name}.{column.name}", field.dtype, shape, *_range(column))


def _range(of: Field | Column) -> tuple[str, ...]:
    return (f"{of.minimum:g}", f"{of.maximum:g}", of.unit, "yes" if of.allow_missing else "no")


def _histograms(raw: bytes) -> Iterator[tuple[str, str, str]]:
    """Yield each histogram's name, how many values it has, and their mean; nothing of what cannot be read."""
    try:
        for each in json.loads(raw)["histograms"]:
            count = sum(map(int, each["counts"]))
            mean = f"{float(each['sum']) / count:.4g}" if count else ""
            yield str(each["name"]), str(count), mean
    except (ValueError, KeyError, TypeError):
        return


def _collection(subject: Subject) -> Iterator[str]:
    version, lineage = subject.version, subject.version.lineage
    if version.run is None:
        yield "No run of this fleet trained it."
    else:
        yield (
            f"In run {version.run}, {version.rounds} rounds: devices trained on their own data, which never left "
            "them. The service saw only sums over many devices."
        )
    told = [f"{name} {lineage[name]}" for name in _CLAIMS if name in lineage]
    if told:
        yield f"Privacy, as the package states it: {', '.join(told)}."
    spent = {} if subject.approved is None else json.loads(subject.approved.evidence)["privacy"]["run"]
    if spent:
        figures = {name: spent[name] for name in ("participations", *_CLAIMS) if spent.get(name) is not None}
        yield f"By the fleet's own ledger: {', '.join(f'{name} {value}' for name, value in figures.items())}."


def _cleaning(manifest: Manifest) -> Iterator[str]:
    yield "On the device, before the model sees it:"
    rows = []
    for field in manifest.contract.fields:
        for each in field.columns or (field,):
            name = each.name if each is field else f"{field.name}.{each.name}"
            rows.append((name, each.action))
    yield table(("field", "a value out of range is"), rows)
    aged = [f"{f.name}: {f.max_age_s:g} s, else {f.stale}" for f in manifest.contract.fields if f.max_age_s]
    if aged:
        yield f"Oldest that is taken: {cell('; '.join(aged))}."


def _distribution(subject: Subject) -> Iterator[str]:
    yield "The data is not handed on. What is handed on is the model, signed, to the devices of the fleet."
    license_ = _dataset(subject).get("contents", {}).get("properties", [{}])
    named = str(license_[0].get("value", "")) if license_ else ""
    yield f"License of the data that its maker used: {cell(named) or UNSAID}"


def _description(subject: Subject) -> str:
    return str(_dataset(subject).get("description", ""))


def _dataset(subject: Subject) -> dict[str, Any]:
    found = (_card(subject).get("modelParameters") or {}).get("datasets") or [{}]
    return dict(found[0])


def _limits(subject: Subject) -> list[str]:
    return list(map(str, (_card(subject).get("considerations") or {}).get("technicalLimitations") or ()))


def _card(subject: Subject) -> dict[str, Any]:
    found = card_of(subject.package)
    return {} if found is None else dict(found["metadata"]["component"]["modelCard"])


def _parent(subject: Subject) -> str:
    parent = subject.version.parent
    return "of no other version" if parent is None else f"{subject.version.model}@{parent}"

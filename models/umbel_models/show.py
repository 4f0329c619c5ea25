"""A package in words: what ``umbel model show`` prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from umbel_models.card import Card
from umbel_proto.archive import read_archive
from umbel_proto.contract import Field
from umbel_proto.errors import PackageError
from umbel_proto.manifest import CARD, DATASHEET, INSIDE, REGRESSION, Manifest, Parameter


def card_of(data: bytes, manifest: Manifest) -> Card | None:
    """Return the card of a package file, None where it has none.

    Raises:
        PackageError: The file's card is no card.
    """
    raw = _document(data, manifest, CARD)
    return None if raw is None else Card.from_json(raw)


def datasheet_of(data: bytes, manifest: Manifest) -> str | None:
    """Return the data sheet of a package file, Markdown, None where it has none.

    Raises:
        PackageError: The file's data sheet is no text.
    """
    raw = _document(data, manifest, DATASHEET)
    try:
        return None if raw is None else raw.decode()
    except UnicodeDecodeError as exc:
        raise PackageError("The package's data sheet is not UTF-8 text: build the package again.") from exc


def _document(data: bytes, manifest: Manifest, kind: str) -> bytes | None:
    if kind not in manifest.documents:
        return None
    try:
        return bytes(read_archive(data)[manifest.documents[kind]])
    except KeyError as exc:
        raise PackageError(f"The package lacks the {kind} that its manifest speaks of.") from exc


def body(manifest: Manifest, card: Card | None, *, checked: bool) -> dict[str, Any]:
    """Return everything as one JSON object: the manifest, its card, and whether the signature was checked."""
    whole: dict[str, Any] = json.loads(manifest.to_json())
    return {
        **whole,
        "signature_checked": checked,
        "card": None if card is None else json.loads(card.to_json()),
    }


def lines(manifest: Manifest, card: Card | None, *, size: int, checked: bool) -> list[str]:
    """Return the lines of a terminal, of about 100 columns.

    Args:
        manifest: The package's.
        card: Its card.
        size: Length of the package file, bytes.
        checked: Whether its signature was verified.
    """
    facts = [
        ("model", f"{manifest.model} {manifest.version}, {size:,} bytes"),
        ("signature", "verified" if checked else "not checked: give --release-key"),
        ("trainable", _counted(manifest.parameters)),
        ("frozen", _counted(manifest.frozen)),
        *(
            ("input", f"{f.name} {f.dtype} {f.shape}, {f.minimum:g}..{f.maximum:g} {f.unit}".rstrip())
            for f in manifest.contract.fields
        ),
        *(("column", text) for f in manifest.contract.fields for text in _columns(f)),
        *_answers(manifest),
        *_randomized(manifest),
        *(("lineage", f"{key}: {value}") for key, value in sorted(manifest.lineage.items())),
    ]
    found = [f"{name:<11} {text}" for name, text in facts]
    found += [
        "",
        *table(("variant", "engine", "graph", "weights", "bytes", "tolerance"), _variants(manifest)),
    ]
    if manifest.graphs:
        graphs = [(purpose, file, _size(manifest, file)) for purpose, file in sorted(manifest.graphs.items())]
        found += ["", *table(("graph", "file", "bytes"), graphs)]
    if card is not None and card.metrics:
        whole = [metric for metric in card.metrics if not metric.part]
        rows = [
            (m.kind, f"{m.value:.4g}", f"{m.interval[0]:.4g} to {m.interval[1]:.4g}" if m.interval else "")
            for m in whole
        ]
        found += ["", *table(("held out", "value", "95 % interval"), rows)]
    if card is not None and card.sections:
        found += ["", f"card: {', '.join(card.sections)}; all of it with --card"]
    return found


def _columns(field: Field) -> list[str]:
    """Return a line for each column: name, range, unit, and what becomes of an input that breaks it."""
    return [
        f"{c.name} {c.minimum:g}..{c.maximum:g}{f' ({len(c.values)} values)' if c.values else ''} {c.unit}".rstrip()
        + f", else {c.action}"
        for c in field.columns
    ]


def _answers(manifest: Manifest) -> list[tuple[str, str]]:
    if manifest.kind == REGRESSION:
        named = ", ".join(f"{target.name} {target.unit}".rstrip() for target in manifest.targets)
        return [("answers with", f"numbers of shape {manifest.answer_shape}{': ' if named else ''}{named}")]
    return [
        ("labels", " ".join(manifest.labels)),
        ("automatic", f"from confidence {manifest.decision_threshold:g}"),
        *(("automatic", f"{name} from {each:g}") for name, each in manifest.label_thresholds.items()),
    ]


def _randomized(manifest: Manifest) -> list[tuple[str, str]]:
    """Return a row for what devices randomize in their reports, where they do."""
    stated = [f"{task} with epsilon {epsilon:g}" for task, epsilon in manifest.telemetry_epsilon.items()]
    return [("reports", f"randomized: {', '.join(stated)} an event")] if stated else []


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned lines, numbers to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    right = [all(row[i][:1].isdigit() or not row[i] for row in rows) for i in range(len(head))]
    return [
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in (head, *rows)
    ]


def _variants(manifest: Manifest) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, variant in manifest.variants.items():
        marked = f"{name}{' (default)' if name == manifest.default_variant else ''}"
        files = [variant.file] if variant.weights == INSIDE else [variant.file, variant.weights]
        weights = "inside" if variant.weights == INSIDE else variant.weights
        size = f"{total_bytes(manifest.files, files):,}"
        rows.append((marked, variant.engine, variant.file, weights, size, f"{variant.tolerance:g}"))
    return rows


def total_bytes(files: Mapping[str, Any], names: Sequence[str]) -> int:
    """Return the size of some of a manifest's files together, bytes; one that is not there counts nothing."""
    return sum(files[name].size for name in names if name in files)


def _size(manifest: Manifest, file: str) -> str:
    return f"{total_bytes(manifest.files, [file]):,}"


def _counted(parameters: Sequence[Parameter]) -> str:
    return f"{sum(parameter.size for parameter in parameters):,} in {len(parameters)} arrays"

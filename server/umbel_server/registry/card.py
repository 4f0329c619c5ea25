"""The card of a version: what its package says, completed with what the registry knows. CycloneDX 1.6, and Markdown.

Source:
    CycloneDX 1.6 (ECMA-424), ``component.modelCard``.
    Hugging Face, "Model Cards": the front matter that their tools read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from umbel_proto.package import Package
from umbel_server.registry.approval import Request, Verdict
from umbel_server.registry.figures import Metric, card_of, figures_of
from umbel_server.registry.schema import require_valid
from umbel_server.registry.tables import cell, table
from umbel_server.store.registry import Line, Version

SPEC = "1.6"
_PREFIX = "umbel:registry:"
_KIND = "machine-learning-model"


@dataclass(frozen=True, slots=True)
class Subject:
    """All that is known of a version.

    Args:
        package: Its package.
        version: What the registry says of it.
        line: What is said of its model.
        approved: The request whose approvals it was, or is to be, released by; None: none.
    """

    package: Package
    version: Version
    line: Line
    approved: Request | None = None


def complete(subject: Subject) -> bytes:
    """Return the card as a CycloneDX document: the same facts, the same bytes.

    Raises:
        PackageError: The package's own card is none.
        MissingExtraError: The schema that it is checked against is not installed.
    """
    version, line = subject.version, subject.line
    document = card_of(subject.package) or _bare(subject)
    component = document["metadata"]["component"]
    component |= {
        "type": _KIND,
        "name": version.model,
        "version": str(version.version),
        "hashes": [{"alg": "SHA-256", "content": version.sha256.hex()}],
    }
    if line.purpose:
        component["description"] = line.purpose
    if line.owner:
        component["authors"] = [{"name": line.owner}]
    if version.parent is not None:
        ancestor = {"type": _KIND, "name": version.model, "version": str(version.parent)}
        component["pedigree"] = {"ancestors": [ancestor]}
    component["properties"] = [
        *(component.get("properties") or ()),
        *({"name": f"{_PREFIX}{name}", "value": value} for name, value in governance(subject)),
    ]
    document["metadata"]["timestamp"] = _moment(version.stage_s)
    card = json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False).encode()
    require_valid(card, version.name)
    return card


def governance(subject: Subject) -> Iterator[tuple[str, str]]:
    """Yield what the registry knows of a version, as names and texts."""
    version, line = subject.version, subject.line
    known = {
        "owner": line.owner,
        "risk": line.risk,
        "review date": line.review_date,
        "decommission": line.decommission,
        "stage": f"{version.stage} since {_moment(version.stage_s)}",
        "task": version.task,
        "added by": version.added_by,
        "run": version.run or "",
        "rounds": "" if version.rounds is None else str(version.rounds),
        "code": version.code,
        "data contract": f"sha256:{version.contract_sha256.hex()}",
    }
    yield from ((name, value) for name, value in known.items() if value)
    for name, variant in version.variants.items():
        yield f"variant {name}", f"{variant['engine']}, {variant['bytes']} bytes"
    asked = subject.approved
    if asked is None:
        return
    yield "evidence", f"sha256:{asked.evidence_sha256.hex()}"
    yield "approval asked by", f"{asked.requested_by}, {_moment(asked.requested_s)}: {asked.comment}"
    for each in asked.decisions:
        what = "approved by" if each.verdict is Verdict.APPROVE else "rejected by"
        yield f"{what} {each.account}", f"{_moment(each.decided_s)}: {each.comment}"


def to_markdown(subject: Subject) -> str:
    """Return the card for people, with the front matter that Hugging Face's tools read.

    Raises:
        PackageError: The package's own card is none.
    """
    version, line = subject.version, subject.line
    figures = figures_of(subject.package)
    document = card_of(subject.package) or _bare(subject)
    card = document["metadata"]["component"]["modelCard"]
    considerations = card.get("considerations") or {}
    purpose = line.purpose or " ".join(considerations.get("useCases") or ())
    parts = [
        _front_matter(subject, figures.metrics),
        f"# {cell(version.name)}",
        cell(purpose or "Nobody said what it is for."),
        "## Governance",
        table(("", ""), list(governance(subject))),
        "## Data",
        "\n".join(f"- {cell(text)}" for text in _data(card)),
    ]
    limits = considerations.get("technicalLimitations") or ()
    if limits:
        parts += ["## Limits", "\n".join(f"- {cell(str(limit))}" for limit in limits)]
    if figures.metrics:
        rows = [
            (each.kind, each.part or "all", f"{each.value:.4g}", _interval(each)) for each in figures.metrics
        ]
        parts += ["## Evaluation", table(("figure", "on", "value", "95 % interval"), rows)]
    for name, section in figures.sections.items():
        parts += [
            f"## {cell(name)[:1].upper()}{cell(name)[1:]}",
            table(("figure", "value"), list(section.items())),
        ]
    return "\n\n".join(parts) + "\n"


def _front_matter(subject: Subject, metrics: tuple[Metric, ...]) -> str:
    manifest, version = subject.package.manifest, subject.version
    results = [
        {
            "task": {"type": manifest.kind},
            "dataset": {"type": version.task, "name": version.task},
            "metrics": [
                {
                    "type": each.kind.replace(" ", "_"),
                    "value": each.value,
                    "name": f"{each.kind}, {each.part}" if each.part else each.kind,
                }
                for each in metrics
            ],
        }
    ]
    fields: dict[str, Any] = {
        "library_name": "umbel",
        "tags": ["umbel", "onnx", "federated-learning", manifest.kind],
        "model_name": version.name,
    }
    if metrics:
        fields["model-index"] = [{"name": version.model, "results": results}]
    # Every JSON value in ASCII is a YAML value.
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _data(card: Mapping[str, Any]) -> Iterator[str]:
    parameters = card.get("modelParameters") or {}
    for what in ("inputs", "outputs"):
        named = ", ".join(str(each.get("format", "")) for each in parameters.get(what) or ())
        if named:
            yield f"{what}: {named}"
    for each in parameters.get("datasets") or ():
        yield f"data: {each.get('description', each.get('name', ''))}"
        for item in (each.get("contents") or {}).get("properties") or ():
            yield f"{str(item.get('name', '')).rpartition(':')[2].replace('-', ' ')}: {item.get('value', '')}"


def _bare(subject: Subject) -> dict[str, Any]:
    """Return a card for a package that has none: what its manifest tells."""
    manifest = subject.package.manifest
    parameters = {
        "task": manifest.kind,
        "inputs": [{"format": f"{field.name}: {field.dtype}"} for field in manifest.contract.fields],
        "outputs": [{"format": label} for label in manifest.labels],
    }
    component = {"type": _KIND, "name": manifest.model, "modelCard": {"modelParameters": parameters}}
    return {"bomFormat": "CycloneDX", "specVersion": SPEC, "version": 1, "metadata": {"component": component}}


def _interval(metric: Metric) -> str:
    return "" if metric.interval is None else f"{metric.interval[0]:.4g} to {metric.interval[1]:.4g}"


def _moment(unix_s: float) -> str:
    return datetime.fromtimestamp(int(unix_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

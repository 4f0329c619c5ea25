"""A model card: what a model is for, and how good it is. ``card.json`` of a package, and Markdown for people.

The JSON is a CycloneDX 1.6 document with one component, whose ``modelCard`` holds everything.

Source:
    Mitchell et al., "Model Cards for Model Reporting", FAT* 2019, arXiv:1810.03993.
    CycloneDX 1.6 (ECMA-424), ``component.modelCard``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from umbel_models.task import About
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.manifest import CLASSIFICATION, Scalar

SPEC = "1.6"
_PREFIX = "umbel:"
_LICENSE = "umbel:data-license"

Figures = Mapping[str, Scalar]


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

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in (self.value, *(self.interval or ()))):
            raise UsageError(f"The figure {self.kind} {self.part} of a model card is not a finite number.")


@dataclass(frozen=True, slots=True)
class Card:
    """A model card.

    Args:
        model: The model's name.
        version: Its version.
        about: What its maker says of it.
        input: The form of an example, in words.
        labels: Name of each class; of a regression, of each number of an answer, if they have names.
        metrics: How good it is on data that it did not learn from.
        sections: Figures that others add, by section and by name.
        kind: What it answers with: ``classification`` or ``regression``.
    """

    model: str
    version: int
    about: About
    input: str
    labels: tuple[str, ...]
    metrics: tuple[Metric, ...] = ()
    sections: Mapping[str, Figures] = field(default_factory=dict)
    kind: str = CLASSIFICATION

    def with_section(self, name: str, figures: Figures) -> Card:
        """Return the card with one section more, or with other figures in it.

        Args:
            name: Its title, without a colon.
            figures: Numbers and texts by name.

        Raises:
            UsageError: The name or a figure cannot stand in a card.
        """
        if ":" in name or not name:
            raise UsageError(f"A section of a model card cannot be called {name!r}: leave out the colon.")
        for key, value in figures.items():
            if not _writable(value):
                raise UsageError(
                    f"Figure {key!r} of section {name!r} is {value!r}: give a finite number or a text."
                )
        return replace(self, sections={**self.sections, name: dict(figures)})

    def to_json(self) -> bytes:
        """Return the card as a CycloneDX document: the same card, the same bytes."""
        properties = [
            {"name": f"{_PREFIX}{section}:{key}", "value": _text(value)}
            for section, figures in self.sections.items()
            for key, value in figures.items()
        ]
        dataset: dict[str, Any] = {"type": "dataset", "name": self.model, "description": self.about.data}
        if self.about.license:
            license_ = {"name": _LICENSE, "value": self.about.license}
            dataset["contents"] = {"properties": [license_]}
        card = {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": self.kind,
                "datasets": [dataset],
                "inputs": [{"format": self.input}],
                "outputs": [{"format": label} for label in self.labels],
            },
            "quantitativeAnalysis": {"performanceMetrics": [_metric(metric) for metric in self.metrics]},
            "considerations": {
                "useCases": [self.about.purpose],
                "technicalLimitations": list(self.about.limits),
            },
            "properties": properties,
        }
        component = {
            "type": "machine-learning-model",
            "name": self.model,
            "version": str(self.version),
            "modelCard": card,
        }
        body = {
            "bomFormat": "CycloneDX",
            "specVersion": SPEC,
            "version": 1,
            "metadata": {"component": component},
        }
        return json.dumps(body, indent=1, ensure_ascii=True, allow_nan=False).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Card:
        """Read what ``to_json`` wrote.

        Raises:
            PackageError: It is something else.
        """
        try:
            component = json.loads(raw)["metadata"]["component"]
            card = component["modelCard"]
            parameters, considerations = card["modelParameters"], card["considerations"]
            dataset = parameters["datasets"][0]
            licenses = dataset.get("contents", {"properties": [{"value": ""}]})["properties"]
            about = About(
                purpose=str(considerations["useCases"][0]),
                data=str(dataset["description"]),
                limits=tuple(map(str, considerations["technicalLimitations"])),
                license=str(licenses[0]["value"]),
            )
            sections: dict[str, dict[str, Scalar]] = {}
            for item in card["properties"]:
                section, _, key = item["name"].removeprefix(_PREFIX).partition(":")
                sections.setdefault(section, {})[key] = _scalar(item["value"])
            return cls(
                model=str(component["name"]),
                version=int(component["version"]),
                about=about,
                input=str(parameters["inputs"][0]["format"]),
                labels=tuple(str(output["format"]) for output in parameters["outputs"]),
                metrics=tuple(_parsed(item) for item in card["quantitativeAnalysis"]["performanceMetrics"]),
                sections=sections,
                kind=str(parameters["task"]),
            )
        except (
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            AttributeError,
            RecursionError,
            UsageError,
        ) as exc:
            raise PackageError("card.json is no model card of umbel: build the package again.") from exc

    def _answers(self) -> str:
        what = "labels" if self.kind == CLASSIFICATION else "answers with"
        return f"{what}: {_plain(', '.join(self.labels)) or 'numbers'}"

    def to_markdown(self) -> str:
        """Return the card for people."""
        lines = [
            f"# {self.model} {self.version}",
            "",
            _plain(self.about.purpose),
            "",
            f"- input: {_plain(self.input)}",
            f"- {self._answers()}",
            f"- data: {_plain(self.about.data)}",
        ]
        if self.about.license:
            lines.append(f"- license of the data: {_plain(self.about.license)}")
        if self.about.limits:
            lines += ["", "## Limits", "", *(f"- {_plain(limit)}" for limit in self.about.limits)]
        if self.metrics:
            lines += [
                "",
                "## Evaluation",
                "",
                "| figure | on | value | 95 % interval |",
                "| --- | --- | --- | --- |",
            ]
            lines += [
                f"| {_plain(m.kind)} | {_plain(m.part or 'all')} | {m.value:.4g} | "
                f"{f'{m.interval[0]:.4g} to {m.interval[1]:.4g}' if m.interval else ''} |"
                for m in self.metrics
            ]
        for name, figures in self.sections.items():
            lines += ["", f"## {_plain(name)[:1].upper()}{_plain(name)[1:]}", "", "| figure | value |"]
            lines += ["| --- | --- |"]
            lines += [f"| {_plain(key)} | {_shown(value)} |" for key, value in figures.items()]
        return "\n".join(lines) + "\n"


def _metric(metric: Metric) -> dict[str, Any]:
    # The format's values are texts.
    item: dict[str, Any] = {"type": metric.kind, "value": repr(float(metric.value))}
    if metric.part:
        item["slice"] = metric.part
    if metric.interval:
        low, high = metric.interval
        item["confidenceInterval"] = {"lowerBound": repr(float(low)), "upperBound": repr(float(high))}
    return item


def _parsed(item: Mapping[str, Any]) -> Metric:
    bounds = item.get("confidenceInterval")
    interval = None if bounds is None else (float(bounds["lowerBound"]), float(bounds["upperBound"]))
    return Metric(str(item["type"]), float(item["value"]), str(item.get("slice", "")), interval)


def _text(value: Scalar) -> str:
    # The format's properties are texts. One that would read as a number gets quotes.
    return value if isinstance(value, str) and _scalar(value) == value else json.dumps(value)


def _scalar(text: str) -> Scalar:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if _writable(value) else text


def _writable(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    return not isinstance(value, float) or math.isfinite(value)


def _shown(value: Scalar) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _plain(str(value))


def _plain(text: str) -> str:
    # A bar ends a cell of a table, and a line break the table.
    return " ".join(text.split()).replace("|", "\\|")

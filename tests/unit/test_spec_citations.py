"""The code cites the specifications by number and heading: each leads somewhere, and no step is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vectors.kinds import KINDS

ROOT = Path(__file__).resolve().parents[2]
SPECS = {path.name: path.read_text() for path in sorted((ROOT / "docs" / "spec").glob("*.md"))}
SOURCES = sorted(
    path
    for room in ("proto", "client", "server")
    for path in (ROOT / room).rglob("*.py")
    if not path.name.endswith("_pb2.py")
)
HOME = {"secagg": "secure-aggregation.md", "privacy": "privacy.md"}
"""Where a package's numbers lead if no document is named."""
NUMBER = r"\d+(?:\.\d+){1,2}|\d+[a-z]?"
STEPS = re.compile(rf"\b[Ss]teps? ({NUMBER})(?:,? (to|and) ({NUMBER}))?")
NAMED = re.compile(r"docs/spec/([a-z-]+\.md)(.*?)(?:[;)]|\.(?!\d)|\n\n|\"\"\"|$)", re.S)
Citation = tuple[str, str, str]


def numbers(text: str) -> set[str]:
    """The rules of a document: paragraphs that begin with a number, and named steps."""
    found = set(re.findall(r"^(?:\*\*)?(\d+(?:\.\d+){1,2}) ", text, re.M))
    return found | set(re.findall(r"^\*\*Step (\d+[a-z]?),", text, re.M))


def headings(text: str) -> set[str]:
    return {re.sub(r"^\d+(?:\.\d+)*\.? ", "", title) for title in re.findall(r"^#+ (.+)$", text, re.M)}


def spread(first: str, how: str, last: str) -> list[str]:
    """All numbers of a citation: "5.1.1 to 5.1.4" is four."""
    if how != "to":
        return [number for number in (first, last) if number]
    stem, _, low = first.rpartition(".")
    high = last.rpartition(".")[2]
    return [f"{stem}.{i}" if stem else str(i) for i in range(int(low), int(high) + 1)]


def citations(path: Path) -> list[Citation]:
    """(document, "number" or "heading", what) for every citation in a file."""
    text, found = path.read_text(), []
    for name, rest in NAMED.findall(text):
        cited = re.sub(r"\s+", " ", rest)
        found += [(name, "heading", title) for title in re.findall(r'"([^"]+)"', cited)]
        for match in re.findall(rf"(?<![\w.])(\d+(?:\.\d+)+)(?:,? (to|and) ({NUMBER}))?", cited):
            found += [(name, "number", number) for number in spread(*match)]
    home = HOME.get(path.parent.name)
    if home:
        for match in STEPS.findall(text):
            found += [(home, "number", number) for number in spread(*match)]
    return found


CITED = {path: citations(path) for path in SOURCES}


@pytest.mark.parametrize("path", [p for p, found in CITED.items() if found], ids=lambda p: p.name)
def test_every_citation_leads_to_a_rule_or_a_heading(path: Path) -> None:
    for document, sort, what in CITED[path]:
        there = numbers(SPECS[document]) if sort == "number" else headings(SPECS[document])
        assert what in there, f"{path.name} cites {document}, {what}"


def test_every_step_of_the_phases_is_cited_by_the_code_that_takes_it() -> None:
    steps = {n for n in numbers(SPECS["secure-aggregation.md"]) if re.fullmatch(r"5\.\d\.\d", n)}
    assert len(steps) > 20
    cited = {what for found in CITED.values() for document, _, what in found if document == HOME["secagg"]}
    assert steps - cited == set()


@pytest.mark.parametrize("name", ["secure-aggregation.md", "privacy.md"])
def test_a_document_refers_only_to_rules_it_has(name: str) -> None:
    text = SPECS[name]
    assert numbers(text)
    # What is said of another text: "privacy.md, 7.4", "Bell et al., section 3", "RFC 7748, section 5".
    inner = re.sub(
        r"(privacy|secure-aggregation)\.md\)?,? (section )?[\d.]+|(et al\.|RFC \d+|arXiv [\d.v]+)[^)]*",
        "",
        text,
    )
    for group in re.findall(r"\(((?:\d+(?:\.\d+){1,2}(?:, | to | and )?)+)\)", inner):
        for number in re.findall(r"\d+(?:\.\d+){1,2}", group):
            assert number in numbers(text), f"({number})"
    for number in re.findall(r"\bsections? (\d+)", inner):
        assert re.search(rf"^## {number}\. ", text, re.M), f"section {number}"


@pytest.mark.parametrize("name", ["secure-aggregation.md", "privacy.md"])
def test_no_number_stands_for_two_rules(name: str) -> None:
    found = re.findall(r"^(?:\*\*)?(\d+(?:\.\d+){1,2}) ", SPECS[name], re.M)
    assert len(found) == len(set(found))


def test_the_kinds_of_failure_are_those_of_the_specification() -> None:
    text = SPECS["secure-aggregation.md"]
    table = text[text.index("### Kinds of failure") : text.index("## 10.")]
    rows = re.findall(r"^\| (`.+?) \|", table, re.M)
    assert {kind for row in rows for kind in re.findall(r"`(\w+)`", row)} == set(KINDS)

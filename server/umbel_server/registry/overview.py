"""What people look at: lists, a version in full, two beside each other. Values, JSON and text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import Any

from umbel_proto.errors import UsageError
from umbel_server.fleet.layout import FleetDir
from umbel_server.registry.approval import Request, Rules, Verdict
from umbel_server.registry.asking import evidence_of, rules_of, standing
from umbel_server.registry.card import Subject
from umbel_server.registry.stages import Stage
from umbel_server.registry.versions import package_of, required
from umbel_server.store.registry import (
    Comment,
    Line,
    Version,
    comments_of,
    line_of,
    lines,
    open_requests,
    requests_of,
    version_of,
    versions,
)
from umbel_server.store.store import Store

MAX_FIGURES = 12


@dataclass(frozen=True, slots=True)
class Entry:
    """A version in a list.

    Args:
        version: The version.
        line: Its model.
        asked: The request for it that holds; None: none does.
        needed: How many approvals the fleet asks for.
    """

    version: Version
    line: Line
    asked: Request | None
    needed: int

    @property
    def approvals(self) -> str:
        """How many have approved, of how many."""
        if self.asked is None:
            return "-"
        given = {each.account for each in self.asked.decisions if each.verdict is Verdict.APPROVE}
        return f"{len(given)}/{self.needed}"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**version_json(self.version), "model_line": asdict(self.line), "approvals": self.approvals}


@dataclass(frozen=True, slots=True)
class Detail:
    """A version in full.

    Args:
        subject: What is known of it.
        requests: All that was asked and decided.
        comments: What was said.
        missing: How many approvals the request that holds still needs; None: none holds.
        lapsed: Why its approvals count for nothing any more; None: they do, or there are none.
    """

    subject: Subject
    requests: tuple[Request, ...]
    comments: tuple[Comment, ...]
    missing: int | None
    lapsed: str | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            **version_json(self.subject.version),
            "model_line": asdict(self.subject.line),
            "approvals_missing": self.missing,
            "lapsed": self.lapsed,
            "requests": [request_json(each) for each in self.requests],
            "comments": [asdict(each) for each in self.comments],
        }


def overview(store: Store, rules: Rules, model: str | None = None) -> tuple[Entry, ...]:
    """Return the versions of a model or of all, by model and number."""
    with store.database.read() as connection:
        known = {line.model: line for line in lines(connection)}
        asked = open_requests(connection, model)
        return tuple(
            Entry(each, known[each.model], asked.get((each.model, each.version)), rules.approvals)
            for each in versions(connection, model)
        )


def detail(fleet: FleetDir, store: Store, model: str, version: int) -> Detail:
    """Return a version in full.

    Raises:
        UsageError: There is none.
        StorageError: Its package is missing.
    """
    with store.database.read() as connection:
        found = required(version_of(connection, model, version), model, version)
        asked, said = requests_of(connection, found), comments_of(connection, found)
        line = line_of(connection, model) or Line(found.model)
    held = next((each for each in asked if not each.closed), None)
    missing, lapsed = None, None
    if held is not None and found.stage in (Stage.CANDIDATE, Stage.APPROVED):
        evidence, _ = evidence_of(fleet, store, model, version)
        _, missing, lapsed = standing(store, found, held, evidence, rules_of(fleet))
    return Detail(Subject(package_of(fleet, found), found, line, held), asked, said, missing, lapsed)


def newest(store: Store, model: str) -> int:
    """Return the highest version of a model.

    Raises:
        UsageError: There is none.
    """
    with store.database.read() as connection:
        found = versions(connection, model)
    if not found:
        raise UsageError(f"There is no version of {model[:80]} in the registry: see  umbel registry list.")
    return found[-1].version


def subject_of(fleet: FleetDir, store: Store, model: str, version: int) -> Subject:
    """Return all that is known of a version, for its card and its data sheet."""
    return detail(fleet, store, model, version).subject


def version_json(version: Version) -> dict[str, Any]:
    """Return a version as JSON values."""
    return {
        "model": version.model,
        "version": version.version,
        "stage": version.stage,
        "stage_s": version.stage_s,
        "sha256": version.sha256.hex(),
        "size": version.size,
        "task": version.task,
        "contract_sha256": version.contract_sha256.hex(),
        "run": version.run,
        "rounds": version.rounds,
        "parent": version.parent,
        "code": version.code,
        "variants": {name: dict(each) for name, each in version.variants.items()},
        "lineage": dict(version.lineage),
        "added_by": version.added_by,
        "added_s": version.added_s,
        "sealed_s": version.sealed_s,
    }


def request_json(asked: Request) -> dict[str, Any]:
    """Return a request as JSON values."""
    return {
        "number": asked.number,
        "requested_by": asked.requested_by,
        "requested_s": asked.requested_s,
        "comment": asked.comment,
        "closed": asked.closed,
        "closed_reason": asked.closed_reason,
        "package_sha256": asked.package_sha256.hex(),
        "evidence_sha256": asked.evidence_sha256.hex(),
        "evidence": json.loads(asked.evidence),
        "decisions": [asdict(each) for each in asked.decisions],
    }


def detail_text(shown: Mapping[str, Any]) -> str:
    """Return a version in full for a terminal, from ``Detail.to_json``."""
    return "\n".join(_detail_lines(shown))


def review_text(review_date: str, now_s: float) -> str:
    """Return when a model is looked at again, and whether that is overdue."""
    if review_date and date.fromisoformat(review_date) < datetime.fromtimestamp(now_s, UTC).date():
        return f"{review_date} overdue"
    return review_date or "-"


def _detail_lines(shown: Mapping[str, Any]) -> Iterator[str]:
    line, made_of = shown["model_line"], shown["parent"]
    yield f"{shown['model']}@{shown['version']} is {shown['stage']} since {moment(shown['stage_s'])}"
    facts = {
        "package": f"sha256 {shown['sha256']}, {shown['size']:,} bytes",
        "variants": ", ".join(f"{name} {each['bytes']:,} bytes" for name, each in shown["variants"].items()),
        "task": shown["task"],
        "made of": "-" if made_of is None else f"{shown['model']}@{made_of}",
        "run": "-" if shown["run"] is None else f"{shown['run']}, {shown['rounds']} rounds",
        "code": shown["code"] or "-",
        "added": f"by {shown['added_by']}, {moment(shown['added_s'])}",
        "owner": line["owner"] or "-",
        "purpose": line["purpose"] or "-",
        "risk": line["risk"],
        "review": line["review_date"] or "-",
        "given up when": line["decommission"] or "-",
    }
    yield from (f"  {name:<14} {value}" for name, value in facts.items())
    for asked in shown["requests"]:
        yield ""
        yield (
            f"Request {asked['number']} of {asked['requested_by']}, {moment(asked['requested_s'])}"
            + (f", {asked['closed']}: {asked['closed_reason']}" if asked["closed"] else "")
        )
        yield f"  {asked['comment']}"
        for each in asked["decisions"]:
            yield f"  {each['verdict']}: {each['account']}, {moment(each['decided_s'])}: {each['comment']}"
        if not asked["closed"]:
            yield from _evidence_lines(asked)
    if shown["lapsed"] is not None:
        yield f"Its approvals have lapsed, as {shown['lapsed']}."
    elif shown["approvals_missing"] and shown["stage"] == Stage.CANDIDATE:
        yield f"It needs {shown['approvals_missing']} more approvals."
    if shown["comments"]:
        yield "\nComments"
    yield from (f"  {each['author']}, {moment(each['said_s'])}: {each['text']}" for each in shown["comments"])


def comparison_text(shown: Mapping[str, Any]) -> str:
    """Return two versions beside each other for a terminal, from ``Comparison.to_json``."""
    before, after = shown["before"], shown["after"]
    rows = [
        (
            f"{each['kind']} {each['part']}".strip(),
            "-" if each["before"] is None else f"{each['before']:.4g}",
            "-" if each["after"] is None else f"{each['after']:.4g}",
            "" if each["interval"] is None else f"{each['interval'][0]:+.3g} to {each['interval'][1]:+.3g}",
            each["verdict"],
        )
        for each in shown["metrics"]
    ]
    parts = [_columns(("figure", before, after, "difference, 95 %", ""), rows)]
    for subject, differences in shown.items():
        if subject in ("before", "after", "metrics"):
            continue
        if differences:
            told = [(name, _text(each["before"]), _text(each["after"])) for name, each in differences.items()]
            parts.append(_columns((subject, before, after), told))
        else:
            parts.append(f"{subject}: the same")
    return "\n\n".join(parts)


def moment(unix_s: float) -> str:
    """Return a time for people, UTC."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _evidence_lines(asked: Mapping[str, Any]) -> Iterator[str]:
    body = asked["evidence"]
    yield f"  evidence {asked['evidence_sha256']}"
    for name in ("evaluation", "cohorts"):
        figures = body[name]
        for each in figures[:MAX_FIGURES]:
            what = f"{each['kind']} {each['part']}".strip()
            interval = each["interval"]
            yield f"    {what:<32} {each['value']:.4g}" + (
                f"  ({interval[0]:.4g} to {interval[1]:.4g})" if interval else ""
            )
        if len(figures) > MAX_FIGURES:
            yield f"    and {len(figures) - MAX_FIGURES} more: see --json"
    for name in ("quantization", "fairness"):
        yield from (f"    {key:<32} {value}" for key, value in body[name].items())
    privacy = body["privacy"]
    yield from (f"    {key:<32} {value}  (as the package says)" for key, value in privacy["claimed"].items())
    ledger = privacy["run"] or {}
    yield from (f"    {key:<32} {value}  (by the fleet's records)" for key, value in ledger.items())


def _columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(len(header))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    )


def _text(value: object) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

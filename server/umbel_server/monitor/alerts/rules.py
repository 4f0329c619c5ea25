"""Rules and channels: ``alerts.toml``, read strictly. A mistake is one sentence that names the rule and the field."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from umbel_proto.errors import StorageError, UmbelError, UsageError
from umbel_proto.ids import check_name
from umbel_server.learning.schedule import parse_duration
from umbel_server.monitor.alerts.channels import Channel, read_channel
from umbel_server.monitor.alerts.fields import Fields
from umbel_server.monitor.alerts.kinds import KINDS, Kind
from umbel_server.monitor.alerts.state import Timing

Severity = Literal["critical", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "info")
PAUSE, ROLL_BACK, PROPOSE, START = "pause_rollout", "roll_back", "propose_run", "start_run"
ACTIONS = (PAUSE, ROLL_BACK, PROPOSE, START)
USUAL, EVERY_MODEL = "usual", "*"
MAX_RULES = 500
MAX_TEXT = 500
_HOUR_S, _DAY_S = 3600.0, 86400.0
_TIMING = Timing(0.0, 600.0, _HOUR_S)


@dataclass(frozen=True, slots=True)
class Rule:
    """Something to look at, and what to do when it is found.

    Args:
        name: Its name.
        what: The figure, one of ``KINDS``.
        model: The model; ``*``: every model that devices told of.
        version: The version; None: the one that most was reported of. Of candidates it says nothing.
        tag: Devices of this cohort only; empty: all.
        threshold: What of the figure is too much, or too little.
        level: Chance of a false alarm of what is calibrated.
        percentile: Of latencies: 50, 90 or 99, of a candidate any.
        label: Of fairness, the label that rates are of.
        window_s: Of how long a time the figure is, up to now, seconds.
        least_devices: Of how many devices it must be.
        every_s: How often it is looked at, seconds.
        timing: How patient it is.
        severity: How bad it is.
        runbook: Where to read what to do.
        actions: What is done when it begins to fire.
        plan: Of runs that it proposes or starts, the plan's file.
        rest_s: Least time between two runs that it proposes or starts, seconds.
        channels: Whom it tells; None: everybody who hears of this severity.
        enabled: Whether it is looked at.
    """

    name: str
    what: str
    threshold: float
    model: str = EVERY_MODEL
    version: int | None = None
    tag: str = ""
    level: float = 0.05
    percentile: float = 90.0
    label: str = ""
    window_s: float = _DAY_S
    least_devices: int = 10
    every_s: float = 60.0
    timing: Timing = _TIMING
    severity: Severity = "warning"
    runbook: str = ""
    actions: tuple[str, ...] = ()
    plan: str = ""
    rest_s: float = _DAY_S
    channels: tuple[str, ...] | None = None
    enabled: bool = True

    @property
    def kind(self) -> Kind:
        """The figure that it looks at."""
        return KINDS[self.what]


@dataclass(frozen=True, slots=True)
class Rules:
    """What ``alerts.toml`` says.

    Args:
        rules: The rules, by name.
        channels: The channels, by name.
        directory: Where files that it names are relative to.
    """

    rules: Mapping[str, Rule] = field(default_factory=dict)
    channels: Mapping[str, Channel] = field(default_factory=dict)
    directory: Path = Path()

    def told(self, rule: Rule) -> tuple[Channel, ...]:
        """Return whom a rule tells."""
        if rule.channels is not None:
            return tuple(self.channels[name] for name in rule.channels)
        return tuple(each for each in self.channels.values() if rule.severity in each.severities)


def read_rules(path: Path) -> Rules:
    """Read the rules of a fleet; without a file there are none.

    Raises:
        UsageError: It is not TOML, or a rule or channel cannot be used.
        StorageError: It cannot be read.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return Rules(directory=path.parent)
    except (OSError, UnicodeDecodeError) as exc:
        raise StorageError(f"The rules {path} cannot be read: see that the file is text, and yours.") from exc
    return parse_rules(text, path)


def parse_rules(text: str, path: Path) -> Rules:
    """Return the rules that a text says.

    Args:
        text: TOML.
        path: Where it is from: sentences name it, and files that it names are relative to its directory.

    Raises:
        UsageError: It is not TOML, or a rule or channel cannot be used.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{path.name} is not TOML: {exc}.") from exc
    for name in raw:
        if name not in ("rule", "channel"):
            raise UsageError(
                f"{path.name}: {name[:40]!r} is nothing it has: it has [[rule]] and [[channel]]."
            )
    channels: dict[str, Channel] = {}
    for table in _tables(raw, "channel", path):
        channel = read_channel(Fields.of("channel", table))
        if channel.name in channels:
            raise UsageError(f"There are two channels {channel.name}: call one otherwise.")
        channels[channel.name] = channel
    rules: dict[str, Rule] = {}
    for table in _tables(raw, "rule", path):
        rule = read_rule(Fields.of("rule", table), channels)
        if rule.name in rules:
            raise UsageError(f"There are two rules {rule.name}: call one otherwise.")
        rules[rule.name] = rule
    return Rules(rules, channels, path.parent)


def read_rule(fields: Fields, channels: Mapping[str, Channel]) -> Rule:
    """Return the rule of a table.

    Raises:
        UsageError: A field is missing, unknown, of the wrong type or out of range; the sentence names it.
    """
    check_name(fields.name, "rule")
    what = fields.one_of("what", tuple(KINDS))
    kind = KINDS[what]
    threshold = fields.number("threshold", kind.threshold, between=(kind.least, kind.most))
    named = fields.texts("channels", None)
    for channel in named or ():
        if channel not in channels:
            known = ", ".join(channels) or "no channel"
            raise fields.error("channels", f"names {channel[:40]!r}; there is {known}")
    actions = fields.texts("actions", ()) or ()
    for action in actions:
        if action not in ACTIONS:
            raise fields.error("actions", f"has {action[:40]!r}: choose of {', '.join(ACTIONS)}")
    plan = fields.text("plan", "")
    runs = [each for each in actions if each in (PROPOSE, START)]
    if len(runs) == 2:
        raise fields.error("actions", f"has {PROPOSE} and {START}: choose one")
    if bool(runs) != bool(plan):
        raise fields.error(
            "plan", f'and an action {PROPOSE} or {START} go together, as in plan = "retrain.toml"'
        )
    if actions and kind.of == "fleet":
        raise fields.error("actions", f"is of a model's figures, and {what} is the fleet's: leave it out")
    if PAUSE in actions and ROLL_BACK in actions:
        raise fields.error("actions", f"has {PAUSE} and {ROLL_BACK}: choose one")
    label = fields.text("label", "")
    if (what == "fairness_gap") != bool(label):
        raise fields.error("label", "is the label that rates are of: fairness_gap has one, and nothing else")
    percentile = fields.number("percentile", 90.0, between=(0.001, 99.999))
    if what == "latency_ms" and percentile not in (50, 90, 99):
        raise fields.error("percentile", f"of latency_ms is {percentile:g}: choose 50, 90 or 99")
    rule = Rule(
        name=fields.name,
        what=what,
        threshold=threshold,
        model=fields.text("model", EVERY_MODEL),
        version=_version(fields),
        tag=fields.text("tag", ""),
        level=fields.number("level", 0.05, between=(1e-9, 0.5)),
        percentile=percentile,
        label=label,
        window_s=_duration(fields, "window", "1d", least_s=_HOUR_S),
        least_devices=int(fields.number("least_devices", 10, between=(2, 1e9))),
        every_s=_duration(fields, "every", None, otherwise_s=kind.every_s),
        timing=Timing(
            _duration(fields, "for", "0m"),
            _duration(fields, "clear", "10m"),
            _duration(fields, "quiet", "1h"),
        ),
        severity=fields.one_of("severity", SEVERITIES, "warning"),  # type: ignore[arg-type]
        runbook=fields.text("runbook", ""),
        actions=tuple(actions),
        plan=plan,
        rest_s=_duration(fields, "rest", "1d"),
        channels=None if named is None else tuple(named),
        enabled=fields.flag("enabled", True),
    )
    if kind.of == "fleet" and (rule.model != EVERY_MODEL or rule.version is not None or rule.tag):
        raise fields.error("model, version or tag", f"says nothing of {what}, which is the fleet's")
    if kind.of == "candidate" and (rule.version is not None or rule.tag):
        raise fields.error("version or tag", f"says nothing of {what}: it is of the rollout's devices")
    if rule.model != EVERY_MODEL:
        _named(fields, "model", rule.model)
    if rule.tag:
        _named(fields, "tag", rule.tag)
    fields.finish()
    return rule


def _version(fields: Fields) -> int | None:
    value = fields.take("version", USUAL)
    if value == USUAL:
        return None
    if type(value) is not int or not 1 <= value < 1 << 32:
        raise fields.error("version", 'is a number from 1, or "usual", the one that most was reported of')
    return value


def _duration(
    fields: Fields, name: str, default: str | None, *, least_s: float = 0.0, otherwise_s: float = 0.0
) -> float:
    if default is None and name not in fields:
        return otherwise_s
    text = fields.text(name, default)
    if text in ("0", "0m"):
        seconds = 0.0
    else:
        try:
            seconds = parse_duration(text)
        except UsageError as exc:
            raise fields.error(name, f"is no time: {exc}".rstrip(".")) from exc
    if seconds < least_s or (name == "every" and not seconds):
        raise fields.error(name, f"is {text}: choose {'1h' if least_s else '1m'} or more")
    return seconds


def _named(fields: Fields, name: str, value: str) -> None:
    try:
        check_name(value, name)
    except UmbelError as exc:
        raise fields.error(name, f"is no name: {exc}".rstrip(".")) from exc


def _tables(raw: Mapping[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    found = raw.get(name, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise UsageError(f"{path.name}: write each {name} as a table of its own, [[{name}]].")
    if len(found) > MAX_RULES:
        raise UsageError(f"{path.name} has {len(found)} of [[{name}]]: {MAX_RULES} are enough.")
    return found

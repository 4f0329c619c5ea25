"""A rollout that somebody puts together in a form: its fields as texts, and the plan that they mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from umbel_proto.errors import UsageError
from umbel_server.rollouts.plan import DEFAULT_GATES, Kind, OnFailure, RolloutPlan

USUAL = "1, 10, 50, 100"
GATES: tuple[tuple[Kind, str], ...] = (
    (Kind.FAILED, "share of devices on which it fails"),
    (Kind.ERRORS, "more errors, as a share of predictions"),
    (Kind.VIOLATIONS, "more contract violations, as a share of predictions"),
    (Kind.LATENCY, "slower at the 95th percentile, as a share"),
    (Kind.ESTIMATED, "less accuracy by its confidences, as a share of answers"),
    (Kind.CONFIDENCE, "mean confidence moved either way"),
)
"""Gates that the form knows, and what each means. Others are written as a plan."""
MAX_PLAN = 20_000


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody filled in.

    Args:
        model: The model.
        version: The candidate, as text.
        since: The version that devices come from; empty: what they are offered now.
        name: Its name; empty: of model and version.
        steps: Shares of the devices in percent, one a step.
        hours: How long a step lasts at least.
        longest: How long at most; empty: until the gates are sure.
        shadow: Share of the devices that ask it beside what answers first, percent; empty: none.
        tags: Only devices with one of these in all but the last step.
        rate: How many devices a minute may be offered it; empty: no limit.
        on_failure: What becomes of it when a gate fails.
        least_devices: How many devices of either side a gate needs.
        gates: By kind, the tolerance as text of those that are ticked.
        toml: A plan as TOML, which goes before all of this; empty: none.
    """

    model: str = ""
    version: str = ""
    since: str = ""
    name: str = ""
    steps: str = USUAL
    hours: str = "1"
    longest: str = ""
    shadow: str = ""
    tags: str = ""
    rate: str = ""
    on_failure: str = OnFailure.ROLL_BACK.value
    least_devices: str = "5"
    gates: Mapping[str, str] | None = None
    toml: str = ""

    @property
    def ticked(self) -> Mapping[str, str]:
        """The tolerance of each gate that is ticked; at first, the usual ones."""
        if self.gates is not None:
            return self.gates
        return {gate.kind.value: f"{gate.tolerance:g}" for gate in DEFAULT_GATES}

    @property
    def complete(self) -> bool:
        """Whether there is something to look at."""
        return bool(self.model and self.version)

    def plan(self) -> RolloutPlan:
        """Return the plan that it means.

        Raises:
            UsageError: A field is no number, or the plan cannot be.
        """
        if self.toml.strip():
            return RolloutPlan.from_toml(self.toml)
        return RolloutPlan.from_dict(self.fields())

    def fields(self) -> dict[str, Any]:
        """Return the plan's fields, as its TOML has them."""
        shares = [_number(text, "Steps") for text in self.steps.replace("%", "").split(",") if text.strip()]
        hours = _number(self.hours or "0", "Hours a step")
        longest = _number(self.longest, "Hours at most") if self.longest else None
        tags = [tag.strip() for tag in self.tags.split(",") if tag.strip()]
        steps: list[dict[str, Any]] = []
        if self.shadow:
            steps.append({"name": "shadow", "percent": _number(self.shadow, "Shadow"), "shadow": True})
        steps += [{"name": f"step-{place}", "percent": share} for place, share in enumerate(shares, 1)]
        for step in steps:
            step["hours"] = hours
            if longest is not None:
                step["longest_hours"] = longest
        for step in steps[:-1]:
            if tags:
                step["tags"] = tags
        gates: list[dict[str, Any]] = [
            {"kind": kind, "tolerance": _number(text, f"The tolerance of {kind}")}
            for kind, text in self.ticked.items()
        ]
        if self.shadow:
            gates.append({"kind": Kind.AGREEMENT.value})
        made: dict[str, Any] = {
            "on_failure": self.on_failure,
            "least_devices": whole(self.least_devices, "Devices a gate needs"),
            "step": steps,
            "gate": gates,
        }
        if self.rate:
            made["rate"] = whole(self.rate, "Devices a minute")
        return made


def read_plan(text: str) -> RolloutPlan:
    """Return the plan that a form brings back as it was looked at.

    Raises:
        UsageError: It is none.
    """
    try:
        return RolloutPlan.from_dict(json.loads(text[:MAX_PLAN]))
    except (ValueError, RecursionError) as exc:
        raise UsageError(
            "The plan of the form cannot be read: look at it again, and start from there."
        ) from exc


def whole(text: str, what: str) -> int:
    """Return a whole number that somebody typed.

    Raises:
        UsageError: It is none.
    """
    try:
        return int(text[:20])
    except ValueError:
        raise UsageError(f"{what}: {text[:20]!r} is no whole number.") from None


def _number(text: str, what: str) -> float:
    try:
        return float(text.strip()[:20])
    except ValueError:
        raise UsageError(f"{what}: {text.strip()[:20]!r} is no number.") from None

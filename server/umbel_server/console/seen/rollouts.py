"""Rollouts as their screens show them: where each stands, what its gates say, and what became of its devices."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from umbel_server.rollouts.classes import class_of
from umbel_server.rollouts.decider import look, verdict_json
from umbel_server.rollouts.plan import RolloutPlan, Step
from umbel_server.rollouts.state import Event, Pause, Resume, RollBack, Start, StopKeeping
from umbel_server.store.became import Became
from umbel_server.store.progress import Bucket, Reach
from umbel_server.store.rollouts import Happened, Rollout
from umbel_server.store.store import Store

DONE, NOW, AHEAD, LEFT = "done", "now", "ahead", "left out"
STATES = ("running", "paused", "finished", "kept", "rolled-back", "draft")
WORDS: Mapping[str, tuple[str, str]] = {
    "running": ("running", "ok"),
    "paused": ("paused", "hold"),
    "finished": ("finished", "muted"),
    "kept": ("stopped, kept", "warn"),
    "rolled-back": ("rolled back", "bad"),
    "draft": ("draft", "muted"),
}
"""By state: how it is called, and the tone of its badge."""
FATES: Mapping[Became, tuple[str, str]] = {
    "running": ("running it", "ok"),
    "failed": ("failed there", "bad"),
    "back": ("went back", "warn"),
    "other": ("runs another version", "info"),
    "waiting": ("not heard of since", "muted"),
}
"""What became of a device that was offered a candidate: how that is called, and the tone of its badge."""
GATE_TONES: Mapping[str, str] = {"pass": "ok", "fail": "bad", "not enough yet": "info", "undefined": "muted"}


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """A rollout in the list.

    Args:
        rollout: The rollout.
        step: The step it is in or ended in; None: it is a draft.
        reach: What became of its devices; None: it has ended, and its own screen tells.
    """

    rollout: Rollout
    step: Step | None
    reach: Reach | None


@dataclass(frozen=True, slots=True)
class StepSeen:
    """A step of a rollout.

    Args:
        step: What it shall do.
        place: Which one it is, from 1.
        state: ``done``, ``now``, ``ahead`` or ``left out``: it ended before.
        began_s: When it began, Unix seconds; None: it did not.
        lasted_s: How long it lasts or lasted, seconds; None: it did not begin.
    """

    step: Step
    place: int
    state: str
    began_s: float | None
    lasted_s: float | None


@dataclass(frozen=True, slots=True)
class GateSeen:
    """What a gate says, now or when the rollout last changed.

    Args:
        gate: Its name.
        outcome: ``pass``, ``fail``, ``not enough yet`` or ``undefined``.
        why: In a sentence.
        estimate: How much worse the candidate is, in the tolerance's unit; None: too little was reported.
        low: Lower bound of that; None: none.
        high: Upper bound.
        tolerance: How much worse it may be.
        devices: Devices with the candidate that count.
        control: The others.
    """

    gate: str
    outcome: str
    why: str
    estimate: float | None
    low: float | None
    high: float | None
    tolerance: float
    devices: int
    control: int

    @property
    def tone(self) -> str:
        """The tone of its badge."""
        return GATE_TONES.get(self.outcome, "muted")

    @property
    def drawn(self) -> Drawn | None:
        """Return its interval as a drawing; None where there is nothing to draw."""
        if self.estimate is None or not math.isfinite(self.estimate):
            return None
        reach = max(2 * self.tolerance, 1.25 * abs(self.estimate), 1e-9)
        left, right = -reach / 2 if self.estimate > -reach / 2 else -reach, reach

        def at(value: float) -> float:
            return round(200 * (min(max(value, left), right) - left) / (right - left), 1)

        low, high = self.low if self.low is not None else left, self.high if self.high is not None else right
        return Drawn(at(low), max(at(high) - at(low), 1.0), at(self.estimate), at(self.tolerance), at(0.0))


@dataclass(frozen=True, slots=True)
class Drawn:
    """An interval on a line of 200 units: where it begins, how wide it is, the estimate, the tolerance, and zero."""

    begin: float
    width: float
    estimate: float
    tolerance: float
    zero: float


@dataclass(frozen=True, slots=True)
class Failure:
    """Why so many devices do not run a candidate.

    Args:
        what: What happened.
        where: The class of these devices; or why, in their own words.
        devices: How many they are.
    """

    what: str
    where: str
    devices: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What is counted of a rollout at a moment.

    Args:
        at_s: The moment, Unix seconds.
        eligible: How many devices may call.
        pinned: How many of them stay at a version.
        reach: What became of those that were offered the candidate.
        gates: What its gates say; none: it does not run.
        failures: Why devices do not run it, the most frequent first.
        course: How they became more.
    """

    at_s: float
    eligible: int
    pinned: int
    reach: Reach
    gates: tuple[GateSeen, ...]
    failures: tuple[Failure, ...]
    course: tuple[Bucket, ...]


def rollout_rows(store: Store, *, state: str = "", model: str = "") -> tuple[RolloutRow, ...]:
    """Return rollouts, the newest first.

    Args:
        store: The store.
        state: Only in this state; empty: in any; ``live``: that may still reach devices.
        model: Only of this model; empty: of any.
    """
    found = [
        each
        for each in store.rollouts.all()
        if (not model or each.model == model)
        and (not state or each.status == state or (state == "live" and each.live))
    ]
    return tuple(
        RolloutRow(each, step_of(each), store.progress.reach(each) if each.live else None) for each in found
    )


def step_of(rollout: Rollout) -> Step | None:
    """Return the step that a rollout is in or ended in; None of a draft."""
    at = getattr(rollout.state, "step", None)
    return None if at is None else rollout.plan.steps[at]


def steps_seen(rollout: Rollout, events: Sequence[Happened], *, now_s: float) -> tuple[StepSeen, ...]:
    """Return a rollout's steps: those done, the one it is in, and those ahead."""
    began: list[float] = []
    for event in events:
        # What a pause ends begins anew: the first time is what people ask for.
        if event.event in ("start", "advance") and len(began) < len(rollout.plan.steps):
            began.append(event.at_s)
    at = getattr(rollout.state, "step", -1)
    ended_s = None if rollout.live else getattr(rollout.state, "since_s", None)
    seen = []
    for place, step in enumerate(rollout.plan.steps):
        begin_s = began[place] if place < len(began) and place <= at else None
        end_s = began[place + 1] if place + 1 < len(began) and place < at else (ended_s or now_s)
        seen.append(
            StepSeen(
                step,
                place + 1,
                _state(rollout, place, at),
                begin_s,
                None if begin_s is None else max(0.0, end_s - begin_s),
            )
        )
    return tuple(seen)


def _state(rollout: Rollout, place: int, at: int) -> str:
    if rollout.status == "finished" or place < at:
        return DONE
    if place == at:
        return NOW if rollout.live else DONE
    return AHEAD if rollout.live or rollout.status == "draft" else LEFT


def figures_of(store: Store, rollout: Rollout) -> Figures:
    """Return what is counted of a rollout now."""
    now_s = store.clock()
    return Figures(
        at_s=now_s,
        eligible=store.progress.eligible(),
        pinned=store.progress.pinned([rollout.model]).get(rollout.model, 0),
        reach=store.progress.reach(rollout),
        gates=tuple(gate_seen(verdict_json(each)) for each in look(store, rollout, now_s=now_s).verdicts),
        failures=failures_of(store.progress.failures(rollout)),
        course=store.progress.course(rollout),
    )


def gate_seen(told: Mapping[str, Any]) -> GateSeen:
    """Return a verdict as the store keeps it, for a screen; what is missing in an old one is nothing."""
    return GateSeen(
        gate=str(told.get("gate", "")),
        outcome=str(told.get("outcome", "")),
        why=str(told.get("why", "")),
        estimate=_number(told.get("estimate")),
        low=_number(told.get("low")),
        high=_number(told.get("high")),
        tolerance=_number(told.get("tolerance")) or 0.0,
        devices=int(told.get("devices") or 0),
        control=int(told.get("control") or 0),
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


_FAILED = {
    "failed": "did not install, or failed there",
    "shadow failed": "failed when it was asked beside what answers",
    "no shadow": "cannot ask it beside what answers",
}


def failures_of(found: Iterable[tuple[str, str | None, int]]) -> tuple[Failure, ...]:
    """Return why devices do not run a candidate, by class of device or their own word, the most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    for kind, told, devices in found:
        where = (told or "") if kind == "no shadow" else (class_of(from_json(told)) if told else "")
        counts[_FAILED[kind], where] += devices
    return tuple(Failure(what, where, devices) for (what, where), devices in counts.most_common())


def course_chart(rollout: Rollout, course: Sequence[Bucket], events: Sequence[Happened]) -> dict[str, Any]:
    """Return how the devices of a rollout became more, as a chart; what happened to it are its marks."""
    return {
        "kind": "line",
        "unit": "",
        "x": {"type": "time", "values": [each.until_s for each in course]},
        "y": {"name": "devices", "min": 0},
        "series": [
            {
                "name": "offered",
                "values": [each.offered for each in course],
                "step": True,
                "area": True,
                "tone": "accent",
            },
            {"name": "failed on", "values": [each.failed for each in course], "step": True, "tone": "bad"},
        ],
        "marks": [{"at": each.at_s, "name": mark_of(rollout, each)} for each in events][:60],
        "empty": "No device was offered it yet.",
    }


def mark_of(rollout: Rollout, event: Happened) -> str:
    """Return what an event is called beside a line."""
    words = {"stopkeeping": "stopped", "rollback": "rolled back", "advance": "next step"}
    return words.get(event.event, event.event)


@dataclass(frozen=True, slots=True)
class Act:
    """Something an operator may do to a rollout.

    Args:
        path: The end of its path.
        button: What its button says.
        title: What it is, before the rollout's name.
        says: What happens then, a sentence each.
        typed: Whether the rollout's name is to be typed first.
    """

    path: str
    button: str
    title: str
    says: tuple[str, ...]
    typed: bool

    def event(self, reason: str) -> Event:
        """Return what happens to the rollout."""
        match self.path:
            case "start":
                return Start()
            case "pause":
                return Pause(reason)
            case "resume":
                return Resume()
            case "keep":
                return StopKeeping(reason)
            case _:
                return RollBack(reason)


START = Act(
    "start", "Start", "Start rollout", ("Its first step reaches devices when they next ask.",), typed=True
)
PAUSE = Act(
    "pause",
    "Pause",
    "Pause rollout",
    ("No further device is offered the candidate until somebody resumes it. Those that have it keep it.",),
    typed=False,
)
RESUME = Act(
    "resume",
    "Resume",
    "Resume rollout",
    (
        "It goes on with the step that it was in, which begins anew: its gates look at what is reported from now on.",
    ),
    typed=False,
)
KEEP = Act(
    "keep",
    "Stop, and let devices keep it",
    "Stop rollout",
    ("It ends. Devices with the candidate keep it, and no other device gets it.",),
    typed=True,
)
BACK = Act(
    "roll-back",
    "Roll back",
    "Roll back rollout",
    (
        "It ends. Devices with the candidate go back to the version before when they next ask.",
        "The candidate is withdrawn.",
    ),
    typed=True,
)
ACTS: Mapping[str, Act] = {each.path: each for each in (START, PAUSE, RESUME, KEEP, BACK)}
_POSSIBLE: Mapping[str, tuple[Act, ...]] = {
    "draft": (START,),
    "running": (PAUSE, KEEP, BACK),
    "paused": (RESUME, KEEP, BACK),
    "kept": (BACK,),
    "finished": (BACK,),
    "rolled-back": (),
}


def acts_of(rollout: Rollout) -> tuple[Act, ...]:
    """Return what may be done to a rollout now."""
    return _POSSIBLE[rollout.status]


def touched_by(act: Act, rollout: Rollout, reach: Reach, eligible: int) -> int:
    """Return how many devices something touches: by their number, which ones is drawn."""
    if act.path in ("keep", "roll-back"):
        return reach.offered - reach.failed
    step = step_of(rollout) or rollout.plan.steps[0]
    return max(0, round(eligible * step.percent / 100) - reach.offered)


def plan_words(plan: RolloutPlan) -> str:
    """Return the steps of a plan in a line: ``shadow 10 % → 1 % → 100 %``."""
    return " → ".join(f"{'shadow ' if step.shadow else ''}{step.percent:g} %" for step in plan.steps)

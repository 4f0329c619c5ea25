"""Which version of each model a device is offered when it asks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from umbel_proto.ids import DeviceId
from umbel_server.rollouts.assignment import place, reaches, stays
from umbel_server.rollouts.plan import Step
from umbel_server.rollouts.state import Running
from umbel_server.store.placements import Placements, Situation
from umbel_server.store.releases import Release, Releases
from umbel_server.store.rollouts import Rollout
from umbel_server.store.shadows import ASKED, FAILED, MAX_WHY, RUNNING, UNAVAILABLE


@dataclass(frozen=True, slots=True)
class Offer:
    """A release that a device is to have.

    Args:
        release: The release.
        back: Whether instead of a newer one that answers there.
        one_in: Of a shadow, of so many predictions one is put to it; None: it is to answer.
        within: Of a shadow that answers with numbers, how far they may be apart to agree.
    """

    release: Release
    back: bool = False
    one_in: int | None = None
    within: float = 0.0


@dataclass(frozen=True, slots=True)
class Said:
    """What a device says of candidates that it was asked to run beside what answers.

    Args:
        able: Whether it knows how to.
        shadows: Hash of each package that it was asked for, with why it does not run it; empty: it does.
    """

    able: bool = False
    shadows: Mapping[bytes, str] = field(default_factory=dict)


NOTHING_SAID = Said()


class Offers:
    """Chooses among the releases of a store.

    Args:
        releases: What is released, and signed.
        placements: What decides who gets what.
    """

    def __init__(self, releases: Releases, placements: Placements) -> None:
        self._releases = releases
        self._placements = placements

    def for_device(
        self,
        device: DeviceId,
        active: Mapping[str, int],
        failed: Collection[bytes],
        said: Said = NOTHING_SAID,
    ) -> tuple[Offer, ...]:
        """Return what a device is to have, by model, and to run beside it; and keep what it says of itself.

        Args:
            device: The device.
            active: By model, the version that answers on it.
            failed: Hashes of the packages that failed on it.
            said: What it says of its shadows.
        """
        models: dict[str, list[Release]] = {}
        for release in self._releases.all():
            models.setdefault(release.model, []).append(release)
        # What was never released here is nobody's business, and could be any number of names.
        active = {model: version for model, version in active.items() if model in models}
        situation = self._placements.situation(device)
        if any(situation.has.get(model) != version for model, version in active.items()):
            self._placements.has(device, active)
        chosen = (
            self._choose(device, model, releases, situation, active.get(model), failed)
            for model, releases in models.items()
        )
        offers = [offer for offer in chosen if offer is not None]
        beside = (
            self._beside(device, rollout, models.get(model, ()), situation, active.get(model), failed, said)
            for model, rollout in situation.live.items()
        )
        return tuple(offers + [offer for offer in beside if offer is not None])

    def state_facts(self, device: DeviceId, facts: str) -> None:
        """Keep what a device says it is now, JSON: what is offered goes by its class."""
        self._placements.state_facts(device, facts)

    def _beside(
        self,
        device: DeviceId,
        rollout: Rollout,
        releases: Collection[Release],
        situation: Situation,
        active: int | None,
        failed: Collection[bytes],
        said: Said,
    ) -> Offer | None:
        """Return what a device is to run beside what answers there, in a shadow step."""
        step = rollout.plan.steps[getattr(rollout.state, "step", 0)]
        candidate = next((each for each in releases if each.version == rollout.to_version), None)
        if not step.shadow or candidate is None or rollout.model in situation.pins:
            return None
        shadows = self._placements.shadows
        mine = shadows.of(rollout.id, device)
        if mine is None:
            # Agreement with another version than all others have says nothing of the candidate.
            if active != rollout.from_version or not self._is_reached(device, rollout, situation):
                return None
            if candidate.sha256 in failed or not shadows.ask(rollout, device):
                return None
            mine = shadows.of(rollout.id, device)
        state, why = _state(candidate.sha256, failed, said)
        if mine is not None and (mine.state, mine.why) != (state, why):
            shadows.told(rollout.id, device, state, why)
        if not said.able or candidate.sha256 in failed or active != rollout.from_version:
            return None
        return Offer(candidate, one_in=step.one_in, within=rollout.plan.within)

    def _is_reached(self, device: DeviceId, rollout: Rollout, situation: Situation) -> bool:
        if not isinstance(rollout.state, Running):
            return False
        steps = rollout.plan.steps[: rollout.state.step + 1]
        return reaches(steps, place(rollout.salt, device), situation.tags, self._class(device, steps))

    def _class(self, device: DeviceId, steps: Iterable[Step]) -> str:
        """Return a device's class, if any step asks for it."""
        return self._placements.class_of(device) if any(step.classes for step in steps) else ""

    def _choose(
        self,
        device: DeviceId,
        model: str,
        releases: list[Release],
        situation: Situation,
        active: int | None,
        failed: Collection[bytes],
    ) -> Offer | None:
        if (pinned := situation.pins.get(model)) is not None:
            release = _newest(releases, failed, up_to=pinned)
            return None if release is None else Offer(release, back=_is_lower(release, active))
        if model not in situation.baselines:
            release = _newest(releases, failed)
            return None if release is None else Offer(release)
        rollout = situation.live.get(model)
        if rollout is not None:
            candidate = next((each for each in releases if each.version == rollout.to_version), None)
            if candidate is not None and self._takes_part(device, rollout, candidate, situation, failed):
                return Offer(candidate)
        release = _newest(releases, failed, up_to=situation.baselines[model])
        if release is None:
            return None
        # One that has nothing left may have had a newer version, and then takes none below it without our word.
        withdrawn = (model, active) in situation.withdrawn
        return Offer(release, back=active is None or (withdrawn and release.version < active))

    def _takes_part(
        self,
        device: DeviceId,
        rollout: Rollout,
        candidate: Release,
        situation: Situation,
        failed: Collection[bytes],
    ) -> bool:
        admitted = rollout.id in situation.admitted
        if candidate.sha256 in failed:
            if admitted and not situation.admitted[rollout.id]:
                self._placements.failed(rollout.id, device)
            return False
        if admitted:
            return True
        if not isinstance(rollout.state, Running):
            return False
        steps = rollout.plan.answering(rollout.state.step)
        if not steps:
            return False
        where = place(rollout.salt, device)
        if stays(steps[-1], where, situation.tags):
            self._placements.keep(rollout, device)
            return False
        reached = reaches(steps, where, situation.tags, self._class(device, steps))
        return reached and self._placements.admit(rollout, device)


def _state(sha256: bytes, failed: Collection[bytes], said: Said) -> tuple[str, str]:
    if sha256 in failed:
        return FAILED, ""
    if not said.able:
        return UNAVAILABLE, "its umbel knows no shadows: update it"
    if sha256 not in said.shadows:
        return ASKED, ""
    # A device says it: no database and no screen is to stumble over it.
    why = "".join(filter(str.isprintable, said.shadows[sha256][:MAX_WHY]))
    return (UNAVAILABLE, why) if why else (RUNNING, "")


def _newest(
    releases: Iterable[Release], failed: Collection[bytes], *, up_to: int | None = None
) -> Release | None:
    fit = (
        release
        for release in releases
        if release.sha256 not in failed and (up_to is None or release.version <= up_to)
    )
    return max(fit, key=lambda release: release.version, default=None)


def _is_lower(release: Release, active: int | None) -> bool:
    return active is not None and release.version < active

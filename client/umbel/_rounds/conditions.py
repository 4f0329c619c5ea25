"""When a device trains: what its owner and its fleet demand, what holds now, and a sentence that says why not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, Literal

from umbel._data.consent import Consent, State
from umbel._home.directory import DeviceHome
from umbel._home.files import read_file
from umbel._rounds.probes import Probe, Reading, linux_probes, read_all
from umbel_proto.conditions import Rules, Unknown
from umbel_proto.errors import RefusedError, StorageError, UsageError

IDLE_LOAD = 0.5
"""A machine is idle while fewer programs than this want to compute, per core, over a minute."""

By = Literal["policy", "device", "user"]
"""Whose word it is: the fleet's policy, this device's own conditions, or what its user said of consent."""

_AGAINST = {
    ("policy",): "the fleet's policy",
    ("device",): "this device's conditions",
    ("policy", "device"): "the fleet's policy and this device's conditions",
}


class NotNowError(RefusedError):
    """The device does not take part now. To the server it is away: nothing is said."""

    def __init__(self) -> None:
        super().__init__("Not now.")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a device trains now.

    Args:
        trains: Whether it does when a round asks.
        reasons: Why not, each in a few words; empty if it does.
        reading: What is known of the machine.
        by: Who forbids it: ``policy``, the fleet's; ``device``, its own conditions; ``user``, who took consent back.
    """

    trains: bool
    reasons: tuple[str, ...]
    reading: Reading
    by: tuple[By, ...] = ()

    def __str__(self) -> str:
        if self.trains:
            return "This device trains whenever a round asks."
        return f"This device does not train now: {', and '.join(self.reasons)}."


class Conditions:
    """What must hold for training, on disk, and whether it does.

    The fleet's policy may demand something as well: of each demand the stricter one holds.

    Args:
        home: The device's files.
        probes: What finds out about the machine; by default what Linux tells.
    """

    def __init__(self, home: DeviceHome, *, probes: Sequence[Probe] | None = None) -> None:
        self._home = home
        self._probes = list(linux_probes() if probes is None else probes)

    def __repr__(self) -> str:
        return f"Conditions({str(self._home.path)!r})"

    def __str__(self) -> str:
        return self.said()

    def add_probe(self, probe: Probe) -> None:
        """Believe this probe before those that are there, for as long as this process lives.

        Args:
            probe: Is called without arguments, and says what it knows: a ``Reading``. It is quick. While it raises, or
                returns something else, the device does not train, and ``status`` says so.

        Raises:
            UsageError: It cannot be called.
        """
        if not callable(probe):
            raise UsageError(
                f"A {type(probe).__name__} is no probe: give what returns a Reading when it is called."
            )
        self._probes.append(probe)

    @property
    def rules(self) -> Rules:
        """What this device's owner demands.

        Raises:
            StorageError: The file is damaged.
        """
        return Rules(**self._held())

    @property
    def decided(self) -> frozenset[str]:
        """Which demands the owner has made or taken back; of the others nobody has said anything.

        Raises:
            StorageError: The file is damaged.
        """
        return frozenset(self._held())

    @property
    def policy(self) -> Rules:
        """What the fleet's policy demands of every device; nothing here takes it back.

        Raises:
            CertificateError: The policy on disk is not the fleet's: nobody knows.
        """
        return self._home.open_policy().training if self._home.enrolled else Rules()

    def require(
        self,
        *,
        idle: bool | None = None,
        charging: bool | None = None,
        unmetered: bool | None = None,
        min_battery: float | None = None,
        consent: bool | None = None,
        unknown: Unknown | None = None,
    ) -> Rules:
        """Demand something from now on; what is not given stays as it is. Returns all that is demanded.

        Args:
            idle: Only while fewer than 0.5 programs want to compute, per core, over a minute.
            charging: Only while it charges, is fed from outside, or has no battery.
            unmetered: Only while what is sent costs nothing.
            min_battery: How full the emptiest battery must be, in [0, 1].
            consent: Only where the user was asked, and said yes.
            unknown: What to do where a probe does not know: ``allow`` or ``refuse``.

        Raises:
            UsageError: A value is out of range.
            StorageError: The disk is full, or the file damaged.
        """
        battery: object = min_battery  # A number of any kind, such as numpy's; truth is none.
        if not isinstance(battery, bool) and isinstance(battery, Real):
            battery = float(battery)
        given = {
            "idle": idle,
            "charging": charging,
            "unmetered": unmetered,
            "min_battery": battery,
            "consent": consent,
            "unknown": unknown,
        }
        held = self._held() | {name: value for name, value in given.items() if value is not None}
        rules = _rules(held)
        self._home.write(self._home.conditions, json.dumps(held, indent=2).encode() + b"\n", secret=False)
        return rules

    def now(self) -> Verdict:
        """Return whether the device trains now, and why not.

        Raises:
            StorageError: The consent or the rules on disk are damaged: nobody knows.
            CertificateError: The policy on disk is not the fleet's: nobody knows.
        """
        own, policy, (reading, failed) = self.rules, self.policy, read_all(self._probes)
        consent = Consent(self._home).decision().state
        asked = own.stricter(policy)

        def broken(rules: Rules) -> dict[str, str]:
            return _broken(replace(rules, unknown=asked.unknown), reading, consent)

        of: dict[By, dict[str, str]] = {"policy": broken(policy), "device": broken(own)}
        reasons, by = [], set[By]()
        for demand, why in broken(asked).items():
            whose = tuple(name for name, each in of.items() if demand in each)
            reasons.append(f"{why} (against {_AGAINST[whose]})")
            by.update(whose)
        if failed:  # What it would have said may forbid it.
            reasons += failed
            by.add("device")
        if consent == "revoked":
            reasons.insert(0, "the user took back consent to training")
            by.add("user")
        return Verdict(not reasons, tuple(reasons), reading, tuple(sorted(by)))

    def said(self, verdict: Verdict | None = None) -> str:
        """Return in words whether the device trains now.

        Args:
            verdict: What ``now`` returned, if it was asked already.

        Raises:
            StorageError, CertificateError: As of ``now``.
        """
        verdict = verdict or self.now()
        # `umbel run` demands consent when it first starts without a file: one that runs and has not has a file.
        nobody_said = "consent" not in self.decided and not self._home.agent_runs()
        if verdict.trains and nobody_said and Consent(self._home).decision().state == "unasked":
            return (
                "This device trains once  umbel run  has a file to train on, or its user was asked and said yes:  "
                f"umbel data consent --grant --home {self._home.path}"
            )
        return str(verdict)

    def check(self) -> None:
        """Go on only if the device trains now.

        Raises:
            NotNowError: It does not.
            StorageError: Nobody knows.
        """
        if not self.now().trains:
            raise NotNowError

    def _held(self) -> dict[str, Any]:
        """Return what is on disk, by the names of the rules.

        Raises:
            StorageError: The file is damaged.
        """
        file = self._home.conditions
        if not file.exists():
            return {}
        try:
            held: dict[str, Any] = json.loads(read_file(file))
            _rules(held)
        except (ValueError, TypeError, AttributeError, UsageError) as exc:
            raise StorageError(
                f"{file} is damaged: delete it, and set the conditions again with  umbel data conditions"
            ) from exc
        return held


def _rules(held: dict[str, Any]) -> Rules:
    """Return rules by their names, each of its kind.

    Raises:
        UsageError: A value is of another kind, or out of range.
        TypeError: There is no such rule.
    """
    kinds = {each.name: type(each.default) for each in fields(Rules)}
    for name, value in held.items():
        if name in kinds and type(value) is not kinds[name]:
            raise UsageError(f"The condition {name} is {value!r}: give a {kinds[name].__name__}.")
    return Rules(**held)


def _broken(rules: Rules, reading: Reading, consent: State) -> dict[str, str]:
    """Return which demands do not hold, and why, in a few words each."""
    unknown = rules.unknown == "refuse"
    reasons = {}
    if rules.consent and consent == "unasked":
        reasons["consent"] = "the user was not asked for consent to training"
    if rules.idle and reading.load is None and unknown:
        reasons["idle"] = "nobody knows how busy it is"
    elif rules.idle and reading.load is not None and reading.load >= IDLE_LOAD:
        reasons["idle"] = f"it is busy (load {reading.load:.2f} a core; idle is below {IDLE_LOAD:g})"
    if rules.charging and (reading.charging is False or (reading.charging is None and unknown)):
        reasons["charging"] = (
            "nobody knows whether it charges" if reading.charging is None else "it runs on its battery"
        )
    if rules.min_battery and reading.battery is None and unknown:
        reasons["min_battery"] = "nobody knows how full its battery is"
    elif rules.min_battery and reading.battery is not None and reading.battery < rules.min_battery:
        reasons["min_battery"] = f"its battery is at {reading.battery:.0%}, below {rules.min_battery:.0%}"
    if rules.unmetered and (reading.metered or (reading.metered is None and unknown)):
        reasons["unmetered"] = (
            "nobody knows whether its network is metered"
            if reading.metered is None
            else "its network is metered"
        )
    return reasons

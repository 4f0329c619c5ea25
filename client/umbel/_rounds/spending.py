"""What a device has spent of its two privacy budgets, charge by charge, for whoever wants to look.

Source: docs/spec/privacy.md, "Ledger" and "Example-level privacy".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from umbel._home.directory import DeviceHome
from umbel._rounds.ledger import Ledger
from umbel_proto.privacy import examples, ledger
from umbel_proto.privacy.examples import ExampleCharge
from umbel_proto.privacy.ledger import Charge


@dataclass(frozen=True, slots=True)
class Spending:
    """What the ledger says, against the fleet's policy.

    Args:
        delta: The delta of every epsilon here.
        budget: Epsilon that the device may spend over its life.
        charges: What rounds cost the device, oldest first, each with the epsilon after it.
        example_budget: Epsilon that may be spent on any one of its examples.
        trainings: What trainings cost an example, oldest first, each with the epsilon after it.
        unprotected: Rounds whose update was trained without example-level privacy.
    """

    delta: float
    budget: float
    charges: tuple[tuple[Charge, float], ...]
    example_budget: float
    trainings: tuple[tuple[ExampleCharge, float], ...]
    unprotected: int

    @property
    def epsilon(self) -> float:
        """Epsilon that the device has spent."""
        return self.charges[-1][1] if self.charges else 0.0

    @property
    def example_epsilon(self) -> float:
        """Epsilon that was spent on any one example; infinite if a round was not protected."""
        if self.unprotected:
            return math.inf
        return self.trainings[-1][1] if self.trainings else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as ``umbel privacy --json`` prints it."""
        return {
            "epsilon": self.epsilon,
            "budget": {"epsilon": self.budget, "delta": self.delta},
            "charges": [
                {**_session(charge), "noise_multiplier": noise_multiplier(charge), "epsilon_after": after}
                for charge, after in self.charges
            ],
            "examples": {
                "epsilon": self.example_epsilon,
                "budget": {"epsilon": self.example_budget, "delta": self.delta},
                "unprotected_rounds": self.unprotected,
                "charges": [
                    {
                        **_session(training),
                        "sampling_rate": training.release.rate,
                        "steps": training.release.steps,
                        "noise_multiplier": training.release.noise,
                        "epsilon_after": after,
                    }
                    for training, after in self.trainings
                ],
            },
        }


def spending(home: DeviceHome) -> Spending:
    """Return what a device has spent.

    Raises:
        StorageError: The ledger is missing or damaged.
    """
    policy = home.open_policy()
    with Ledger(home.ledger) as book:
        charges, trainings = book.charges(), book.trainings()
    delta = policy.budget_delta
    return Spending(
        delta=delta,
        budget=policy.budget_epsilon,
        charges=tuple(zip(charges, ledger.course(charges, delta), strict=True)),
        example_budget=policy.example_budget_epsilon,
        trainings=tuple(zip(trainings, examples.course(trainings, delta), strict=True)),
        unprotected=examples.unprotected((charge.sid for charge in charges), trainings),
    )


def noise_multiplier(charge: Charge) -> float:
    """Return the noise of a round's sum over the length of the device's part in it."""
    return math.sqrt(charge.variance / charge.bound_sq)


def _session(charge: Charge | ExampleCharge) -> dict[str, Any]:
    return {
        "at_s": charge.at_s,
        "run": charge.run,
        "round": charge.round,
        "attempt": charge.attempt,
        "session": charge.sid.hex(),
    }

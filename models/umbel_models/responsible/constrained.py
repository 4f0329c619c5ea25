"""Training under equalized odds: both kinds of error as frequent in every cohort, within a slack.

Source: Agarwal, Beygelzimer, Dudík, Langford, Wallach, "A Reductions Approach to Fair Classification",
ICML 2018 (arXiv:1803.02453v3): algorithm 1, with the constraints of example 2 and the costs of section 3.2.
The paper draws one of its classifiers at random for each decision. A package holds one set of parameters, and
people who are decided on deserve the same answer twice: the best of them is kept, and measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from umbel_models.fit import Loss, Network, fit, predict
from umbel_models.responsible.fairness import cohorts, gaps
from umbel_models.responsible.figures import Labels
from umbel_models.task import Examples
from umbel_proto.errors import UsageError

Member = TypeVar("Member")
Learn = Callable[[Labels, NDArray[np.float64]], Member]

# The most that gaps of 1 may cost, in shares of examples decided wrongly, and how fast prices move. The
# paper's theory takes a bound of 1 / slack and thousands of rounds; these reach the slack in about 20, where
# greater ones make every second member give everybody the same label.
PRICE_BOUND = 2.0
PRICE_RATE = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Reduced(Generic[Member]):
    """What training under a constraint gives.

    Args:
        members: One classifier a round.
        errors: The share each decides wrongly on the training data, shape (rounds,).
        gaps: The equalized odds gap of each there, shape (rounds,).
        best: The number of the one to ship: with the fewest errors among those within the slack, or with the
            least gap if none is.
    """

    members: tuple[Member, ...]
    errors: NDArray[np.float64]
    gaps: NDArray[np.float64]
    best: int

    @property
    def single(self) -> Member:
        """The member to ship."""
        return self.members[self.best]


def constrained(
    module: Network,
    loss: Loss,
    examples: Examples,
    *,
    slack: float = 0.05,
    rounds: int = 20,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: Callable[[int], object] | None = None,
) -> Reduced[Network]:
    """Train a module in rounds, on labels and weights that price the gap between cohorts.

    Args:
        module: Maps x to two logits. Every round starts from it: give one that is trained plainly, and an epoch
            or two a round are enough; one that learns too little in a round never finds the prices.
        loss: Maps logits and labels to one loss per example.
        examples: What to learn from, with cohorts; the module never sees them.
        slack: The difference of each cohort's rates from everyone's to be reached, in (0, 1).
        rounds: How many times to train.
        epochs: Of each round.
        batch_size: Examples in a step.
        learning_rate: Of the first step of each round.
        seed: Order of the examples.
        progress: Told the number of each round done, from 1.

    Raises:
        UsageError: There are more than two labels, or a cohort lacks one of them.
    """
    done = 0

    def learn(y: Labels, weights: NDArray[np.float64]) -> Network:
        nonlocal done
        trained = fit(
            module,
            loss,
            examples._replace(y=y),
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            weights=weights,
        )
        done += 1
        if progress is not None:
            progress(done)
        return trained

    def decide(member: nn.Module) -> Labels:
        decisions: Labels = predict(member, examples.x).argmax(1)
        return decisions

    return reduce_odds(learn, decide, examples.y, cohorts(examples), slack=slack, rounds=rounds)


def reduce_odds(
    learn: Learn[Member],
    decide: Callable[[Member], Labels],
    y: Labels,
    cohort: Labels,
    *,
    slack: float,
    rounds: int,
) -> Reduced[Member]:
    """Reduce equalized odds to weighted classification, and play the two against each other.

    Args:
        learn: Trains a classifier on labels, shape (n,), and weights, shape (n,).
        decide: The labels it gives the training inputs, shape (n,).
        y: True labels, 0 or 1, shape (n,).
        cohort: Cohort of each example, shape (n,).
        slack: As in ``constrained``.
        rounds: As in ``constrained``.
    """
    if not 0 < slack < 1 or rounds < 1:
        raise UsageError("Constrained training takes a slack between 0 and 1 and at least one round.")
    moments = _moments(y, cohort)
    log_prices = np.zeros((2, len(moments)))
    members, decisions = [], []
    for _ in range(rounds):
        raised = np.exp(log_prices)
        prices = PRICE_BOUND * raised / (1 + raised.sum())
        # What deciding 1 rather than 0 saves for each example.
        saved = (2 * y - 1) / len(y) - (prices[0] - prices[1]) @ moments
        members.append(learn((saved > 0).astype(np.int64), np.abs(saved)))
        decisions.append(decide(members[-1]))
        violation = moments @ decisions[-1]
        log_prices += PRICE_RATE * (np.stack([violation, -violation]) - slack)
    errors = np.array([(decided != y).mean() for decided in decisions])
    odds = np.array([gaps(decided, y, cohort).odds for decided in decisions])
    within = odds <= slack
    best = int(np.where(within, errors, np.inf).argmin() if within.any() else odds.argmin())
    return Reduced(tuple(members), errors, odds, best)


def _moments(y: Labels, cohort: Labels) -> NDArray[np.float64]:
    # A row for each cohort and label: times the decisions, it gives the cohort's rate minus everyone's.
    if not np.isin(y, (0, 1)).all():
        raise UsageError("Equalized odds are trained for two labels, 0 and 1: reweigh for more.")
    rows = []
    for label in (0, 1):
        everyone = y == label
        for group in np.unique(cohort):
            these = everyone & (cohort == group)
            if not these.any():
                raise UsageError(
                    f"Cohort {group} holds no example of label {label}: collect some, or join cohorts."
                )
            rows.append(these / these.sum() - everyone / everyone.sum())
    return np.array(rows)

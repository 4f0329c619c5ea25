"""Are there as many devices in each arm as the draw makes? If not, something but the version tells them apart.

Source:
    Fabijan et al., "Diagnosing Sample Ratio Mismatch in Online Controlled Experiments", KDD 2019 (why a mismatch
    voids whatever was measured); Lindon, Malek, "Anytime-Valid Inference For Multinomial Count Data", NeurIPS 2022,
    arXiv:2011.03567, section 3 (the test that may be looked at all the time).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LEVEL = 0.001
"""Chance that a draw that is all right is ever called a mismatch: that of Fabijan et al. for one look."""
_SPREADS = (2.0, 10.0, 100.0, 1_000.0, 10_000.0)
"""How near the drawn share others are expected, as counts of devices: a mismatch may be coarse or fine."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """The devices of both arms against the draw.

    Args:
        treatment: Devices of the treatment that are compared.
        control: Those of the control.
        share: The share of the treatment by the draw, in (0, 1).
        chance: Of a chi-square test at this look alone; what people know, and wrong of many looks.
        chance_ever: The least chance that the counts had of looking so uneven at any look so far.
    """

    treatment: int
    control: int
    share: float
    chance: float
    chance_ever: float

    @property
    def mismatch(self) -> bool:
        """Whether the arms cannot be what was drawn."""
        return self.chance_ever < LEVEL


def ratio_of(treatment: int, control: int, *, share: float) -> Ratio:
    """Hold counts of devices against the draw.

    Args:
        treatment: Devices of the treatment.
        control: Devices of the control.
        share: The share of the treatment by the draw, in (0, 1).
    """
    n = treatment + control
    if not n:
        return Ratio(0, 0, share, 1.0, 1.0)
    off = treatment - n * share
    chi_square = off**2 / (n * share * (1 - share))
    # One degree of freedom: the square of a normal.
    chance = math.erfc(math.sqrt(chi_square / 2))
    return Ratio(treatment, control, share, chance, min(1.0, math.exp(-_evidence(treatment, control, share))))


def _evidence(hits: int, misses: int, share: float) -> float:
    """Return the logarithm of the evidence against the share: it ever exceeds ``log(1/e)`` with chance e at most.

    A mean of ratios of likelihoods, of beta mixtures around the share. By Ville's inequality, for each of them is a
    martingale of mean 1 while devices arrive one by one.
    """
    logs = [
        _log_beta(spread * share + hits, spread * (1 - share) + misses)
        - _log_beta(spread * share, spread * (1 - share))
        - hits * math.log(share)
        - misses * math.log1p(-share)
        for spread in _SPREADS
    ]
    top = max(logs)
    return top + math.log(sum(math.exp(each - top) for each in logs) / len(logs))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

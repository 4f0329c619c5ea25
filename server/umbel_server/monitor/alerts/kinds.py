"""The figures that rules can look at: which there are, what they mean, and what a rule must say of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Of = Literal["fleet", "model", "candidate"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A figure.

    Args:
        of: What it is of: the fleet, a model in use, or a rollout's candidate.
        means: What a rule's threshold is, in a few words.
        threshold: What it is where a rule says nothing; None: the rule must.
        every_s: How often it is looked at where a rule says nothing, seconds.
        below: Whether less than the threshold is what alerts; otherwise it is more.
        least: The least threshold that makes sense.
        most: The greatest.
    """

    of: Of
    means: str
    threshold: float | None
    every_s: float = 60.0
    below: bool = False
    least: float = 0.0
    most: float = 1.0


_ANY = 1e12
_QUARTER_S = 900.0

KINDS: Mapping[str, Kind] = {
    "devices_offline": Kind("fleet", "share of the devices not heard of for a day", 0.10),
    "devices_stale": Kind("fleet", "share of the devices not heard of for two minutes", 0.50),
    "device_certificates": Kind("fleet", "share of the devices whose certificate has ended", 0.01),
    "opener_lag": Kind("fleet", "seconds that a sealed batch has waited for the opener", 600.0, most=_ANY),
    "rejected_batches": Kind("fleet", "share of the batches of the window that the opener refused", 0.01),
    "expiry": Kind(
        "fleet",
        "days until a certificate or signed metadata of the service ends",
        None,
        below=True,
        least=0.001,
        most=3650,
    ),
    "privacy_budget": Kind(
        "fleet", "share of its budget that the device has spent that spent most", 0.80, every_s=_QUARTER_S
    ),
    "drift": Kind("model", "share of values that must have moved", 0.05, every_s=_QUARTER_S),
    "estimated_accuracy": Kind(
        "model", "how far confidences promise less than when it was made, as 0.05", 0.05, every_s=_QUARTER_S
    ),
    "realized_accuracy": Kind(
        "model", "how much less often labels agree than in the time before, as 0.05", 0.05, every_s=_QUARTER_S
    ),
    "fairness_gap": Kind("model", "gap between a cohort and the others, as 0.05", 0.05, every_s=_QUARTER_S),
    "error_rate": Kind("model", "share of inputs that were refused or failed", 0.05),
    "latency_ms": Kind("model", "milliseconds that the percentile of latencies is at most", None, most=_ANY),
    "crash_loops": Kind("model", "devices on which the version failed and that fell back", 0, most=_ANY),
    "review_queue": Kind("model", "predictions of the window that wait for a person", 100, most=_ANY),
    "new_labels": Kind(
        "model", "labels that devices gained since the model's last run began", None, least=1, most=_ANY
    ),
    "candidate_latency": Kind("candidate", "how much slower than the version before, as a share", 0.10),
    "candidate_errors": Kind("candidate", "how many more inputs fail, as a share of all", 0.02),
    "candidate_estimated_accuracy": Kind(
        "candidate", "how far confidences promise less than of the version before, as 0.02", 0.02
    ),
    "candidate_realized_accuracy": Kind(
        "candidate", "how much less often labels agree than with the version before, as 0.02", 0.02
    ),
    "candidate_agreement": Kind(
        "candidate", "share of answers other than the active version's, in a shadow step", 0.05
    ),
}
"""Calibrated ones alert where the figure is surely beyond the threshold: drift, accuracies, gaps, rates, candidates."""

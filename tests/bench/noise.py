"""What noise in shares costs: the variance of the mean's error against a trusted server's normal noise.

Ours is measured: every device's update is encoded with fresh noise, the words are added mod 2**64 and decoded,
and the error is taken against the mean of the clipped updates. All devices' noise counts (n_eff = n), and the
planner chooses layout and scale. "planned" compares it to the plan's own prediction; "central" to the noise that
a trusted server would add, calibrated by dp_accounting through Rényi divergences, at its own orders. The last
rows say what Rényi accounting costs by itself, whoever adds the noise: that noise against the exact one for
equal rounds (Balle & Wang 2018).

A sample variance over d errors is off by sqrt(2 / d) as a standard deviation: 0.45 % at d = 1e5.
"""

from __future__ import annotations

import dp_accounting
import numpy as np
from dp_accounting.rdp import RdpAccountant
from harness import Report

from umbel_proto.privacy.encode import decode, encode
from umbel_proto.privacy.plan import Plan, plan

DELTA, PARTICIPATIONS = 1e-6, 10
CASES = (
    (100, 100_000, 1.0),
    (100, 100_000, 4.0),
    (100, 100_000, 8.0),
    (1000, 100_000, 8.0),
    (100, 1_000_000, 1.0),
    (100, 1_000_000, 4.0),
    (100, 1_000_000, 8.0),
    (1000, 1_000_000, 4.0),
)


def planned(devices: int, dim: int, epsilon: float) -> Plan:
    return plan(
        dim=dim,
        clip=1.0,
        devices=devices,
        honest=devices,
        participations=PARTICIPATIONS,
        delta=DELTA,
        epsilon=epsilon,
    )


def measured(made: Plan) -> float:
    """Return the variance of a coordinate of the sum, squared model units."""
    encoding, seed = made.encoding, bytes(32)
    chance = np.random.default_rng(made.devices)
    total = np.zeros(encoding.words, np.uint64)
    exact = np.zeros(encoding.dim)
    # Four updates, each on a quarter of the devices: drawing one for each would take longer than encoding it.
    updates = [chance.standard_normal(encoding.dim).astype(np.float32) for _ in range(4)]
    norms = [float(np.linalg.norm(update.astype(np.float64))) for update in updates]
    for device in range(made.devices):
        update, norm = updates[device % 4], norms[device % 4]
        total += encode(update, encoding, rotation_seed=seed).words
        exact += update * (encoding.clip / norm)
    mean = decode(total, encoding, count=made.devices, rotation_seed=seed)
    return float(np.mean((mean * made.devices - exact) ** 2))


def central(epsilon: float) -> float:
    """Return the variance of a trusted server's noise on the sum, for a clip of 1."""

    def event(multiplier: float) -> dp_accounting.DpEvent:
        return dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(multiplier), PARTICIPATIONS)

    bracket = dp_accounting.ExplicitBracketInterval(0.1, 1000.0)
    multiplier: float = dp_accounting.calibrate_dp_mechanism(
        RdpAccountant, event, epsilon, DELTA, bracket_interval=bracket, tol=1e-6
    )
    return multiplier**2


def main() -> None:
    report = Report("noise")
    for devices, dim, epsilon in CASES:
        made = planned(devices, dim, epsilon)
        name = f"n {devices}, d {dim:.0e}, eps {epsilon:g}, {made.encoding.bits} bits"
        variance = measured(made)
        report.ratio(f"{name}: planned", variance, (made.error * devices) ** 2, unit="C^2", at_most=1.03)
        report.ratio(f"{name}: central", variance, central(epsilon), unit="C^2", at_most=1.03)
    for epsilon in sorted({case[2] for case in CASES}):
        exact = PARTICIPATIONS * dp_accounting.get_sigma_gaussian(epsilon, DELTA) ** 2
        report.ratio(f"eps {epsilon:g}: central, exact accounting", central(epsilon), exact, unit="C^2")
    report.finish()


if __name__ == "__main__":
    main()

"""Law: noise that devices add in shares costs at most 3 % more variance than a trusted server's would: a normal
noise at the same epsilon, delta and participations, calibrated with dp_accounting. All devices' noise counts
(n_eff = n), and the planner chooses the layout.

Computed, not drawn: nothing here is random. It holds where docs/explanation/privacy-audit.md says so:
d z**2 / n up to 2.8e7. Beyond, the sampler's largest variance keeps the grid so coarse that rounding shows.
"""

from __future__ import annotations

import functools
import itertools

import dp_accounting
import pytest
from dp_accounting.rdp import RdpAccountant

from umbel_proto.errors import UsageError
from umbel_proto.privacy.accounting import SKELLAM_ORDERS
from umbel_proto.privacy.plan import Plan, plan

DELTA = 1e-6
DEVICES = (100, 300, 1000, 10_000)
DIMS = (10**4, 10**5, 10**6, 10**7)
BUDGETS = tuple(itertools.product((1.0, 2.0, 4.0, 8.0), (1, 10, 100)))
FINE = 2.8e7


@functools.cache
def central_noise(epsilon: float, participations: int, *, our_orders: bool) -> float:
    """Return the noise multiplier of a normal noise that keeps to ``epsilon``, by dp_accounting's RDP."""

    def event(multiplier: float) -> dp_accounting.DpEvent:
        return dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(multiplier), participations)

    def accountant() -> RdpAccountant:
        return RdpAccountant(orders=SKELLAM_ORDERS.tolist()) if our_orders else RdpAccountant()

    bracket = dp_accounting.ExplicitBracketInterval(0.1, 1000.0)
    return float(
        dp_accounting.calibrate_dp_mechanism(
            accountant, event, epsilon, DELTA, bracket_interval=bracket, tol=1e-6
        )
    )


def planned(dim: int, devices: int, epsilon: float, participations: int) -> Plan:
    made = plan(
        dim=dim,
        clip=1.0,
        devices=devices,
        honest=devices,
        participations=participations,
        delta=DELTA,
        epsilon=epsilon,
    )
    assert made.epsilon_server <= epsilon
    return made


def cost(made: Plan, multiplier: float) -> float:
    """Return the variance of the mean as planned, worst-case wraps and rounding included, over the central one."""
    return (made.error * made.devices / multiplier) ** 2


def in_reach(dim: int, devices: int, multiplier: float) -> bool:
    return dim * multiplier**2 / devices <= FINE


@pytest.mark.parametrize(("epsilon", "participations"), BUDGETS)
def test_distributed_noise_costs_three_percent_more_than_central_noise(
    epsilon: float, participations: int
) -> None:
    same_orders = central_noise(epsilon, participations, our_orders=True)
    finest = central_noise(epsilon, participations, our_orders=False)
    seen = 0
    for devices, dim in itertools.product(DEVICES, DIMS):
        if in_reach(dim, devices, same_orders):
            made = planned(dim, devices, epsilon, participations)
            assert cost(made, same_orders) <= 1.03
            # dp_accounting's own orders lie closer together than ours.
            assert cost(made, finest) <= 1.03 * 1.001
            seen += 1
    assert seen >= 4


def test_a_hundred_devices_of_ten_million_parameters_are_in_reach_for_ten_rounds() -> None:
    assert in_reach(10**7, 100, central_noise(1.0, 10, our_orders=True))
    assert in_reach(10**7, 1000, central_noise(1.0, 100, our_orders=True))


@pytest.mark.parametrize(
    ("dim", "devices", "epsilon", "participations", "at_least"),
    [(10**7, 100, 1.0, 100, 1.2), (10**7, 300, 1.0, 100, 1.05), (10**7, 100, 2.0, 100, 1.05)],
)
def test_out_of_reach_it_costs_what_the_coarse_grid_costs_and_the_plan_says_so(
    dim: int, devices: int, epsilon: float, participations: int, at_least: float
) -> None:
    multiplier = central_noise(epsilon, participations, our_orders=True)
    assert not in_reach(dim, devices, multiplier)
    made = planned(dim, devices, epsilon, participations)
    assert cost(made, multiplier) > at_least
    assert made.inflation == pytest.approx(cost(made, multiplier), rel=0.01)


def test_far_out_of_reach_the_plan_is_refused() -> None:
    with pytest.raises(UsageError, match="No slot layout carries this noise"):
        planned(10**8, 10, 1.0, 100)

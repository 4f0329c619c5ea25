"""A fleet may bound what is spent on one example; a fleet that does not is as it was."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from umbel_proto.credentials import FleetPolicy, open_policy, sign_policy
from umbel_proto.errors import UsageError
from umbel_proto.ids import FleetId
from umbel_proto.keys import SigningKey
from umbel_proto.wire import identity_pb2 as pb
from umbel_server.cli import fleet
from umbel_server.fleet.layout import FleetDir

FLEET = FleetId("f")
POLICY = FleetPolicy(FLEET, 0.1, 0.2, True, 16, 0.5, 8.0, 1e-6)


def test_a_budget_for_examples_is_signed_with_the_policy() -> None:
    key = SigningKey.generate()
    for policy in (POLICY, replace(POLICY, example_budget_epsilon=3.5)):
        assert open_policy(sign_policy(key, policy), authority=key.public, fleet=FLEET) == policy


def test_without_one_the_policys_bytes_are_those_of_before() -> None:
    body = pb.Signed.FromString(sign_policy(SigningKey.generate(), POLICY)).body
    before = pb.Policy(
        fleet_id=FLEET, corrupt_fraction=0.1, dropout_fraction=0.2, server_malicious=True, min_cohort=16,
        noise_floor=0.5, budget_epsilon=8.0, budget_delta=1e-6, version=1,
    )  # fmt: skip
    assert body == before.SerializeToString(deterministic=True)


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan])
def test_a_budget_that_is_none_is_refused(budget: float) -> None:
    with pytest.raises(UsageError, match="example_budget_epsilon"):
        replace(POLICY, example_budget_epsilon=budget)


@pytest.mark.parametrize(("option", "budget"), [((), math.inf), (("--example-budget-epsilon", "2.5"), 2.5)])
def test_the_operator_sets_it_when_the_fleet_is_made(
    tmp_path: Path, option: tuple[str, ...], budget: float
) -> None:
    where = tmp_path / "fleet"
    done = CliRunner().invoke(fleet, ["create", "--fleet", str(where), "--name", "f", *option])
    assert done.exit_code == 0, done.output
    assert FleetDir.open(where).policy().example_budget_epsilon == budget

"""The breast cancer task: scikit-learn's data, split so that nothing is counted twice."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer

from umbel_models.federated import MIN_SHARD, by_label
from umbel_models.task import Examples
from umbel_models.tasks.breast_cancer.data import RANGES, load, split
from umbel_models.tasks.breast_cancer.task import BREAST_CANCER
from umbel_proto.errors import UsageError


def rows(examples: Examples) -> list[bytes]:
    return [x.tobytes() + bytes([y]) for x, y in zip(*examples[:2], strict=True)]


def test_the_three_parts_hold_every_mass_once() -> None:
    parts = split()
    assert [len(part.y) for part in parts] == [377, 142, 50]
    together = [row for part in parts for row in rows(part)]
    assert sorted(together) == sorted(rows(load()))
    assert len(set(together)) == 569


def test_every_part_holds_the_classes_in_proportion() -> None:
    whole = load_breast_cancer().target.mean()
    for part in split():
        assert part.y.mean() == pytest.approx(whole, abs=1 / len(part.y))


def test_the_seed_says_which_mass_goes_where() -> None:
    assert rows(split(1).held_out) == rows(split(1).held_out)
    assert rows(split(1).held_out) != rows(split(2).held_out)


def test_ranges_are_those_of_the_datas_documentation() -> None:
    bunch = load_breast_cancer()
    table = re.findall(r"^[a-z ]+ \((?:mean|standard error|worst)\): +([\d.]+) +([\d.]+)$", bunch.DESCR, re.M)
    assert [(float(low), float(high)) for low, high in table] == list(RANGES.values())
    assert [str(name) for name in bunch.feature_names] == list(RANGES)
    assert [str(name) for name in bunch.target_names] == list(BREAST_CANCER.labels)


def test_every_mass_keeps_the_contract_and_fills_the_networks_range() -> None:
    x, _ = BREAST_CANCER.contract.check(load().x)
    module = BREAST_CANCER.module()
    scaled = (torch.from_numpy(x) - module.middle) * module.scale
    # The documentation rounds to three places, which is much for the smallest column.
    np.testing.assert_allclose(scaled.min(0).values, -1, atol=0.05)
    np.testing.assert_allclose(scaled.max(0).values, 1, atol=0.05)


def test_a_dirichlet_split_gives_every_device_enough() -> None:
    parts = by_label(split().train, 6, alpha=0.5, seed=1)
    assert sorted(row for part in parts for row in rows(part)) == sorted(rows(split().train))
    assert min(len(part.y) for part in parts) >= MIN_SHARD
    shares = [float(part.y.mean()) for part in parts]
    assert max(shares) - min(shares) > 0.3


def test_a_mass_measured_in_another_unit_is_refused_and_an_unusual_one_is_not() -> None:
    mass = load().x[0].copy()
    radius = list(RANGES).index("mean radius")
    mass[radius] = 33.0  # of up to 28.11
    BREAST_CANCER.contract.check(mass)
    mass[radius] = 180.0  # micrometres taken for something ten times as small
    with pytest.raises(UsageError, match=r"column 'mean-radius'.* 1 above"):
        BREAST_CANCER.contract.check(mass)

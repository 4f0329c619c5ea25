"""The digits task: real data, split and shared so that nothing is counted twice."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from model_packages import RELEASE, digits, first, opened, release, training
from umbel_models.pack import GOLDEN_INPUTS, build, repack
from umbel_models.task import Examples, find
from umbel_models.tasks.digits.data import load, split
from umbel_models.tasks.digits.task import DIGITS
from umbel_proto.errors import UsageError
from umbel_proto.package import GOLDEN


def rows(examples: Examples) -> list[bytes]:
    return [x.tobytes() + bytes([y]) for x, y in zip(*examples[:2], strict=True)]


def test_the_digits_are_those_that_scikit_learn_gives() -> None:
    """It is not asked for them, as its import is long: should it move their file, this says so."""
    theirs = load_digits()
    np.testing.assert_array_equal(load().x, theirs.images[:, np.newaxis])
    np.testing.assert_array_equal(load().y, theirs.target)


def test_the_three_parts_hold_every_digit_once() -> None:
    parts = split()
    assert [len(part.y) for part in parts] == [1338, 359, 100]
    together = [row for part in parts for row in rows(part)]
    assert sorted(together) == sorted(rows(load()))


def test_every_part_holds_the_classes_in_proportion() -> None:
    for part in split():
        share = np.bincount(part.y, minlength=10) / len(part.y)
        assert share.min() > 0.08
        assert share.max() < 0.12


def test_the_seed_says_which_digit_goes_where() -> None:
    assert rows(split(1).held_out) == rows(split(1).held_out)
    assert rows(split(1).held_out) != rows(split(2).held_out)


def test_every_digit_keeps_the_contract() -> None:
    DIGITS.contract.check(load().x)
    assert load().x.max() == DIGITS.contract.fields[0].maximum


def test_a_task_that_does_not_exist_is_named() -> None:
    assert find("digits") is DIGITS
    with pytest.raises(UsageError, match=r"no task 'letters': choose one of .*digits"):
        find("letters")


def test_building_twice_gives_the_same_package() -> None:
    assert build(DIGITS, key=RELEASE) == first()


def test_the_next_version_keeps_the_graphs_and_tells_its_lineage() -> None:
    base, after = opened(first()), opened(release(2))
    assert after.file("grad.onnx") == base.file("grad.onnx")
    np.testing.assert_array_equal(after.parameters(), training().parameters)
    assert after.manifest.lineage == {"run": "test", "base_sha256": base.sha256, "base_version": 1}


def test_golden_inputs_show_every_label_surely() -> None:
    package = opened(release(2))
    golden = package.tensors(GOLDEN)
    assert len(golden["x"]) == GOLDEN_INPUTS
    for variant in package.manifest.variants:
        best = np.sort(golden[f"{variant}.probabilities"], axis=1)
        # Within tolerance of these margins, no label can change.
        assert (best[:, -1] - best[:, -2]).min() > 2 * package.manifest.variants[variant].tolerance
    assert set(golden["fp32.logits"].argmax(1)) == set(range(10))


def test_a_version_that_is_not_newer_is_refused() -> None:
    with pytest.raises(UsageError, match="Version 1 is not newer than 1"):
        repack(
            opened(first()),
            training().parameters,
            calibration=digits().calibration.x,
            version=1,
            key=RELEASE,
        )


def test_parameters_that_are_not_finite_are_not_packed() -> None:
    broken = training().parameters.copy()
    broken[5] = np.inf
    with pytest.raises(UsageError, match="not finite"):
        repack(opened(first()), broken, calibration=digits().calibration.x, version=2, key=RELEASE)


def test_calibration_that_breaks_the_contract_is_refused() -> None:
    with pytest.raises(UsageError, match="over 16"):
        build(DIGITS, key=RELEASE, calibration=digits().calibration.x * 2)


def test_the_workbench_builds_packages_without_torch() -> None:
    script = (
        "import sys, json\n"
        "from umbel_models.pack import build\n"
        "from umbel_models.task import find\n"
        "from umbel_proto.keys import SigningKey\n"
        "build(find('digits'), key=SigningKey.generate())\n"
        "print(json.dumps([m for m in ('torch', 'onnxscript', 'umbel') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert json.loads(done.stdout) == []

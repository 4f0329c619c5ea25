"""A model explains itself on the device, by gradients and by covering parts; a bare graph by the latter.

Laws: both say what captum says; what is covered together shares its effect evenly and the residual is what is missing;
the two agree on what matters; another version is explained as itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, Occlusion
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import umbel
from model_packages import digits, first, opened, release, resigned
from regression_tasks import diabetes, patients
from umbel._explain.explain import Explainer
from umbel._explain.occlusion import MAX_PATCHES, _patch, occlude
from umbel._predict.loaded import Loaded
from umbel._predict.model import Model
from umbel.engines import load_engine
from umbel_models.quantize import embed
from umbel_models.tasks.digits.task import module
from umbel_proto.errors import UsageError
from umbel_proto.package import Package

ROWS = 6


def x() -> NDArray[np.float32]:
    return digits().held_out.x[:ROWS]


def net(package: Package) -> torch.nn.Module:
    made = module()
    arrays = package.split(package.parameters())
    made.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in arrays.items()})
    return made.eval()


def model(data: bytes | None = None, variant: str = "fp32") -> Model:
    package = opened(data or release(2))
    return Model(package, load_engine(package, variant))


@pytest.mark.parametrize("level", [0.0, 7.5])
def test_gradients_are_captums(level: float) -> None:
    target, baseline = np.arange(ROWS), np.full_like(x(), level)
    explained = model().explain(x(), target=target, baseline=baseline)
    expected = IntegratedGradients(net(opened(release(2)))).attribute(
        torch.from_numpy(x()),
        baselines=torch.from_numpy(baseline),
        target=torch.from_numpy(target),
        n_steps=32,
        method="riemann_middle",
    )
    assert explained.method == "gradients"
    np.testing.assert_allclose(explained.attributions, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (1, 3, 5)])
def test_occlusion_is_captums(patch: tuple[int, int, int]) -> None:
    target = np.arange(ROWS)
    explained = model().explain(x(), target=target, patch=patch)
    expected = Occlusion(net(opened(release(2)))).attribute(
        torch.from_numpy(x()), patch, patch, target=torch.from_numpy(target)
    )
    sizes = np.ones(x().shape[1:])
    for axis, size in enumerate(patch):  # a patch at the edge is what is left of it
        length = sizes.shape[axis]
        widths = [min(size, length - at // size * size) for at in range(length)]
        sizes *= np.reshape(widths, [-1 if i == axis else 1 for i in range(3)])
    assert explained.method == "occlusion"
    # captum gives every value of a patch the whole of its effect.
    np.testing.assert_allclose(explained.attributions * sizes, expected.numpy(), atol=1e-4)


def test_occlusion_of_a_linear_model_is_its_terms() -> None:
    rng = np.random.default_rng(0)
    weights, rows = rng.normal(size=(12, 3)), rng.normal(size=(4, 3, 4)).astype(np.float32)
    nothing = rng.normal(size=rows.shape).astype(np.float32)
    target = np.array([0, 2, 1, 1])
    values, residual = occlude(
        lambda batch: (batch.reshape(len(batch), -1) @ weights).astype(np.float32), rows, nothing, target
    )
    terms = (rows - nothing) * weights.T[target].reshape(rows.shape)
    np.testing.assert_allclose(values, terms, atol=1e-5)
    np.testing.assert_allclose(residual, 0, atol=1e-4)


def test_the_two_agree_on_what_matters() -> None:
    gradients = model().explain(x()).attributions.reshape(ROWS, -1)
    covered = model().explain(x(), method="occlusion").attributions.reshape(ROWS, -1)
    for one, other in zip(gradients, covered, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.5


def test_the_class_that_is_given_is_explained_unless_another_is_named() -> None:
    said = model().predict_proba(x()).argmax(1)
    for method in ("gradients", "occlusion"):
        np.testing.assert_array_equal(model().explain(x(), method=method).target, said)  # type: ignore[arg-type]
        by_name = model().explain(x(), target="7", method=method)  # type: ignore[arg-type]
        by_number = model().explain(x(), target=7, method=method)  # type: ignore[arg-type]
        assert by_name.target.tolist() == [7] * ROWS
        np.testing.assert_array_equal(by_name.attributions, by_number.attributions)
    mixed = ["7", *range(ROWS - 1)]
    assert model().explain(x(), target=mixed).target.tolist() == [7, *range(ROWS - 1)]
    with pytest.raises(UsageError, match="no class 'eleven'"):
        model().explain(x(), target=["eleven"] * ROWS)
    with pytest.raises(UsageError, match="one for each input"):
        model().explain(x(), target=[[1], [2, 3]])


def test_one_example_and_one_baseline_stand_for_a_batch() -> None:
    alone = model().explain(x()[0], baseline=np.full((1, 8, 8), 3.0))
    batch = model().explain(x(), baseline=np.full((1, 8, 8), 3.0))
    assert alone.attributions.shape == (1, 1, 8, 8)
    np.testing.assert_allclose(alone.attributions[0], batch.attributions[0], atol=1e-5)


def test_another_version_is_explained_as_itself() -> None:
    following = model(first())
    before = following.explain(x(), target=3)
    package = opened(release(2))
    following._replace(Loaded(package, load_engine(package)))
    after = following.explain(x(), target=3)
    expected = Explainer(package).explain(x(), target=np.full(ROWS, 3)).attributions
    assert not np.allclose(before.attributions, expected)
    np.testing.assert_array_equal(after.attributions, expected)


def test_a_number_of_an_answer_is_explained() -> None:
    rows = patients().held_out.x[:3]
    of = Model(diabetes(), load_engine(diabetes()))
    gradients, covered = of.explain(rows), of.explain(rows, method="occlusion")
    assert gradients.target.tolist() == covered.target.tolist() == [0, 0, 0]
    values = np.array([each.values[0] for each in of.estimate(rows)])  # type: ignore[union-attr]
    (nothing,) = [each.values[0] for each in of.estimate(np.zeros((1, 10)))]  # type: ignore[union-attr]
    for each in (gradients, covered):
        added = each.attributions.sum(1) - each.residual
        np.testing.assert_allclose(added, values - nothing, atol=1e-4)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"target": 10}, r"0\.\.9"),
        ({"target": -1}, r"0\.\.9"),
        ({"target": [1, 2]}, "one for each input"),
        ({"target": 1.0}, "whole numbers"),
        ({"target": "ten"}, "no class 'ten'"),
        ({"baseline": np.zeros((2, 1, 8, 8))}, "as the inputs"),
        ({"baseline": np.full((1, 8, 8), 17.0)}, "over 16"),
        ({"method": "shap"}, "choose gradients or occlusion"),
        ({"method": "gradients", "patch": (1, 1, 1)}, "need no patch"),
        ({"patch": (1, 1)}, "3 whole numbers of 1 or more"),
        ({"patch": (1, 0, 1)}, "3 whole numbers of 1 or more"),
        ({"patch": 8}, r"patch is 8: give a tuple of 3 whole numbers"),
        ({"patch": (1, 2.5, 1)}, "3 whole numbers of 1 or more"),
    ],
)
def test_what_cannot_be_explained_is_refused(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        model().explain(x(), **asked)


def test_without_the_graph_parts_are_covered_and_gradients_refused() -> None:
    bare = model(resigned(release(2), lambda body: body["graphs"].pop("explain")))
    assert bare.explain(x()[:1]).method == "occlusion"
    with pytest.raises(UsageError, match="no explanation graph"):
        bare.explain(x(), method="gradients")


def test_what_runs_is_what_is_covered() -> None:
    float_form, small = model(), model(variant="int8")
    one = float_form.explain(x(), method="occlusion", target=3).attributions
    other = small.explain(x(), method="occlusion", target=3).attributions
    assert not np.allclose(one, other, atol=1e-4)
    np.testing.assert_array_equal(
        float_form.explain(x(), target=3).attributions, small.explain(x(), target=3).attributions
    )


def test_a_bare_graph_is_explained_by_covering(tmp_path: Path) -> None:
    package = opened(release(2))
    graph = embed(package.file("infer.onnx"), package.split(package.parameters()))
    (tmp_path / "net.onnx").write_bytes(graph.SerializeToString())
    names = list(package.manifest.labels)
    bare = umbel.load(tmp_path / "net.onnx", labels=names, output="logits", logits=True)
    explained = bare.explain(x(), patch=(1, 2, 2))
    expected = model().explain(x(), patch=(1, 2, 2))
    np.testing.assert_array_equal(explained.target, expected.target)
    np.testing.assert_allclose(explained.attributions, expected.attributions, atol=1e-4)
    with pytest.raises(UsageError, match=r"0\.\.9"):
        bare.explain(x(), target=10)
    with pytest.raises(UsageError, match="several outputs"):
        umbel.load(tmp_path / "net.onnx").explain(x())


@given(st.lists(st.integers(1, 300), min_size=1, max_size=3))
def test_the_smallest_patch_is_taken_of_which_there_are_few_enough(shape: list[int]) -> None:
    def parts(sizes: tuple[int, ...]) -> int:
        return int(np.prod([-(-length // size) for length, size in zip(shape, sizes, strict=True)]))

    sizes = _patch(shape)
    assert parts(sizes) <= MAX_PATCHES
    if max(sizes) > 1:  # the last step was needed
        undone = [tuple(s // 2 if i == j else s for j, s in enumerate(sizes)) for i, _ in enumerate(sizes)]
        assert any(parts(each) > MAX_PATCHES for each in undone if min(each) >= 1)

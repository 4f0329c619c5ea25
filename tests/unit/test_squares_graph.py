"""Sums of squares are one operator, and what else reads the squares still gets them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from umbel_models.graphs.squares import squared
from umbel_models.runtime import Session

SOURCES = {
    "a sum of squares": ("square = Mul(x, x) sum = ReduceSum(square, axes)", ["ReduceSumSquare"]),
    "squares of two readers": (
        "square = Mul(x, x) plain = ReduceSum(square, axes) more = ReduceMax(square, axes) sum = Add(plain, more)",
        ["Mul", "ReduceSum", "ReduceMax", "Add"],
    ),
    "a product of two": (
        "two = Add(x, x) square = Mul(x, two) sum = ReduceSum(square, axes)",
        ["Add", "Mul", "ReduceSum"],
    ),
    "a mean of squares": ("square = Mul(x, x) sum = ReduceMean(square, axes)", ["Mul", "ReduceMean"]),
}


def model(name: str) -> ModelProto:
    nodes, _ = SOURCES[name]
    return onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> main (float[b, 3, 4] x) => (float[b, 3, 1] sum) '
        f"<int64[1] axes = {{-1}}> {{ {nodes} }}"
    )


@pytest.mark.parametrize("name", SOURCES)
def test_a_sum_of_squares_is_one_operator_and_anything_else_stays(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    before = Session(model(name).SerializeToString()).run(["sum"], {"x": x})[0]
    changed = squared(model(name))
    assert [node.op_type for node in changed.graph.node] == SOURCES[name][1]
    onnx.checker.check_model(changed, full_check=True)
    np.testing.assert_allclose(
        Session(changed.SerializeToString()).run(["sum"], {"x": x})[0], before, rtol=1e-6
    )

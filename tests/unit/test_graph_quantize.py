"""A bare graph is quantized where it runs, and its int8 form runs where it is faster and says the same.

Laws: the int8 form is smaller and says what the float one does, as the package of the same model makes it; a slower or
another one is not run; what cannot be quantized is refused in a sentence, and a missing extra is named.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import umbel
from model_packages import digits, opened, release
from umbel._predict.graph import Graph
from umbel._quantize.file import quantize_file
from umbel_models import tflite
from umbel_models.quantize import embed
from umbel_proto.errors import UsageError

NAMES = [str(number) for number in range(10)]


def onnx_file(folder: Path) -> Path:
    package = opened(release(2))
    graph = embed(package.file("infer.onnx"), package.split(package.parameters()))
    (folder / "net.onnx").write_bytes(graph.SerializeToString())
    return folder / "net.onnx"


def lite_file(folder: Path) -> Path:
    (folder / "net.tflite").write_bytes(tflite.convert(onnx_file(folder).read_bytes(), batch=None))
    return folder / "net.tflite"


FILES = [onnx_file, lite_file]


def scripted(costs: tuple[float, float]) -> Callable[[], float]:
    """A clock by which the float form and the int8 form take so long: they take turns of five calls each."""
    calls, now = itertools.count(-2), [0.0]

    def clock() -> float:
        number = next(calls)
        if number >= 0:
            now[0] += costs[number // 10 % 2]
        return now[0]

    return clock


def loaded(file: Path) -> Graph:
    graph = umbel.load(file, labels=NAMES)
    assert isinstance(graph, Graph)
    return graph


@pytest.mark.parametrize("file", FILES)
def test_a_faster_form_that_says_the_same_is_chosen(file: Callable[[Path], Path], tmp_path: Path) -> None:
    path = file(tmp_path)
    graph, (x, y) = loaded(path), digits().train[:2]
    report, made, runner = quantize_file(graph, path, "x", x[:600], y[:600], clock=scripted((2.0, 1.0)))
    assert report.choice == "int8", report.why
    assert report.held_back == 150
    assert len(made) < 0.6 * path.stat().st_size
    assert [form.engine for form in report.forms] == [graph.engine] * 2
    x, y = digits().held_out[:2]
    small, large = graph._with_runner(runner)._answers(x), graph._answers(x)
    assert (small.argmax(1) == large.argmax(1)).mean() > 0.98
    assert (small.argmax(1) == y).mean() >= (large.argmax(1) == y).mean() - 0.005
    assert not np.array_equal(small, large)


@pytest.mark.parametrize("file", FILES)
def test_what_is_chosen_runs_and_is_written_and_what_is_not_is_not(
    file: Callable[[Path], Path], tmp_path: Path
) -> None:
    path, out = file(tmp_path), tmp_path / f"small{file(tmp_path).suffix}"
    graph, x = loaded(path), digits().held_out.x
    before = graph.predict_proba(x)
    report = graph.quantize(digits().train.x[:600], digits().train.y[:600], out=out)
    assert isinstance(report, umbel.Quantization)
    if report.choice == "int8":
        assert graph.variant == "int8"
        np.testing.assert_array_equal(graph.predict_proba(x), loaded(out).predict_proba(x))
        with pytest.raises(UsageError, match="was quantized before"):
            graph.quantize(x)
    else:
        assert graph.variant == "file"
        np.testing.assert_array_equal(graph.predict_proba(x), before)
    assert out.exists() == (report.choice == "int8")


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("net.onnx", "is the file that was loaded: name another"),
        ("link.onnx", "is the file that was loaded: name another"),
        ("small.tflite", r"small\.tflite .* as the graph that was loaded: name a file that ends in \.onnx"),
        ("small", r"name a file that ends in \.onnx"),
        ("nowhere/small.onnx", "cannot be written: name a file in a directory that is there"),
        ("net.onnx/small.onnx", "cannot be written: name a file in a directory that is there"),
        ("folder.onnx", "cannot be written: name a file in a directory that is there"),
    ],
)
def test_where_no_int8_file_can_be_written_is_said_before_any_work(
    out: str, sentence: str, tmp_path: Path
) -> None:
    path = onnx_file(tmp_path)
    (tmp_path / "link.onnx").symlink_to(path)
    (tmp_path / "folder.onnx").mkdir()
    before = path.read_bytes()
    for given in (tmp_path / out, str(tmp_path / out)):
        # The samples are too few, which is the first that the work itself would say.
        with pytest.raises(UsageError, match=sentence):
            loaded(path).quantize(np.zeros((1, 1, 8, 8)), out=given)
    assert path.read_bytes() == before


def test_what_is_no_path_of_an_int8_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"out is 3: give the path of a file that ends in \.onnx"):
        loaded(onnx_file(tmp_path)).quantize(np.zeros((1, 1, 8, 8)), out=3)  # type: ignore[arg-type]


def test_a_slower_form_is_not_chosen(tmp_path: Path) -> None:
    path = onnx_file(tmp_path)
    x = digits().train.x[:64]
    report, _, _ = quantize_file(loaded(path), path, "x", x, None, clock=scripted((1.0, 2.0)))
    assert report.choice == "fp32"
    assert report.why == "int8 takes 2.00 of the time of fp32, and at most 0.95 would be worth it: fp32 runs."


def test_a_form_that_says_something_else_is_not_chosen(tmp_path: Path) -> None:
    path = onnx_file(tmp_path)
    x, y = digits().train.x[:64].copy(), digits().train.y[:64]
    x[16:] *= 0.01  # whichever are held back: ranges that fit half of them clip the rest
    report, _, _ = quantize_file(loaded(path), path, "x", x, y, clock=scripted((2.0, 1.0)))
    assert report.forms[1].accuracy is not None
    assert (report.choice == "int8") == (report.forms[1].accuracy >= report.forms[0].accuracy - 0.005)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"samples": np.zeros((31, 1, 8, 8))}, "31 samples are too few"),
        ({"samples": np.zeros((40, 1, 8, 8)), "y": np.zeros(39, int)}, "give as many labels"),
        ({"samples": np.zeros((40, 1, 8, 8)), "y": np.zeros((40, 1), int)}, r"labels y have shape \(40, 1\)"),
        (
            {"samples": np.zeros((40, 1, 8, 8)), "y": np.full(40, 10)},
            r"give each row a whole number in 0\.\.9",
        ),
        ({"samples": np.zeros((40, 1, 8, 8)), "y": 3}, "give as many labels"),
        ({"samples": np.zeros((40, 1, 8, 8)), "y": [[1], [2, 3]]}, "y is not an array"),
        ({"samples": np.zeros((40, 8, 8))}, "has shape"),
    ],
)
def test_samples_that_cannot_be_used_are_refused(
    given: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=sentence):
        loaded(onnx_file(tmp_path)).quantize(**given)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_counted_and_the_first_is_named(
    file: Callable[[Path], Path], value: float, tmp_path: Path
) -> None:
    samples = digits().train.x[:40].astype(float)
    samples[[7, 30], 0, 3, 3] = value
    with pytest.raises(UsageError, match=r"^2 of 40 samples are not finite.*samples\[7\]: it.*Leave such"):
        loaded(file(tmp_path)).quantize(samples)


@pytest.mark.parametrize("file", FILES)
def test_samples_beyond_the_files_type_are_refused(file: Callable[[Path], Path], tmp_path: Path) -> None:
    samples = digits().train.x[:40].astype(float)
    samples[7, 0, 3, 3] = 1e300
    with pytest.raises(UsageError, match="numbers beyond float32"):
        loaded(file(tmp_path)).quantize(samples)


def matrix_file(folder: Path, shape: list[str | int] | None) -> Path:
    """A graph that answers four numbers with three, and whose file tells this shape of its input."""
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    ends.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3]))
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4, 3], [0.5] * 12)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weights])
    model = helper.make_model(made, ir_version=9, opset_imports=[helper.make_opsetid("", 18)])
    (folder / "matrix.onnx").write_bytes(model.SerializeToString())
    return folder / "matrix.onnx"


@pytest.mark.parametrize("shape", [["n", "values"], None])
def test_samples_of_a_shape_that_only_running_refuses_are_told_by_it(
    shape: list[str | int] | None, tmp_path: Path
) -> None:
    graph = umbel.load(matrix_file(tmp_path, shape))
    assert isinstance(graph, Graph)
    with pytest.raises(
        UsageError, match=r"cannot compute with inputs of these shapes: x \(16, 3\)\. Give what"
    ):
        graph.quantize(np.ones((40, 3)))
    assert graph.quantize(np.ones((40, 4)), np.ones((40, 3))).held_back == 16


def test_one_number_is_no_samples(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"one number: give an array of shape \(n, \*example\)"):
        umbel.load(matrix_file(tmp_path, None)).quantize(3.0)


@pytest.mark.parametrize("y", [np.ones((40, 2)), np.ones(40), np.full((40, 3), np.nan)])
def test_numbers_that_cannot_be_right_are_refused(y: np.ndarray[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"The numbers y have shape .*: give finite ones of shape \(40, 3\)"):
        umbel.load(matrix_file(tmp_path, ["n", 4])).quantize(np.ones((40, 4)), y)


def test_a_graph_of_whole_numbers_has_no_int8_form(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", 2]) for name in "xy"]
    made = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(made, ir_version=9, opset_imports=[helper.make_opsetid("", 18)])
    (tmp_path / "whole.onnx").write_bytes(model.SerializeToString())
    assert onnx.checker.check_model(model) is None
    with pytest.raises(UsageError, match="is not float32"):
        umbel.load(tmp_path / "whole.onnx").quantize(np.zeros((40, 2), int))  # type: ignore[arg-type]


@pytest.mark.parametrize(("file", "missing"), [(onnx_file, "onnx"), (lite_file, "ai_edge_quantizer")])
def test_a_missing_extra_is_named(file: Callable[[Path], Path], missing: str, tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np, umbel\n"
        f"sys.modules[{missing!r}] = None\n"
        "graph = umbel.load(sys.argv[1], labels=list('0123456789'))\n"
        "try: graph.quantize(np.zeros((40, 1, 8, 8)))\n"
        "except umbel.MissingExtraError as exc: print(exc)"
    )
    command = [sys.executable, "-c", script, str(file(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == (
        "To quantize a bare file needs an optional part of umbel: run  pip install 'umbel[quantize]'.\n"
    )

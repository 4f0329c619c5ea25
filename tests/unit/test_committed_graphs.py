"""Graphs kept beside a task are compared with its module before they are packed, as those exported now are."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from model_packages import RELEASE, opened
from umbel_models.committed import COMPARED, graphs_sha256
from umbel_models.exported import truth_of
from umbel_models.graphs.verify import verify_every
from umbel_models.pack import build
from umbel_models.task import Task
from umbel_models.tasks.digits.module import DigitsNet, initial
from umbel_models.tasks.digits.task import DIGITS, files
from umbel_proto.errors import MissingExtraError, PackageError, UsageError
from umbel_proto.package import PARAMETERS


def tampered(graph: bytes) -> bytes:
    """Return the graph with its first output a thousandth too large."""
    model = onnx.load_from_string(graph)
    first = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = [f"{first}.right" if name == first else name for name in node.output]
        node.input[:] = [f"{first}.right" if name == first else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array(1.001, np.float32), "wrong"))
    model.graph.node.append(onnx.helper.make_node("Mul", [f"{first}.right", "wrong"], [first]))
    return bytes(model.SerializeToString())


def keeping(held: Mapping[str, bytes]) -> Task:
    return replace(DIGITS, committed=lambda: held)


def test_the_graphs_of_digits_are_those_that_torch_agrees_with() -> None:
    assert COMPARED["umbel_models.tasks.digits.task:module"] == graphs_sha256(files())
    verify_every(files(), truth_of(DIGITS))


@pytest.mark.parametrize("name", ["infer.onnx", "grad.onnx", "dpgrad.onnx"])
def test_a_tampered_graph_is_not_packed(name: str) -> None:
    held = {**files(), name: tampered(files()[name])}
    with pytest.raises(PackageError, match=rf"digits cannot be packed.*{name} .*away from torch.*anew"):
        build(keeping(held), key=RELEASE)


class Halved(DigitsNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(0.5 * x)


def halved() -> Halved:
    torch.manual_seed(0)
    return Halved()


def test_right_graphs_of_another_module_are_not_packed() -> None:
    with pytest.raises(PackageError, match=r"infer\.onnx at batch 1"):
        build(replace(DIGITS, module=halved), key=RELEASE)


def test_graphs_that_agree_with_their_module_are_packed_whoever_made_it() -> None:
    said: list[str] = []
    package = opened(build(replace(DIGITS, module=lambda: initial(3)), key=RELEASE, progress=said.append))
    assert package.file("grad.onnx") == files()["grad.onnx"]
    assert [step for step in said if "committed" in step]


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"infer.onnx": b"no graph"}, PackageError, "cannot be packed"),
        ({"explain.onnx": files()["infer.onnx"]}, PackageError, "explain.onnx at batch 1 does not run"),
        ({"grad.onnx": None}, UsageError, "keeps no grad.onnx"),
        ({PARAMETERS: None}, UsageError, "keeps no params"),
    ],
)
def test_what_is_no_graph_or_missing_is_one_sentence(
    change: dict[str, bytes | None], error: type[Exception], sentence: str
) -> None:
    held = {name: data for name, data in {**files(), **change}.items() if data is not None}
    with pytest.raises(error, match=sentence):
        build(keeping(held), key=RELEASE)


def test_without_torch_umbels_own_graphs_alone_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umbel_models.graphs.verify", None)
    build(DIGITS, key=RELEASE)
    with pytest.raises(MissingExtraError, match="Comparing a task's committed graphs"):
        build(keeping({**files(), "grad.onnx": tampered(files()["grad.onnx"])}), key=RELEASE)

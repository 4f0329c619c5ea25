"""A device has onnxruntime and numpy; a package asks for no more, and not for the newest.

Law: what a device does with a package needs none of the workbench's libraries, and is the same to the bit on
onnxruntime 1.17, to whose operators every graph of a package keeps.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, GraphProto

from model_packages import RELEASE, digits, opened, release
from runtimes import environment, fetch_oldest
from umbel._quantize.quantize import quantize
from umbel.train import TrainPlan
from umbel.train.onnx import OnnxTrainer

# What a device has no room for, and this machine has.
BLOCKED = ("torch", "onnx", "onnxscript", "onnx_ir", "sklearn", "scipy", "opacus", "flwr", "umbel_models",
           "umbel_server", "ai_edge_litert", "ai_edge_quantizer", "matplotlib", "pandas")  # fmt: skip
IR_VERSION, OPSET = 9, 18
PLAN = {"epochs": 1, "batch_size": 8, "learning_rate": 0.05, "momentum": 0.9, "seed": 1}

DEVICE = """
import importlib, json, sys
from importlib.abc import MetaPathFinder
from pathlib import Path

folder, plan, *blocked = Path(sys.argv[1]), json.loads(sys.argv[2]), *sys.argv[3:]

class Absent(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
absent = []
for name in blocked:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        absent.append(name)

import numpy as np
import umbel
from umbel._explain.explain import Explainer
from umbel._releases.package import choose_variant, load_package
from umbel._quantize.quantize import quantize
from umbel.engines import load_engine
from umbel.train import TrainPlan
from umbel.train.onnx import OnnxTrainer
from umbel_proto.keys import VerifyKey

package = load_package(folder / "m.umbel", release_key=VerifyKey((folder / "release.pub").read_bytes()))
data = np.load(folder / "data.npz")
choice = choose_variant(package)
trained = OnnxTrainer(package).train(package.parameters(), data["x"], data["y"], TrainPlan(**plan)).parameters
explained = Explainer(package).explain(data["x"][:4])
tensors = quantize(package, trained, data["x"])
model = umbel.load(folder / "m.umbel", release_key=folder / "release.pub")
covered = model.explain(data["x"][:4], method="occlusion")
report = model.quantize(data["x"], data["y"])
np.savez(
    folder / "out.npz",
    probabilities=load_engine(package, "fp32").answers(data["x"]),
    trained=trained,
    attributions=explained.attributions,
    residual=explained.residual,
    covered=covered.attributions,
    **{f"int8.{name}": value for name, value in tensors.items()},
)
heavy = sorted({name.partition(".")[0] for name in sys.modules} & set(blocked))
print(json.dumps({"absent": absent, "loaded": heavy, "variants": sorted(choice.latency_us),
                  "forms": [form.name for form in report.forms], "runs": [report.choice, model.variant]}))
"""


@pytest.fixture(scope="module", params=["installed", "oldest"])
def device(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Any]:
    """What a device without the workbench's libraries says and computes, with one onnxruntime or another."""
    place = fetch_oldest(request.config.cache.mkdir("runtimes")) if request.param == "oldest" else None
    folder: Path = tmp_path_factory.mktemp("device")
    (folder / "m.umbel").write_bytes(release(2))
    (folder / "release.pub").write_bytes(RELEASE.public.raw)
    np.savez(folder / "data.npz", x=digits().held_out.x[:64], y=digits().held_out.y[:64])
    command = [sys.executable, "-c", DEVICE, str(folder), json.dumps(PLAN), *BLOCKED]
    done = subprocess.run(
        command, env=environment(place), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), np.load(folder / "out.npz")


def test_the_libraries_of_the_workbench_are_absent_there(device: tuple[dict[str, Any], Any]) -> None:
    said, _ = device
    assert said["absent"] == list(BLOCKED)
    assert said["loaded"] == []
    assert said["variants"] == ["fp32", "int8"]


def test_a_lean_device_predicts_right(device: tuple[dict[str, Any], Any]) -> None:
    _, computed = device
    assert (computed["probabilities"].argmax(1) == digits().held_out.y[:64]).mean() > 0.9


def test_a_lean_device_trains_to_the_same_bits(device: tuple[dict[str, Any], Any]) -> None:
    _, computed = device
    package, (x, y, *_) = opened(release(2)), digits().held_out
    here = OnnxTrainer(package).train(package.parameters(), x[:64], y[:64], TrainPlan(**PLAN)).parameters
    assert not np.array_equal(here, package.parameters())
    np.testing.assert_array_equal(computed["trained"], here)


def test_a_lean_device_explains(device: tuple[dict[str, Any], Any]) -> None:
    _, computed = device
    assert computed["attributions"].shape == (4, 1, 8, 8)
    assert np.abs(computed["attributions"]).max() > 0.1
    assert np.abs(computed["residual"]).max() < 0.5


def test_a_lean_device_covers_parts_and_chooses_a_form_by_the_public_calls(
    device: tuple[dict[str, Any], Any],
) -> None:
    said, computed = device
    assert computed["covered"].shape == (4, 1, 8, 8)
    assert np.corrcoef(computed["covered"].ravel(), computed["attributions"].ravel())[0, 1] > 0.5
    assert said["forms"] == ["fp32", "int8"]
    assert said["runs"][0] == said["runs"][1]


def test_a_lean_device_quantizes_to_the_same_bits(device: tuple[dict[str, Any], Any]) -> None:
    _, computed = device
    tensors = quantize(opened(release(2)), computed["trained"], digits().held_out.x[:64])
    assert tensors
    for name, value in tensors.items():
        np.testing.assert_array_equal(computed[f"int8.{name}"], value)


def inner(graph: GraphProto) -> list[GraphProto]:
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                found += inner(attribute.g)
    return found


GRAPHS = sorted(name for name in opened(release(2)).manifest.files if name.endswith(".onnx"))


def test_a_package_holds_a_graph_for_everything_a_device_does() -> None:
    assert GRAPHS == ["calib.onnx", "dpgrad.onnx", "explain.onnx", "grad.onnx", "infer.onnx", "int8.onnx"]


@pytest.mark.parametrize("name", GRAPHS)
def test_every_graph_keeps_to_what_an_old_onnxruntime_reads(name: str) -> None:
    model = onnx.load_from_string(opened(release(2)).file(name))
    assert model.ir_version == IR_VERSION
    assert [opset.domain for opset in model.opset_import] == [""]
    assert model.opset_import[0].version <= OPSET
    assert not model.functions
    assert {node.domain for graph in inner(model.graph) for node in graph.node} == {""}


@pytest.mark.parametrize("name", GRAPHS)
def test_no_graph_holds_the_models_weights(name: str) -> None:
    # They are in the package once: a graph as large as its weights would hold them again.
    assert len(opened(release(2)).file(name)) < 4 * opened(release(2)).manifest.dim

"""What a device computes does not hang on how new its onnxruntime is: version 1.17, with the numpy of its day.

Law: every graph of a package loads in onnxruntime 1.17 (docs/spec/package.md, 2.6), and computes there what it computes
in the installed version, to 1e-5 of an output's greatest value.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from model_packages import RELEASE, digits, opened, release
from regression_tasks import ABOUT, DIABETES, patients
from runtimes import OLDEST, environment, fetch_oldest
from umbel_models.pack import build
from umbel_models.task import Examples, Split, Task, cross_entropy
from umbel_proto.contract import DataContract, Field
from umbel_proto.ids import ModelName

ROWS = 24

# Every graph of every package in a folder, with all its outputs, by onnxruntime alone but for the parser.
PROGRAM = """
import json, sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from umbel._releases.package import load_package, verify_golden
from umbel.engines import load_engine
from umbel.engines.onnx import open_session
from umbel_proto.keys import VerifyKey

folder, result = Path(sys.argv[1]), Path(sys.argv[2])
key = VerifyKey((folder / "release.pub").read_bytes())
computed = {}
for file in sorted(folder.glob("*.umbel")):
    package, given = load_package(file, release_key=key), dict(np.load(file.with_suffix(".npz")))
    for variant in package.manifest.variants:
        engine = load_engine(package, variant)
        verify_golden(package, engine)
        for name, value in engine.outputs(given["x"]).items():
            computed[f"{file.stem}/{variant}/{name}"] = value
    parts = package.split(package.parameters())
    given = {**given, **parts, "baseline": np.zeros_like(given["x"]), "clip": np.array(0.5, np.float32)}
    given |= {"w": np.ones(len(given["x"]), np.float32), "target": np.zeros(len(given["x"]), np.int64)}
    for purpose, graph in package.manifest.graphs.items():
        fixed = package.frozen() if purpose.endswith("gradient") else parts | package.frozen()
        session = open_session(package.file(graph), graph, fixed, optimized=purpose != "calibration")
        names = [each.name for each in session.get_outputs()]
        values = session.run(names, {each.name: given[each.name] for each in session.get_inputs()})
        computed |= {f"{file.stem}/{graph}/{name}": value for name, value in zip(names, values)}
np.savez(result, **computed)
print(json.dumps([ort.__version__, np.__version__]))
"""


class Mixed(nn.Module):
    """One of each kind of layer that the reference tasks lack, so that their operators are run, too."""

    def __init__(self) -> None:
        super().__init__()
        self.begin, self.norm = nn.Conv1d(3, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.larger = nn.ConvTranspose1d(4, 4, 2, stride=2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.memory, self.reset = nn.LSTM(4, 3, batch_first=True), nn.GRU(3, 3)
        self.output = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.gelu(self.norm(self.begin(x)))
        x = nn.functional.avg_pool1d(self.larger(nn.functional.max_pool1d(x, 2)), 2).transpose(1, 2)
        x = self.memory(x + self.attention(x, x, x)[0])[0].transpose(0, 1)
        logits: Tensor = self.output(nn.functional.elu(self.reset(x)[0][-1]))
        return logits


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return Mixed()


def series() -> Split:
    chance = np.random.default_rng(0)
    x, y = chance.uniform(-1, 1, (96, 3, 8)).astype(np.float32), chance.integers(0, 3, 96)
    return Split(*(Examples(x[rows], y[rows]) for rows in np.split(np.arange(96), 3)))


MIXED = Task(
    model=ModelName("mixed"),
    module=mixed,
    loss=cross_entropy,
    labels=("a", "b", "c"),
    contract=DataContract((Field("x", "float32", (3, 8), -1.0, 1.0),)),
    data=series,
    about=ABOUT,
)


@functools.cache
def packages() -> Mapping[str, tuple[bytes, Examples]]:
    return {
        "digits": (release(2), digits().held_out),
        "mixed": (build(MIXED, key=RELEASE), series().held_out),
        "diabetes": (build(DIABETES, key=RELEASE), patients().held_out),
    }


@pytest.fixture(scope="module")
def both(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the installed onnxruntime and the oldest one compute, by package, graph and output."""
    oldest = fetch_oldest(pytestconfig.cache.mkdir("runtimes"))
    folder = tmp_path_factory.mktemp("packages")
    (folder / "release.pub").write_bytes(RELEASE.public.raw)
    for name, (data, examples) in packages().items():
        (folder / f"{name}.umbel").write_bytes(data)
        np.savez(folder / f"{name}.npz", x=examples.x[:ROWS], y=examples.y[:ROWS])
    found = []
    for number, place in enumerate((None, oldest)):
        command = [sys.executable, "-c", PROGRAM, str(folder), str(folder / f"{number}.npz")]
        done = subprocess.run(
            command, env=environment(place), capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        used = [f"onnxruntime=={json.loads(done.stdout)[0]}", f"numpy=={json.loads(done.stdout)[1]}"]
        assert used == (
            list(OLDEST) if place else [f"onnxruntime=={ort.__version__}", f"numpy=={np.__version__}"]
        )
        found.append(dict(np.load(folder / f"{number}.npz")))
    return found[0], found[1]


def test_every_graph_of_every_package_runs_in_both(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    here, there = both
    assert here.keys() == there.keys()
    for name, (data, _) in packages().items():
        manifest = opened(data).manifest
        ran = {key.split("/")[1] for key in there if key.startswith(f"{name}/")}
        assert ran == {*manifest.variants, *manifest.graphs.values()}
    assert {"explain.onnx", "dpgrad.onnx", "calib.onnx", "int8"} <= {key.split("/")[1] for key in there}


def test_an_old_onnxruntime_computes_what_a_new_one_does(
    both: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    here, there = both
    for name, value in here.items():
        assert np.isfinite(value).all(), name
        # What is computed from differences of great numbers, an explanation's residual, is as exact as those.
        scale = max(np.abs(value).max(), 1e-2)
        np.testing.assert_allclose(there[name], value, rtol=0, atol=1e-5 * scale, err_msg=name)


def test_what_is_compared_is_not_nothing(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    gradients = {name: value for name, value in both[0].items() if "/grad." in name or "/sum." in name}
    assert len(gradients) > 2 * len(list(mixed().parameters()))
    assert all(np.abs(value).max() > 1e-6 for name, value in gradients.items() if "attention" not in name)

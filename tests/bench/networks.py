"""The networks that training is timed on: the reference tasks', and of kinds and sizes that those lack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from umbel_models.graphs.export import export
from umbel_models.pack import golden
from umbel_models.task import cross_entropy, find
from umbel_proto.contract import DataContract, Field
from umbel_proto.ids import ModelName
from umbel_proto.keys import SigningKey
from umbel_proto.manifest import BATCH, CLIPPED_GRADIENT, GRADIENT, Manifest, Parameter, TensorSpec, Variant
from umbel_proto.package import GOLDEN, PARAMETERS, write_package


@dataclass(frozen=True, slots=True)
class Network:
    """One network.

    Args:
        make: Returns it, with the same parameters each time.
        shape: Of an example.
        classes: How many labels it tells apart.
        one_pass: Whether its layers are Linear, Conv and Norm, whose clipped gradients take one pass.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int
    one_pass: bool = True


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(9, 32, batch_first=True)
        self.output = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.output(self.gru(x)[0][:, -1])
        return logits


class Transformer(nn.Module):
    """Two layers over 16 patches of 8 time steps."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(9 * 8, 32)
        self.position = nn.Parameter(torch.randn(1, 16, 32) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                32, 4, 64, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(32)
        self.output = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x.unflatten(1, (16, 8)).flatten(2)) + self.position
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.output(self.norm(x).mean(1))
        return logits


def letters(wide: bool) -> nn.Module:
    """The two networks that FEMNIST is trained with in federated papers: 1.2 or 6.6 million parameters."""
    if wide:
        body = [nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5, padding=2)]
        return nn.Sequential(
            *body,
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(3136, 2048),
            nn.ReLU(),
            nn.Linear(2048, 62),
        )
    body = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 62))


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def again() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make()

    return again


def of_task(name: str) -> Network:
    task = find(name)
    return Network(task.module, task.contract.fields[0].shape, len(task.labels))


NETWORKS: dict[str, Callable[[], Network]] = {
    "digits": lambda: of_task("digits"),
    "activity": lambda: of_task("activity"),
    "credit": lambda: of_task("credit"),
    "breast-cancer": lambda: of_task("breast-cancer"),
    "gru": lambda: Network(seeded(Gru), (128, 9), 6, one_pass=False),
    "transformer": lambda: Network(seeded(Transformer), (128, 9), 6, one_pass=False),
    "letters-1.2m": lambda: Network(seeded(lambda: letters(wide=False)), (1, 28, 28), 62),
    "letters-6.6m": lambda: Network(seeded(lambda: letters(wide=True)), (1, 28, 28), 62),
}


def examples(network: Network, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    chance = np.random.default_rng(1)
    x = chance.uniform(0, 1, (count, *network.shape)).astype(np.float32)
    return x, chance.integers(0, network.classes, count)


def packed(name: str, network: Network, key: SigningKey) -> bytes:
    """Return a package with what training needs, and nothing else that a release has."""
    module = network.make()
    graphs = export(module, cross_entropy, network.shape)
    values = {name: value.detach().numpy() for name, value in module.named_parameters()}
    outputs = (BATCH, network.classes)
    manifest = Manifest(
        model=ModelName(name),
        version=1,
        parameters=tuple(Parameter(name, value.shape) for name, value in values.items()),
        inputs=(TensorSpec("x", "float32", (BATCH, *network.shape)),),
        outputs=tuple(TensorSpec(name, "float32", outputs) for name in ("probabilities", "logits")),
        labels=tuple(f"label-{number}" for number in range(network.classes)),
        contract=DataContract((Field("x", "float32", network.shape, 0.0, 1.0),)),
        variants={"fp32": Variant("onnx", "infer.onnx", weights=PARAMETERS, tolerance=1e-4)},
        default_variant="fp32",
        decision_threshold=0.5,
        graphs={GRADIENT: "grad.onnx", CLIPPED_GRADIENT: "dpgrad.onnx"},
    )
    files = {
        "infer.onnx": graphs.infer,
        "grad.onnx": graphs.gradient,
        "dpgrad.onnx": graphs.clipped,
        PARAMETERS: safetensors.numpy.save(values),
    }
    files[GOLDEN] = golden(manifest, files, examples(network, 32)[0])
    return write_package(manifest, files, key)

"""Two tasks that answer with numbers: a measure of patients, and digits made again out of eight numbers."""

from __future__ import annotations

import functools

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn

from model_packages import RELEASE, opened
from umbel_models.pack import build
from umbel_models.task import About, Examples, Split, Task, squared_error
from umbel_proto.contract import DataContract, Field
from umbel_proto.ids import ModelName
from umbel_proto.manifest import REGRESSION, Target
from umbel_proto.package import Package

ABOUT = About(purpose="Try models that answer with numbers.", data="As scikit-learn ships it.")


def patients() -> Split:
    x, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order].astype(np.float32), ((y[order, None] - 152) / 77).astype(np.float32)
    parts = np.split(np.arange(len(y)), [300, 400])
    return Split(*(Examples(x[rows], y[rows]) for rows in parts))


def regressor() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1))


DIABETES = Task(
    model=ModelName("diabetes"),
    kind=REGRESSION,
    module=regressor,
    loss=squared_error,
    targets=(Target("progression", "standard deviations"),),
    contract=DataContract((Field("x", "float32", (10,), -0.3, 0.3),)),
    data=patients,
    about=ABOUT,
)


def images() -> Split:
    x = load_digits().data[:600].astype(np.float32)
    parts = np.split(np.arange(len(x)), [400, 500])
    return Split(*(Examples(x[rows], x[rows]) for rows in parts))


class Autoencoder(nn.Module):
    """Makes 64 grey levels again out of eight numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode, self.decode = nn.Linear(64, 8), nn.Linear(8, 64)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.decode(torch.tanh(self.encode(x / 16)))
        return 16 * made


AUTOENCODER = Task(
    model=ModelName("autoencoder"),
    kind=REGRESSION,
    module=Autoencoder,
    loss=lambda values, y: squared_error(values, y) / 256,
    contract=DataContract((Field("x", "float32", (64,), 0.0, 16.0, unit="grey levels"),)),
    data=images,
    about=ABOUT,
)


@functools.cache
def diabetes() -> Package:
    """The package of ``DIABETES``, built once for all tests of a run."""
    return opened(build(DIABETES, key=RELEASE))

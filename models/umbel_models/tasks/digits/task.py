"""The digits task: its labels, its data contract and its committed graphs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING

from umbel_models.task import About, Task, cross_entropy
from umbel_models.tasks.digits import data
from umbel_models.tasks.parts import datasheet
from umbel_proto.contract import DataContract, Field
from umbel_proto.ids import ModelName

if TYPE_CHECKING:
    from umbel_models.tasks.digits.module import DigitsNet

LEVELS = 16
SEED = 0
FILES = ("infer.onnx", "grad.onnx", "dpgrad.onnx", "explain.onnx", "params.safetensors")


def files() -> Mapping[str, bytes]:
    """Return the committed graphs and initial parameters, made by ``umbel_models.tasks.digits.export``."""
    folder = resources.files("umbel_models.tasks.digits")
    return {name: folder.joinpath(name).read_bytes() for name in FILES}


def module() -> DigitsNet:
    """Return the network with the parameters that are committed."""
    from umbel_models.tasks.digits.module import initial

    return initial(SEED)


DIGITS = Task(
    model=ModelName("digits"),
    module=module,
    loss=cross_entropy,
    labels=tuple("0123456789"),
    contract=DataContract((Field("x", "float32", (1, 8, 8), 0.0, float(LEVELS), unit="grey levels"),)),
    decision_threshold=0.8,
    data=data.split,
    about=About(
        purpose="Read single handwritten digits of 8x8 grey levels; shows what umbel does.",
        data="E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998, the test part: 1,797 "
        "digits of 13 people, as scikit-learn ships it.",
        limits=(
            "Thirteen writers, of whom nothing is known: other hands are read worse.",
            "All of them are in every part: held-out accuracy is that of hands the model knows.",
        ),
        license="CC-BY-4.0",
        datasheet=datasheet(__package__),
    ),
    committed=files,
)

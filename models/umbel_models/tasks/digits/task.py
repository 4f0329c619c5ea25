"""The digits task: its labels, its data contract and its committed graphs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

from umbel_models.task import Task
from umbel_models.tasks.digits import data
from umbel_proto.contract import DataContract, Field
from umbel_proto.ids import ModelName

LEVELS = 16
FILES = ("infer.onnx", "grad.onnx", "dpgrad.onnx", "params.safetensors")


def files() -> Mapping[str, bytes]:
    """Return the committed graphs and initial parameters, made by ``umbel_models.tasks.digits.export``."""
    folder = resources.files("umbel_models.tasks.digits")
    return {name: folder.joinpath(name).read_bytes() for name in FILES}


DIGITS = Task(
    model=ModelName("digits"),
    labels=tuple("0123456789"),
    contract=DataContract((Field("x", "float32", (1, 8, 8), 0.0, float(LEVELS), unit="grey levels"),)),
    decision_threshold=0.8,
    files=files,
    data=data.split,
)

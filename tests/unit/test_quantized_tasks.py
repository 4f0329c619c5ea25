"""Int8 costs no task more than half a point of accuracy. Law: accuracy(int8) >= accuracy(fp32) - 0.005."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from onnx_exports import exported
from umbel_models.fit import fit
from umbel_models.graphs.model import finish
from umbel_models.quantize import skeletons
from umbel_models.runtime import Session
from umbel_models.task import Task, find
from umbel_proto.package import PARAMETERS
from umbel_proto.quantization import quantize


class Outputs(nn.Module):
    """A classifier with the outputs of inference graphs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.network(x)
        return torch.softmax(logits, -1), logits


def inference(task: Task, network: nn.Module) -> bytes:
    """Return the inference graph of a trained network, its parameters external."""
    shape = task.contract.fields[0].shape
    model = onnx.load_from_string(exported(Outputs(network), shape, outputs=("probabilities", "logits")))
    names = {f"network.{name}" for name, _ in network.named_parameters()}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in names]
    assert {tensor.name for tensor in tensors} == names
    for tensor in tensors:
        empty = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        empty.data_location = TensorProto.EXTERNAL
        empty.external_data.add(key="location", value=PARAMETERS)
        tensor.CopyFrom(empty)
    return bytes(finish(model).SerializeToString(deterministic=True))


@pytest.mark.parametrize(
    ("name", "epochs", "learned"), [("activity", 3, 0.85), ("credit", 3, 0.75), ("breast-cancer", 60, 0.9)]
)
def test_int8_is_within_half_a_point_of_fp32(name: str, epochs: int, learned: float) -> None:
    task = find(name)
    data = task.data()
    network = fit(
        task.module(), task.loss, data.train, epochs=epochs, batch_size=64, learning_rate=0.002, seed=1
    )
    infer = inference(task, network)
    parameters = {f"network.{key}": value.detach().numpy() for key, value in network.named_parameters()}
    made = skeletons(infer, parameters, data.calibration.x)
    calib = Session(made.calib, parameters, optimized=False)
    tensors = quantize(calib.run, made.mapping, parameters, data.calibration.x)
    x, y = data.held_out[:2]
    accuracy = {}
    for form, opened in (("fp32", Session(infer, parameters)), ("int8", Session(made.int8, tensors))):
        [logits] = opened.run(["logits"], {"x": x})
        accuracy[form] = float((logits.argmax(1) == y).mean())
    assert accuracy["fp32"] > learned
    # Half a point, or one example where that is more: another processor rounds differently.
    assert accuracy["int8"] >= accuracy["fp32"] - max(0.005, 1 / len(y))
    # Every weight of these models is in int8: scales and the graph come on top of a quarter.
    assert sum(np.asarray(t).nbytes for t in tensors.values()) < 0.45 * sum(
        v.nbytes for v in parameters.values()
    )

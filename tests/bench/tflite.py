"""TFLite files: how long they take to write, what they compute, and how fast LiteRT runs them.

- Writing: the graph with its parameters inside to a file with an open batch, the median of several.
- Speed: one example, one thread, LiteRT and onnxruntime in turn, each as its engine calls it: values set,
  run, results copied. int8 in turn with float32 in LiteRT.
- Difference: the greatest of any output against onnxruntime, as a share of the greatest output, over
  batches of 1, 2 and 7.
- The graphs are those that packages ship. The transformer is not among them: traced alone, as here, its encoder
  layers fail in torch.
- Accuracy: what int8 loses on held-out examples of a briefly trained network, in points.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import torch
from ai_edge_litert.interpreter import Interpreter
from harness import Report, alternate, often, seconds
from networks import NETWORKS
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from umbel_models import tflite
from umbel_models.fit import fit
from umbel_models.graphs.model import externalize, finish
from umbel_models.graphs.trace import batch_unlike, to_onnx
from umbel_models.quantize import embed
from umbel_models.task import find
from umbel_models.tflite.errors import UnsupportedOperatorError
from umbel_models.tflite.interpret import ends

OUTPUTS = ("probabilities", "logits")
SPEED = ("digits", "activity", "gru", "letters-6.6m")
TRAINED = {"digits": 12, "activity": 3, "credit": 10, "breast-cancer": 40}  # epochs
CALLS = {"letters-6.6m": 50, "gru": 50}


def exported(network: nn.Module, shape: tuple[int, ...]) -> bytes:
    """Return the inference graph of a network as packages ship it, its parameters inside."""
    values = {name: value.detach() for name, value in network.named_parameters()}

    def infer(*args: Tensor) -> tuple[Tensor, Tensor]:
        parameters = dict(zip(values, args[:-1], strict=True))
        logits = functional_call(network, parameters, (args[-1],))
        return torch.softmax(logits, -1), logits

    batch = batch_unlike([*shape, *(size for value in values.values() for size in value.shape)])
    graph = to_onnx(infer, list(values.values()), [torch.rand(batch, *shape)], [*values, "x"], OUTPUTS)
    infer_graph = finish(externalize(graph, list(values))).SerializeToString()
    whole = embed(infer_graph, {name: value.numpy() for name, value in values.items()})
    return bytes(whole.SerializeToString())


def in_litert(file: bytes, x: NDArray[np.float32]) -> Callable[[], object]:
    at = ends(file)
    interpreter = Interpreter(model_content=file, num_threads=1)
    interpreter.allocate_tensors()

    def call() -> object:
        interpreter.set_tensor(at.index, x)
        interpreter.invoke()
        return interpreter.get_tensor(at.outputs["probabilities"])

    return call


def opened(graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def each_us(work: Callable[[], object], calls: int) -> Callable[[], float]:
    """Return a measurement: microseconds a call takes, averaged over ``calls`` of them."""

    def many() -> None:
        for _ in range(calls):
            work()

    return lambda: 1e6 * seconds(many) / calls


def farthest(graph: bytes, file: bytes, shape: tuple[int, ...]) -> float:
    """Return the greatest difference to onnxruntime, as a share of the greatest output."""
    session, worst = opened(graph), 0.0
    for batch in (1, 2, 7):
        x = np.random.default_rng(batch).normal(size=(batch, *shape)).astype(np.float32)
        expected = session.run(list(OUTPUTS), {"x": x})
        for made, wanted in zip(tflite.run(file, x, OUTPUTS), expected, strict=True):
            worst = max(worst, float(np.abs(made - wanted).max() / np.abs(wanted).max()))
    return worst


def speed(report: Report, name: str) -> None:
    network = NETWORKS[name]()
    graph = exported(network.make(), network.shape)
    size = f"{len(graph) / 1e6:.2g} MB"
    tflite.convert(graph, batch=None)  # what is imported first is not what is measured
    taken = statistics.median(seconds(lambda: tflite.convert(graph, batch=None)) for _ in range(5))
    report.value(f"write {name}, {size}", taken, unit="s", at_most=0.3 if name == "letters-6.6m" else None)
    file = tflite.convert(graph, batch=None)
    report.value(
        f"{name} differs from onnxruntime", farthest(graph, file, network.shape), unit="", at_most=2e-5
    )
    rng = np.random.default_rng(0)
    calibration = rng.normal(size=(64, *network.shape)).astype(np.float32)
    x, session, calls = calibration[:1], opened(graph), CALLS.get(name, 500)
    lite, onnx = alternate(
        each_us(in_litert(file, x), calls),
        each_us(lambda: session.run(["probabilities"], {"x": x}), calls),
    )
    report.ratio(f"{name} in LiteRT, onnxruntime beside it", lite, onnx, unit="us")
    try:
        small = tflite.quantize(file, calibration)
    except UnsupportedOperatorError:
        return
    ours, whole = alternate(each_us(in_litert(small, x), calls), each_us(in_litert(file, x), calls))
    report.ratio(f"{name} in int8, float32 in LiteRT beside it", ours, whole, unit="us")
    report.ratio(f"{name} int8 file, float32 beside it", len(small) / 1e3, len(file) / 1e3, unit="kB")


def accuracy(report: Report, name: str, epochs: int) -> None:
    task = find(name)
    data = task.data()
    network = fit(
        task.module(), task.loss, data.train, epochs=epochs, batch_size=32, learning_rate=1e-3, seed=1
    )
    made = tflite.variants(exported(network, task.contract.fields[0].shape), {}, data.calibration.x)
    right = {}
    for file, content in made.items():
        [probabilities] = tflite.run(content, data.held_out.x, ["probabilities"])
        right[file] = 100 * float((probabilities.argmax(axis=1) == data.held_out.y).mean())
    if tflite.INT8_FILE in right:
        lost = right[tflite.FLOAT_FILE] - right[tflite.INT8_FILE]
        report.value(
            f"{name} loses in int8, of {right[tflite.FLOAT_FILE]:.1f}", lost, unit="points", at_most=0.5
        )


def main() -> None:
    torch.set_num_threads(1)
    report = Report("tflite")
    for name in SPEED:
        with report.part(name):
            speed(report, name)
    for name, epochs in TRAINED.items():
        with report.part(f"{name}, accuracy"):
            accuracy(report, name, often(epochs))
    report.finish()


if __name__ == "__main__":
    main()

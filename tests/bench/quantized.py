"""Int8 against float32 on the same processor: latency, size, accuracy, and what quantizing itself takes.

- Latency: one example and batches of 64, one thread, both forms in turn in onnxruntime as packages ship them;
  one example in int8 in LiteRT too, where it is installed, beside float32 in onnxruntime.
- Chosen: what a device's choice takes beside float32. Networks that are no task's are untrained: their labels
  are all but ties, and where int8 turns too many of them, float32 stays.
- Quantizing: as a device does it after training, with 64 inputs: session, ranges, rounding. Beside it what
  onnxruntime's quantizer needs on the workbench; the tensors are equal to the bit.
- Accuracy: what int8 loses on held-out examples of a briefly trained network, whole, with half of its channels
  pruned, and with corrections of low rank, in points; and what the choice by these examples takes.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from harness import Report, alternate, often, seconds
from networks import NETWORKS
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from umbel._releases.choice import choose
from umbel.engines import Outputs
from umbel.engines.onnx import open_session
from umbel_models.adapt import low_rank
from umbel_models.fit import fit
from umbel_models.graphs.model import externalize, finish
from umbel_models.graphs.trace import batch_unlike, to_onnx
from umbel_models.prune import prune
from umbel_models.quantize import Skeletons, embed, quantize, skeletons
from umbel_models.task import find
from umbel_proto import quantization
from umbel_proto.errors import UmbelError

OUTPUTS = ["probabilities", "logits"]
TRAINED = {"digits": 12, "activity": 4, "credit": 5, "breast-cancer": 60}  # epochs
RUNS = 15
RANK = 4
Arrays = dict[str, NDArray[np.float32]]


class Engine:
    """A form of a network, as the device's choice takes it."""

    name = "onnx"

    def __init__(self, variant: str, graph: bytes, arrays: Arrays) -> None:
        self.variant = variant
        self._session = open_session(graph, variant, arrays)

    def answers(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = self._session.run(["probabilities"], {"x": x})[0]
        return result

    def outputs(self, x: NDArray[np.float32]) -> Outputs:
        return dict(zip(OUTPUTS, self._session.run(OUTPUTS, {"x": x}), strict=True))


def inference(network: nn.Module, shape: tuple[int, ...]) -> tuple[bytes, Arrays]:
    """Return the inference graph of a network as packages ship it, and its parameters."""
    values = {name: value.detach().clone() for name, value in network.named_parameters()}

    def infer(*args: Tensor) -> tuple[Tensor, Tensor]:
        logits = functional_call(network, dict(zip(values, args, strict=False)), (args[-1],))
        return torch.softmax(logits, -1), logits

    batch = batch_unlike([*shape, *(size for value in values.values() for size in value.shape)])
    graph = to_onnx(infer, list(values.values()), [torch.rand(batch, *shape)], [*values, "x"], OUTPUTS)
    whole = finish(externalize(graph, list(values))).SerializeToString(deterministic=True)
    return whole, {name: value.numpy() for name, value in values.items()}


def on_a_device(made: Skeletons, parameters: Arrays, inputs: NDArray[np.float32]) -> dict[str, NDArray]:
    """Quantize as ``umbel._quantize.quantize.quantize`` does, without a package around it."""
    session = open_session(made.calib, "calib.onnx", parameters, optimized=False)
    return quantization.quantize(session.run, made.mapping, parameters, inputs)


def each_us(work: Callable[[], object], calls: int) -> Callable[[], float]:
    """Return a measurement: microseconds a call takes, averaged over ``calls`` of them."""

    def many() -> None:
        for _ in range(calls):
            work()

    return lambda: 1e6 * seconds(many) / calls


def compared(report: Report, name: str) -> None:
    network = NETWORKS[name]()
    x = np.random.default_rng(0).standard_normal((128, *network.shape)).astype(np.float32)
    calibration, held_back = x[:64], x[64:]
    try:
        infer, parameters = inference(network.make(), network.shape)
        made = skeletons(infer, parameters, calibration)
    except (UmbelError, RuntimeError) as exc:  # RuntimeError: what torch cannot trace
        print(f"{name} is left out: {exc}")
        return
    tensors = on_a_device(made, parameters, calibration)
    ours, baseline = alternate(
        lambda: 1e3 * seconds(lambda: on_a_device(made, parameters, calibration)),
        lambda: 1e3 * seconds(lambda: quantize(infer, parameters, calibration)),
        runs=3,
    )
    report.value(f"{name}: quantize on the device", ours, unit="ms", at_most=200, baseline=baseline)
    engines = {"fp32": Engine("fp32", infer, parameters), "int8": Engine("int8", made.int8, tensors)}
    latency = {}
    for count in (1, 64):
        batch = np.ascontiguousarray(held_back[:count])
        once = seconds(lambda b=batch: engines["fp32"].answers(b))
        calls = max(5, min(500, int(0.02 / once)))
        latency[count] = alternate(
            each_us(lambda b=batch: engines["int8"].answers(b), calls),
            each_us(lambda b=batch: engines["fp32"].answers(b), calls),
            runs=RUNS,
        )
        report.ratio(f"{name}: int8, batch {count}", *latency[count], unit="us")
    chosen = choose(engines, held_back, reference="fp32").variant
    taken = latency[1][0] if chosen == "int8" else latency[1][1]
    report.ratio(f"{name}: chosen, {chosen}", taken, latency[1][1], unit="us", at_most=1.0)
    sizes = [sum(value.nbytes for value in arrays.values()) / 1e3 for arrays in (tensors, parameters)]
    report.ratio(
        f"{name}: int8 graph and tensors",
        len(made.int8) / 1e3 + sizes[0],
        len(infer) / 1e3 + sizes[1],
        unit="kB",
    )
    if find_spec("ai_edge_litert") is not None:
        in_litert(report, name, embed(infer, parameters).SerializeToString(), engines["fp32"], calibration)


def in_litert(
    report: Report, name: str, graph: bytes, reference: Engine, calibration: NDArray[np.float32]
) -> None:
    from ai_edge_litert.interpreter import Interpreter

    from umbel_models import tflite
    from umbel_models.tflite.interpret import ends

    try:
        file = tflite.quantize(tflite.convert(graph, batch=None), calibration)
    except UmbelError:
        return  # what LiteRT has no int8 for: see the benchmark of TFLite
    at, interpreter = ends(file), Interpreter(model_content=file, num_threads=1)
    interpreter.allocate_tensors()
    x = calibration[:1]

    def call() -> None:
        interpreter.set_tensor(at.index, x)
        interpreter.invoke()
        interpreter.get_tensor(at.outputs["probabilities"])

    ours, baseline = alternate(each_us(call, 200), each_us(lambda: reference.answers(x), 200), runs=RUNS)
    report.ratio(f"{name}: int8 in LiteRT, batch 1", ours, baseline, unit="us")


def accuracy(report: Report, name: str, epochs: int) -> None:
    task = find(name)
    data = task.data()
    how = {"batch_size": 64, "learning_rate": 2e-3, "seed": 1}
    whole = fit(task.module(), task.loss, data.train, epochs=epochs, **how)
    few = max(1, epochs // 4)
    networks = {
        name: whole,
        f"{name}, half pruned": prune(whole, task.loss, data.train, fraction=0.5, epochs=few, **how),
        f"{name}, rank {RANK}": fit(low_rank(whole, RANK), task.loss, data.train, epochs=few, **how),
    }
    x, y = data.held_out[:2]
    for what, network in networks.items():
        infer, parameters = inference(network, task.contract.fields[0].shape)
        made = skeletons(infer, parameters, data.calibration.x)
        tensors = on_a_device(made, parameters, data.calibration.x)
        engines = {"fp32": Engine("fp32", infer, parameters), "int8": Engine("int8", made.int8, tensors)}
        chosen = choose(engines, x, y, reference="fp32")
        right = {form: 100 * float(shown.accuracy or 0) for form, shown in chosen.measured.items()}
        report.value(
            f"{what}: accuracy lost, of {right['fp32']:.1f}",
            right["fp32"] - right["int8"],
            unit="points",
            at_most=0.5,
        )
        # Timed again, in turns: what the choice measured is what it chose by.
        times = alternate(
            *(each_us(lambda e=engines[form]: e.answers(x[:1]), 200) for form in ("int8", "fp32"))
        )
        limit = 1.0 if chosen.variant == "int8" else None
        report.ratio(f"{what}: int8, chosen was {chosen.variant}", *times, unit="us", at_most=limit)


def main() -> None:
    torch.set_num_threads(1)
    report = Report("quantized")
    for name in NETWORKS:
        with report.part(name):
            compared(report, name)
    for name, epochs in TRAINED.items():
        with report.part(f"{name}, accuracy"):
            accuracy(report, name, often(epochs))
    report.finish()


if __name__ == "__main__":
    main()

"""What asking a model costs beyond running its graph, by the size of the model and the runtime.

``Model.predict`` checks the contract, runs the engine, decides, and counts in a telemetry window. The
baseline is the runtime alone, onnxruntime or LiteRT, with the same graph and settings (one thread, no
spinning), on an array that is already a checked batch: values in, run, probabilities out. Times are per
call, averaged over many calls, the median of the runs.

The engine alone stands beside the runtime too: what it adds is what ``predict_proba`` pays but for the check.
int8 against fp32 is the engine alone: the digits CNN is so small that the calls weigh more than the sums.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from harness import Report, alternate, seconds
from networks import NETWORKS, examples, packed
from numpy.typing import NDArray

from umbel._predict.model import Model
from umbel._telemetry.window import PredictionWindow
from umbel.engines import load_engine
from umbel.engines.onnx import open_session
from umbel_models.pack import build
from umbel_models.task import find
from umbel_proto.keys import SigningKey
from umbel_proto.package import Package, read_package

RUNS = 25
TASKS = ("breast-cancer", "digits", "activity")
LARGE = "letters-1.2m"
BATCHES = (1, 64)


def each_us(work: Callable[[], object], calls: int) -> Callable[[], float]:
    """Return a measurement: microseconds a call takes, averaged over ``calls`` of them."""

    def many() -> None:
        for _ in range(calls):
            work()

    return lambda: 1e6 * seconds(many) / calls


def bare(package: Package, variant: str, x: NDArray[np.float32]) -> Callable[[], object]:
    """Return a call of the runtime alone."""
    form = package.manifest.variants[variant]
    if form.engine == "onnx":
        session = open_session(package.file(form.file), form.file, package.weights(variant))
        return lambda: session.run(["probabilities"], {"x": x})
    from ai_edge_litert.interpreter import Interpreter

    from umbel_models.tflite.interpret import ends

    content = package.file(form.file)
    at, interpreter = ends(content), Interpreter(model_content=content, num_threads=1)
    interpreter.resize_tensor_input(at.index, x.shape, strict=True)
    interpreter.allocate_tensors()

    def call() -> object:
        interpreter.set_tensor(at.index, x)
        interpreter.invoke()
        return interpreter.get_tensor(at.outputs["probabilities"])

    return call


def compared(report: Report, package: Package, x: NDArray[np.float32]) -> None:
    manifest = package.manifest
    for variant, form in sorted(manifest.variants.items()):
        window = PredictionWindow(
            model=manifest.model, version=1, variant=variant, engine=form.engine, now_s=time.time()
        )
        engine = load_engine(package, variant)
        model = Model(package, engine, window)
        for count in BATCHES:
            batch = np.ascontiguousarray(x[:count])
            asked, alone = batch[0] if count == 1 else batch, bare(package, variant, batch)
            calls = max(5, min(500, int(0.005 / seconds(alone))))
            what = f"{manifest.model} {variant}, {'one example' if count == 1 else f'a batch of {count}'}"
            ours, baseline = alternate(
                each_us(lambda m=model, a=asked: m.predict(a), calls), each_us(alone, calls), runs=RUNS
            )
            report.ratio(f"{what}: predict, runtime alone beside it", ours, baseline, unit="us")
            report.value("  predict adds to each example", (ours - baseline) / count, unit="us")
            ours, baseline = alternate(
                each_us(lambda e=engine, b=batch: e.answers(b), calls), each_us(alone, calls), runs=RUNS
            )
            report.ratio("  the engine, runtime alone beside it", ours, baseline, unit="us")


def small(report: Report, package: Package, x: NDArray[np.float32]) -> None:
    int8, fp32 = load_engine(package, "int8"), load_engine(package, "fp32")
    for count in BATCHES:
        batch = np.ascontiguousarray(x[:count])
        ours, baseline = alternate(
            each_us(lambda b=batch: int8.answers(b), 500 // count + 50),
            each_us(lambda b=batch: fp32.answers(b), 500 // count + 50),
            runs=RUNS,
        )
        report.ratio(
            f"{package.manifest.model}: int8 engine, batch of {count}, fp32 beside it",
            ours,
            baseline,
            unit="us",
        )


def main() -> None:
    key = SigningKey.generate()
    report = Report("inference")
    for name in TASKS:
        with report.part(name):
            task = find(name)
            lite = find_spec("ai_edge_litert") is not None
            built = build(task, key=key, version=1, lineage={}, lite=lite)
            package, x = read_package(built, release_key=key.public), task.data().held_out.x
            compared(report, package, x)
            small(report, package, x)
    with report.part(LARGE):
        network = NETWORKS[LARGE]()
        package = read_package(packed(LARGE, network, key), release_key=key.public)
        compared(report, package, examples(network, max(BATCHES))[0])
    report.finish()


if __name__ == "__main__":
    main()

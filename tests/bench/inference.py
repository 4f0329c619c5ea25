"""What asking a model costs beyond running its graph, and what int8 saves.

``Model.predict`` checks the contract, runs the engine, decides, and counts in a telemetry window. The
baseline is ``InferenceSession.run`` of the same graph alone, with the same session options (one thread,
no spinning), on an array that is already a checked batch. Times are per call, averaged over a few
hundred calls, the median of the runs.

int8 against fp32 is the engine alone: the digits CNN is so small that the calls weigh more than the sums.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from harness import Report, alternate, seconds

from umbel._model import Model
from umbel._telemetry import PredictionWindow
from umbel.engines import load_engine
from umbel.engines.onnx import open_session
from umbel_models.pack import build
from umbel_models.task import find
from umbel_proto.keys import SigningKey
from umbel_proto.package import Package, read_package

RUNS = 25


def each_us(work: Callable[[], object], calls: int) -> Callable[[], float]:
    """Return a measurement: microseconds a call takes, averaged over ``calls`` of them."""

    def many() -> None:
        for _ in range(calls):
            work()

    return lambda: 1e6 * seconds(many) / calls


def bare_run(package: Package, variant: str, x: np.ndarray) -> Callable[[], object]:
    form = package.manifest.variants[variant]
    session = open_session(package.file(form.file), form.file, package.weights(variant))
    return lambda: session.run(["probabilities"], {"x": x})


def main() -> None:
    task, key = find("digits"), SigningKey.generate()
    package = read_package(build(task, key=key, version=1, lineage={}), release_key=key.public)
    held_out = task.data().held_out.x
    report = Report("inference")
    for variant in ("fp32", "int8"):
        window = PredictionWindow(
            model="digits", version=1, variant=variant, engine="onnx", now_s=time.time()
        )
        model = Model(package, load_engine(package, variant), window)
        for count, calls in ((1, 500), (64, 50)):
            batch = np.ascontiguousarray(held_out[:count])
            asked = batch[0] if count == 1 else batch
            ours, baseline = alternate(
                each_us(lambda m=model, a=asked: m.predict(a), calls),
                each_us(bare_run(package, variant, batch), calls),
                runs=RUNS,
            )
            what = "one example" if count == 1 else f"a batch of {count}"
            report.ratio(f"predict {what}, {variant}, bare run beside it", ours, baseline, unit="us")
            report.value(f"  predict adds to each example of {what}", (ours - baseline) / count, unit="us")
    small, large = load_engine(package, "int8"), load_engine(package, "fp32")
    for count, calls in ((1, 500), (64, 50)):
        batch = np.ascontiguousarray(held_out[:count])
        ours, baseline = alternate(
            each_us(lambda b=batch: small.probabilities(b), calls),
            each_us(lambda b=batch: large.probabilities(b), calls),
            runs=RUNS,
        )
        report.ratio(f"int8 engine, batch of {count}, fp32 beside it", ours, baseline, unit="us")
    report.finish()


if __name__ == "__main__":
    main()

"""What the SDK costs an application: a prediction with all that belongs to it, beside the runtime alone.

- ``Model.predict`` with telemetry against ``InferenceSession.run(names, feed)``, and against LiteRT's ``Interpreter``
  (``set_tensor``, ``invoke``, ``get_tensor``), one example of one thread, by the time the runtime alone takes. The
  input is a C-contiguous array of the graph's type, and keeps the contract. Where weights came to lie in memory makes
  one session as much as a fifth slower than its equal: onnxruntime's baseline asks the model's own session, and of LiteRT,
  whose interpreters refuse to be asked beside a seat, both are opened often. All are open at once.
- Eight threads that predict at once, the time that a prediction takes of all of them together, against eight threads
  that ask the runtime alone; and how each scales, that time over the same of one thread, against how the other does.
- Resident memory after a million predictions, and the size of the batch that is sealed of them.
- The size of the batch that is sealed of the fullest minute of each reference model: two engines, labels, outcomes.
- The 99th percentile of a prediction while another process of this device trains on one thread, as ``umbel run``
  does, and while that process is stopped: in many short turns, as the machine itself is faster and slower by turns.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from full_window import columns, fill
from harness import Report, in_turn, medians, often
from inference import bare, each_us
from networks import NETWORKS, examples, packed
from numpy.typing import NDArray

from umbel._home.directory import DeviceHome, Identity
from umbel._predict.model import Model
from umbel._telemetry.gauges import resident_bytes
from umbel._telemetry.scope import Scope
from umbel._telemetry.spool import Spool
from umbel._telemetry.telemetry import Telemetry
from umbel._telemetry.window import PredictionWindow
from umbel.engines import load_engine
from umbel.engines.onnx import OnnxEngine
from umbel.train.onnx import OnnxTrainer
from umbel.train.plan import TrainPlan
from umbel_models.pack import build
from umbel_models.task import find
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.keys import SigningKey
from umbel_proto.package import Package, read_package, read_unsigned
from umbel_proto.seal import generate_keypair

OPENINGS, RUNS = {"onnx": 11, "tflite": 31}, 11
TASKS = ("breast-cancer", "digits", "activity")
LARGE = "letters-1.2m"
THREADS = 8
MANY = 1_000_000
SAMPLES = 4_000
TURNS = 101
ROUNDS = 31
MAY_COST = ((3.0, 1.6), (25.0, 1.10), (150.0, 1.02))
"""What a prediction may cost, of what the runtime alone takes, where that takes so many microseconds."""


def model(package: Package, variant: str, window: PredictionWindow | None = None) -> Model:
    """Return a model that counts its predictions, in a window of its own or in one that others share."""
    return Model(package, load_engine(package, variant), window or opened(package, variant))


def opened(package: Package, variant: str) -> PredictionWindow:
    form, name = package.manifest.variants[variant], package.manifest.model
    return PredictionWindow(model=name, version=1, variant=variant, engine=form.engine, now_s=time.time())


def alone(asked: Model, package: Package, variant: str, x: NDArray[np.float32]) -> Callable[[], object]:
    """Return a call of the runtime alone, of the model's own session where that can be."""
    engine = asked._loaded.engine
    if not isinstance(engine, OnnxEngine):
        return bare(package, variant, x)
    session = engine._opened()
    return lambda: session.run(["probabilities"], {"x": x})


def allowed(baseline_us: float) -> float:
    """Return what a prediction may cost, of the runtime's time.

    Between the times for which there is a bound it lies on a straight line. Below the shortest the microseconds that may
    be added are those of the shortest: what is added hardly depends on the model.
    """
    times, factors = zip(*MAY_COST, strict=True)
    if baseline_us < times[0]:
        return 1 + times[0] * (factors[0] - 1) / baseline_us
    return float(np.interp(baseline_us, times, factors))


def one_thread(report: Report, package: Package, x: NDArray[np.float32]) -> None:
    for variant, form in sorted(package.manifest.variants.items()):
        one, window = x[0].copy(), opened(package, variant)
        asked = [model(package, variant, window) for _ in range(often(OPENINGS[form.engine]))]
        both = [(each, alone(each, package, variant, x[:1])) for each in asked]
        each = 1e-6 * each_us(both[0][1], 20)()
        calls = max(5, min(1000, int(0.004 / each)))
        pairs = []
        for ours, runtime in both:
            predict = each_us(lambda m=ours, o=one: m.predict(o), calls)
            pairs += in_turn(predict, each_us(runtime, calls), runs=RUNS)
        report.pairs(
            f"{package.manifest.model} {variant} ({form.engine}): predict, runtime alone beside it",
            pairs,
            unit="us",
            at_most=round(allowed(medians(pairs)[1]), 3),
        )


def threads(report: Report, package: Package, x: NDArray[np.float32], variant: str) -> None:
    """Time eight threads; each asks a session or an interpreter as the SDK would: LiteRT's is its own."""
    calls = often(1500)
    onnx = package.manifest.variants[variant].engine == "onnx"
    asked, one = model(package, variant), x[0].copy()
    shared = alone(asked, package, variant, x[:1])
    runtime = [shared if onnx else bare(package, variant, x[:1]) for _ in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:

        def together(work: list[Callable[[], object]]) -> float:
            def ask(call: Callable[[], object]) -> None:
                for _ in range(calls):
                    call()

            begin = time.perf_counter()
            list(pool.map(ask, work))
            return 1e6 * (time.perf_counter() - begin) / (calls * THREADS)

        ours = [lambda: asked.predict(one)] * THREADS
        turns: list[Callable[[], float]] = [
            lambda: together(ours),
            lambda: together(runtime),
            lambda: together(ours[:1]) * THREADS,
            lambda: together(runtime[:1]) * THREADS,
        ]
        for turn in turns:
            turn()
        eight, scaled = [], []
        # One thread right beside eight: how much more does a prediction take among eight, ours and the runtime's?
        for number in range(often(ROUNDS)):
            took = {place: turns[place]() for place in sorted(range(4), reverse=number % 2 == 1)}
            eight.append((took[0], took[1]))
            scaled.append((took[0] / took[2], took[1] / took[3]))
    name = f"{package.manifest.model} {variant}: {THREADS} threads"
    report.pairs(f"{name}, per prediction, runtime alone beside it", eight, unit="us")
    report.pairs(
        f"{name}, of one thread's time per prediction, runtime alone beside it",
        scaled,
        unit="times",
        at_most=1.15,
    )


def million(report: Report, package: Package, x: NDArray[np.float32]) -> None:
    key = generate_keypair()[0]
    with tempfile.TemporaryDirectory() as folder:
        home = DeviceHome(Path(folder))
        home.make()
        home.write_identity(Identity(FleetId("bench"), DeviceId("d1"), "127.0.0.1:1", ""))
        home.write_telemetry_key(key.public)
        with Spool(home.spool) as spool:
            telemetry = Telemetry(home, spool, clock=time.time)
            manifest = package.manifest
            scope = Scope.of(package)
            window = telemetry.window(
                model=manifest.model, version=1, variant="fp32", engine="onnx", scope=scope
            )
            asked = Model(package, load_engine(package, "fp32"), window)
            rows = [row.copy() for row in x]
            for row in rows * 20:
                asked.predict(row)
            before = resident_bytes() or 0
            for number in range(often(MANY)):
                asked.predict(rows[number % len(rows)])
            grown = (resident_bytes() or 0) - before
            report.value(
                f"{manifest.model}: memory that {MANY:,} predictions add",
                grown / 2**20,
                unit="MiB",
                at_most=1.0,
            )
            telemetry.flush()
            [sealed] = spool.oldest(max_batches=9, max_bytes=10**9)
            report.value(
                f"{manifest.model}: sealed batch of a window of {MANY:,} predictions",
                sealed.size,
                unit="bytes",
                at_most=2048,
            )


def full(report: Report, package: Package, x: NDArray[np.float32]) -> None:
    """Seal the fullest minute of a model: one column breaks its contract, or all do."""
    name, field, key = package.manifest.model, package.manifest.contract.fields[0], generate_keypair()[0]
    every = columns(field)
    for broken in (every[:1], every) if len(every) > 1 else (every,):
        with tempfile.TemporaryDirectory() as folder:
            home = DeviceHome(Path(folder))
            home.make()
            home.write_identity(Identity(FleetId("bench-fleet"), DeviceId("device-1"), "127.0.0.1:1", ""))
            home.write_telemetry_key(key.public)
            with Spool(home.spool) as spool:
                telemetry = Telemetry(home, spool, clock=time.time)
                scope = Scope.of(package)
                fill(telemetry, field, scope, x, model=name, predictions=often(MANY), broken=broken)
                telemetry.flush()
                [sealed] = spool.oldest(max_batches=9, max_bytes=10**9)
        all_of = f", all {len(every)} columns breaking the contract in every way" if broken[1:] else ""
        report.value(
            f"{name}: sealed batch of the fullest window, two engines{all_of}",
            sealed.size,
            unit="bytes",
            at_most=None if all_of else 2048,
        )


def training(report: Report, file: Path, package: Package, x: NDArray[np.float32]) -> None:
    """Compare the 99th percentile while a child process trains and while it is stopped."""
    command = [sys.executable, __file__, "--train", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            asked, one = model(package, "fp32"), x[0].copy()

            def slowest_us(go: signal.Signals) -> float:
                child.send_signal(go)
                time.sleep(0.005)
                times = []
                for _ in range(often(SAMPLES)):
                    begin = time.perf_counter_ns()
                    asked.predict(one)
                    times.append(time.perf_counter_ns() - begin)
                return statistics.quantiles([*times, *times], n=100)[98] / 1000

            pairs = in_turn(
                lambda: slowest_us(signal.SIGCONT), lambda: slowest_us(signal.SIGSTOP), runs=TURNS
            )
        finally:
            child.kill()
    report.pairs(
        f"{package.manifest.model}: 99th percentile of predict while the device trains, at rest beside it",
        pairs,
        unit="us",
        at_most=1.10,
    )


def train(file: Path) -> None:
    """Train for ever, in a process of its own that gives way to all others, as ``umbel run`` does."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    package = read_unsigned(file.read_bytes())
    data = find(package.manifest.model).data().train
    trainer, plan = OnnxTrainer(package), TrainPlan(10, 32, 0.01, momentum=0.0, seed=1)
    trainer.train(package.parameters(), data.x, data.y, plan)
    print("training", flush=True)
    while True:
        trainer.train(package.parameters(), data.x, data.y, plan)


def main() -> None:
    report, key = Report("sdk"), SigningKey.generate()
    lite = find_spec("ai_edge_litert") is not None
    for name in TASKS:
        with report.part(name):
            task = find(name)
            built = build(task, key=key, version=1, lineage={}, lite=lite)
            package = read_package(built, release_key=key.public)
            x = np.ascontiguousarray(task.data().held_out.x, np.float32)
            one_thread(report, package, x)
            for variant in ("fp32", "tflite"):
                if variant in package.manifest.variants:
                    threads(report, package, x, variant)
            if name != "activity":
                million(report, package, x)
            full(report, package, x)
            if name == "digits":
                with tempfile.NamedTemporaryFile(suffix=".umbel") as file:
                    Path(file.name).write_bytes(built)
                    training(report, Path(file.name), package, x)
    with report.part("credit"):
        task = find("credit")
        package = read_package(build(task, key=key, version=1, lineage={}), release_key=key.public)
        full(report, package, np.ascontiguousarray(task.data().held_out.x, np.float32))
    with report.part(LARGE):
        network = NETWORKS[LARGE]()
        package = read_package(packed(LARGE, network, key), release_key=key.public)
        x = examples(network, 64)[0]
        one_thread(report, package, x)
        threads(report, package, x, "fp32")
    report.finish()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(Path(sys.argv[2]))
    main()

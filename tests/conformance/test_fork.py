"""A forked process predicts and reports by itself: nothing of its parent's hangs in it, and nothing counts twice."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import model_packages as packages
from onnx_exports import exported
from service_fleet import ManualClock, make_fleet, running
from umbel._fleet.enroll import enroll
from umbel._home.directory import DeviceHome
from umbel._releases.shelf import Shelf
from umbel_models.pack import build
from umbel_models.tasks.digits.task import DIGITS
from umbel_proto.package import read_unsigned
from umbel_server.fleet.invite import invite
from umbel_server.monitor.opener import Opener
from umbel_server.store.store import Store

PATIENCE_S = 60.0
# A process of its own: what was loaded for other tests has threads that no fork survives.
LOADING = """
import gc, os, sys, threading
from umbel._releases import turns

def settings():
    return sys.getswitchinterval(), gc.get_threshold()

usual, begun, stop = settings(), threading.Event(), threading.Event()

def load():
    with turns.yielding():
        begun.set()
        stop.wait()

thread = threading.Thread(target=load)
thread.start()
begun.wait()
turns._blocks._lock.acquire()  # As if another thread were just about to begin.
if not (child := os.fork()):
    assert settings() == usual
    with turns.yielding():
        grandchild = os.fork()  # By the thread that is in a block.
        if not grandchild:
            assert settings() == usual
    assert settings() == usual
    with turns.yielding():
        assert sys.getswitchinterval() < usual[0]
    assert settings() == usual
    os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) if grandchild else 0)
turns._blocks._lock.release()
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
stop.set()
thread.join()
assert settings() == usual
sys.exit(code)
"""
ENGINES = """
import json, os, sys, threading, traceback
import numpy as np
from pathlib import Path
from umbel._predict.model import Model
from umbel._telemetry.window import PredictionWindow
from umbel.engines import load_engine, onnx, tflite
from umbel_proto.package import read_unsigned

onnx.BRIEF_S = tflite.BRIEF_S = 1.0  # So that threads take turns, whatever this machine takes for a run.
package = read_unsigned(Path(sys.argv[1]).read_bytes())
x = np.load(sys.argv[2])
window = PredictionWindow(model="digits", version=1, variant="any", engine="any", now_s=0.0)
models = [Model(package, load_engine(package, name), window) for name in sorted(package.manifest.variants)]
first = [model.predict(x[0]) for model in models]
right = [answer.label for answer in first]
stop = threading.Event()

def busy(model):
    while not stop.is_set():
        model.predict(x[0])
        model.predict(x[:3])

threads = [threading.Thread(target=busy, args=(model,), daemon=True) for model in models * 2]
for thread in threads:
    thread.start()

def tell(go):
    turns = [model._loaded.turns for model in models]
    assert not any(each._inside or each._resting for each in turns)  # Its parent's threads are not met here.
    said = [model.predict(x[0]) for model in models]
    said += [answer for model in models for answer in model.predict(x[:2])]
    counts = dict(window.take(1.0).counters)
    labels = [answer.label for answer in said[: len(models)]]
    os.write(go, json.dumps([labels, [answer.id for answer in said], counts["predictions"]]).encode())

told = []
for _ in range(5):
    come, go = os.pipe()
    if not (child := os.fork()):
        try:
            tell(go)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)  # Whatever fails: Python's own end would wait for its parent's threads.
    os.close(go)
    told.append(json.loads(os.read(come, 10**6)))
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for thread in threads:
    thread.join()
print(json.dumps({"right": right, "first": [answer.id for answer in first], "told": told}))
"""
OTHERS = """
import os, sys, threading
import numpy as np
import umbel

two = umbel.EngineOptions(threads=2)
package, x = umbel.load(sys.argv[1]), np.load(sys.argv[4])
graph, tflite = (umbel.load(file, engine=two) for file in sys.argv[2:4])
asked = [
    lambda: package.explain(x[0]).attributions,
    lambda: next(iter(graph.run(x[:1]).values())),
    lambda: next(iter(tflite.run(x[:1]).values())),
]
right = [ask() for ask in asked]
stop = threading.Event()

def threads_alive():
    return len(os.listdir("/proc/self/task"))

def busy(ask):
    while not stop.is_set():
        ask()

threads = [threading.Thread(target=busy, args=(ask,)) for ask in asked * 2]
for thread in threads:
    thread.start()
for _ in range(8):
    if not (child := os.fork()):
        said, living = [], [threads_alive()]
        for ask in asked:
            said.append(ask())
            living.append(threads_alive())
        # A bare graph that computes on two threads brings the second one along: the parent's are not here.
        own = living[0] == 1 and living[1] < living[2] < living[3]
        os._exit(0 if own and all(np.array_equal(a, b) for a, b in zip(said, right)) else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for thread in threads:
    thread.join()
"""
DEVICE = """
import os, sys, threading
from pathlib import Path
import numpy as np
import umbel

home, x, go = sys.argv[1], np.load(sys.argv[2]), Path(sys.argv[3])
device = umbel.Device.open(home, poll_s=1.0)
model = device.model("digits")
for row in x[:3]:
    model.predict(row)
ends, pause = sys.argv[4], threading.Event()
if not (child := os.fork()):
    for row in x[:5]:
        model.predict(row)
    device.telemetry.count("purchase")
    try:
        device.sync()
    except umbel.UsageError as exc:
        assert "was forked" in str(exc)
    else:
        os._exit(1)
    if ends == "closes":
        device.close()
    else:
        while not go.exists():
            pause.wait(0.05)
    os._exit(0)
for row in x[:2]:
    model.predict(row)
assert os.waitpid(child, 0)[1] == 0
device.close()
"""


def run(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    return out


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    file = tmp_path / "x.npy"
    np.save(file, packages.digits().held_out.x[:8])
    return file


def test_children_forked_while_threads_predict_answer_alike_and_count_only_their_own(
    tmp_path: Path, inputs: Path
) -> None:
    file = tmp_path / "digits.umbel"
    file.write_bytes(build(DIGITS, key=packages.RELEASE, lite=True))
    said = json.loads(finished(run(ENGINES, file, inputs)))
    ids = list(said["first"])
    for labels, made, predictions in said["told"]:
        assert labels == said["right"]
        assert predictions == 3 * len(labels) == len(made)
        ids += made
    assert len({*ids}) == len(ids)


def test_children_forked_while_a_thread_loads_a_package_take_turns_as_before() -> None:
    finished(run(LOADING))


def test_children_forked_while_threads_explain_and_ask_bare_graphs_answer_alike(
    tmp_path: Path, inputs: Path
) -> None:
    package, graph, tflite = (tmp_path / name for name in ("digits.umbel", "digits.onnx", "digits.tflite"))
    package.write_bytes(build(DIGITS, key=packages.RELEASE, lite=True))
    opened = read_unsigned(package.read_bytes())
    tflite.write_bytes(opened.file(opened.manifest.variants["tflite"].file))
    graph.write_bytes(exported(nn.Conv2d(1, 4, 3), (1, 8, 8)))
    finished(run(OTHERS, package, graph, tflite, inputs))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[tuple[Store, Opener, DeviceHome]]:
    clock = ManualClock(time.time())
    made = make_fleet(tmp_path / "garden", clock=clock)
    made.release_key.write_bytes(packages.RELEASE.to_pem())
    made.release_pub.write_bytes(packages.RELEASE.public.raw)
    with running(made, clock=clock) as (_, store):
        home = DeviceHome(tmp_path / "d1")
        enroll(home, invite(made, store).to_text(), name="d1", now_s=clock.now_s)
        Shelf(home.shelf, home.release_authority()).install(packages.release(2))
        yield store, Opener(store, made.telemetry_private()), home


def counted(store: Store, opener: Opener, name: str) -> int:
    while opener.run_once():
        pass
    return sum(rollup.counters.get(name, 0) for rollup in store.rollups.all())


@pytest.mark.parametrize("ends", ["closes", "is killed"])
def test_a_forked_process_reports_what_it_predicted_by_itself_and_once(
    fleet: tuple[Store, Opener, DeviceHome], inputs: Path, tmp_path: Path, ends: str
) -> None:
    store, opener, home = fleet
    go = tmp_path / "go"
    process = run(DEVICE, home.path, inputs, go, ends)
    deadline, pause = time.monotonic() + PATIENCE_S, threading.Event()
    while ends != "closes" and counted(store, opener, "app.purchase") < 1:
        assert time.monotonic() < deadline, "the child's background thread reported nothing"
        assert process.poll() is None, process.communicate()[1]
        pause.wait(0.1)
    go.touch()
    finished(process)
    assert counted(store, opener, "predictions") == 3 + 5 + 2
    assert counted(store, opener, "app.purchase") == 1

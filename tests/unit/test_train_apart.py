"""Laws: training in a process of its own is training, to the bit; whatever ends that process ends nothing else."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from numpy.typing import NDArray

from model_packages import digits, first, opened, resigned
from umbel._data.examples import Examples
from umbel._home.directory import DeviceHome
from umbel._rounds.conditions import Conditions, NotNowError
from umbel._rounds.load import AVERAGE_S, OthersLoad, OwnLoad
from umbel._rounds.probes import Reading
from umbel.flower import _go_on as go_on
from umbel.train import (
    Controls,
    DivergedError,
    Ended,
    ExamplePrivacy,
    Meter,
    Trainer,
    TrainPlan,
    TrainResult,
)
from umbel.train.apart import ApartTrainer, Worker
from umbel.train.onnx import OnnxTrainer
from umbel.train.pipe import Pipe, PipeError
from umbel_proto.errors import PackageError, UnavailableError, UsageError

PLAN = TrainPlan(epochs=2, batch_size=16, learning_rate=0.05, momentum=0.9, seed=7)
LONG = replace(PLAN, epochs=1000, batch_size=1)
"""Minutes, if nothing ends it."""


@pytest.fixture(scope="module", autouse=True)
def processes() -> None:
    if not Path("/proc/self/task").exists():
        # Only Linux shows there what a process has imported, holds and may do. CI runs on it, and must run this.
        assert "CI" not in os.environ, "CI needs /proc"
        pytest.skip("this system shows no processes in /proc")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    kept = Worker()
    yield kept
    kept.close()


def train(trainer: Trainer, plan: TrainPlan = PLAN, *, rows: int = 50, **more: Any) -> TrainResult:
    x, y = digits().train[:2]
    return trainer.train(opened(first()).parameters(), x[:rows], y[:rows], plan, **more)


@functools.cache
def expected() -> bytes:
    return train(OnnxTrainer(opened(first()))).parameters.tobytes()


def children() -> set[int]:
    """The processes that this one has started and not seen end."""
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


def pid_of(trainer: Trainer) -> int:
    before = children()
    assert train(trainer).parameters.tobytes() == expected()
    (pid,) = children() - before
    return pid


def lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def ends(pid: int) -> bool:
    handle = os.pidfd_open(pid)
    try:
        return bool(select.select([handle], [], [], 60)[0])
    finally:
        os.close(handle)


plans = st.builds(
    TrainPlan,
    epochs=st.integers(1, 3),
    batch_size=st.integers(1, 40),
    learning_rate=st.floats(1e-4, 0.2),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    seed=st.integers(0, 2**64 - 1),
    optimizer=st.sampled_from(["sgd", "adam"]),
    weight_decay=st.sampled_from([0.0, 0.01]),
    gradient_clip=st.sampled_from([0.0, 0.5]),
    fedprox_mu=st.sampled_from([0.0, 0.3]),
    patience=st.sampled_from([0, 0, 1]),
    time_limit_s=st.sampled_from([0.0, 0.0, 5.0]),
    energy_limit_j=st.sampled_from([0.0, 0.0, 4.0]),
)


@settings(max_examples=40, deadline=None)
@given(plan=plans, rows=st.integers(1, 60), scaffold=st.booleans())
def test_every_plan_gives_the_bits_that_it_gives_in_this_process(
    worker: Worker, plan: TrainPlan, rows: int, scaffold: bool
) -> None:
    package, (x, y) = opened(first()), digits().train[:2]
    controls = None
    if scaffold:
        plan = replace(plan, optimizer="sgd", momentum=0.0, weight_decay=0.0, fedprox_mu=0.0)
        chance = np.random.default_rng(rows)
        terms = chance.normal(scale=0.01, size=(2, package.manifest.dim)).astype(np.float32)
        controls = Controls(*terms)

    def counting() -> Meter:  # Each look at the clock is a second, each at the counter a joule.
        return Meter(itertools.count(0.0).__next__, itertools.count(0.0).__next__)

    def result(make: Callable[..., Trainer], **more: Any) -> TrainResult | str:
        try:
            return train(
                make(package, meter=counting(), **more), plan, rows=rows, controls=controls, held_back=Examples(x[-30:], y[-30:])
            )  # fmt: skip
        except DivergedError as exc:
            return str(exc)

    here, there = result(OnnxTrainer), result(ApartTrainer, worker=worker)
    if isinstance(here, str) or isinstance(there, str):
        assert here == there
        return
    assert here.parameters.tobytes() == there.parameters.tobytes()
    told = ("loss", "examples", "steps", "ended", "seconds", "joules")
    assert [getattr(here, name) for name in told] == [getattr(there, name) for name in told]
    assert isinstance(there.ended, Ended)
    assert (here.control is None) == (there.control is None) == (not scaffold)
    if here.control is not None and there.control is not None:
        assert here.control.tobytes() == there.control.tobytes()


def test_one_process_trains_again_and_again_and_ends_with_its_trainer() -> None:
    trainer = ApartTrainer(opened(first()))
    pid = pid_of(trainer)
    train(trainer, replace(PLAN, privacy=ExamplePrivacy(1.0, 1.0)))
    assert train(trainer).parameters.tobytes() == expected()
    assert pid in children()
    trainer.close()
    assert not lives(pid)
    pid = pid_of(trainer)
    del trainer  # Whoever forgets to close it leaves nothing behind.
    assert not lives(pid)


@pytest.mark.parametrize("when", ["between trainings", "in the middle"])
def test_a_process_that_is_killed_costs_one_training_at_most(when: str) -> None:
    worker, looks = Worker(), itertools.count()
    pid = pid_of(ApartTrainer(opened(first()), worker=worker))

    def joules() -> float:
        if next(looks) == 2 and when == "in the middle":
            os.kill(pid, signal.SIGKILL)
        return 0.0

    trainer = ApartTrainer(opened(first()), meter=Meter(joules=joules), worker=worker)
    limited = replace(PLAN, energy_limit_j=1.0)
    if when == "in the middle":
        with pytest.raises(UnavailableError, match=r"ended by SIGKILL.*a later round begins anew\.$"):
            train(trainer, limited)
    else:
        os.kill(pid, signal.SIGKILL)
    assert train(trainer, limited).parameters.tobytes() == expected()
    assert pid not in children()
    worker.close()


def test_a_process_without_memory_is_one_sentence_and_the_next_training_goes_on() -> None:
    package, worker = opened(first()), Worker()
    trainer = ApartTrainer(package, worker=worker)
    pid = pid_of(trainer)
    size = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmSize" in line)
    limit = int(size.split()[1]) * 1024 + (8 << 20)
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
    x, y = np.repeat(digits().train.x[:64], 200, axis=0), np.repeat(digits().train.y[:64], 200)
    with pytest.raises(UnavailableError, match=r"^Training failed .*memory.*Nothing of it is kept\.$"):
        trainer.train(package.parameters(), x, y, replace(PLAN, batch_size=len(x)))
    assert train(trainer).parameters.tobytes() == expected()
    worker.close()


def test_what_is_wrong_with_a_training_is_said_as_in_this_process(worker: Worker) -> None:
    damaged = opened(resigned(first(), lambda _: None, **{"grad.onnx": b"no graph"}))
    cases: list[tuple[type[UsageError | PackageError], Any, TrainPlan]] = [
        (DivergedError, opened(first()), replace(PLAN, learning_rate=1e20, epochs=9)),
        (PackageError, damaged, PLAN),
    ]
    before = pid_of_kept(worker)
    for error, package, plan in cases:
        with pytest.raises(error) as here:
            train(OnnxTrainer(package), plan)
        with pytest.raises(error) as there:
            train(ApartTrainer(package, worker=worker), plan)
        assert (type(here.value), str(here.value)) == (type(there.value), str(there.value))
    assert pid_of_kept(worker) == before  # The process goes on.


def pid_of_kept(worker: Worker) -> int:
    train(ApartTrainer(opened(first()), worker=worker))
    assert worker._running is not None
    return worker._running.process.pid


@pytest.mark.parametrize("python", ["", "/nowhere/python3", str(Path(__file__))])
def test_without_a_python_beside_it_a_program_trains_itself(
    python: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", python)
    before = children()
    with caplog.at_level(logging.WARNING):
        assert train(ApartTrainer(opened(first()))).parameters.tobytes() == expected()
    assert "trains in this process:" in caplog.text
    assert children() == before


@pytest.mark.parametrize("python", ["sys.executable", ""])
def test_a_training_ends_when_the_device_may_not_train_any_more(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    charges = True
    conditions = Conditions(DeviceHome(tmp_path), probes=[lambda: Reading(charging=charges)])
    conditions.require(charging=True)
    taken = []

    def look(taken_s: float) -> None:
        nonlocal charges
        taken.append(taken_s)
        charges = len(taken) < 2
        go_on(conditions, threading.Event(), taken_s)

    if python == "":
        monkeypatch.setattr(sys, "executable", "")
    before = children()
    trainer = ApartTrainer(opened(first()), look=look)
    with pytest.raises(NotNowError):
        train(trainer, LONG, rows=1000)
    assert children() == before
    trainer.close()
    assert len(taken) == 2
    assert taken[0] < taken[1]


def test_a_device_that_stops_ends_its_training(tmp_path: Path) -> None:
    stop = threading.Event()
    conditions = Conditions(DeviceHome(tmp_path), probes=[])
    go_on(conditions, stop, 1.0)
    stop.set()
    with pytest.raises(NotNowError):
        go_on(conditions, stop, 1.0)


PARENT = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import numpy as np
from umbel.train import ExamplePrivacy, TrainPlan
from umbel.train.apart import ApartTrainer
from umbel_proto.keys import VerifyKey
from umbel_proto.package import read_package

data = np.load(sys.argv[1] + "/data.npz")
key = VerifyKey(Path(sys.argv[1], "key").read_bytes())
package = read_package(Path(sys.argv[1], "package").read_bytes(), release_key=key)

def look(_):
    print(flush=True)  # It trains.

trainer = ApartTrainer(package, look=look)
if data["long"]:  # A private training asks its parent nothing.
    plan = TrainPlan(1000, 1, 1e-3, 0.0, 1, ExamplePrivacy(1.0, 1.0))
    trainer.train(package.parameters(), data["x"], data["y"], plan)
trainer.train(package.parameters(), data["x"][:8], data["y"][:8], TrainPlan(1, 8, 1e-3, 0.0, 1))
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("long", [True, False], ids=["that trains", "at rest"])
def test_a_process_ends_when_the_one_that_started_it_is_killed(long: bool, tmp_path: Path) -> None:
    from model_packages import RELEASE

    (tmp_path / "package").write_bytes(first())
    (tmp_path / "key").write_bytes(RELEASE.public.raw)
    x, y = digits().train[:2]
    np.savez(tmp_path / "data.npz", x=x, y=y, long=long)
    command = [sys.executable, "-c", PARENT, str(tmp_path), *filter(None, sys.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"\n"
        pid = int(Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text())
        assert lives(pid)
        parent.kill()
        assert ends(pid)


def loaded(pid: int) -> set[str]:
    """Those of the libraries that a plain training does without and this process has."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {name for name in ("cryptography", "_hashlib", "libcrypto", "grpc", "google", "torch") if name in maps}  # fmt: skip


def test_a_plain_training_brings_no_cryptography_and_a_private_one_nothing_else() -> None:
    trainer = ApartTrainer(opened(first()))
    pid = pid_of(trainer)
    assert loaded(pid) == set()
    train(trainer, replace(PLAN, privacy=ExamplePrivacy(1.0, 1.0)))
    assert "cryptography" in loaded(pid)
    assert loaded(pid) <= {"cryptography", "_hashlib", "libcrypto"}
    trainer.close()


def test_the_process_gives_way_to_all_others_and_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMBEL_TOKEN", "secret-of-the-environment")
    trainer = ApartTrainer(opened(first()))
    pid = pid_of(trainer)
    assert os.sched_getscheduler(pid) == os.SCHED_IDLE
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == 900
    assert os.getpgid(pid) == pid  # Ctrl-C at a terminal is not for it.
    assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
    command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:-1]
    assert command[:-1] == [b"-P", b"-m", b"umbel.train.worker"]
    assert command[-1].isdigit()
    trainer.close()


def test_what_a_library_prints_does_not_get_between_the_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nos.write(1, b'noise' * 999)\nos.write(2, b'heard')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    trainer = ApartTrainer(opened(first()))
    assert train(trainer).parameters.tobytes() == expected()
    trainer.close()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "heard")


numbers = arrays_of.arrays(
    st.sampled_from(["<f4", "<f8", "<i8", "|u1", "|b1", ">i2"]),
    arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)


@settings(deadline=None)
@given(sent=st.dictionaries(st.text(max_size=5), numbers, max_size=3), value=st.floats())
def test_frames_arrive_as_they_were_sent(sent: dict[str, NDArray[Any]], value: float) -> None:
    one, two = socket.socketpair()
    with one, two:
        Pipe(one.fileno()).send({"value": value}, sent)
        head, arrays = Pipe(two.fileno()).receive(1 << 20)
    assert np.array_equal(head["value"], value, equal_nan=True)
    assert list(arrays) == list(sent)
    for name, array in sent.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        assert arrays[name].tobytes() == array.tobytes()


def framed(text: bytes) -> bytes:
    return len(text).to_bytes(4, "little") + text


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01",
        framed(b"[{}, {}]")[:-1],
        framed(b"")[:4],
        framed(b"noise"),
        framed(b"[1, 2]"),
        framed(b"[{}]"),
        framed(b'[{}, {"a": ["<f4", [-1]]}]'),
        framed(b'[{}, {"a": ["<f4", [true]]}]'),
        framed(b'[{}, {"a": ["|O", [1]]}]') + bytes(8),
        framed(b'[{}, {"a": ["nothing", [1]]}]'),
        framed(b'[{}, {"a": ["<f4", [5]]}]') + bytes(20),  # one more than was asked for
        framed(b'[{}, {"a": ["<f4", [4611686018427387904, 4]]}]'),
        framed(b'[{}, {"a": ["<f4", [4]]}]') + bytes(15),
        b"\xff\xff\xff\xff",
    ],
)
def test_what_is_no_frame_or_a_longer_one_is_refused_before_memory_is_taken(raw: bytes) -> None:
    one, two = socket.socketpair()
    with two:
        with one:
            one.sendall(raw)
        with pytest.raises(PipeError):
            Pipe(two.fileno()).receive(16)


def test_a_reader_that_is_gone_is_noticed() -> None:
    one, two = socket.socketpair()
    two.close()
    with one, pytest.raises(PipeError):
        Pipe(one.fileno()).send({}, {"a": np.zeros(1 << 20)})


def test_ones_own_load_is_what_linux_makes_of_one_program() -> None:
    # Linux' own rule, every 5 s: a = a * e + n * (1 - e), with e = exp(-5 / 60).
    now, linux, computes = 0.0, 0.0, 0
    own = OwnLoad(clock=lambda: now)
    for tick in range(120):
        if tick in (3, 70):
            own.begin()
            computes = 1
        if tick in (50, 75):
            own.end()
            computes = 0
        now += 5.0
        linux = linux * np.exp(-5 / AVERAGE_S) + computes * (1 - np.exp(-5 / AVERAGE_S))
        assert own.now() == pytest.approx(linux, abs=1e-9)


def test_a_device_stays_idle_while_nobody_but_its_own_training_computes(tmp_path: Path) -> None:
    own = 0.0
    probe = OthersLoad(lambda: Reading(load=0.9 / 2, battery=0.5), lambda: own, cores=2)
    conditions = Conditions(
        DeviceHome(tmp_path), probes=[OthersLoad(lambda: Reading(load=0.7), lambda: own, cores=2)]
    )
    conditions.require(idle=True)
    assert not conditions.now().trains
    own = 0.8
    assert conditions.now().trains
    assert (probe().load, probe().battery) == (pytest.approx(0.05), 0.5)
    own = 2.0  # Its average is no exact one: never below nothing.
    assert probe().load == 0
    assert OthersLoad(Reading, lambda: own)() == Reading()


def test_a_worker_knows_what_its_trainings_add_to_the_load() -> None:
    worker = Worker()
    assert worker.load == 0
    train(ApartTrainer(opened(first()), worker=worker))
    assert 0 < worker.load < 1
    worker.close()


def test_a_process_that_has_another_one_train_holds_no_runtime() -> None:
    code = "import sys, umbel.train.apart; print([n for n in ('onnxruntime', 'torch') if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"

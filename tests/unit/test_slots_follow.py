"""A model that an application holds goes over to a newer version while it answers, and back from one that fails.

Laws: every answer belongs wholly to one version, no question fails, a version that fails here is given up for the
one before it, and nothing that happened before is tried again.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from model_packages import RELEASE, digits, first, opened, release, resigned, shelf
from umbel._predict.model import Model, Prediction
from umbel._releases.follow import STEADY_S, Follower
from umbel._releases.packages import Installed
from umbel._releases.shelf import Shelf
from umbel._releases.slots import Failure
from umbel._releases.turns import SWITCH_S, YOUNG, yielding
from umbel._telemetry.window import PredictionWindow
from umbel.engines import EngineOptions, load_engine
from umbel_proto.errors import PackageError, RefusedError, UsageError


@dataclass
class Windows:
    """Telemetry that sends nothing."""

    open: dict[tuple[str, int], PredictionWindow] = field(default_factory=dict)

    def window(
        self, *, model: str, version: int, variant: str, engine: str, scope: object = None
    ) -> PredictionWindow:
        window = PredictionWindow(model=model, version=version, variant=variant, engine=engine, now_s=0.0)
        return self.open.setdefault((model, version), window)

    def fell_back(self) -> dict[int, int]:
        """Return how often each version fell back, by version."""
        taken = {version: window.take(0.0) for (_, version), window in self.open.items()}
        return {
            version: window.counters["model.fell_back"]
            for version, window in taken.items()
            if window is not None and "model.fell_back" in window.counters
        }


@dataclass
class Clock:
    """A clock that goes on only when told to."""

    now_s: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class World:
    """A shelf, and what follows it."""

    root: Path
    clock: Clock = field(default_factory=Clock)
    windows: Windows = field(default_factory=Windows)

    @functools.cached_property
    def shelf(self) -> Shelf:
        return Shelf(self.root / "shelf", RELEASE.public, now_s=self.clock)

    @functools.cached_property
    def follower(self) -> Follower:
        return Follower(self.shelf, self.windows, clock=self.clock)

    def install(self, data: bytes) -> Installed:
        return quickly(self.shelf, data)

    def model(self) -> Model:
        return self.follower.model("digits", None)

    def active(self) -> int | None:
        active = self.shelf.active("digits")
        return None if active is None else active.version

    def package(self, installed: Installed) -> Path:
        return self.root / "shelf" / "packages" / installed.sha256 / "package.umbel"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def quickly(on_shelf: Shelf, data: bytes, **options: float) -> Installed:
    """Install without 50 ms of timing for each variant."""
    return on_shelf.install(data, clock=itertools.count().__next__, **options)


@functools.cache
def version(number: int) -> bytes:
    """The untrained model under an odd number, the trained one under an even number."""
    return resigned(release(2) if number % 2 == 0 else first(), lambda body: body.update(version=number))


def wrong(number: int) -> bytes:
    """A version whose int8 form computes something else than where it was made."""
    strange = opened(first()).file("int8.safetensors")
    return resigned(release(2), lambda body: body.update(version=number), **{"int8.safetensors": strange})


def put(world: World, data: bytes) -> Installed:
    """Make a package active that was never tried here: as if the device had changed since."""
    package = opened(data)
    manifest = package.manifest
    installed = Installed(manifest.model, manifest.version, package.sha256, package.size, "int8", {})
    versions = world.shelf.versions
    with versions.changing():
        world.shelf._packages.place(installed, data, None)
        versions.write("digits", versions.slots("digits").taken(package.sha256, manifest.version))
    return installed


# Following


def test_a_model_goes_over_to_the_version_that_is_installed(world: World) -> None:
    world.install(version(1))
    model = world.model()
    world.install(version(2))
    assert model.version == 1
    world.follower.follow()
    assert model.version == 2
    expected = load_engine(opened(version(2)), model.variant).answers(digits().held_out.x[:20])
    assert np.array_equal(model.predict_proba(digits().held_out.x[:20]), expected)


def test_after_a_switch_every_living_thread_finds_a_place_that_has_answered_and_none_asks_through_another_s(
    world: World,
) -> None:
    world.install(version(1))
    model, x = world.model(), digits().held_out.x
    asked, switched = threading.Barrier(4), threading.Event()
    said: dict[int, list[np.ndarray]] = {}

    def ask(number: int) -> None:
        model.predict(x[number])
        asked.wait(30)
        assert switched.wait(30)
        said[number] = [model.predict(each).probabilities for each in x[number : number + 20]]

    gone = threading.Thread(target=model.predict, args=(x[0],))
    gone.start()
    gone.join()
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    asked.wait(30)
    world.install(version(2))
    world.follower.follow()
    ready = list(model._loaded.ready)
    assert len(ready) == 3
    for place in ready:
        assert place.seat is not None
        assert place.seat.answer.sum() == pytest.approx(1.0)
    switched.set()
    for thread in threads:
        thread.join()
    assert not model._loaded.ready
    expected = load_engine(opened(version(2)), model.variant)
    for number, answers in said.items():
        for each, answer in zip(x[number : number + 20], answers, strict=True):
            assert np.array_equal(answer, expected.answers(each[None])[0])
    assert len(said) == 3


def test_asking_twice_for_a_model_gives_the_same_one(world: World) -> None:
    world.install(version(1))
    model = world.model()
    assert world.model() is model
    world.install(version(2))
    assert world.model() is model
    assert model.version == 2


def test_a_variant_that_was_asked_for_is_kept(world: World) -> None:
    world.install(version(1))
    model = world.follower.model("digits", "int8")
    world.install(version(2))
    world.follower.follow()
    assert (model.version, model.variant) == (2, "int8")


def test_a_model_that_nobody_holds_is_not_followed(world: World) -> None:
    world.install(version(1))
    model = world.model()
    del model
    gc.collect()
    world.install(version(2))
    world.follower.follow()
    assert not list(world.follower._models)


def test_a_version_without_the_variant_that_runs_leaves_the_old_one_answering(world: World) -> None:
    world.install(version(1))
    model = world.follower.model("digits", "int8")
    files = {name: opened(version(2)).file(name) for name in opened(version(2)).manifest.files}

    def without(body: dict[str, object]) -> None:
        assert isinstance(body["variants"], dict)
        del body["variants"]["int8"]

    from safetensors.numpy import load, save

    golden = {
        name: array
        for name, array in load(files["golden.safetensors"]).items()
        if not name.startswith("int8.")
    }
    world.install(resigned(version(2), without, **{"golden.safetensors": save(golden)}))
    world.follower.follow()
    assert model.version == 1
    assert world.active() == 2


def test_an_unknown_model_or_variant_is_a_sentence(world: World) -> None:
    with pytest.raises(UsageError, match="No model 'digits' is installed"):
        world.model()
    world.install(version(1))
    with pytest.raises(UsageError, match="no variant 'int4'"):
        world.follower.model("digits", "int4")
    assert world.active() == 1


SWITCHES = 50


def test_eight_threads_ask_through_fifty_switches_and_each_answer_is_of_one_version(world: World) -> None:
    x = digits().held_out.x[0]
    says = {odd: load_engine(opened(version(odd)), "fp32").answers(x[None])[0] for odd in (1, 2)}
    assert not np.allclose(says[1], says[2])
    world.install(version(1))
    model = world.follower.model("digits", "fp32")
    stop, failed, seen = threading.Event(), list[object](), list[set[int]]()

    def ask() -> None:
        mine: set[int] = set()
        seen.append(mine)
        newest = 0
        try:
            while not stop.wait(0.0005):  # Questions with a little time between them, as an application's.
                answer = model.predict(x)
                assert isinstance(answer, Prediction)
                of = answer.model_version
                assert np.array_equal(answer.probabilities, says[2 - of % 2])
                assert of >= newest
                newest = of
                mine.add(of)
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        for number in range(2, SWITCHES + 2):
            put(world, version(number))
            world.follower.follow()
            assert model.version == number
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert len(set().union(*seen)) > SWITCHES / 2


def test_threads_take_turns_sooner_while_a_package_is_loaded_and_as_before_afterwards() -> None:
    usual = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.004)
        with yielding():
            with yielding():
                assert sys.getswitchinterval() <= SWITCH_S * 1.01
            assert sys.getswitchinterval() <= SWITCH_S * 1.01
        assert sys.getswitchinterval() == pytest.approx(0.004)
    finally:
        sys.setswitchinterval(usual)


def test_threads_take_turns_sooner_in_all_of_following(world: World) -> None:
    seen: list[float] = []

    def clock() -> float:  # Whatever follows looks at it, last to see which versions have lived long enough.
        seen.append(sys.getswitchinterval())
        return world.clock()

    world.install(version(1))
    follower = Follower(world.shelf, world.windows, clock=clock)
    model = follower.model("digits", None)
    follower.follow()
    assert model.version == 1
    assert seen
    assert max(seen) <= SWITCH_S * 1.01


def test_garbage_is_looked_for_less_while_a_package_is_loaded_and_as_before_afterwards() -> None:
    usual = gc.get_threshold()
    try:
        gc.set_threshold(600, 7, 8)
        with yielding():
            with yielding():
                assert gc.get_threshold() == (YOUNG, 7, 8)
            assert gc.get_threshold() == (YOUNG, 7, 8)
        assert gc.get_threshold() == (600, 7, 8)
        for own in (0, 2 * YOUNG):  # An application that looks for it itself, or less often.
            gc.set_threshold(own, 7, 8)
            with yielding():
                assert gc.get_threshold() == (own, 7, 8)
            assert gc.get_threshold() == (own, 7, 8)
    finally:
        gc.set_threshold(*usual)


# Falling back


def test_a_version_that_misses_its_golden_vectors_is_refused_once_and_never_tried_again(world: World) -> None:
    world.install(version(1))
    model = world.model()
    with pytest.raises(PackageError, match="golden"):
        world.install(wrong(2))
    assert not world.shelf.wants("digits", 2, opened(wrong(2)).sha256)
    with pytest.raises(RefusedError, match="umbel model retry digits"):
        world.install(wrong(2))
    world.follower.follow()
    world.follower.follow()
    assert model.version == 1
    assert world.windows.fell_back() == {2: 1}
    assert world.shelf.wants("digits", 3, opened(version(3)).sha256)
    world.install(version(3))
    world.follower.follow()
    assert model.version == 3


def test_what_failed_under_another_umbel_is_offered_and_tried_again(world: World) -> None:
    world.install(version(1))
    two = opened(version(2)).sha256
    versions = world.shelf.versions
    versions.refuse("digits", Failure(two, 2, "failed its trial", 0.0, umbel="0.0.1"))
    assert versions.failed() == []
    assert world.shelf.wants("digits", 2, two)
    versions.refuse("digits", versions.failure(two, 2, "failed its trial"))
    assert versions.failed() == [two]
    assert not world.shelf.wants("digits", 2, two)


def test_a_retry_lets_a_version_be_tried_again(world: World) -> None:
    world.install(version(1))
    with pytest.raises(PackageError):
        quickly(world.shelf, version(2), limit_s=0.0)
    assert not world.shelf.wants("digits", 2, opened(version(2)).sha256)
    [failure] = world.shelf.versions.retry("digits")
    assert (failure.version, failure.at_s) == (2, world.clock.now_s)
    assert world.install(version(2)).version == 2


def test_a_version_that_takes_too_long_is_refused(world: World) -> None:
    world.install(version(1))
    with pytest.raises(PackageError, match="was not ready after 0 s"):
        quickly(world.shelf, version(2), limit_s=0.0)
    assert world.active() == 1


def test_an_active_version_that_fails_at_start_gives_way_to_the_one_before(world: World) -> None:
    world.install(version(1))
    put(world, wrong(2))
    model = world.model()
    assert model.version == 1
    assert world.active() == 1
    assert [each.version for each in world.shelf.versions.slots("digits").failed] == [2]
    world.follower.follow()
    assert world.windows.fell_back() == {2: 1}


def test_a_version_that_fails_with_an_applications_options_fails_without_them_too(world: World) -> None:
    world.install(version(1))
    put(world, wrong(2))
    assert world.follower.model("digits", None, EngineOptions(threads=2)).version == 1
    assert world.active() == 1


def test_options_that_a_device_cannot_meet_are_not_held_against_a_version(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.install(version(1))
    world.install(version(2))
    session = onnxruntime.InferenceSession

    def without_threads(graph: bytes, options: onnxruntime.SessionOptions, **rest: Any) -> Any:
        if options.intra_op_num_threads > 1:
            raise RuntimeError("no threads here")
        return session(graph, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", without_threads)
    with pytest.raises(PackageError):
        world.follower.model("digits", None, EngineOptions(threads=2))
    assert world.active() == 2
    assert world.shelf.versions.slots("digits").failed == ()


def test_a_version_that_fails_while_another_answers_is_not_taken(world: World) -> None:
    world.install(version(1))
    model = world.model()
    put(world, wrong(2))
    world.follower.follow()
    assert (model.version, world.active()) == (1, 1)


def test_the_only_version_is_never_given_up(world: World) -> None:
    put(world, wrong(1))
    for _ in range(2):
        with pytest.raises(PackageError, match="golden"):
            world.model()
    assert world.active() == 1


def test_after_falling_back_no_version_between_is_taken(world: World) -> None:
    world.install(version(1))
    put(world, wrong(4))
    world.model()
    assert world.active() == 1
    assert not world.shelf.wants("digits", 3, opened(version(3)).sha256)
    with pytest.raises(RefusedError, match="older than 4, which this device has had"):
        world.install(version(3))
    assert world.install(version(5)).version == 5


def test_a_damaged_package_gives_way_to_the_one_before_and_is_fetched_again(world: World) -> None:
    world.install(version(1))
    two = world.install(version(2))
    world.package(two).write_bytes(version(2)[:-1])
    model = world.model()
    assert model.version == 1
    assert world.shelf.wants("digits", 2, two.sha256)
    world.install(version(2))
    world.follower.follow()
    assert model.version == 2


def test_the_only_package_is_damaged_and_wanted_again(world: World) -> None:
    one = world.install(version(1))
    world.package(one).unlink()
    with pytest.raises(PackageError, match="damaged or gone"):
        world.model()
    assert world.shelf.wants("digits", 1, one.sha256)
    world.install(version(1))
    assert world.model().version == 1


# Marks


def marks(world: World) -> int:
    with contextlib.suppress(FileNotFoundError):
        return len(list((world.root / "shelf" / "marks").iterdir()))
    return 0


def test_a_version_is_proven_when_it_has_answered_for_a_while(world: World) -> None:
    world.install(version(1))
    model = world.model()
    assert marks(world) == 1
    world.follower.follow()
    assert marks(world) == 1
    world.clock.now_s += STEADY_S
    world.follower.follow()
    assert marks(world) == 0
    assert world.shelf.versions.slots("digits").proven
    assert model.version == 1


def test_a_version_that_was_replaced_is_on_trial_no_more(world: World) -> None:
    world.install(version(1))
    model = world.model()
    for number in (2, 3):
        world.install(version(number))
        world.follower.follow()
        assert model.version == number
        assert marks(world) == 1
    assert not world.shelf.versions.slots("digits").proven


def test_a_version_is_proven_by_an_orderly_end(world: World) -> None:
    world.install(version(1))
    world.model()
    world.follower.close()
    assert marks(world) == 0
    assert world.shelf.versions.slots("digits").proven


def test_a_device_that_is_dropped_without_closing_has_not_crashed(world: World) -> None:
    world.install(version(1))
    world.model()
    vars(world).pop("follower")
    gc.collect()
    assert marks(world) == 0


def test_a_proven_version_is_loaded_without_writing(world: World) -> None:
    world.install(version(1))
    world.model()
    world.follower.close()
    before = {path: path.stat().st_mtime_ns for path in (world.root / "shelf").rglob("*")}
    assert Follower(world.shelf, world.windows, clock=world.clock).model("digits", None).version == 1
    assert {path: path.stat().st_mtime_ns for path in (world.root / "shelf").rglob("*")} == before


def test_many_processes_that_start_at_once_are_no_crashes(world: World) -> None:
    world.install(version(1))
    world.install(version(2))
    followers = [Follower(shelf(world.root), world.windows, clock=world.clock) for _ in range(8)]
    models = [follower.model("digits", None) for follower in followers]
    assert {model.version for model in models} == {2}
    assert marks(world) == 8

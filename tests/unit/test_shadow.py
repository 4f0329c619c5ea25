"""A candidate that is asked beside the version that answers: what it says is counted, and nobody ever hears it.

Laws: a prediction is what it would be without it, and waits for nothing; what there is no room for is counted; the
device's limits hold; a device that restarts, or forks, goes on.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_packages import RELEASE, digits, first, opened, release, resigned
from release_trust import MemoryTrust
from umbel._fleet.delivery import Delivery
from umbel._home.directory import DeviceHome
from umbel._home.settings import read_settings
from umbel._predict.answer import Prediction
from umbel._predict.model import Model
from umbel._predict.shadow import SHARE, WAITING, Candidate, Shadow
from umbel._releases.follow import Follower
from umbel._releases.room import BESIDE_BYTES, TIMES, free_bytes, require_memory
from umbel._releases.room import SHARE as OF_FREE
from umbel._releases.shelf import Shelf
from umbel._releases.slots import Beside, Slots
from umbel._releases.trial import Purpose
from umbel._releases.versions import CRASHES
from umbel._telemetry.comparison import ComparisonWindow, strictest
from umbel._telemetry.scope import Scope
from umbel._telemetry.window import PredictionWindow
from umbel.engines import load_engine
from umbel_proto.errors import PackageError, RefusedError
from umbel_proto.wire import delivery_pb2 as pb
from umbel_proto.wire import telemetry_pb2

GOOD, BAD = release(3), resigned(first(), lambda body: body.update(version=3))


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def window(scope: Scope | None = None) -> ComparisonWindow:
    return ComparisonWindow(
        model="digits", version=3, variant="fp32", engine="onnx", scope=scope or Scope(), now_s=0.0
    )


def candidate(data: bytes, scope: Scope | None = None) -> Candidate:
    package = opened(data)
    return Candidate(package, load_engine(package, "fp32"), window(scope))


def taken(of: ComparisonWindow) -> telemetry_pb2.Window:
    found = of.take(1.0)
    assert found is not None
    return found


def test_the_same_version_agrees_always_and_is_as_sure() -> None:
    asked, active = candidate(release(2)), Model(opened(release(2)), load_engine(opened(release(2)), "fp32"))
    for x in digits().held_out.x[:40]:
        said = active.predict(x)
        assert isinstance(said, Prediction)
        asked.compare(x, said)
    told = taken(asked.window)
    assert dict(told.counters) == {"shadow.compared": 40, "shadow.agreed": 40}
    shapes = {each.name: each for each in told.histograms}
    assert shapes.keys() == {"shadow.confidence", "shadow.latency_us"}
    assert shapes["shadow.confidence"].counts[7] == 40
    assert abs(shapes["shadow.confidence"].sum) < 1e-3
    assert sum(shapes["shadow.latency_us"].counts) == 40


def test_an_untrained_candidate_disagrees_as_often_as_its_labels_differ() -> None:
    asked = candidate(BAD)
    active, other = (Model(opened(data), load_engine(opened(data), "fp32")) for data in (release(2), first()))
    x = digits().held_out.x[:60]
    said, others = active.predict(x), other.predict(x)
    assert isinstance(said, list)
    assert isinstance(others, list)
    for row, each in zip(x, said, strict=True):
        asked.compare(row, each)
    same = sum(one.name == two.name for one, two in zip(said, others, strict=True))
    assert taken(asked.window).counters["shadow.agreed"] == same < 40


def test_what_it_cannot_answer_is_counted_and_harms_nobody() -> None:
    asked = candidate(GOOD)
    asked.compare(np.zeros(3, np.float32), Prediction(0, "0", 1.0, "automatic", 2, b""))
    assert dict(taken(asked.window).counters) == {"shadow.errors": 1}


def test_a_window_is_of_the_same_size_however_often_it_was_asked() -> None:
    sizes = []
    for many in (100, 100_000):
        of = window()
        for number in range(100):
            for _ in range(many // 100 if number == 0 else 1):
                of.compared(
                    agreed=number % 2 == 0, difference=number / 100 - 0.5, latency_ns=1e4 * (number + 1)
                )
        of.dropped(many)
        sizes.append(taken(of).ByteSize())
    assert sizes[1] <= sizes[0] + 40 < 500


def test_where_a_package_hides_labels_agreement_is_hidden_with_the_stricter_epsilon() -> None:
    both = strictest(Scope(epsilon={"labels": 2.0, "confidence": 1.0}), Scope(epsilon={"labels": 0.5}))
    assert both.epsilon == {"labels": 0.5, "confidence": 1.0}
    of = window(both)
    for _ in range(4000):
        of.compared(agreed=True, difference=0.0, latency_ns=1e4)
    told = taken(of)
    assert dict(told.counters) == {"shadow.compared": 4000}
    shapes = {each.name: each for each in told.histograms}
    assert shapes["shadow.agreement"].epsilon == 0.5
    assert (shapes["shadow.confidence"].epsilon, shapes["shadow.confidence"].sum) == (1.0, 0.0)
    assert shapes["shadow.latency_us"].epsilon == 0
    # Told in the other cell with 1 / (1 + e^0.5): 1,510 of 4,000, and 6 deviations of 31 either way.
    assert 1320 < shapes["shadow.agreement"].counts[0] < 1700


def said(number: int = 0) -> Prediction:
    return Prediction(number, str(number), 0.9, "automatic", 2, b"")


def test_predictions_leave_one_in_n_and_never_wait() -> None:
    shadow, x = Shadow(lambda: None, one_in=10, example_bytes=256), np.zeros((1, 8, 8), np.float32)
    for _ in range(10_000):
        shadow.offer(x, said())
    # Nobody takes them: what has no room is dropped, and counted. 1,000 are drawn on average, give or take 18.
    assert shadow._queue.qsize() == WAITING
    assert 850 < shadow._dropped() + WAITING < 1150
    assert shadow._dropped() == 0


def test_what_waits_is_bounded_by_memory_and_is_a_copy() -> None:
    shadow, x = Shadow(lambda: None, one_in=1, example_bytes=300 << 10), np.zeros(4, np.float32)
    for _ in range(10):
        shadow.offer(x, said())
    x[:] = 7
    assert shadow._queue.qsize() == 3
    waiting = shadow._queue.get()
    assert waiting is not None
    assert not waiting[0].any()
    huge = Shadow(lambda: None, one_in=1, example_bytes=1 << 30)
    huge.offer_batch(np.zeros((5, 4), np.float32), [said(number) for number in range(5)])
    assert huge._queue.qsize() == 1


def test_it_rests_nineteen_times_as_long_as_it_works() -> None:
    shadow, asked = Shadow(lambda: None, one_in=1, example_bytes=256), candidate(GOOD)
    rest_s = shadow.turn(asked, digits().held_out.x[0], said())
    [latency] = [each.sum for each in taken(asked.window).histograms if each.name == "shadow.latency_us"]
    assert rest_s >= 1e-6 * latency * (1 / SHARE - 1)


@dataclass
class Windows:
    """Telemetry that sends nothing."""

    comparisons: list[ComparisonWindow] = field(default_factory=list)

    def window(self, **of: object) -> PredictionWindow:
        return PredictionWindow(
            **{name: value for name, value in of.items() if name != "scope"},
            now_s=0.0,  # type: ignore[arg-type]
        )

    def comparison(self, **of: object) -> ComparisonWindow:
        made = ComparisonWindow(**of, now_s=0.0)  # type: ignore[arg-type]
        self.comparisons.append(made)
        return made


@dataclass(slots=True)
class MemoryGateway:
    """A gateway without a network, that offers what it is told to."""

    trust: MemoryTrust = field(default_factory=MemoryTrust)
    releases: list[pb.Release] = field(default_factory=list)
    shadows: list[pb.Shadow] = field(default_factory=list)
    heard: list[pb.CheckRequest] = field(default_factory=list)
    fetched: int = 0
    address: str = "memory"

    @property
    def delivery(self) -> MemoryGateway:
        return self

    def Check(self, request: pb.CheckRequest, timeout: float) -> pb.CheckReply:  # noqa: N802
        self.heard.append(request)
        return pb.CheckReply(releases=self.releases, shadows=self.shadows)

    def Metadata(self, request: pb.MetadataRequest, timeout: float) -> pb.MetadataReply:  # noqa: N802
        return self.trust.Metadata(request, timeout)

    def fetch(self, request: pb.FetchRequest) -> list[pb.Chunk]:
        self.fetched += 1
        data = next(data for data in (release(2), GOOD, BAD) if sha256(data) == request.sha256)
        return [pb.Chunk(data=data[request.offset :])]


@dataclass
class Phone:
    """A device that runs digits 2 and follows a gateway."""

    home: DeviceHome
    gateway: MemoryGateway = field(default_factory=MemoryGateway)
    windows: Windows = field(default_factory=Windows)
    limits: dict[str, int] = field(default_factory=dict)

    @property
    def shelf(self) -> Shelf:
        return Shelf(self.home.shelf, RELEASE.public, **self.limits)

    def check(self) -> list[int]:
        return [each.version for each in Delivery(self.home, self.shelf).check(self.gateway)]  # type: ignore[arg-type]

    def beside(self) -> Beside | None:
        return self.shelf.versions.slots("digits").beside

    def follower(self) -> Follower:
        return Follower(self.shelf, self.windows, clock=lambda: 1e6)  # type: ignore[arg-type]


def told(data: bytes) -> pb.Release:
    version = opened(data).manifest.version
    return pb.Release(model="digits", version=version, sha256=sha256(data), size=len(data))


def beside(data: bytes, one_in: int = 1) -> pb.Shadow:
    return pb.Shadow(release=told(data), one_in=one_in, within=0.1)


@pytest.fixture
def phone(tmp_path: Path) -> Phone:
    made = Phone(DeviceHome(tmp_path))
    for data in (release(2), GOOD):
        made.gateway.trust.offer(told(data))
    made.gateway.trust.admit(made.home)
    made.gateway.releases = [told(release(2))]
    assert made.check() == [2]
    return made


def test_a_candidate_is_fetched_and_tried_and_what_answers_stays(phone: Phone) -> None:
    phone.gateway.shadows = [beside(GOOD, one_in=4)]
    assert phone.check() == []
    active = phone.shelf.active("digits")
    assert active is not None
    assert active.version == 2
    begun = phone.beside()
    assert begun == Beside(sha256(GOOD).hex(), 3, 4, 0.1)
    assert phone.check() == []
    again = phone.beside()
    assert begun is not None
    assert again is not None
    assert 0 < begun.since_s == again.since_s
    heard = phone.gateway.heard[-1]
    assert [(each.version, each.why) for each in heard.shadows] == [(3, "")]
    assert heard.may_shadow
    assert heard.facts.arch
    assert phone.gateway.fetched == 2


def test_what_the_fleet_wants_no_more_goes(phone: Phone) -> None:
    phone.gateway.shadows = [beside(GOOD)]
    phone.check()
    phone.gateway.shadows = []
    phone.check()
    assert phone.beside() is None
    assert [each.version for each in phone.shelf.installed()] == [2]


def test_one_that_is_then_offered_to_answer_is_not_fetched_again(phone: Phone) -> None:
    phone.gateway.shadows = [beside(GOOD)]
    phone.check()
    fetched, phone.gateway.shadows, phone.gateway.releases = phone.gateway.fetched, [], [told(GOOD)]
    # An older gateway's word: no shadow any more, and the same as a release.
    phone.gateway.shadows = [beside(GOOD)]
    assert phone.check() == [3]
    assert phone.gateway.fetched == fetched
    assert phone.beside() is None


def test_what_the_fleet_has_not_signed_is_not_run_beside_either(phone: Phone) -> None:
    phone.gateway.shadows = [beside(BAD)]
    with pytest.raises(PackageError):
        phone.check()
    assert (phone.beside(), phone.gateway.fetched) == (None, 1)


@pytest.mark.parametrize(
    ("limits", "why"),
    [({"shadow_bytes": 0}, "the owner allows 0"), ({"quota_bytes": 1}, "does not fit into the quota")],
)
def test_a_device_without_room_for_two_says_so_and_fetches_nothing(
    phone: Phone, limits: dict[str, int], why: str
) -> None:
    if "quota_bytes" in limits:
        limits = {"quota_bytes": phone.shelf.used_bytes() + len(GOOD) - 1}
    phone.limits, phone.gateway.shadows = limits, [beside(GOOD)]
    phone.check()
    phone.check()
    [state] = phone.gateway.heard[-1].shadows
    assert why in state.why
    assert phone.gateway.fetched == 1
    # Once there is room, it does.
    phone.limits = {}
    phone.check()
    found = phone.beside()
    assert found is not None
    assert found.why == ""


def test_a_package_that_answers_takes_the_room_of_one_that_is_only_asked(phone: Phone) -> None:
    phone.gateway.shadows = [beside(GOOD)]
    phone.check()
    four = release(4)
    phone.limits = {"quota_bytes": phone.shelf.used_bytes() + len(four) - 1}
    phone.shelf.install(four)
    assert phone.beside() is None


def until(done: Callable[[], bool], ask: Callable[[], object]) -> None:
    """Ask until something is so: the thread has its own time."""
    turn = threading.Event()
    while not done():
        ask()
        turn.wait(0.001)


@pytest.mark.parametrize("data", [GOOD, BAD], ids=["agrees", "disagrees"])
def test_it_is_asked_beside_and_every_answer_is_the_active_versions(phone: Phone, data: bytes) -> None:
    phone.gateway.trust.offer(told(data))
    shelf = phone.shelf
    shelf.install_beside(data, Beside(sha256(data).hex(), 3, one_in=1))
    expected = Model(opened(release(2)), load_engine(opened(release(2)), "fp32"))
    follower = phone.follower()
    model = follower.model("digits", "fp32")
    x: list[NDArray[np.float32]] = list(digits().held_out.x[:50])
    answers: list[tuple[int, int]] = []

    def ask() -> None:
        for row in x:
            answer = model.predict(row)
            assert isinstance(answer, Prediction)
            answers.append((answer.label, answer.model_version))

    counted: dict[str, int] = {}

    def done() -> bool:
        for of in phone.windows.comparisons:
            found = of.take(1.0)
            for name, number in ({} if found is None else found.counters).items():
                counted[name] = counted.get(name, 0) + number
        return counted.get("shadow.compared", 0) >= 20

    until(done, ask)
    follower.close()
    done()
    plain = [answer.label for answer in map(expected.predict, x) if isinstance(answer, Prediction)]
    assert answers == [(label, 2) for label in plain] * (len(answers) // 50)
    assert model._shadow is None
    assert counted["shadow.compared"] + counted.get("shadow.dropped", 0) == len(answers)
    agreed = counted.get("shadow.agreed", 0) / counted["shadow.compared"]
    assert agreed == 1 if data is GOOD else agreed < 0.8


def test_a_device_that_restarts_goes_on_without_the_gateway(phone: Phone) -> None:
    phone.gateway.shadows = [beside(GOOD)]
    phone.check()
    follower = phone.follower()
    model = follower.model("digits", None)
    assert model._shadow is not None
    phone.shelf.leave_beside("digits")
    follower.follow()
    assert model._shadow is None
    follower.close()


def test_one_that_ends_processes_again_and_again_is_given_up(phone: Phone) -> None:
    phone.shelf.install_beside(GOOD, Beside(sha256(GOOD).hex(), 3))
    versions = phone.shelf.versions
    for _ in range(CRASHES):
        with versions.changing():
            mark = versions.begin(Purpose.beside, "digits", 3, sha256(GOOD).hex())
        os.close(mark._descriptor)  # type: ignore[arg-type]  # As the end of its process does.
    versions.collect()
    assert phone.beside() is None
    assert versions.failed() == [sha256(GOOD).hex()]
    active = phone.shelf.active("digits")
    assert active is not None
    assert active.version == 2


def test_slots_of_an_older_umbel_have_nothing_beside_and_ours_are_read_back() -> None:
    assert Slots.from_json(b'{"active": null, "previous": null}').beside is None
    ours = Slots("a" * 64, beside=Beside("b" * 64, 3, 5, 0.2, "why"))
    assert Slots.from_json(ours.to_json()) == ours


def test_memory_is_bounded_by_the_owner_the_machine_and_the_group(tmp_path: Path) -> None:
    root, need = tmp_path, TIMES * 1000 + BESIDE_BYTES
    assert free_bytes(root) is None
    require_memory(1000, limit_bytes=need, root=root)
    with pytest.raises(RefusedError, match="the owner allows"):
        require_memory(1000, limit_bytes=need - 1, root=root)
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {need * OF_FREE // 1024 + 1} kB\n")
    require_memory(1000, limit_bytes=None, root=root)
    (root / "proc" / "self" / "cgroup").write_text("0::/app\n")
    group = root / "sys" / "fs" / "cgroup" / "app"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{need * OF_FREE}\n")
    (group / "memory.current").write_text("1\n")
    with pytest.raises(RefusedError, match=f"one in {OF_FREE}"):
        require_memory(1000, limit_bytes=None, root=root)


def test_the_owner_decides_how_much_memory_it_may_take(tmp_path: Path) -> None:
    file = tmp_path / "device.toml"
    file.write_text("shadow_mib = 0")
    assert read_settings(file).shadow_bytes == 0
    file.write_text("shadow_mib = 64\nquota_mib = 1")
    assert (read_settings(file).shadow_bytes, read_settings(file).quota_bytes) == (64 << 20, 1 << 20)

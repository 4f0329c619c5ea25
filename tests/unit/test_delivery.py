"""What a device fetches of a release, and what it makes of a gateway that breaks off, lies or has nothing to give."""

from __future__ import annotations

import hashlib
import logging
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from crashing import crashed
from model_packages import RELEASE, digits, opened, release, training
from release_trust import MemoryTrust
from umbel._fleet.delivery import Delivery
from umbel._home.directory import DeviceHome
from umbel._releases.shelf import Shelf
from umbel_models.pack import repack
from umbel_proto.delta import difference
from umbel_proto.errors import PackageError, RefusedError, UnavailableError
from umbel_proto.package import write_package
from umbel_proto.wire import delivery_pb2 as pb

CHUNK = 4096


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def after_a_round(version: int = 3) -> bytes:
    """The next version of digits, every weight a thousandth larger or smaller."""
    chance = np.random.default_rng(1)
    parameters = training().parameters * (1 + 1e-3 * chance.standard_normal(len(training().parameters)))
    return repack(
        opened(release(2)),
        parameters.astype(np.float32),
        calibration=digits().calibration.x,
        version=version,
        key=RELEASE,
    )


NEXT = after_a_round()
TRUST = MemoryTrust()


@dataclass(slots=True)
class MemoryGateway:
    """A gateway without a network that has one release, perhaps a delta of it, and breaks off when it is told to.

    Args:
        package: What it releases.
        model: Whose package it says it is.
        version: Which version it says it is.
    """

    package: bytes
    model: str = "digits"
    version: int = 3
    delta: bytes = b""
    base: bytes = b""
    announced: dict[str, object] = field(default_factory=dict)
    refuses: type[Exception] | None = None
    breaks_after: int | None = None
    asked: list[tuple[bytes, int]] = field(default_factory=list)
    sent: int = 0
    look: Callable[[], None] = lambda: None
    address: str = "memory"

    @property
    def delivery(self) -> MemoryGateway:
        return self

    def Check(self, request: pb.CheckRequest, timeout: float) -> pb.CheckReply:  # noqa: N802
        offer = pb.Release(
            model=self.model, version=self.version, sha256=sha256(self.package), size=len(self.package)
        )
        if self.delta:
            right = {"base_sha256": self.base, "sha256": sha256(self.delta), "size": len(self.delta)}
            offer.delta.CopyFrom(pb.Delta(**{**right, **self.announced}))  # type: ignore[arg-type]
        return pb.CheckReply(releases=[TRUST.offer(offer)])

    def Metadata(self, request: pb.MetadataRequest, timeout: float) -> pb.MetadataReply:  # noqa: N802
        return TRUST.Metadata(request, timeout)

    def fetch(self, request: pb.FetchRequest) -> Iterator[pb.Chunk]:
        self.asked.append((request.sha256, request.offset))
        self.look()
        whole = request.sha256 == sha256(self.package)
        if not whole and self.refuses is not None:
            raise self.refuses("The gateway does not have it.")
        data = self.package if whole else self.delta
        for at in range(request.offset, len(data), CHUNK):
            if self.breaks_after is not None and self.breaks_after < self.sent + CHUNK:
                self.breaks_after = None
                raise UnavailableError("The connection was cut.")
            self.sent += len(data[at : at + CHUNK])
            yield pb.Chunk(data=data[at : at + CHUNK])

    def fetched(self) -> list[str]:
        """What was fetched, in order."""
        return ["package" if asked == sha256(self.package) else "delta" for asked, _ in self.asked]


def with_delta(package: bytes = NEXT, base: bytes | None = None, **fields: object) -> MemoryGateway:
    base = release(2) if base is None else base
    delta = difference(base, package)
    assert delta is not None
    return MemoryGateway(package, delta=delta, base=sha256(base), **fields)  # type: ignore[arg-type]


@dataclass(slots=True)
class Phone:
    """A device with digits 2 on its shelf."""

    home: DeviceHome
    shelf: Shelf
    told: dict[str, int] = field(default_factory=dict)

    def check(self, gateway: MemoryGateway) -> list[int]:
        return [each.version for each in self.delivery().check(gateway)]  # type: ignore[arg-type]

    def delivery(self) -> Delivery:
        return Delivery(self.home, self.shelf, tell=self.tell)

    def tell(self, name: str, by: int) -> None:
        self.told[name] = self.told.get(name, 0) + by

    def running(self) -> int:
        active = self.shelf.active("digits")
        assert active is not None
        return self.shelf.package(active).manifest.version

    def incoming(self) -> list[Path]:
        return sorted(self.home.incoming.glob("*"))


@pytest.fixture
def phone(tmp_path: Path) -> Phone:
    home = DeviceHome(tmp_path)
    TRUST.admit(home)
    shelf = Shelf(home.shelf, RELEASE.public)
    shelf.install(release(2))
    return Phone(home, shelf)


def test_what_changed_is_fetched_and_the_package_made_of_it(phone: Phone) -> None:
    gateway = with_delta()
    assert phone.check(gateway) == [3]
    assert (phone.running(), phone.incoming(), gateway.fetched()) == (3, [], ["delta"])
    active = phone.shelf.active("digits")
    assert active is not None
    assert phone.shelf.file(active.sha256).read_bytes() == NEXT
    assert phone.told == {
        "delivery.bytes": len(gateway.delta),
        "delivery.saved_bytes": len(NEXT) - len(gateway.delta),
    }


def test_without_a_delta_the_package_is_fetched(phone: Phone) -> None:
    gateway = MemoryGateway(NEXT)
    assert (phone.check(gateway), gateway.fetched()) == ([3], ["package"])
    assert phone.told == {"delivery.bytes": len(NEXT)}


@pytest.mark.parametrize(
    "announced",
    [
        {"size": len(NEXT) // 2 + 1},
        {"size": 0},
        {"size": 1 << 62},
        {"sha256": b"short"},
        {"sha256": bytes(5000)},
        {"base_sha256": b""},
        {"base_sha256": bytes(5000)},
        {"base_sha256": bytes(32)},
        {"base_sha256": b"../../../../etc/passwd/././././."},
    ],
)
def test_a_delta_that_cannot_be_meant_is_not_asked_for(phone: Phone, announced: dict[str, object]) -> None:
    gateway = with_delta(announced=announced)
    assert (phone.check(gateway), gateway.fetched()) == ([3], ["package"])


def _flipped(delta: bytes, chance: random.Random) -> bytes:
    altered = bytearray(delta)
    altered[chance.randrange(len(delta))] ^= 1 << chance.randrange(8)
    return bytes(altered)


def _garbage(delta: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(len(delta))


def _cut(delta: bytes, chance: random.Random) -> bytes:
    return delta[: chance.randrange(1, len(delta))]


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("change", [_flipped, _garbage, _cut])
def test_a_delta_that_is_bad_costs_one_line_and_the_whole_package(
    phone: Phone, caplog: pytest.LogCaptureFixture, change: object, announced: bool
) -> None:
    gateway = with_delta()
    right, chance = gateway.delta, random.Random(1)
    assert callable(change)
    gateway.delta = change(right, chance)
    if not announced:  # As what was announced, arrives something else.
        gateway.announced = {"sha256": sha256(right), "size": len(right)}
    assert (phone.check(gateway), phone.running(), phone.incoming()) == ([3], 3, [])
    assert gateway.fetched()[-1] == "package"
    [line] = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert announced or "arrived altered" in line or "shorter than announced" in line
    assert "delivery.saved_bytes" not in phone.told


@pytest.mark.parametrize("why", [RefusedError, PackageError])
def test_a_delta_that_is_gone_costs_nothing_but_the_whole_package(phone: Phone, why: type[Exception]) -> None:
    gateway = with_delta(refuses=why)
    assert (phone.check(gateway), gateway.fetched()) == ([3], ["delta", "package"])


def test_a_base_damaged_on_the_disk_makes_no_wrong_package(phone: Phone) -> None:
    base = phone.shelf.file(sha256(release(2)).hex())
    raw = bytearray(base.read_bytes())
    raw[-70_000] ^= 1
    base.write_bytes(raw)
    gateway = with_delta()
    assert (phone.check(gateway), phone.running(), gateway.fetched()) == ([3], 3, ["delta", "package"])


def test_a_base_that_cannot_be_read_costs_nothing_but_the_whole_package(phone: Phone) -> None:
    base = phone.shelf.file(sha256(release(2)).hex())
    base.unlink()
    base.mkdir()
    gateway = with_delta()
    assert (phone.check(gateway), gateway.fetched()) == ([3], ["delta", "package"])


def test_a_bad_delta_is_gone_before_its_package_is_fetched_for_a_disk_may_have_room_for_one(
    phone: Phone,
) -> None:
    seen: list[list[str]] = []
    gateway = with_delta(look=lambda: seen.append([path.suffix for path in phone.incoming()]))
    gateway.delta = bytes(len(gateway.delta))
    assert phone.check(gateway) == [3]
    # Each time there is what is being fetched, just begun, and nothing else.
    assert (gateway.fetched(), seen) == (["delta", "package"], [[".part"], [".part"]])


def test_what_a_delta_makes_is_verified_like_what_came_whole(phone: Phone) -> None:
    """Announced as it is, hash and all, but not signed by the fleet."""
    body = write_package(opened(NEXT).manifest, _files(NEXT), RELEASE.generate())
    with pytest.raises(PackageError, match="sign"):
        phone.check(with_delta(body))
    assert (phone.running(), phone.incoming()) == (2, [])


def _files(package: bytes) -> dict[str, bytes]:
    return {name: opened(package).file(name) for name in opened(package).manifest.files}


def test_a_delta_that_was_cut_goes_on_where_it_stopped(phone: Phone) -> None:
    gateway = with_delta(breaks_after=3 * CHUNK)
    assert phone.check(gateway) == [3]
    assert [offset for _, offset in gateway.asked] == [0, 3 * CHUNK]
    assert gateway.sent == len(gateway.delta)


def test_a_delta_that_was_given_up_goes_on_in_the_next_process(phone: Phone) -> None:
    gateway = with_delta(refuses=UnavailableError)
    begun = phone.home.incoming / f"{sha256(gateway.delta).hex()}.part"
    phone.home.incoming.mkdir()
    begun.write_bytes(gateway.delta[:5000])
    with pytest.raises(UnavailableError):
        phone.check(gateway)
    assert phone.incoming() == [begun]
    gateway.refuses, gateway.asked = None, []
    assert phone.check(gateway) == [3]
    assert (gateway.asked, gateway.sent) == ([(sha256(gateway.delta), 5000)], len(gateway.delta) - 5000)


def test_a_package_that_has_begun_to_come_whole_goes_on_so(phone: Phone) -> None:
    gateway = with_delta()
    phone.home.incoming.mkdir()
    (phone.home.incoming / f"{sha256(NEXT).hex()}.part").write_bytes(NEXT[:100])
    assert (phone.check(gateway), gateway.fetched()) == ([3], ["package"])


def test_what_was_begun_for_an_older_release_is_removed(phone: Phone) -> None:
    phone.home.incoming.mkdir()
    for data in (b"a package", b"a delta"):
        (phone.home.incoming / f"{sha256(data).hex()}.part").write_bytes(data)
    phone.check(with_delta())
    assert phone.incoming() == []


def test_a_thousand_liars_change_nothing_but_what_is_fetched(phone: Phone) -> None:
    """Deltas with the announced hash, made by whoever holds the gateway: none is installed, and none does harm."""
    right, chance = with_delta(), random.Random(2)
    delivery = phone.delivery()
    phone.home.incoming.mkdir()
    for number in range(1000):
        change = chance.choice([_flipped, _flipped, _cut, _garbage])
        liar = MemoryGateway(NEXT, delta=change(right.delta, chance), base=right.base)
        [offer] = liar.Check(pb.CheckRequest(), 1.0).releases
        if not offer.delta.size:
            continue
        made = delivery._made(liar, offer)  # type: ignore[arg-type]
        assert made in (None, NEXT), number
        assert made is None or liar.delta != right.delta
        for part in phone.incoming():
            part.unlink()
    assert phone.running() == 2


# The quota


def limited(phone: Phone, quota_bytes: int) -> Phone:
    return Phone(phone.home, Shelf(phone.home.shelf, RELEASE.public, quota_bytes=quota_bytes))


def test_a_quota_without_room_for_a_delta_beside_its_package_takes_the_package(phone: Phone) -> None:
    used = phone.shelf.used_bytes()
    for spare, fetched in [(-1, ["package"]), (0, ["delta"])]:
        gateway = with_delta()
        device = limited(phone, used + len(NEXT) + len(gateway.delta) + spare)
        device.delivery()._take(gateway, gateway.Check(pb.CheckRequest(), 1.0).releases[0])  # type: ignore[arg-type]
        assert gateway.fetched() == fetched
        device.home.incoming.joinpath(f"{sha256(NEXT).hex()}.part").unlink(missing_ok=True)
        device.shelf.versions.write("digits", device.shelf.versions.slots("digits").lost())
        assert device.running() == 2


def test_what_has_begun_to_come_counts_and_goes_before_a_package_is_refused(phone: Phone) -> None:
    gateway = MemoryGateway(NEXT)
    phone.home.incoming.mkdir()
    begun = phone.home.incoming / f"{bytes(32).hex()}.part"
    used = phone.shelf.used_bytes()
    [offer] = gateway.Check(pb.CheckRequest(), 1.0).releases
    for beside, stays in [(1000, True), (1001, False)]:
        begun.write_bytes(bytes(beside))
        limited(phone, used + len(NEXT) + 1000).delivery()._make_room(offer)
        assert begun.exists() is stays
    with pytest.raises(RefusedError):
        limited(phone, used + len(NEXT) - 1).delivery()._make_room(offer)


# Announcements


def test_a_connection_that_brings_nothing_three_times_is_left(phone: Phone) -> None:
    gateway = with_delta(refuses=UnavailableError)
    with pytest.raises(UnavailableError):
        phone.check(gateway)
    assert gateway.fetched() == ["delta"] * 3
    assert phone.running() == 2


# Crashes


def test_killed_at_any_change_of_the_disk_a_delta_is_gone_on_with(phone: Phone, tmp_path: Path) -> None:
    gateway = with_delta()
    for name, data in [("new", NEXT), ("delta", gateway.delta)]:
        (tmp_path / name).write_bytes(data)
    root = tmp_path / "device"
    shutil.copytree(phone.home.shelf, root / "shelf")
    arguments = [root, tmp_path / "new", tmp_path / "delta", RELEASE.public.raw.hex()]
    lines = [line.split() for line in crashed("crashing_delivery.py", *arguments)]
    active = [int(line[0]) for line in lines]
    assert active == sorted(active)
    assert {2, 3} == set(active)
    begun = [int(line[1]) for line in lines]
    assert 0 in begun
    assert any(0 < size < len(gateway.delta) for size in begun)

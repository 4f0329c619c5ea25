"""A version that the fleet took back: devices go back, but only on the fleet's word and only to what it still signs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from model_packages import RELEASE, release
from release_trust import MemoryTrust
from umbel._fleet.delivery import Delivery
from umbel._home.directory import DeviceHome
from umbel._releases.shelf import Shelf
from umbel._releases.slots import Slots
from umbel_proto.errors import PackageError, RefusedError
from umbel_proto.wire import delivery_pb2 as pb

A, B = "a" * 64, "b" * 64


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def told(version: int, *, back: bool = False) -> pb.Release:
    data = release(version)
    return pb.Release(model="digits", version=version, sha256=sha256(data), size=len(data), back=back)


@dataclass(slots=True)
class MemoryGateway:
    """A gateway without a network, that offers what it is told to."""

    trust: MemoryTrust = field(default_factory=MemoryTrust)
    offers: list[pb.Release] = field(default_factory=list)
    heard: list[pb.CheckRequest] = field(default_factory=list)
    fetched: int = 0
    address: str = "memory"

    @property
    def delivery(self) -> MemoryGateway:
        return self

    def Check(self, request: pb.CheckRequest, timeout: float) -> pb.CheckReply:  # noqa: N802
        self.heard.append(request)
        return pb.CheckReply(releases=self.offers)

    def Metadata(self, request: pb.MetadataRequest, timeout: float) -> pb.MetadataReply:  # noqa: N802
        return self.trust.Metadata(request, timeout)

    def fetch(self, request: pb.FetchRequest) -> Iterator[pb.Chunk]:
        self.fetched += 1
        data = next(data for data in map(release, (2, 3, 4)) if sha256(data) == request.sha256)
        yield pb.Chunk(data=data[request.offset :])


@dataclass(slots=True)
class Phone:
    home: DeviceHome
    shelf: Shelf
    gateway: MemoryGateway

    def check(self, *offers: pb.Release) -> list[int]:
        self.gateway.offers = list(offers)
        return [each.version for each in Delivery(self.home, self.shelf).check(self.gateway)]  # type: ignore[arg-type]

    def running(self) -> int | None:
        active = self.shelf.active("digits")
        return None if active is None else self.shelf.package(active).manifest.version


@pytest.fixture
def phone(tmp_path: Path) -> Phone:
    """A device that had digits 2 and runs 3; 2, 3 and 4 are signed."""
    home, gateway = DeviceHome(tmp_path), MemoryGateway()
    for version in (2, 3, 4):
        gateway.trust.offer(told(version))
    gateway.trust.admit(home)
    shelf = Shelf(home.shelf, RELEASE.public)
    shelf.install(release(2))
    shelf.install(release(3))
    return Phone(home, shelf, gateway)


def test_the_version_before_answers_again_without_being_fetched(phone: Phone) -> None:
    assert phone.check(told(2, back=True)) == [2]
    assert (phone.running(), phone.gateway.fetched) == (2, 0)
    assert phone.shelf.previous("digits") is None


def test_what_is_not_here_any_more_is_fetched(phone: Phone) -> None:
    phone.shelf.install(release(4))
    assert phone.shelf.previous("digits") is not None
    assert phone.check(told(2, back=True)) == [2]
    assert (phone.running(), phone.gateway.fetched) == (2, 1)


def test_the_version_before_is_fetched_where_the_disk_lost_it(phone: Phone) -> None:
    previous = phone.shelf.previous("digits")
    assert previous is not None
    phone.shelf.file(previous.sha256).write_bytes(b"rot")
    assert (phone.check(told(2, back=True)), phone.running(), phone.gateway.fetched) == ([2], 2, 1)


def test_without_the_word_a_device_does_not_go_back(phone: Phone) -> None:
    assert (phone.check(told(2)), phone.running()) == ([], 3)
    with pytest.raises(RefusedError, match="older than the active 3"):
        phone.shelf.install(release(2))


def test_a_version_between_what_a_device_has_and_has_had_needs_the_word(phone: Phone) -> None:
    phone.shelf.install(release(4))
    phone.check(told(2, back=True))
    with pytest.raises(RefusedError, match="older than 4, which this device has had"):
        phone.shelf.install(release(3))
    assert phone.check(told(3)) == []
    assert phone.running() == 2


def test_a_version_that_the_fleet_signs_no_more_is_not_gone_back_to(phone: Phone) -> None:
    del phone.gateway.trust.state.lines["digits"].signed.targets["digits/2.umbel"]
    other = pb.Release(model="digits", version=9, sha256=bytes(32), size=1)
    phone.gateway.trust.offer(other)  # Signs the list anew.
    with pytest.raises(PackageError, match="has not signed"):
        phone.check(told(2, back=True))
    assert (phone.running(), phone.gateway.fetched) == (3, 0)


def test_a_version_that_failed_here_is_not_gone_back_to(phone: Phone) -> None:
    digest = sha256(release(2)).hex()
    phone.shelf.versions.refuse("digits", phone.shelf.versions.failure(digest, 2, "ended the process"))
    assert (phone.check(told(2, back=True)), phone.running()) == ([], 3)


def test_what_was_taken_back_does_not_come_again_by_itself(phone: Phone) -> None:
    phone.check(told(2, back=True))
    assert phone.check(told(2, back=True)) == []
    assert (phone.running(), phone.shelf.versions.slots("digits").newest) == (2, 3)


def test_the_next_version_comes_after_one_was_taken_back(phone: Phone) -> None:
    phone.check(told(2, back=True))
    assert (phone.check(told(4)), phone.running()) == ([4], 4)


def test_the_same_version_comes_again_when_the_fleet_offers_it_again(phone: Phone) -> None:
    phone.check(told(2, back=True))
    assert (phone.check(told(3)), phone.running()) == ([3], 3)


def test_a_device_says_which_of_its_versions_answers(phone: Phone) -> None:
    phone.check(told(2, back=True))
    phone.check()
    said = [[(each.version, each.active) for each in heard.installed] for heard in phone.gateway.heard]
    assert said == [[(2, False), (3, True)], [(2, True)]]


def test_a_device_that_lost_what_it_went_back_to_gets_it_again(phone: Phone) -> None:
    phone.check(told(2, back=True))
    phone.shelf.versions.lose("digits", sha256(release(2)).hex())
    assert (phone.check(told(2, back=True)), phone.running()) == ([2], 2)


def test_going_back_keeps_no_way_to_what_was_taken_back() -> None:
    after = Slots().taken(A, 1).taken(B, 2).returned(A)
    assert (after.active, after.previous, after.newest, after.proven) == (A, None, 2, True)

"""What a device makes of signed metadata that is not as it should be: the attacks that TUF names, on the real client.

Source:
    The Update Framework Specification 1.0.34, sections 1.5.2 and 5; the scenarios of tuf-conformance.
"""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import DelegatedRole, Metadata, MetaFile, TargetFile

from release_trust import HOUR_S, MemoryTrust
from umbel._fleet.trust import trusted_until_s
from umbel._fleet.updater import MAX_ROOT_BYTES, MAX_TIMESTAMP_BYTES, Listed, check_root
from umbel._home.directory import DeviceHome
from umbel_proto.errors import PackageError, RemoteProtocolError, UmbelError, UnavailableError
from umbel_proto.keys import SigningKey
from umbel_proto.wire import delivery_pb2 as pb
from umbel_server.trust.metadata import in_force, lacking, signer, to_bytes, with_keys, with_line

DAY_S = 24 * HOUR_S


def package(version: int = 1, model: str = "digits", content: int = 0) -> pb.Release:
    return pb.Release(model=model, version=version, sha256=bytes([content] * 32), size=1000)


@dataclass(slots=True)
class MemoryGateway:
    """The way to metadata in memory."""

    delivery: MemoryTrust
    address: str = "memory"


@dataclass(slots=True)
class Phone:
    """A device that trusts a fleet."""

    trust: MemoryTrust
    home: DeviceHome

    def check(self, *releases: pb.Release, after_s: float = 0.0) -> None:
        """Look at what is signed, and whether releases are."""
        listed = Listed(self.home, MemoryGateway(self.trust), now_s=self.trust.now_s + after_s)  # type: ignore[arg-type]
        for each in releases:
            listed.require(each)

    def kept(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.home.trust.rglob("*.json")}


@pytest.fixture
def phone(tmp_path: Path) -> Phone:
    trust = MemoryTrust()
    home = DeviceHome(tmp_path / "d1")
    trust.admit(home)
    trust.offer(package())
    return Phone(trust, home)


def resigned(metadata: Metadata[Any], *keys: SigningKey, change: Callable[[Any], None]) -> bytes:
    """What somebody makes of metadata who holds some keys."""
    after = copy.deepcopy(metadata.signed)
    after.version += 1
    change(after)
    new: Metadata[Any] = Metadata(after)
    for key in keys:
        new.sign(signer(key), append=True)
    return to_bytes(new)


def nothing(_: Any) -> None:
    pass


def test_what_is_signed_may_be_installed_and_nothing_else(phone: Phone) -> None:
    phone.check(package())
    for wrong in (
        package(2),
        package(model="faces"),
        package(content=1),
        pb.Release(model="digits", version=1),
    ):
        with pytest.raises(PackageError, match="not installed"):
            phone.check(wrong)
    longer = package()
    longer.size += 1
    with pytest.raises(PackageError, match="other content"):
        phone.check(longer)


def test_a_check_that_finds_nothing_new_moves_less_than_a_kilobyte(phone: Phone) -> None:
    for number in range(40):
        phone.trust.offer(package(model=f"model-{number}"))
    phone.check(package())
    phone.trust.asked.clear()
    phone.trust.sent = 0
    phone.check(package())
    assert phone.trust.asked == ["2.root.json", "timestamp.json"]
    assert phone.trust.sent < 1024


def test_fields_that_this_version_does_not_know_are_let_be(phone: Phone) -> None:
    def with_field(signed: Any) -> None:
        signed.unrecognized_fields["tomorrow"] = {"a": [1]}

    trust, state = phone.trust, phone.trust.state
    trust.files["2.root.json"] = resigned(state.root, trust.root, change=with_field)
    version = state.timestamp.signed.version + 1
    trust.files["timestamp.json"] = resigned(state.timestamp, trust.online, change=with_field)
    phone.check(package())
    assert b"tomorrow" in phone.kept()["timestamp.json"]
    assert f'"version":{version}'.encode() in phone.kept()["timestamp.json"]


# Rollback


def test_an_older_timestamp_is_refused(phone: Phone) -> None:
    old = phone.trust.files["timestamp.json"]
    phone.trust.offer(package(2))
    phone.check(package(2))
    phone.trust.files["timestamp.json"] = old
    with pytest.raises(PackageError, match="signed last"):
        phone.check(package())


def test_an_older_snapshot_is_refused_though_the_service_signs_it(phone: Phone) -> None:
    phone.check()
    trust = phone.trust

    def back(signed: Any) -> None:
        signed.snapshot_meta = MetaFile(1)

    trust.files["timestamp.json"] = resigned(trust.state.timestamp, trust.online, change=back)
    with pytest.raises(PackageError, match="signed last"):
        phone.check(package())


@pytest.mark.parametrize("role", ["targets.json", "digits.json"])
def test_an_older_list_is_refused_though_the_service_signs_it(phone: Phone, role: str) -> None:
    trust = phone.trust
    trust.offer(package(2))
    trust.line("faces")
    phone.check(package(2))

    def back(signed: Any) -> None:
        signed.meta[role] = MetaFile(1)

    snapshot = resigned(trust.state.snapshot, trust.online, change=back)
    trust.files[f"{trust.state.snapshot.signed.version + 1}.snapshot.json"] = snapshot

    def name(signed: Any) -> None:
        signed.snapshot_meta = MetaFile(trust.state.snapshot.signed.version + 1)

    trust.files["timestamp.json"] = resigned(trust.state.timestamp, trust.online, change=name)
    with pytest.raises(PackageError, match="signed last"):
        phone.check(package(2))


def test_a_list_that_vanishes_from_the_snapshot_is_missed(phone: Phone) -> None:
    trust = phone.trust
    phone.check(package())
    snapshot = resigned(
        trust.state.snapshot, trust.online, change=lambda signed: signed.meta.pop("digits.json")
    )
    version = trust.state.snapshot.signed.version + 1
    trust.files[f"{version}.snapshot.json"] = snapshot
    trust.files["timestamp.json"] = resigned(
        trust.state.timestamp,
        trust.online,
        change=lambda signed: setattr(signed, "snapshot_meta", MetaFile(version)),
    )
    with pytest.raises(PackageError, match="signed last"):
        phone.check(package())


# Freeze


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "root"])
def test_nothing_is_installed_once_a_role_has_expired_until_it_is_signed_again(
    tmp_path: Path, role: str
) -> None:
    lives = {f"{name}_s": 100 * DAY_S for name in ("root", "targets", "snapshot", "timestamp")}
    trust = MemoryTrust()
    trust.lives = dataclasses.replace(trust.lives, **{**lives, f"{role}_s": DAY_S})
    trust.__post_init__()
    phone = Phone(trust, DeviceHome(tmp_path / "d1"))
    trust.admit(phone.home)
    trust.offer(package())
    phone.check(package(), after_s=DAY_S - 60)
    assert trusted_until_s(phone.home) == int(trust.now_s) + DAY_S
    kept = phone.kept()
    with pytest.raises(PackageError, match="holds no more"):
        phone.check(package(), after_s=DAY_S + 60)
    assert phone.kept() == kept
    renewed = {"root": trust.root, "targets": trust.targets}.get(role)
    trust.now_s += DAY_S
    if role == "targets":
        trust.line("digits")
    elif renewed is not None:
        root = with_keys(
            trust.state,
            ["root"],
            [signer(renewed).public_key],
            1,
            [signer(renewed)],
            lives=trust.lives,
            now_s=trust.now_s,
        )
        trust.take(in_force(trust.state, {"root": root})[0])
    else:
        trust.take(trust.state)
    phone.check(package(), after_s=60)


def test_a_clock_far_ahead_is_told_to_look_at_itself(phone: Phone) -> None:
    with pytest.raises(PackageError, match="Check this machine's clock"):
        phone.check(after_s=400 * DAY_S)


def test_before_its_first_check_a_device_does_not_know_until_when(phone: Phone) -> None:
    assert trusted_until_s(phone.home) is None


# Mix and match


def test_a_snapshot_of_the_same_number_with_other_content_is_refused(phone: Phone) -> None:
    trust = phone.trust
    version = trust.state.snapshot.signed.version

    def same(signed: Any) -> None:
        signed.version = version
        signed.meta["digits.json"] = MetaFile(1)

    trust.files[f"{version}.snapshot.json"] = resigned(trust.state.snapshot, trust.online, change=same)
    with pytest.raises(PackageError, match="signed last"):
        phone.check(package())


@pytest.mark.parametrize("role", ["targets", "digits"])
def test_a_list_of_another_moment_is_refused(phone: Phone, role: str) -> None:
    trust = phone.trust
    trust.offer(package(2))
    trust.line("digits")
    version = trust.state.get(role).signed.version
    trust.files[f"{version}.{role}.json"] = trust.files[f"{version - 1}.{role}.json"]
    with pytest.raises(PackageError, match="signed last"):
        phone.check(package(2))


# Endless data


@pytest.mark.parametrize(
    ("name", "limit"), [("2.root.json", MAX_ROOT_BYTES), ("timestamp.json", MAX_TIMESTAMP_BYTES)]
)
def test_more_than_a_role_may_have_is_not_taken(phone: Phone, name: str, limit: int) -> None:
    phone.check(package())
    kept = phone.kept()
    phone.trust.files[name] = b" " * (limit + 1)
    with pytest.raises(PackageError, match="does not give"):
        phone.check(package())
    assert phone.kept() == kept


def test_a_gateway_that_has_no_timestamp_is_refused(phone: Phone) -> None:
    del phone.trust.files["timestamp.json"]
    with pytest.raises(PackageError, match="does not give"):
        phone.check(package())


def test_a_gateway_that_ends_in_the_middle_is_away_and_not_lying(phone: Phone) -> None:
    def gone(*_: object, **__: object) -> None:
        raise UnavailableError("It does not answer.")

    phone.trust.Metadata = gone  # type: ignore[method-assign, assignment]
    with pytest.raises(UnavailableError):
        phone.check(package())


# Signatures


@pytest.mark.parametrize("role", ["root", "targets", "digits", "snapshot", "timestamp"])
def test_what_another_key_signed_is_refused(phone: Phone, role: str) -> None:
    trust, stranger = phone.trust, SigningKey.generate()
    metadata = trust.state.get(role)
    name = {"timestamp": "timestamp.json", "root": "2.root.json"}.get(
        role, f"{metadata.signed.version}.{role}.json"
    )

    def same(signed: Any) -> None:
        signed.version -= role not in ("root", "timestamp")

    trust.files[name] = resigned(metadata, stranger, change=same)
    with pytest.raises(PackageError, match="signed last"):
        phone.check(package())


def test_a_list_with_too_few_signatures_is_refused(phone: Phone) -> None:
    trust, second = phone.trust, SigningKey.generate()
    keys = [signer(trust.targets), signer(second)]
    state, now_s = trust.state, trust.now_s
    root = with_keys(
        state,
        ["targets"],
        [each.public_key for each in keys],
        2,
        [signer(trust.root)],
        lives=trust.lives,
        now_s=now_s,
    )
    lists = copy.deepcopy(state.targets)
    lists.signed.version += 1
    lists.sign(keys[0])
    assert lacking(state, {"root": root, "targets": lists}) == {"root": 0, "targets": 1}
    assert in_force(state, {"root": root, "targets": lists}) == (state, ())
    trust.take(dataclasses.replace(state, root=root, targets=lists))  # As no service of ours would.
    with pytest.raises(PackageError, match="signed last"):
        phone.check(package())
    both = copy.deepcopy(lists)
    both.sign(keys[1], append=True)
    after, taken = in_force(state, {"root": root, "targets": both})
    assert set(taken) == {"root", "targets"}
    trust.take(after)
    phone.check(package())


def test_two_signatures_of_one_key_count_once(phone: Phone) -> None:
    trust, second = phone.trust, SigningKey.generate()
    keys = [signer(trust.root), signer(second)]
    root = with_keys(
        trust.state,
        ["root"],
        [each.public_key for each in keys],
        2,
        keys[:1],
        lives=trust.lives,
        now_s=trust.now_s,
    )
    root.sign(keys[0], append=True)
    trust.files["2.root.json"] = to_bytes(root)
    with pytest.raises(PackageError, match="signed last"):
        phone.check(package())


def test_the_key_of_a_line_signs_for_no_other_line(phone: Phone) -> None:
    trust, thief = phone.trust, SigningKey.generate()
    trust.line("faces", thief)

    def add(signed: Any) -> None:
        signed.targets["digits/9.umbel"] = TargetFile(1000, {"sha256": bytes(32).hex()}, "digits/9.umbel")
        signed.targets["faces/1.umbel"] = TargetFile(1000, {"sha256": bytes(32).hex()}, "faces/1.umbel")

    new = resigned(trust.state.lines["faces"], thief, change=add)
    lines = {**trust.state.lines, "faces": Metadata.from_bytes(new)}
    trust.take(dataclasses.replace(trust.state, lines=lines))
    phone.check(package(1, model="faces"), package())
    with pytest.raises(PackageError, match="has not signed"):
        phone.check(package(9))


def test_the_first_line_whose_pattern_fits_is_asked_and_no_other(phone: Phone) -> None:
    """A later line that claims every path gets none of an earlier one's: delegations end there."""
    trust, thief = phone.trust, SigningKey.generate()
    lists, line = with_line(
        trust.state,
        "zebra",
        [signer(thief).public_key],
        [signer(thief)],
        lives=trust.lives,
        now_s=trust.now_s,
    )
    lists.signed.delegations.roles["zebra"] = DelegatedRole(  # type: ignore[union-attr, index]
        "zebra", [signer(thief).public_key.keyid], 1, terminating=True, paths=["*/*"]
    )
    line.signed.targets["digits/9.umbel"] = TargetFile(1000, {"sha256": bytes(32).hex()}, "digits/9.umbel")
    for metadata, key in ((lists, trust.targets), (line, thief)):
        metadata.sign(signer(key))
    after, taken = in_force(trust.state, {"targets": lists, "zebra": line})
    assert taken
    trust.take(after)
    phone.check(package())
    with pytest.raises(PackageError, match="has not signed"):
        phone.check(package(9))


# The root


def rotated(trust: MemoryTrust, new: SigningKey, *signing: SigningKey) -> Metadata[Any]:
    return with_keys(
        trust.state,
        ["root"],
        [signer(new).public_key],
        1,
        map(signer, signing),
        lives=trust.lives,
        now_s=trust.now_s,
    )


def test_a_root_that_the_old_and_the_new_keys_signed_is_followed(phone: Phone) -> None:
    trust = phone.trust
    for _ in range(3):
        new = SigningKey.generate()
        after, taken = in_force(trust.state, {"root": rotated(trust, new, trust.root, new)})
        assert taken == ("root",)
        trust.take(after)
        trust.root = new
    phone.check(package())
    assert "4.root.json" in phone.kept()
    # From now on it asks for the fifth only, and an older root that is withheld is not missed.
    trust.files.pop("2.root.json")
    trust.asked.clear()
    phone.check(package())
    assert trust.asked[0] == "5.root.json"


@pytest.mark.parametrize("who", ["old", "new", "nobody"])
def test_a_root_that_not_both_signed_is_refused(phone: Phone, who: str) -> None:
    trust, new = phone.trust, SigningKey.generate()
    signing = {"old": [trust.root], "new": [new], "nobody": []}[who]
    root = rotated(trust, new, *signing)
    assert in_force(trust.state, {"root": root}) == (trust.state, ())
    trust.files["2.root.json"] = to_bytes(root)
    with pytest.raises(PackageError, match="signed last"):
        phone.check(package())


def test_a_root_out_of_turn_is_refused(phone: Phone) -> None:
    trust = phone.trust
    root = resigned(trust.state.root, trust.root, change=lambda signed: setattr(signed, "version", 3))
    trust.files["2.root.json"] = root
    with pytest.raises(PackageError, match="signed last"):
        phone.check(package())


def test_a_root_of_trust_must_hold_together(phone: Phone) -> None:
    check_root(to_bytes(phone.trust.state.root))
    altered = to_bytes(phone.trust.state.root).replace(b'"version":1', b'"version":2')
    for wrong in (b"", b"{}", altered, to_bytes(phone.trust.state.targets), b"[" * 10**5):
        with pytest.raises(RemoteProtocolError, match="nobody"):
            check_root(wrong)


# Damage


def test_what_is_damaged_on_the_device_is_fetched_again(phone: Phone) -> None:
    phone.check(package())
    files = sorted(phone.home.trust.rglob("*.json"))
    assert len(files) == 5
    for path in files:
        path.write_bytes(path.read_bytes()[:-9])
        phone.check(package())
        path.write_bytes(b"")
        phone.check(package())


def test_one_altered_byte_never_lets_a_release_in(phone: Phone) -> None:
    """800 variants, at random places of all files: refused, or what was signed all the same."""
    chance, trust = random.Random(5), phone.trust
    right = dict(trust.files)
    refused = 0
    for _ in range(800):
        name = chance.choice(sorted(right))
        data = bytearray(right[name])
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        trust.files = {**right, name: bytes(data)}
        trust.admit(phone.home)
        try:
            phone.check(package())
        except UmbelError:
            refused += 1
        with pytest.raises(UmbelError):
            phone.check(package(content=1))
    assert refused > 300  # Most old versions are not asked for.

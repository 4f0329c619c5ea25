"""A server that lies, devices that lie, and messages that are not what they should be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import TypeVar

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from simulation.fleet import MODEL_HASH, NOW_S, PHASES, PLAN_HASH, Fleet, descriptor, encoding, policy
from simulation.freeze import freeze
from umbel_proto.credentials import Credential, sign_credential
from umbel_proto.encoding import digest, enc
from umbel_proto.errors import CertificateError, RemoteProtocolError
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.keys import SigningKey
from umbel_proto.secagg import device, server
from umbel_proto.secagg.entries import JOIN_LABEL
from umbel_proto.secagg.messages import (
    Confirmation,
    Confirmations,
    JoinEntry,
    Masked,
    RevealedShares,
    Roster,
    SealedShares,
    Survivors,
    to_bitmap,
)
from umbel_proto.secagg.session import Descriptor, entry_hash, session_id
from umbel_proto.secagg.shamir import draw_element
from umbel_proto.wire import rounds_pb2 as pb

D0, D1, D2 = DeviceId("d0"), DeviceId("d1"), DeviceId("d2")
T = TypeVar("T")


def refuses(fleet: Fleet, request: bytes, reason: str, name: str = "d0") -> None:
    """The device refuses the request for this reason, and nothing in it changes."""
    before = freeze(fleet.devices[DeviceId(name)])
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        fleet.ask(name, request)
    assert caught.value.peer == "server"
    assert freeze(fleet.devices[DeviceId(name)]) == before


def rejects(fleet: Fleet, reply: device.Reply, reason: str, name: str = "d0") -> None:
    """The server rejects the reply for this reason, and nothing in it changes."""
    before = freeze(fleet.server)
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        fleet.tell(fleet.reply_event(name, reply))
    assert caught.value.peer == name
    assert freeze(fleet.server) == before


def at(phase: str, n: int = 5, **changes: object) -> Fleet:
    fleet = Fleet(n, **changes)  # type: ignore[arg-type]
    fleet.run_to(phase)
    return fleet


def roster_of(fleet: Fleet, name: str = "d0") -> Roster:
    return Roster.from_bytes(fleet.requests[DeviceId(name)], "server")


def altered(roster: Roster, victim: str, entry: bytes) -> bytes:
    """The roster for d0 with another entry, and its hash put right."""
    rows = tuple((name, entry_hash(entry) if name == victim else hash_) for name, hash_ in roster.rows)
    place = [name for name, _ in roster.rows if name != D0].index(DeviceId(victim))
    entries = (*roster.entries[:place], entry, *roster.entries[place + 1 :])
    return replace(roster, rows=rows, entries=entries).to_bytes()


class TestTheSession:
    """Phase 1: what a device does not even begin."""

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"fleet": FleetId("forest")}, "the session is of fleet forest, not meadow"),
            ({"min_cohort": 4}, "a sum over 4 devices is below the policy's smallest cohort, 5"),
            ({"server_malicious": False}, "trusts its server"),
            ({"corrupt_fraction": 0.05}, "the session assumes 0.05 corrupt, the policy 0.1"),
            ({"dropout_fraction": 0.1}, "the session assumes 0.1 lost, the policy 0.2"),
            ({"closes_at_s": int(NOW_S)}, "the session is already over"),
            ({"model_hash": digest("umbel/1/model", b"another")}, "the model is not the session's"),
            ({"plan_hash": digest("umbel/1/plan", b"another")}, "the plan is not the session's"),
        ],
    )
    def test_a_session_against_the_policy_is_refused(self, change: dict[str, object], reason: str) -> None:
        allowed = descriptor(min_cohort=5)
        fleet = Fleet(5, session=allowed)
        assert fleet.ask("d1").message
        refuses(fleet, replace(allowed, **change).to_bytes(), reason)  # type: ignore[arg-type]

    @pytest.mark.parametrize(("noise", "refused"), [(399, True), (400, False)])
    def test_noise_below_the_policy_s_floor_is_refused(self, noise: int, refused: bool) -> None:
        # Of 6 survivors floor(0.1 * 6) = 0 may be corrupt and 1 is under attack: 5 count.
        # The floor asks for 5 mu >= 2**2 * 500.
        quiet = replace(encoding(), noise=Fraction(noise), bound_sq=500, scale=16.0)
        session = descriptor(min_cohort=6, encoding=quiet)
        fleet = Fleet(6, session=session, rules=policy(noise_floor=2.0))
        if refused:
            refuses(fleet, session.to_bytes(), "the noise is below the policy's floor of 2")
        else:
            assert fleet.ask("d0").message

    def test_a_device_whose_own_credential_expired_says_so(self) -> None:
        fleet = Fleet(3)
        fleet.devices[D0] = device.Idle(fleet.enroll(D0, not_after_s=int(NOW_S)))
        with pytest.raises(CertificateError, match="expired: renew it"):
            fleet.ask("d0")


class TestTheDoor:
    """Phase 1 at the server: who does not get in."""

    def entry(self, fleet: Fleet, member: device.Member, name: str = "d0", sid: bytes | None = None) -> bytes:
        keys = [X25519PrivateKey.generate().public_key().public_bytes_raw() for _ in range(2)]
        return self.signed(fleet, member, keys, name, sid)

    def signed(
        self,
        fleet: Fleet,
        member: device.Member,
        keys: list[bytes],
        name: str = "d0",
        sid: bytes | None = None,
    ) -> bytes:
        sid = sid or session_id(fleet.descriptor.to_bytes())
        signature = member.identity.sign(JOIN_LABEL, enc(sid, name, *keys, bytes(32)))
        return JoinEntry(member.credential, *keys, bytes(32), signature).to_bytes()

    def test_a_right_entry_gets_in(self) -> None:
        fleet = Fleet(3)
        fleet.tell(server.Joined(D0, self.entry(fleet, fleet.members[D0])))

    def test_an_expired_credential_does_not(self) -> None:
        fleet = Fleet(3)
        entry = self.entry(fleet, fleet.enroll(D0, not_after_s=int(NOW_S)))
        rejects(fleet, device.Reply(entry), "no valid credential.*expired")

    def test_a_credential_of_another_authority_does_not(self) -> None:
        fleet, other = Fleet(3), Fleet(3)
        rejects(
            fleet, device.Reply(self.entry(fleet, other.members[D0])), "not signed by this fleet's authority"
        )

    def test_a_credential_of_another_fleet_does_not(self) -> None:
        fleet, identity = Fleet(3), SigningKey.generate()
        foreign = Credential(FleetId("forest"), D0, identity.public, int(NOW_S) + 60)
        member = replace(
            fleet.members[D0], identity=identity, credential=sign_credential(fleet.authority, foreign)
        )
        rejects(fleet, device.Reply(self.entry(fleet, member)), "of fleet forest, not meadow")

    def test_a_device_nobody_enrolled_does_not(self) -> None:
        fleet, identity = Fleet(3), SigningKey.generate()
        made_up = sign_credential(identity, Credential(fleet.descriptor.fleet, D0, identity.public, 2**40))
        member = replace(fleet.members[D0], identity=identity, credential=made_up)
        rejects(fleet, device.Reply(self.entry(fleet, member)), "not signed by this fleet's authority")

    def test_a_device_nobody_invited_does_not(self) -> None:
        fleet = Fleet(3)
        entry = self.entry(fleet, fleet.enroll(DeviceId("d9")), "d9")
        rejects(fleet, device.Reply(entry), "it was not invited", "d9")

    def test_a_device_does_not_speak_for_another(self) -> None:
        fleet = Fleet(3)
        entry = self.entry(fleet, fleet.members[D1], "d1")
        rejects(fleet, device.Reply(entry), "the entry of d0 has the credential of d1")

    def test_a_device_does_not_get_in_twice(self) -> None:
        fleet = Fleet(3)
        fleet.ask_and_answer("d0")
        rejects(fleet, device.Reply(self.entry(fleet, fleet.members[D0])), "has answered")

    def test_an_entry_from_another_session_does_not(self) -> None:
        fleet = Fleet(3)
        entry = self.entry(fleet, fleet.members[D0], sid=session_id(descriptor(attempt=1).to_bytes()))
        rejects(fleet, device.Reply(entry), "not signed by it for this session")

    @pytest.mark.parametrize("field", ["mask_key", "share_key", "seed_commitment"])
    def test_an_entry_with_a_swapped_field_does_not(self, field: str) -> None:
        fleet = Fleet(3)
        entry = JoinEntry.from_bytes(fleet.ask("d0").message, "d0")
        swapped = replace(entry, **{field: X25519PrivateKey.generate().public_key().public_bytes_raw()})
        rejects(fleet, device.Reply(swapped.to_bytes()), "not signed by it for this session")

    @pytest.mark.parametrize("place", [0, 1])
    def test_a_key_of_small_order_does_not(self, place: int) -> None:
        fleet = Fleet(3)
        keys = [X25519PrivateKey.generate().public_key().public_bytes_raw() for _ in range(2)]
        keys[place] = b"\x01" + bytes(31)
        rejects(fleet, device.Reply(self.signed(fleet, fleet.members[D0], keys)), "small order")

    def test_the_round_goes_on_without_whom_it_kept_out(self) -> None:
        fleet = Fleet(4)
        fleet.answer("d0", device.Reply(b"nonsense"))
        fleet.run_phase(without=["d0"])
        end = fleet.run_round()
        assert isinstance(end, server.Opened)
        assert end.survivors == ("d1", "d2", "d3")


class TestTheRoster:
    """Phase 2: a roster that is not everyone's."""

    @pytest.mark.parametrize("field", ["mask_key", "share_key", "seed_commitment"])
    def test_a_swapped_key_is_refused(self, field: str) -> None:
        fleet = at("share")
        roster = roster_of(fleet)
        entry = JoinEntry.from_bytes(roster.entries[0], "d1")
        swapped = replace(entry, **{field: X25519PrivateKey.generate().public_key().public_bytes_raw()})
        refuses(fleet, altered(roster, "d1", swapped.to_bytes()), "d1 is not signed by it for this session")

    def test_a_swapped_entry_under_the_old_hash_is_refused(self) -> None:
        fleet = at("share")
        roster = roster_of(fleet)
        other = TestTheDoor().entry(fleet, fleet.members[D1], "d1")
        refuses(
            fleet,
            replace(roster, entries=(other, *roster.entries[1:])).to_bytes(),
            "d1's is not the roster's",
        )

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (lambda fleet: fleet.enroll(D1, not_after_s=int(NOW_S)), "no valid credential.*expired"),
            (lambda fleet: Fleet(3).members[D1], "not signed by this fleet's authority"),
            (lambda fleet: fleet.members[D2], "the entry of d1 has the credential of d2"),
        ],
    )
    def test_a_neighbor_without_a_right_credential_is_refused(
        self, make: Callable[[Fleet], device.Member], reason: str
    ) -> None:
        fleet = at("share")
        entry = TestTheDoor().entry(fleet, make(fleet), "d1")
        refuses(fleet, altered(roster_of(fleet), "d1", entry), reason)

    @pytest.mark.parametrize("place", [0, 1])
    def test_a_neighbor_s_key_of_small_order_is_refused(self, place: int) -> None:
        fleet = at("share")
        keys = [X25519PrivateKey.generate().public_key().public_bytes_raw() for _ in range(2)]
        keys[place] = bytes(32)
        request = altered(roster_of(fleet), "d1", TestTheDoor().signed(fleet, fleet.members[D1], keys, "d1"))
        if place == 1:
            refuses(fleet, request, "an X25519 key of d1 has small order")
            return
        fleet.ask("d0", request)  # The mask key is used one phase later.
        shared = fleet.devices[D0]
        assert isinstance(shared, device.Shared)
        with pytest.raises(RemoteProtocolError, match="an X25519 key of d1 has small order"):
            shared.neighborhood.mask_keys(shared.session, shared.secrets, [1])

    def test_the_same_device_twice_is_refused(self) -> None:
        fleet = at("share")
        roster = roster_of(fleet)
        doubled = replace(roster, rows=(*roster.rows[:2], roster.rows[1], *roster.rows[2:]))
        refuses(fleet, doubled.to_bytes(), "the roster repeats a device")

    def test_a_roster_out_of_order_is_refused(self) -> None:
        fleet = at("share")
        roster = roster_of(fleet)
        refuses(fleet, replace(roster, rows=roster.rows[::-1]).to_bytes(), "out of order")

    def test_a_roster_without_the_device_is_refused(self) -> None:
        fleet = at("share")
        roster = roster_of(fleet, "d1")
        rows = tuple(row for row in roster.rows if row[0] != D0)
        refuses(fleet, replace(roster, rows=rows).to_bytes(), "the roster leaves this device out")

    def test_a_roster_with_another_entry_for_the_device_is_refused(self) -> None:
        fleet = at("share")
        roster = roster_of(fleet)
        rows = ((D0, entry_hash(b"another")), *roster.rows[1:])
        refuses(fleet, replace(roster, rows=rows).to_bytes(), "the roster changed this device's entry")

    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_a_roster_of_very_few_is_refused(self, size: int) -> None:
        fleet = at("share", session=descriptor(min_cohort=4))
        roster = roster_of(fleet)
        few = replace(roster, rows=roster.rows[:size], entries=roster.entries[: size - 1])
        refuses(fleet, few.to_bytes(), f"a roster of {size} is below the smallest cohort, 4")

    def test_a_roster_larger_than_agreed_is_refused(self) -> None:
        fleet = at("share", session=descriptor(max_cohort=5))
        roster = roster_of(fleet)
        rows = (*roster.rows, (DeviceId("d9"), bytes(32)))
        refuses(fleet, replace(roster, rows=rows).to_bytes(), "above the largest cohort, 5")

    def test_neighbors_that_are_not_the_graph_s_are_refused(self) -> None:
        fleet = at("share", 40)
        roster = roster_of(fleet)
        shape = fleet.descriptor.graph_parameters(40)
        assert len(roster.entries) == shape.degree < 39
        refuses(fleet, replace(roster, entries=roster.entries[1:]).to_bytes(), "entries for .* neighbors")
        known = set(roster.entries) | {fleet.replies[D0].message}
        stranger = next(reply.message for reply in fleet.replies.values() if reply.message not in known)
        swapped = replace(roster, entries=(stranger, *roster.entries[1:]))
        refuses(fleet, swapped.to_bytes(), "not those of the graph's neighbors")

    def test_a_roster_of_another_session_is_refused(self) -> None:
        fleet = at("share")
        refuses(fleet, replace(roster_of(fleet), sid=bytes(32)).to_bytes(), "of another session")

    def test_a_roster_after_the_end_is_refused(self) -> None:
        fleet = at("share")
        late = device.RosterReceived(fleet.requests[D0], fleet.descriptor.closes_at_s)
        with pytest.raises(RemoteProtocolError, match="the session is already over"):
            device.step(fleet.devices[D0], late)

    def test_two_rosters_that_differ_in_one_entry_destroy_the_sum(self) -> None:
        """A device that joined twice is shown to d0 with one key and to the others with another."""
        fleet = at("share")
        again = TestTheDoor().entry(fleet, fleet.members[D1], "d1")
        fleet.requests[D0] = altered(roster_of(fleet), "d1", again)
        end = fleet.run_round()
        assert D0 not in getattr(end, "survivors", ())
        assert server.Loss(D0, "its message is of another roster") in end.lost


class TestTheModel:
    """A different model to one device."""

    def test_a_device_given_another_model_under_the_same_descriptor_refuses(self) -> None:
        fleet = Fleet(5)
        event = device.Invited(fleet.requests[D0], digest("umbel/1/model", b"a trap"), PLAN_HASH, NOW_S)
        with pytest.raises(RemoteProtocolError, match="the model is not the session's"):
            device.step(fleet.devices[D0], event)

    def test_a_device_given_a_descriptor_of_its_own_is_in_a_session_of_its_own(self) -> None:
        fleet = Fleet(5)
        trap = digest("umbel/1/model", b"a trap")
        event = device.Invited(descriptor(model_hash=trap).to_bytes(), trap, PLAN_HASH, NOW_S)
        fleet.devices[D0], reply = device.step(fleet.devices[D0], event)
        rejects(fleet, reply, "not signed by it for this session")
        refused = at("share")
        refuses(
            refused, altered(roster_of(refused), "d1", reply.message), "no valid credential|not signed by it"
        )

    def test_a_device_with_another_model_destroys_the_sum_and_reveals_nothing(self) -> None:
        """Even had it let the model through: its masks are others, so no word comes out right."""
        fleet = at("mask")
        shared = fleet.devices[D0]
        assert isinstance(shared, device.Shared)
        trapped = replace(shared.session, model_hash=digest("umbel/1/model", b"a trap"))
        fleet.devices[D0] = replace(shared, session=trapped)
        end = fleet.run_round()
        assert isinstance(end, server.Opened)
        for names in (["d0"], fleet.ids, fleet.ids[1:]):
            assert (end.total != fleet.plain_sum(names)).all()


class TestTheShares:
    """Phase 3: shares that are not the neighbors'."""

    def shares(self, fleet: Fleet, name: str = "d0") -> SealedShares:
        return SealedShares.from_bytes(fleet.requests[DeviceId(name)], "server")

    def test_fewer_than_the_threshold_are_refused(self) -> None:
        fleet = at("mask")
        shares = self.shares(fleet)
        few = replace(shares, boxes=shares.boxes[:2]).to_bytes()  # t = 4, and one is the device's own.
        refuses(fleet, few, "shares of 2 neighbors open, too few for the threshold 4")
        assert fleet.ask("d0", replace(shares, boxes=shares.boxes[:3]).to_bytes()).words is not None

    def test_boxes_that_do_not_open_do_not_count(self) -> None:
        fleet = at("mask")
        shares = self.shares(fleet)
        spoiled = tuple((peer, bytes(len(box))) for peer, box in shares.boxes[:2])
        refuses(fleet, replace(shares, boxes=(*spoiled, *shares.boxes[2:])).to_bytes(), "of 2 neighbors open")

    def test_boxes_for_another_device_do_not_open(self) -> None:
        fleet = at("mask")
        boxes = dict(self.shares(fleet, "d1").boxes)
        mine = self.shares(fleet)
        swapped = tuple((peer, boxes.get(peer, box)) for peer, box in mine.boxes)
        refuses(fleet, replace(mine, boxes=swapped).to_bytes(), "of 1 neighbors open")

    def test_boxes_from_another_session_do_not_open(self) -> None:
        fleet, other = at("mask"), at("mask")
        mine, theirs = self.shares(fleet), self.shares(other)
        refuses(fleet, replace(mine, boxes=theirs.boxes).to_bytes(), "of 0 neighbors open")

    def test_a_box_a_device_sealed_does_not_open_for_itself(self) -> None:
        fleet = at("mask")
        sent = SealedShares.from_bytes(fleet.replies[D0].message, "d0")
        refuses(fleet, replace(self.shares(fleet), boxes=sent.boxes).to_bytes(), "of 0 neighbors open")

    def test_shares_from_a_stranger_are_refused(self) -> None:
        fleet = at("mask")
        mine = self.shares(fleet)
        extra = replace(mine, boxes=(*mine.boxes, (7, mine.boxes[0][1])))
        refuses(fleet, extra.to_bytes(), "shares from position 7, which is no neighbor")

    @pytest.mark.parametrize(("field", "what"), [("sid", "session"), ("roster_hash", "roster")])
    def test_shares_of_another_session_or_roster_are_refused(self, field: str, what: str) -> None:
        fleet = at("mask")
        request = replace(self.shares(fleet), **{field: bytes(32)}).to_bytes()
        refuses(fleet, request, f"of another {what}")

    def test_asking_for_a_second_masked_update_gets_the_first_or_nothing(self) -> None:
        """With other words for the same masks, the difference would be plain."""
        fleet = at("mask")
        first = fleet.ask("d0")
        fleet.vectors = {**fleet.vectors, D0: np.zeros_like(fleet.vectors[D0])}
        assert freeze(fleet.ask("d0")) == freeze(first)
        shares = self.shares(fleet)
        refuses(fleet, replace(shares, boxes=shares.boxes[:3]).to_bytes(), "a second, different request")


class TestTheSurvivors:
    """Phases 4 and 5: one set of survivors, and enough of them."""

    def survivors(self, fleet: Fleet, positions: set[int]) -> bytes:
        message = Survivors.from_bytes(fleet.requests[D0], "server")
        return replace(message, bitmap=to_bitmap(positions, len(fleet.ids))).to_bytes()

    @pytest.mark.parametrize(
        ("positions", "reason"),
        [
            ({0}, "1 survivors, fewer than 6"),
            ({0, 1, 2}, "3 survivors, fewer than 6"),
            ({0, 1, 2, 3, 4}, "5 survivors, fewer than 6"),
            ({1, 2, 3, 4, 5, 6}, "the survivors leave this device out"),
        ],
    )
    def test_a_set_too_small_or_without_the_device_is_refused(self, positions: set[int], reason: str) -> None:
        fleet = at("confirm", 8)
        refuses(fleet, self.survivors(fleet, positions), reason)

    def test_the_smallest_cohort_counts_even_above_the_threshold(self) -> None:
        fleet = at("confirm", 8, session=descriptor(min_cohort=7))
        refuses(fleet, self.survivors(fleet, set(range(6))), "6 survivors, fewer than 7")

    def test_a_server_that_keeps_every_corrupt_device_needs_as_many_honest_ones_as_are_counted_on(
        self,
    ) -> None:
        """Of 20, 2 may be corrupt; of the 15 that the noise is counted over, 1: so it takes 16."""
        fleet = at("confirm", 20, session=descriptor(min_cohort=15))
        refuses(fleet, self.survivors(fleet, set(range(15))), "15 survivors, fewer than 16")

    @pytest.mark.parametrize(
        ("corrupt", "least", "devices"),
        [(c, u, n) for c in (0.05, 0.1, 0.2, 0.29) for n in (8, 20, 100, 512) for u in (3, n // 2, n)],
    )
    def test_the_survivors_hold_the_honest_noise_that_is_charged(
        self, corrupt: float, least: int, devices: int
    ) -> None:
        session = descriptor(min_cohort=least, corrupt_fraction=corrupt, dropout_fraction=0.1)
        counted = policy(corrupt_fraction=corrupt, min_cohort=least).honest(least)
        needed = session.graph_parameters(devices).min_survivors
        # The worst set: all corrupt devices of the roster, and the one under attack.
        assert needed - math.floor(Fraction(str(corrupt)) * devices) - 1 >= counted

    def test_in_a_sparse_graph_no_more_may_be_lost_than_its_bounds_allow(self) -> None:
        fleet = at("confirm", 40)
        assert not fleet.descriptor.graph_parameters(40).complete
        refuses(fleet, self.survivors(fleet, set(range(31))), "31 survivors, fewer than 32")

    def test_in_a_sparse_graph_the_neighbors_of_the_device_count(self) -> None:
        trusting = {"corrupt_fraction": 0.05, "dropout_fraction": 0.4, "server_malicious": False}
        fleet = at("confirm", 64, session=descriptor(**trusting))
        masked = fleet.devices[D0]
        assert isinstance(masked, device.Masked)
        near, shape = sorted(masked.neighborhood.peers), masked.neighborhood.parameters
        left = set(range(64)) - set(near[: shape.degree - shape.threshold + 1])
        assert len(left) >= shape.min_survivors
        refuses(fleet, self.survivors(fleet, left), "neighbors survived, too few for the threshold")

    def test_a_neighbor_that_never_shared_cannot_have_survived(self) -> None:
        fleet = at("share", 8)
        fleet.vanish("d7", "share")
        fleet.run_to("confirm")
        refuses(fleet, self.survivors(fleet, set(range(8))), "survived that never shared")

    @pytest.mark.parametrize("bitmap", [b"", b"\xff", b"\xff\xff\xff", b"\xff\x0f"])
    def test_a_bitmap_of_another_size_is_refused(self, bitmap: bytes) -> None:
        fleet = at("confirm", 9)
        message = Survivors.from_bytes(fleet.requests[D0], "server")
        refuses(fleet, replace(message, bitmap=bitmap).to_bytes(), "the bitmap is not one of 9 devices")

    def test_a_second_set_of_survivors_is_refused(self) -> None:
        fleet = at("confirm", 8)
        first = fleet.ask("d0")
        assert fleet.ask("d0").message == first.message
        refuses(fleet, self.survivors(fleet, set(range(7))), "a second, different request")

    @pytest.mark.parametrize("first_half", [4, 5])
    def test_a_split_view_opens_nothing(self, first_half: int) -> None:
        """Some are told that d7 is lost, the others that d6 is: none gets the threshold on its own set."""
        fleet = at("confirm", 8)
        signed: dict[int, tuple[int, bytes]] = {}
        for i, name in enumerate(fleet.ids):
            lost = 7 if i < first_half else 6
            if i != lost:
                reply = fleet.ask(name, self.survivors(fleet, set(range(8)) - {lost}))
                signed[i] = (lost, Confirmation.from_bytes(reply.message, name).signature)
        base = Survivors.from_bytes(fleet.requests[D0], "server")
        fleet.skip_the_server()
        for i, (lost, _) in signed.items():
            near = [(j, said, raw) for j, (said, raw) in signed.items() if j not in (i, lost)]
            everyone = tuple((j, raw) for j, _, raw in near)
            agreeing = tuple((j, raw) for j, said, raw in near if said == lost)
            for signatures, reason in ((everyone, "did not sign these survivors"), (agreeing, "too few")):
                request = Confirmations(base.sid, base.roster_hash, signatures).to_bytes()
                refuses(fleet, request, reason, fleet.ids[i])

    def confirmations(self, fleet: Fleet) -> Confirmations:
        return Confirmations.from_bytes(fleet.requests[D0], "server")

    def test_too_few_confirmations_are_refused(self) -> None:
        fleet = at("unmask", 8)
        message = self.confirmations(fleet)
        few = replace(message, signatures=message.signatures[:4])  # t = 6, and one is the device's own.
        refuses(fleet, few.to_bytes(), "4 neighbors confirmed, too few for the threshold 6")

    def test_a_forged_confirmation_is_refused(self) -> None:
        fleet = at("unmask", 8)
        message = self.confirmations(fleet)
        forged = ((message.signatures[0][0], bytes(64)), *message.signatures[1:])
        refuses(fleet, replace(message, signatures=forged).to_bytes(), "d1 did not sign these survivors")

    def test_one_device_s_confirmation_does_not_stand_for_another_s(self) -> None:
        fleet = at("unmask", 8)
        message = self.confirmations(fleet)
        (first, raw), (second, _), *rest = message.signatures
        copied = ((first, raw), (second, raw), *rest)
        refuses(fleet, replace(message, signatures=copied).to_bytes(), "d2 did not sign these survivors")

    def test_one_confirmation_does_not_count_twice(self) -> None:
        fleet = at("unmask", 8)
        message = self.confirmations(fleet)
        doubled = replace(message, signatures=message.signatures[:1] * 7)
        refuses(fleet, doubled.to_bytes(), "the signatures repeats? a device")

    def test_the_device_s_own_confirmation_does_not_count_as_a_neighbor_s(self) -> None:
        fleet = at("unmask", 8)
        message = self.confirmations(fleet)
        own = Confirmation.from_bytes(fleet.replies[D0].message, "d0").signature
        refuses(
            fleet,
            replace(message, signatures=((0, own), *message.signatures)).to_bytes(),
            "a signature of position 0",
        )

    def test_confirmations_of_another_session_are_refused(self) -> None:
        fleet, other = at("unmask", 8), at("unmask", 8)
        refuses(fleet, other.requests[D0], "of another roster")
        message = self.confirmations(fleet)
        foreign = replace(message, signatures=self.confirmations(other).signatures)
        refuses(fleet, foreign.to_bytes(), "did not sign these survivors")


class TestTheReveal:
    """Phase 5: never both shares of one peer, and never a second answer."""

    def revealed(self, fleet: Fleet, name: str = "d0") -> RevealedShares:
        return RevealedShares.from_bytes(fleet.ask(name).message, name)

    def test_no_device_gives_both_shares_of_a_peer(self) -> None:
        fleet = Fleet(8)
        fleet.vanish("d6", "mask")
        fleet.vanish("d7", "confirm")
        fleet.run_to("unmask")
        for name in list(fleet.requests):
            revealed = self.revealed(fleet, name)
            assert [i for i, _ in revealed.seeds] == [0, 1, 2, 3, 4, 5, 7]
            assert [i for i, _ in revealed.keys] == [6]

    def test_a_peer_cannot_be_alive_and_then_dead(self) -> None:
        fleet = at("unmask", 8)
        first = self.revealed(fleet)
        assert 7 in {i for i, _ in first.seeds}
        base = Confirmations.from_bytes(fleet.requests[D0], "server")
        dead = to_bitmap(range(7), 8)
        body = enc(base.sid, base.roster_hash, dead)
        # Even with every other device's key in the server's hands:
        signatures = tuple(
            (i, fleet.members[fleet.ids[i]].identity.sign(device.CONFIRM_LABEL, body)) for i in range(1, 7)
        )
        refuses(fleet, replace(base, signatures=signatures).to_bytes(), "a second, different request")

    def test_a_set_of_survivors_it_did_not_confirm_opens_nothing(self) -> None:
        fleet = at("unmask", 8)
        base = Confirmations.from_bytes(fleet.requests[D0], "server")
        body = enc(base.sid, base.roster_hash, to_bitmap(range(7), 8))
        signatures = tuple(
            (i, fleet.members[fleet.ids[i]].identity.sign(device.CONFIRM_LABEL, body)) for i in range(1, 7)
        )
        refuses(fleet, replace(base, signatures=signatures).to_bytes(), "d1 did not sign these survivors")

    def test_asking_twice_gets_the_same_bytes(self) -> None:
        fleet = at("unmask", 8)
        assert fleet.ask("d0").message == fleet.ask("d0").message

    def test_going_back_to_an_earlier_phase_is_refused(self) -> None:
        fleet = at("confirm", 8)
        confirm = fleet.requests[D0]
        fleet.run_to("unmask")
        fleet.ask("d0")
        with pytest.raises(RemoteProtocolError, match="SurvivorsReceived out of turn"):
            device.step(fleet.devices[D0], device.SurvivorsReceived(confirm))

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda r: replace(r, keys=((1, r.seeds[1][1]),)), "a key's share that was not asked for"),
            (
                lambda r: replace(r, seeds=(*r.seeds, (7, r.seeds[0][1]))),
                "a seed's share that was not asked for",
            ),
            (
                lambda r: replace(r, seeds=(*r.seeds, (99, r.seeds[0][1]))),
                "a seed's share that was not asked for",
            ),
            (lambda r: replace(r, sid=bytes(32)), "of another session"),
            (lambda r: replace(r, roster_hash=bytes(32)), "of another roster"),
        ],
    )
    def test_the_server_takes_only_the_shares_it_asked_for(
        self, change: Callable[[RevealedShares], RevealedShares], reason: str
    ) -> None:
        fleet = Fleet(8)
        fleet.vanish("d7", "mask")
        fleet.run_to("unmask")
        reply = device.Reply(change(self.revealed(fleet)).to_bytes())
        rejects(fleet, reply, reason)


class TestLyingDevices:
    """What devices can spoil is found out, and named."""

    def lie(self, fleet: Fleet, liars: list[str], which: str) -> server.Opened | server.Aborted:
        fleet.run_to("unmask")
        for name in liars:
            reply = fleet.ask(name)
            honest = RevealedShares.from_bytes(reply.message, name)
            wrong = tuple((i, draw_element()) for i, _ in getattr(honest, which))
            fleet.answer(name, device.Reply(replace(honest, **{which: wrong}).to_bytes()))
        fleet.run_phase(without=liars)
        end = fleet.server
        assert isinstance(end, server.Opened | server.Aborted)
        return end

    @pytest.mark.parametrize("which", ["seeds", "keys"])
    def test_a_wrong_share_is_noticed_left_out_and_named(self, which: str) -> None:
        fleet = Fleet(8)
        fleet.vanish("d7", "mask")
        end = self.lie(fleet, ["d0"], which)
        assert isinstance(end, server.Opened)
        assert (end.total == fleet.plain_sum(fleet.ids[:7])).all()
        assert server.Loss(D0, "it revealed a wrong share") in end.lost
        assert [loss.device for loss in end.lost] == ["d7", "d0"]

    @pytest.mark.parametrize(("which", "owner"), [("seeds", "seed of d0"), ("keys", "mask key of d7")])
    def test_wrong_shares_beyond_what_can_be_spared_abort_with_the_owner_s_name(
        self, which: str, owner: str
    ) -> None:
        fleet = Fleet(8)
        fleet.vanish("d7", "mask")
        end = self.lie(fleet, ["d1", "d2"], which)
        assert isinstance(end, server.Aborted)
        assert f"The {owner} cannot be recovered" in end.reason

    def test_in_a_larger_fleet_several_liars_are_left_out(self) -> None:
        fleet = Fleet(24)
        end = self.lie(fleet, ["d3", "d4"], "seeds")
        assert isinstance(end, server.Opened)
        assert (end.total == fleet.plain_sum(fleet.ids)).all()
        assert {loss.device for loss in end.lost} <= {"d3", "d4"}

    def test_a_device_that_deals_shares_of_another_seed_is_named(self) -> None:
        fleet = at("share", 8)
        joined = fleet.devices[D0]
        assert isinstance(joined, device.Joined)
        fleet.devices[D0] = replace(joined, secrets=replace(joined.secrets, seed=draw_element()))
        end = fleet.run_round()
        assert isinstance(end, server.Aborted)
        assert "The seed of d0 cannot be recovered" in end.reason
        assert "Either d0 dealt wrong shares" in end.reason

    def test_a_device_that_deals_shares_of_another_mask_key_is_named_when_lost(self) -> None:
        fleet = at("share", 8)
        joined = fleet.devices[D0]
        assert isinstance(joined, device.Joined)
        other = replace(joined.secrets, mask_private=X25519PrivateKey.generate())
        fleet.devices[D0] = replace(joined, secrets=other)
        fleet.vanish("d0", "mask")
        end = fleet.run_round()
        assert isinstance(end, server.Aborted)
        assert "The mask key of d0 cannot be recovered" in end.reason

    def test_one_spoiled_box_costs_one_share_and_not_the_round(self) -> None:
        fleet = at("share", 8)
        reply = fleet.ask("d0")
        shares = SealedShares.from_bytes(reply.message, "d0")
        spoiled = ((shares.boxes[0][0], bytes(92)), *shares.boxes[1:])
        fleet.answer("d0", device.Reply(replace(shares, boxes=spoiled).to_bytes()))
        fleet.run_phase(without=["d0"])
        end = fleet.run_round()
        assert isinstance(end, server.Opened)
        assert (end.total == fleet.plain_sum(fleet.ids)).all()
        assert end.lost == ()

    @pytest.mark.parametrize("boxes", [slice(1, None), slice(0, 0)])
    def test_a_device_that_does_not_share_with_all_its_neighbors_is_out(self, boxes: slice) -> None:
        fleet = at("share", 8)
        shares = SealedShares.from_bytes(fleet.ask("d0").message, "d0")
        few = replace(shares, boxes=shares.boxes[boxes])
        rejects(fleet, device.Reply(few.to_bytes()), "its shares are not for exactly its neighbors")

    @pytest.mark.parametrize(
        "words",
        [
            np.zeros(19, np.uint64),
            np.zeros(21, np.uint64),
            np.zeros(20, np.int64),
            np.zeros(20, np.float64),
            np.zeros((20, 1), np.uint64),
        ],
    )
    def test_an_update_of_another_shape_or_type_is_out(self, words: np.ndarray) -> None:
        fleet = at("mask", 8)
        reply = fleet.ask("d0")
        rejects(fleet, device.Reply(reply.message, words), "its update is not 20 words of 64 bits")

    def test_a_confirmation_of_other_survivors_is_out(self) -> None:
        fleet = at("confirm", 8)
        message = Survivors.from_bytes(fleet.requests[D0], "server")
        reply = fleet.ask("d0", replace(message, bitmap=to_bitmap(range(7), 8)).to_bytes())
        rejects(fleet, reply, "it did not sign these survivors")

    @pytest.mark.parametrize("phase", ["share", "mask", "confirm", "unmask"])
    def test_an_answer_from_another_session_is_out(self, phase: str) -> None:
        fleet, other = at(phase), at(phase)
        fleet.ask("d0")
        rejects(fleet, other.ask("d0"), "its message is of another")


class TestMalformedBytes:
    """Every message, cut off, extended, or changed in one byte."""

    @pytest.mark.parametrize("phase", PHASES)
    def test_a_request_cut_off_anywhere_is_refused(self, phase: str) -> None:
        fleet = at(phase, 3)  # All are needed, so a list cut off between two of its items is too short.
        whole = fleet.requests[D0]
        before = freeze(fleet.devices[D0])
        for size in range(len(whole)):
            with pytest.raises(RemoteProtocolError):
                fleet.ask("d0", whole[:size])
        assert freeze(fleet.devices[D0]) == before

    @pytest.mark.parametrize("phase", PHASES[:-1])
    def test_a_reply_cut_off_anywhere_is_rejected(self, phase: str) -> None:
        fleet = at(phase, 4)
        reply = fleet.ask("d0")
        before = freeze(fleet.server)
        for size in range(len(reply.message)):
            with pytest.raises(RemoteProtocolError) as caught:
                fleet.tell(fleet.reply_event("d0", replace(reply, message=reply.message[:size])))
            assert caught.value.peer == "d0"
        assert freeze(fleet.server) == before

    def test_a_reveal_cut_off_anywhere_is_rejected_or_holds_fewer_shares(self) -> None:
        fleet = at("unmask", 4)
        reply = fleet.ask("d0")
        whole = RevealedShares.from_bytes(reply.message, "d0")
        accepted = []
        for size in range(len(reply.message)):
            event = fleet.reply_event("d0", replace(reply, message=reply.message[:size]))
            try:
                after, _ = server.step(fleet.server, event)
            except RemoteProtocolError:
                continue
            assert isinstance(after, server.Unmasking)
            accepted.append(after.revealed[0].seeds)
        assert accepted == [whole.seeds[:count] for count in range(4)]

    # An unknown field 15, varint; field 1 of type bytes a second time, empty; a stray end of group.
    @pytest.mark.parametrize("tail", [b"\x78\x01", b"\x0a\x00", b"\x0c", b"\x00"])
    @pytest.mark.parametrize("phase", PHASES)
    def test_more_than_the_message_is_refused_on_both_sides(self, phase: str, tail: bytes) -> None:
        fleet = at(phase, 4)
        refuses(fleet, fleet.requests[D0] + tail, "is malformed|not in canonical form")
        reply = fleet.ask("d0")
        longer = replace(reply, message=reply.message + tail)
        rejects(fleet, longer, "is malformed|not in canonical form")

    @pytest.mark.parametrize("phase", PHASES)
    def test_an_oversized_message_is_refused_unread_on_both_sides(self, phase: str) -> None:
        fleet = at(phase, 4)
        refuses(fleet, bytes(9 << 20), "bytes, more than")
        reply = fleet.ask("d0")
        rejects(fleet, replace(reply, message=bytes(9 << 20)), "bytes, more than")

    @pytest.mark.parametrize("phase", PHASES)
    def test_an_empty_message_is_refused_on_both_sides(self, phase: str) -> None:
        fleet = at(phase, 4)
        refuses(fleet, b"", ", not 32|out of range|denominator 0")
        rejects(fleet, replace(fleet.ask("d0"), message=b""), ", not 32")

    @given(data=st.data(), phase=st.sampled_from(PHASES))
    @settings(max_examples=150)
    def test_one_changed_byte_on_the_way_never_makes_a_wrong_sum(
        self, data: st.DataObject, phase: str
    ) -> None:
        fleet = at(phase, 4)
        down = data.draw(st.booleans())
        message = fleet.requests[D0] if down else fleet.ask("d0").message
        place = data.draw(st.integers(0, len(message) - 1))
        changed = bytearray(message)
        changed[place] ^= data.draw(st.integers(1, 255))
        if down:
            fleet.requests[D0] = bytes(changed)
            fleet.run_phase()
        else:
            fleet.answer("d0", replace(fleet.replies[D0], message=bytes(changed)))
            fleet.run_phase(without=["d0"])
        end = fleet.run_round()
        if isinstance(end, server.Opened):
            assert (end.total == fleet.plain_sum(end.survivors)).all()

    def wrong(self, make: Callable[[], bytes], kind: type[T], reason: str) -> None:
        with pytest.raises(RemoteProtocolError, match=reason):
            kind.from_bytes(make(), "d0")  # type: ignore[attr-defined]

    @pytest.mark.parametrize("size", [0, 31, 33, 64])
    @pytest.mark.parametrize("field", ["mask_key", "share_key", "seed_commitment"])
    def test_an_entry_with_a_field_of_another_size_is_malformed(self, field: str, size: int) -> None:
        fields = {"mask_key": bytes(32), "share_key": bytes(32), "seed_commitment": bytes(32)}
        message = pb.JoinEntry(credential=b"c", signature=bytes(64), **{**fields, field: b"x" * size})
        self.wrong(message.SerializeToString, JoinEntry, f"has {size} bytes, not 32")

    @pytest.mark.parametrize(
        "kind", [SealedShares, Masked, Survivors, Confirmation, Confirmations, RevealedShares]
    )
    @pytest.mark.parametrize("size", [0, 31, 33])
    def test_a_message_bound_to_no_session_is_malformed(self, kind: type[object], size: int) -> None:
        wire = getattr(pb, kind.__name__)
        message = wire(sid=b"x" * size, roster_hash=bytes(32))
        self.wrong(message.SerializeToString, kind, f"the session id has {size} bytes")
        message = wire(sid=bytes(32), roster_hash=b"x" * size)
        self.wrong(message.SerializeToString, kind, f"the roster's hash has {size} bytes")

    @pytest.mark.parametrize("size", [0, 91, 93])
    def test_a_box_of_another_size_is_malformed(self, size: int) -> None:
        message = SealedShares(bytes(32), bytes(32), ((1, b"x" * size),))
        self.wrong(message.to_bytes, SealedShares, f"a sealed share has {size} bytes, not 92")

    @pytest.mark.parametrize("size", [0, 63, 65])
    def test_a_signature_of_another_size_is_malformed(self, size: int) -> None:
        one = Confirmation(bytes(32), bytes(32), b"x" * size)
        self.wrong(one.to_bytes, Confirmation, f"{size} bytes, not 64")
        many = Confirmations(bytes(32), bytes(32), ((1, b"x" * size),))
        self.wrong(many.to_bytes, Confirmations, f"{size} bytes, not 64")

    @pytest.mark.parametrize("share", [b"", bytes(31), bytes(33), b"\xff" * 32])
    def test_a_share_that_is_no_field_element_is_malformed(self, share: bytes) -> None:
        for seeds, keys in ((((1, share),), ()), ((), ((1, share),))):
            message = RevealedShares(bytes(32), bytes(32), seeds, keys)
            self.wrong(message.to_bytes, RevealedShares, "no field element")

    @pytest.mark.parametrize("peers", [(1, 1), (2, 1), (16384,), (2**32 - 1,)])
    def test_positions_repeated_out_of_order_or_beyond_any_roster_are_malformed(
        self, peers: tuple[int, ...]
    ) -> None:
        share = draw_element()
        for message in (
            SealedShares(bytes(32), bytes(32), tuple((i, bytes(92)) for i in peers)),
            Confirmations(bytes(32), bytes(32), tuple((i, bytes(64)) for i in peers)),
            RevealedShares(bytes(32), bytes(32), tuple((i, share) for i in peers), ()),
            RevealedShares(bytes(32), bytes(32), (), tuple((i, share) for i in peers)),
        ):
            self.wrong(message.to_bytes, type(message), "repeat|beyond any roster")

    @pytest.mark.parametrize("name", ["", "D0", "a/b", "..", "a" * 64])
    def test_a_roster_with_an_id_that_is_no_name_is_malformed(self, name: str) -> None:
        message = Roster(bytes(32), ((DeviceId(name), bytes(32)),), ())
        self.wrong(message.to_bytes, Roster, "an id that is no name")

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("protocol", 0),
            ("protocol", 2),
            ("fleet_id", ""),
            ("run_id", "../x"),
            ("task", "A"),
            ("model_hash", b""),
            ("plan_hash", bytes(33)),
            ("min_cohort", 2),
            ("max_cohort", 2),
            ("max_cohort", 16385),
            ("corrupt_fraction", 0.5),
            ("corrupt_fraction", -0.1),
            ("corrupt_fraction", float("nan")),
            ("dropout_fraction", float("inf")),
        ],
    )
    def test_a_descriptor_out_of_range_is_refused(self, field: str, value: object) -> None:
        message = pb.SessionDescriptor.FromString(descriptor().to_bytes())
        setattr(message, field, value)
        self.wrong(message.SerializeToString, Descriptor, "out of range")

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("dim", 0),
            ("padded", 41),
            ("bits", 20),
            ("clip", 0.0),
            ("clip", float("nan")),
            ("scale", float("inf")),
            ("bound_sq", 0),
            ("noise_numerator", 2**60),
            ("noise_denominator", 0),
            ("noise_denominator", 7),
        ],
    )
    def test_an_encoding_out_of_range_is_refused(self, field: str, value: object) -> None:
        message = pb.SessionDescriptor.FromString(descriptor().to_bytes())
        setattr(message.encoding, field, value)
        self.wrong(message.SerializeToString, Descriptor, "out of range|denominator 0|lowest terms")


def test_a_refusal_is_the_server_s_to_hear_and_the_round_goes_on() -> None:
    fleet = at("share", 8)
    fleet.requests[D0] = replace(roster_of(fleet), sid=bytes(32)).to_bytes()
    end = fleet.run_round()
    assert fleet.refusals == {"d0": "the roster is of another session"}
    assert isinstance(end, server.Opened)
    assert end.survivors == tuple(fleet.ids[1:])
    assert fleet.descriptor.model_hash == MODEL_HASH

"""Phases 2 and 3 of a server that lies: rosters, models and shares that are not everyone's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from security.liars import D0, D1, D2, altered, at, join_entry, refuses, rejects, roster_of, signed_entry
from simulation.fleet import NOW_S, PLAN_HASH, Fleet, descriptor
from simulation.freeze import freeze
from umbel_proto.encoding import digest
from umbel_proto.errors import RemoteProtocolError
from umbel_proto.ids import DeviceId
from umbel_proto.secagg import device, server
from umbel_proto.secagg.messages import JoinEntry, SealedShares
from umbel_proto.secagg.session import entry_hash


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
        other = join_entry(fleet, fleet.members[D1], "d1")
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
        entry = join_entry(fleet, make(fleet), "d1")
        refuses(fleet, altered(roster_of(fleet), "d1", entry), reason)

    @pytest.mark.parametrize("place", [0, 1])
    def test_a_neighbor_s_key_of_small_order_is_refused(self, place: int) -> None:
        fleet = at("share")
        keys = [X25519PrivateKey.generate().public_key().public_bytes_raw() for _ in range(2)]
        keys[place] = bytes(32)
        request = altered(roster_of(fleet), "d1", signed_entry(fleet, fleet.members[D1], keys, "d1"))
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
        again = join_entry(fleet, fleet.members[D1], "d1")
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

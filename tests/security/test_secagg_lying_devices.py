"""What devices can spoil is found out and named, and a refusal does not end the round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from security.liars import D0, at, rejects, roster_of
from simulation.fleet import MODEL_HASH, Fleet
from umbel_proto.secagg import device, server
from umbel_proto.secagg.messages import RevealedShares, SealedShares, Survivors, to_bitmap
from umbel_proto.secagg.shamir import draw_element


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


def test_a_refusal_is_the_server_s_to_hear_and_the_round_goes_on() -> None:
    fleet = at("share", 8)
    fleet.requests[D0] = replace(roster_of(fleet), sid=bytes(32)).to_bytes()
    end = fleet.run_round()
    assert fleet.refusals == {"d0": "the roster is of another session"}
    assert isinstance(end, server.Opened)
    assert end.survivors == tuple(fleet.ids[1:])
    assert fleet.descriptor.model_hash == MODEL_HASH

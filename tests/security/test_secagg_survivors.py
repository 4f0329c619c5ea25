"""Phases 4 and 5 of a server that lies: two sets of survivors, and both shares of a device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest

from security.liars import D0, at, refuses, rejects
from simulation.fleet import Fleet, descriptor, policy
from umbel_proto.encoding import enc
from umbel_proto.errors import RemoteProtocolError
from umbel_proto.secagg import device
from umbel_proto.secagg.messages import Confirmation, Confirmations, RevealedShares, Survivors, to_bitmap


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

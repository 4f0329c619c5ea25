"""Phase 1: what a device does not begin, and whom the server does not let in."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from security.liars import D0, D1, join_entry, refuses, rejects, signed_entry
from simulation.fleet import NOW_S, Fleet, descriptor, encoding, policy
from umbel_proto.credentials import Credential, sign_credential
from umbel_proto.encoding import digest
from umbel_proto.errors import CertificateError
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.keys import SigningKey
from umbel_proto.secagg import device, server
from umbel_proto.secagg.messages import JoinEntry
from umbel_proto.secagg.session import session_id


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

    def test_a_right_entry_gets_in(self) -> None:
        fleet = Fleet(3)
        fleet.tell(server.Joined(D0, join_entry(fleet, fleet.members[D0])))

    def test_an_expired_credential_does_not(self) -> None:
        fleet = Fleet(3)
        entry = join_entry(fleet, fleet.enroll(D0, not_after_s=int(NOW_S)))
        rejects(fleet, device.Reply(entry), "no valid credential.*expired")

    def test_a_credential_of_another_authority_does_not(self) -> None:
        fleet, other = Fleet(3), Fleet(3)
        rejects(
            fleet, device.Reply(join_entry(fleet, other.members[D0])), "not signed by this fleet's authority"
        )

    def test_a_credential_of_another_fleet_does_not(self) -> None:
        fleet, identity = Fleet(3), SigningKey.generate()
        foreign = Credential(FleetId("forest"), D0, identity.public, int(NOW_S) + 60)
        member = replace(
            fleet.members[D0], identity=identity, credential=sign_credential(fleet.authority, foreign)
        )
        rejects(fleet, device.Reply(join_entry(fleet, member)), "of fleet forest, not meadow")

    def test_a_device_nobody_enrolled_does_not(self) -> None:
        fleet, identity = Fleet(3), SigningKey.generate()
        made_up = sign_credential(identity, Credential(fleet.descriptor.fleet, D0, identity.public, 2**40))
        member = replace(fleet.members[D0], identity=identity, credential=made_up)
        rejects(fleet, device.Reply(join_entry(fleet, member)), "not signed by this fleet's authority")

    def test_a_device_nobody_invited_does_not(self) -> None:
        fleet = Fleet(3)
        entry = join_entry(fleet, fleet.enroll(DeviceId("d9")), "d9")
        rejects(fleet, device.Reply(entry), "it was not invited", "d9")

    def test_a_device_does_not_speak_for_another(self) -> None:
        fleet = Fleet(3)
        entry = join_entry(fleet, fleet.members[D1], "d1")
        rejects(fleet, device.Reply(entry), "the entry of d0 has the credential of d1")

    def test_a_device_does_not_get_in_twice(self) -> None:
        fleet = Fleet(3)
        fleet.ask_and_answer("d0")
        rejects(fleet, device.Reply(join_entry(fleet, fleet.members[D0])), "has answered")

    def test_an_entry_from_another_session_does_not(self) -> None:
        fleet = Fleet(3)
        entry = join_entry(fleet, fleet.members[D0], sid=session_id(descriptor(attempt=1).to_bytes()))
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
        rejects(fleet, device.Reply(signed_entry(fleet, fleet.members[D0], keys)), "small order")

    def test_the_round_goes_on_without_whom_it_kept_out(self) -> None:
        fleet = Fleet(4)
        fleet.answer("d0", device.Reply(b"nonsense"))
        fleet.run_phase(without=["d0"])
        end = fleet.run_round()
        assert isinstance(end, server.Opened)
        assert end.survivors == ("d1", "d2", "d3")

"""Messages that are not what they should be: cut off, extended, changed, out of range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.liars import D0, at, refuses, rejects
from simulation.fleet import PHASES, descriptor
from simulation.freeze import freeze
from umbel_proto.errors import RemoteProtocolError
from umbel_proto.ids import DeviceId
from umbel_proto.secagg import server
from umbel_proto.secagg.messages import (
    Confirmation,
    Confirmations,
    JoinEntry,
    Masked,
    RevealedShares,
    Roster,
    SealedShares,
    Survivors,
)
from umbel_proto.secagg.session import Descriptor
from umbel_proto.secagg.shamir import draw_element
from umbel_proto.wire import rounds_pb2 as pb

T = TypeVar("T")


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

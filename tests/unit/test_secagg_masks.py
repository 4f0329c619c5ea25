"""Masks cancel between two devices that agree on everything, and on nothing less."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from umbel_proto.errors import VerificationError
from umbel_proto.ids import DeviceId
from umbel_proto.prg import TILE_BYTES, Keystream
from umbel_proto.secagg.boxes import Held, Lane, open_shares, seal_shares
from umbel_proto.secagg.masks import add_masks, agree, pair_key, self_key
from umbel_proto.secagg.shamir import draw_element

A, B = DeviceId("a"), DeviceId("b")
BOUND = {"sid": b"s" * 32, "roster_hash": b"r" * 32, "model_hash": b"m" * 32}
SMALL_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


@pytest.mark.parametrize(
    "words", [1, 7, TILE_BYTES // 8 - 1, TILE_BYTES // 8, TILE_BYTES // 8 + 1, 3 * TILE_BYTES // 8 + 5]
)
def test_adding_masks_tile_by_tile_is_adding_them_whole(words: int) -> None:
    plus, minus = [b"\x01" * 32, b"\x02" * 32], [b"\x03" * 32]
    masked = np.full(words, 2**63, np.uint64)
    add_masks(masked, plus=plus, minus=minus)
    one, two, three = (Keystream(key).uint64(words) for key in (*plus, *minus))
    assert (masked == np.uint64(2**63) + one + two - three).all()


def test_a_mask_taken_off_again_leaves_nothing() -> None:
    words = np.arange(1000, dtype=np.uint64)
    masked = words.copy()
    add_masks(masked, plus=[b"\x01" * 32])
    assert (masked != words).all()
    add_masks(masked, minus=[b"\x01" * 32])
    assert (masked == words).all()


def test_both_ends_derive_the_same_mask_key() -> None:
    one, two = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    ours = pair_key(one, two.public_key().public_bytes_raw(), pair=(A, B), **BOUND)
    theirs = pair_key(two, one.public_key().public_bytes_raw(), pair=(B, A), **BOUND)
    assert ours == theirs


@pytest.mark.parametrize("what", list(BOUND))
def test_another_session_roster_or_model_gives_another_mask(what: str) -> None:
    one, two = X25519PrivateKey.generate(), X25519PrivateKey.generate().public_key().public_bytes_raw()
    assert pair_key(one, two, pair=(A, B), **BOUND) != pair_key(
        one, two, pair=(A, B), **{**BOUND, what: b"x" * 32}
    )


def test_another_session_or_roster_gives_another_self_mask() -> None:
    seed = draw_element()
    keys = {
        self_key(seed, sid=b"s" * 32, roster_hash=b"r" * 32),
        self_key(seed, sid=b"t" * 32, roster_hash=b"r" * 32),
        self_key(seed, sid=b"s" * 32, roster_hash=b"t" * 32),
        self_key(draw_element(), sid=b"s" * 32, roster_hash=b"r" * 32),
    }
    assert len(keys) == 4


@pytest.mark.parametrize("public", SMALL_ORDER)
def test_a_key_of_small_order_is_refused(public: bytes) -> None:
    with pytest.raises(VerificationError):
        agree(X25519PrivateKey.generate(), public, b"")


class TestBoxes:
    lane = Lane(b"s" * 32, b"r" * 32, A, B)

    def ends(self) -> tuple[X25519PrivateKey, X25519PrivateKey]:
        return X25519PrivateKey.generate(), X25519PrivateKey.generate()

    def test_a_box_opens_at_the_other_end(self) -> None:
        a, b = self.ends()
        held = Held(draw_element(), draw_element())
        box = seal_shares(held, self.lane.key(a, b.public_key().public_bytes_raw()), self.lane)
        assert open_shares(box, self.lane.key(b, a.public_key().public_bytes_raw()), self.lane) == held

    @pytest.mark.parametrize(
        "other",
        [
            Lane(b"t" * 32, b"r" * 32, A, B),
            Lane(b"s" * 32, b"t" * 32, A, B),
            Lane(b"s" * 32, b"r" * 32, B, A),
            Lane(b"s" * 32, b"r" * 32, A, DeviceId("c")),
        ],
    )
    def test_a_box_opens_on_no_other_lane(self, other: Lane) -> None:
        a, b = self.ends()
        public = b.public_key().public_bytes_raw()
        box = seal_shares(Held(draw_element(), draw_element()), self.lane.key(a, public), self.lane)
        with pytest.raises(VerificationError):
            open_shares(box, other.key(b, a.public_key().public_bytes_raw()), other)

    def test_every_lane_has_its_own_key(self) -> None:
        a, b = self.ends()
        public = b.public_key().public_bytes_raw()
        lanes = [
            self.lane,
            Lane(b"s" * 32, b"r" * 32, B, A),
            Lane(b"t" * 32, b"r" * 32, A, B),
            Lane(b"s" * 32, b"t" * 32, A, B),
            Lane(b"s" * 32, b"r" * 32, A, DeviceId("c")),
        ]
        assert len({lane.key(a, public) for lane in lanes}) == len(lanes)

    def test_shares_that_are_no_field_elements_do_not_come_out(self) -> None:
        key = b"k" * 32
        box = seal_shares(Held(b"\xff" * 32, draw_element()), key, self.lane)
        with pytest.raises(VerificationError, match="no field elements"):
            open_shares(box, key, self.lane)

    def test_sealing_twice_uses_no_nonce_twice(self) -> None:
        held = Held(draw_element(), draw_element())
        one, two = (seal_shares(held, b"k" * 32, self.lane) for _ in range(2))
        assert one[:12] != two[:12]

    def test_secrets_are_not_in_a_repr(self) -> None:
        held = Held(b"\x42" * 32, b"\x43" * 32)
        assert repr(held) == "Held()"

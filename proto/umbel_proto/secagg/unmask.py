"""Taking the masks off a sum: secrets recovered from shares, each checked before it is used.

Source: docs/spec/secure-aggregation.md, "Server rules", 10.5.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Mapping, Set

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from umbel_proto.errors import VerificationError
from umbel_proto.secagg.cohort import Cohort
from umbel_proto.secagg.entries import commit_to_seed
from umbel_proto.secagg.masks import Words, add_masks, pair_key, self_key, zeros
from umbel_proto.secagg.messages import RevealedShares
from umbel_proto.secagg.shamir import recover


def unmask(
    cohort: Cohort,
    total: Words,
    *,
    sharers: Set[int],
    survivors: Set[int],
    revealed: Mapping[int, RevealedShares],
) -> tuple[Words, frozenset[int]]:
    """Return the plain sum over the survivors, and who revealed a wrong share.

    A seed must be what its owner committed to, and a mask key must give the public key its
    owner joined with, so a wrong share is never used. Its holder is left out from then on.

    Args:
        cohort: The roster and its graph.
        total: Sum of the masked words, shape (words,); left as it is.
        sharers: Positions whose masks are in use.
        survivors: Positions whose words are in the total.
        revealed: Shares by who revealed them.

    Raises:
        VerificationError: A secret cannot be recovered; names its owner.
    """
    seeds: dict[int, dict[int, bytes]] = {}
    keys: dict[int, dict[int, bytes]] = {}
    for holder, message in revealed.items():
        for owner, share in message.seeds:
            seeds.setdefault(owner, {})[holder + 1] = share
        for owner, share in message.keys:
            keys.setdefault(owner, {})[holder + 1] = share
    liars: set[int] = set()
    out = zeros(total.size)
    np.copyto(out, total)
    own = [_recover_seed(cohort, owner, seeds.get(owner, {}), liars) for owner in sorted(survivors)]
    add_masks(out, minus=[self_key(seed, sid=cohort.sid, roster_hash=cohort.roster_hash) for seed in own])
    for owner in cohort.dead(sharers, survivors):
        private = _recover_key(cohort, owner, keys.get(owner, {}), liars)
        near = [i for i in cohort.graph.neighbors(owner) if i in survivors]
        # The lower of two added their mask: where the survivor is lower, it is still in the sum.
        add_masks(
            out,
            minus=_keys(cohort, owner, private, [i for i in near if i < owner]),
            plus=_keys(cohort, owner, private, [i for i in near if i > owner]),
        )
    return out, frozenset(liars)


def _recover_seed(cohort: Cohort, owner: int, shares: dict[int, bytes], liars: set[int]) -> bytes:
    peer = cohort.peers[owner]

    def is_right(seed: bytes) -> bool:
        commitment = commit_to_seed(seed, sid=cohort.sid, device=peer.device)
        return hmac.compare_digest(commitment, peer.seed_commitment)

    return _recover(cohort, owner, "seed", shares, liars, is_right)


def _recover_key(cohort: Cohort, owner: int, shares: dict[int, bytes], liars: set[int]) -> X25519PrivateKey:
    joined = cohort.peers[owner].mask_key

    def is_right(raw: bytes) -> bool:
        public = X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()
        return hmac.compare_digest(public, joined)

    return X25519PrivateKey.from_private_bytes(_recover(cohort, owner, "mask key", shares, liars, is_right))


def _recover(
    cohort: Cohort,
    owner: int,
    what: str,
    shares: dict[int, bytes],
    liars: set[int],
    is_right: Callable[[bytes], bool],
) -> bytes:
    usable = {point: share for point, share in shares.items() if point - 1 not in liars}
    try:
        secret, wrong = recover(usable, threshold=cohort.graph.parameters.threshold, check=is_right)
    except VerificationError as exc:
        who = cohort.ids[owner]
        raise VerificationError(
            f"The {what} of {who} cannot be recovered: {exc} Either {who} dealt wrong shares, "
            "or too many devices revealed wrong ones or none."
        ) from exc
    liars.update(point - 1 for point in wrong)
    return secret


def _keys(cohort: Cohort, owner: int, private: X25519PrivateKey, others: list[int]) -> Iterator[bytes]:
    lost = cohort.peers[owner]
    for position in others:
        peer = cohort.peers[position]
        yield pair_key(
            private,
            peer.mask_key,
            pair=(lost.device, peer.device),
            sid=cohort.sid,
            roster_hash=cohort.roster_hash,
            model_hash=cohort.descriptor.model_hash,
        )

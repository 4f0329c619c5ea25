"""What a device learns from a roster, everything about it verified.

Source: docs/spec/secure-aggregation.md, "Phase 2: share".
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from umbel_proto.errors import RemoteProtocolError, UsageError, VerificationError
from umbel_proto.ids import DeviceId
from umbel_proto.keys import VerifyKey
from umbel_proto.secagg.boxes import Lane
from umbel_proto.secagg.entries import Peer, Secrets, verify_entry
from umbel_proto.secagg.graph import Graph, Parameters
from umbel_proto.secagg.masks import pair_key, self_key
from umbel_proto.secagg.messages import Roster
from umbel_proto.secagg.session import SERVER, Session, entry_hash, roster_hash


@dataclass(frozen=True, slots=True)
class Neighborhood:
    """What a device knows of its roster.

    Args:
        ids: All devices, ascending; an index is a position.
        roster_hash: The roster.
        position: Its own.
        parameters: Degree and threshold.
        peers: Its neighbors by position.
    """

    ids: tuple[DeviceId, ...]
    roster_hash: bytes
    position: int
    parameters: Parameters
    peers: Mapping[int, Peer]

    @property
    def own(self) -> int:
        """How much of the threshold the device itself provides: one in a complete graph."""
        return int(self.parameters.complete)

    @property
    def holders(self) -> tuple[int, ...]:
        """Who gets shares of its secrets; see :meth:`Graph.holders`."""
        return (*self.peers, self.position) if self.own else tuple(self.peers)

    def enough(self, peers: Collection[int]) -> bool:
        """Say whether these neighbors, with the device's own part, reach the threshold."""
        return len(peers) + self.own >= self.parameters.threshold

    def lane_to(self, position: int, sid: bytes) -> Lane:
        """Return the lane to a neighbor."""
        return Lane(sid, self.roster_hash, self.ids[self.position], self.ids[position])

    def lane_from(self, position: int, sid: bytes) -> Lane:
        """Return the lane from a neighbor."""
        return Lane(sid, self.roster_hash, self.ids[position], self.ids[self.position])

    def lane_key(self, lane: Lane, secrets: Secrets, position: int) -> bytes:
        """Return the key of a lane to or from a neighbor.

        Raises:
            RemoteProtocolError: The neighbor's key has small order.
        """
        try:
            return lane.key(secrets.share_private, self.peers[position].share_key)
        except VerificationError as exc:
            raise _small_order(self.ids[position]) from exc

    def mask_keys(
        self, session: Session, secrets: Secrets, sharers: Collection[int]
    ) -> tuple[list[bytes], list[bytes]]:
        """Return the keys of the masks to add and of those to subtract.

        Args:
            session: The session.
            secrets: The device's own.
            sharers: Positions of the neighbors to mask with.

        Raises:
            RemoteProtocolError: A neighbor's key has small order.
        """
        plus = [self_key(secrets.seed, sid=session.sid, roster_hash=self.roster_hash)]
        minus: list[bytes] = []
        for position in sharers:
            peer = self.peers[position]
            try:
                key = pair_key(
                    secrets.mask_private,
                    peer.mask_key,
                    pair=(session.device, peer.device),
                    sid=session.sid,
                    roster_hash=self.roster_hash,
                    model_hash=session.model_hash,
                )
            except VerificationError as exc:
                raise _small_order(peer.device) from exc
            (plus if self.position < position else minus).append(key)
        return plus, minus


def read_roster(
    session: Session, data: bytes, *, entry: bytes, authority: VerifyKey, now_s: float
) -> Neighborhood:
    """Return what a device learns from a roster.

    Args:
        session: The session.
        data: Serialized Roster.
        entry: The device's own entry, as it sent it.
        authority: The pinned key of the fleet's authority.
        now_s: Unix seconds.

    Raises:
        RemoteProtocolError: The roster is malformed, another session's or of a forbidden size,
            the device or its entry is not in it, the entries are not those of its neighbors in
            the graph, or one of them does not verify.
    """
    descriptor = session.descriptor
    roster = Roster.from_bytes(data, SERVER)
    require(hmac.compare_digest(roster.sid, session.sid), "the roster is of another session")
    require(now_s < descriptor.closes_at_s, "the session is already over")
    n = len(roster.rows)
    require(
        n >= descriptor.min_cohort, f"a roster of {n} is below the smallest cohort, {descriptor.min_cohort}"
    )
    require(
        n <= descriptor.max_cohort, f"a roster of {n} is above the largest cohort, {descriptor.max_cohort}"
    )
    ids = tuple(device for device, _ in roster.rows)
    require(session.device in ids, "the roster leaves this device out")
    position = ids.index(session.device)
    unchanged = hmac.compare_digest(roster.rows[position][1], entry_hash(entry))
    require(unchanged, "the roster changed this device's entry")
    try:
        shape = descriptor.graph_parameters(n)
    except UsageError as exc:
        raise RemoteProtocolError(SERVER, f"a roster of {n} has no safe graph: {exc}") from exc
    hash_ = roster_hash(session.sid, roster.rows)
    around = Graph.of(ids, shape, sid=session.sid, roster_hash=hash_).neighbors(position)
    require(len(roster.entries) == len(around), f"{len(roster.entries)} entries for {len(around)} neighbors")
    peers = {}
    for neighbor, their_entry in zip(around, roster.entries, strict=True):
        device, in_roster = roster.rows[neighbor]
        if not hmac.compare_digest(entry_hash(their_entry), in_roster):
            reason = f"the entries are not those of the graph's neighbors: {device}'s is not the roster's"
            raise RemoteProtocolError(SERVER, reason)
        peers[neighbor] = verify_entry(
            their_entry,
            sid=session.sid,
            device=device,
            fleet=descriptor.fleet,
            authority=authority,
            now_s=now_s,
            peer=SERVER,
        )
    return Neighborhood(ids, hash_, position, shape, peers)


def require(holds: bool, reason: str) -> None:
    """Refuse the server's request, for this reason, unless a rule holds.

    Raises:
        RemoteProtocolError: It does not.
    """
    if not holds:
        raise RemoteProtocolError(SERVER, reason)


def _small_order(device: DeviceId) -> RemoteProtocolError:
    return RemoteProtocolError(SERVER, f"an X25519 key of {device} has small order")

"""The server's view of a roster: its entries, its graph, and whether the sum can still be opened.

Source: docs/spec/secure-aggregation.md, "Server rules".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass
from typing import Self

from umbel_proto.ids import DeviceId
from umbel_proto.secagg.entries import Peer
from umbel_proto.secagg.graph import Graph
from umbel_proto.secagg.messages import Roster
from umbel_proto.secagg.session import Descriptor, entry_hash, roster_hash


@dataclass(frozen=True, slots=True)
class Cohort:
    """The devices of a session, by position in the roster.

    Args:
        descriptor: The session's.
        sid: Its id.
        ids: All devices, ascending; an index is a position.
        peers: Verified devices, in the same order.
        entries: Their entries as received.
        rows: The roster's rows.
        head: The Roster message without entries, serialized: what all devices' rosters begin with.
        roster_hash: The roster.
        graph: Who masks with whom.
        places: Position by id.
    """

    descriptor: Descriptor
    sid: bytes
    ids: tuple[DeviceId, ...]
    peers: tuple[Peer, ...]
    entries: tuple[bytes, ...]
    rows: tuple[tuple[DeviceId, bytes], ...]
    head: bytes
    roster_hash: bytes
    graph: Graph
    places: Mapping[DeviceId, int]

    @classmethod
    def of(cls, descriptor: Descriptor, sid: bytes, joined: Mapping[DeviceId, tuple[Peer, bytes]]) -> Self:
        """Fix the roster of the devices that joined.

        Raises:
            UsageError: No safe graph exists for so many.
        """
        ids = tuple(sorted(joined))
        entries = tuple(joined[device][1] for device in ids)
        rows = tuple((device, entry_hash(joined[device][1])) for device in ids)
        hash_ = roster_hash(sid, rows)
        graph = Graph.of(ids, descriptor.graph_parameters(len(ids)), sid=sid, roster_hash=hash_)
        peers = tuple(joined[device][0] for device in ids)
        places = {device: position for position, device in enumerate(ids)}
        head = Roster(sid, rows, ()).to_bytes()
        return cls(descriptor, sid, ids, peers, entries, rows, head, hash_, graph, places)

    def names(self, positions: Collection[int]) -> frozenset[DeviceId]:
        """Return the ids at these positions."""
        return frozenset(self.rows[position][0] for position in positions)

    def roster_for(self, position: int) -> bytes:
        """Return the serialized Roster for one device, with its neighbors' entries.

        The entries come last in a Roster, so their bytes follow the others': writing all the rows
        anew for each device would take time that grows with the square of the cohort.
        """
        entries = tuple(self.entries[i] for i in self.graph.neighbors(position))
        return self.head + Roster(b"", (), entries).to_bytes()

    def enough(self, position: int, present: Set[int]) -> bool:
        """Say whether a device has the threshold of holders among those present."""
        holders = sum(i in present for i in self.graph.holders(position))
        return holders >= self.graph.parameters.threshold

    def dead(self, sharers: Set[int], survivors: Set[int]) -> list[int]:
        """Return the sharers whose mask keys must be recovered: lost, with a surviving neighbor."""
        lost = sorted(sharers - survivors)
        return [i for i in lost if not survivors.isdisjoint(self.graph.neighbors(i))]

    def cannot_open(self, *, sharers: Set[int], survivors: Set[int], revealing: Set[int]) -> str | None:
        """Return whose secret too few devices can reveal, as a sentence, or None."""
        threshold = self.graph.parameters.threshold
        for i in [*sorted(survivors), *self.dead(sharers, survivors)]:
            if not self.enough(i, revealing):
                return f"fewer than {threshold} holders of the shares of {self.rows[i][0]} are left"
        return None

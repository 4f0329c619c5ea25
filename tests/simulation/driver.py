"""A run's server in a process of its own, over devices in memory; it stops where it is told and waits to be killed.

Usage: python -m simulation.driver ROOT RUN ROUND POINT MOMENT, where POINT is a message kind with the MOMENT
``asked`` or ``answered``, or ``checkpoint`` with ``written``. Prints ``here`` when it is there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from simulation.federation import MemoryLink
from simulation.tiny import TinyFederation
from umbel_proto.ids import RunId
from umbel_server.learning.link import NodeId, Payload
from umbel_server.learning.run import run_to_end

CHECKPOINT = "checkpoint"


@dataclass
class Halting(MemoryLink):
    """Stops at a message kind of a round: before it is sent, or when all have answered it."""

    round: str = ""
    point: str = ""
    moment: str = ""

    def send(self, kind: str, group: str, payloads: Mapping[NodeId, Payload], *, ttl_s: float) -> int:
        here = (group, kind) == (self.round, self.point)
        if here and self.moment == "asked":
            halt()
        sent = super().send(kind, group, payloads, ttl_s=ttl_s)
        if here:
            halt()
        return sent


def halt() -> None:
    """Say so, and wait for the end."""
    print("here", flush=True)
    sys.stdin.read()


def halt_in_checkpoint(round_: int) -> None:
    """Stop when a round's checkpoint is on the disk under its temporary name."""
    sync, name = os.fsync, f"round-{round_:05d}"

    def stop(descriptor: int) -> None:
        sync(descriptor)
        if name in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            halt()

    os.fsync = stop


def main() -> None:
    root, run, round_, point, moment = sys.argv[1:]
    federation = TinyFederation.reopen(Path(root))
    if point == CHECKPOINT:
        halt_in_checkpoint(int(round_))
    run_to_end(
        federation.fleet,
        RunId(run),
        Halting(federation.participants(), round=round_, point=point, moment=moment),
    )


if __name__ == "__main__":
    main()

"""A version of a model that is ready to answer, and the places of the threads that ask it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import sleep
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from umbel._fork import Lock, renew_in_child
from umbel._predict.place import Place, Saying
from umbel._predict.turns import Turns, is_brief
from umbel.engines import Engine, Seat
from umbel_proto.contract import Field
from umbel_proto.package import GOLDEN, Package

if TYPE_CHECKING:
    from umbel._predict.listeners import Window

PAUSE_S = 0.0002
"""Between two places that are made."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Loaded:
    """A version of a model that is ready to answer: all that a question reads, so that one step replaces it.

    Args:
        package: Where it comes from.
        engine: What runs it.
        window: What counts its predictions, if telemetry is on.
    """

    package: Package
    engine: Engine
    window: Window | None = None
    # Looked up once: a prediction takes microseconds.
    contract: Field = field(init=False)
    check: Callable[[object], tuple[NDArray[Any], bool]] = field(init=False)
    labels: Sequence[str] = field(init=False)
    thresholds: Sequence[float] = field(init=False)
    version: int = field(init=False)
    local: threading.local = field(init=False)
    taken: weakref.WeakSet[Place] = field(init=False)
    ready: list[Place] = field(init=False)
    sitting: Lock = field(init=False)
    brief: bool | None = field(init=False)
    turns: Turns | None = field(init=False)

    def __post_init__(self) -> None:
        manifest = self.package.manifest
        object.__setattr__(self, "contract", manifest.contract.fields[0])
        object.__setattr__(self, "check", manifest.contract.fields[0].check)
        object.__setattr__(self, "labels", manifest.labels)
        object.__setattr__(self, "thresholds", manifest.thresholds)
        object.__setattr__(self, "version", manifest.version)
        object.__setattr__(self, "sitting", Lock())
        object.__setattr__(self, "brief", None)
        self._renew()
        renew_in_child(self._renew)

    def _renew(self) -> None:
        """Forget the places of threads: they belong to one process."""
        object.__setattr__(self, "local", threading.local())
        object.__setattr__(self, "taken", weakref.WeakSet())
        object.__setattr__(self, "ready", [])
        object.__setattr__(self, "turns", Turns() if self.brief else None)

    def sit(self) -> Place:
        """Return a place for the thread that asks, which finds it under ``local`` from now on."""
        # One after the other: threads that come all at once would only see how their runs wait for each other.
        with self.sitting:
            try:
                place = self.ready.pop()
            except IndexError:
                place = self._place(self.engine.seat())
        self.local.place, self.local.ask = place, place.ask
        self.taken.add(place)
        return place

    def expect(self, threads: int) -> None:
        """Make places for threads that are about to ask, each of which has answered once.

        A first answer takes ten times as long as the next, and threads that all come at once wait for each other.
        """
        examples, _ = self.check(self.package.tensors(GOLDEN)["x"])
        for _ in range(threads):
            seat = self.engine.seat()
            if seat is not None:
                Place(self.contract, seat, self._saying()).ask(examples[0])
            self.ready.append(self._place(seat))
            # Those that answer meanwhile need not wait for all of them.
            sleep(PAUSE_S)

    def _place(self, seat: Seat | None) -> Place:
        if self.brief is None:
            object.__setattr__(self, "brief", seat is not None and is_brief(seat))
            object.__setattr__(self, "turns", Turns() if self.brief else None)
        return Place(self.contract, seat, self._saying(), self.window, self.turns)

    def _saying(self) -> Saying:
        return Saying(self.version, self.labels, self.thresholds)

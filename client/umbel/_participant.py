"""The device's part in a round, between the messages and the rest of the SDK.

Each message is answered from what the last one left (`Saved`), so that any host may carry the
messages: our own node, Flower's, or a test.

Source: docs/spec/secure-aggregation.md, "Phases".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from umbel._contribution import Contribution, contribute
from umbel._data import read_examples
from umbel._files import read_file
from umbel._home import DeviceHome
from umbel._ledger import Ledger
from umbel._shelf import Shelf
from umbel_proto.errors import RefusedError, RemoteProtocolError
from umbel_proto.package import Package
from umbel_proto.privacy.encode import encode
from umbel_proto.privacy.ledger import Charge
from umbel_proto.secagg.device import (
    SERVER,
    Idle,
    Invited,
    Joined,
    Masked,
    Member,
    Reply,
    RosterReceived,
    Shared,
    SharesReceived,
    SignaturesReceived,
    State,
    SurvivorsReceived,
    step,
)
from umbel_proto.secagg.saved import restore, save
from umbel_proto.secagg.session import Descriptor, model_hash, plan_hash, rotation_seed
from umbel_proto.wire import rounds_pb2 as pb

TRAIN = "train"
SHARE = "query.share"
MASK = "query.mask"
CONFIRM = "query.confirm"
UNMASK = "query.unmask"

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Saved:
    """What a device keeps between two messages of a round, in memory only.

    Args:
        state: The session, of `umbel_proto.secagg.saved`.
        contribution: What it adds to the sum, of `Contribution`, until it is masked; then empty.
    """

    state: bytes = field(repr=False)
    contribution: bytes = field(repr=False)


class Participant:
    """Answers the messages of rounds for one device.

    Args:
        home: The enrolled device.
        data: Its training data, an ``.npz`` file with ``x`` and ``y``.
        clock: Tells the time, Unix seconds.
    """

    def __init__(self, home: DeviceHome, data: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._home = home
        self._data = data
        self._clock = clock
        self._identity = home.identity

    def answer(
        self, kind: str, body: bytes, vector: bytes, saved: Saved | None
    ) -> tuple[bytes, bytes, Saved | None]:
        """Answer one message.

        Args:
            kind: The message type: ``train``, ``query.share``, ..
            body: Its serialized message.
            vector: The long vector beside it, raw bytes, or empty.
            saved: What the last answer left.

        Returns:
            The answer's message, its vector, and what to keep for the next message.

        Raises:
            UmbelError: The device refuses or cannot; nothing has left it.
        """
        if kind == TRAIN:
            return self._train(body, vector)
        if kind == SHARE:
            return self._follow(saved, RosterReceived(body, self._clock()))
        if kind == MASK:
            return self._mask(saved, body)
        if kind == CONFIRM:
            return self._follow(saved, SurvivorsReceived(body))
        if kind == UNMASK:
            return self._follow(saved, SignaturesReceived(body))
        raise RemoteProtocolError(SERVER, f"{kind!r} is no message of a round")

    def _member(self) -> Member:
        return Member(
            read_file(self._home.credential),
            self._home.signing_key(),
            self._home.open_policy(),
            self._home.authority(),
        )

    def _train(self, body: bytes, vector: bytes) -> tuple[bytes, bytes, Saved | None]:
        """Phase 1: check the invitation, train, join. The update stays here."""
        try:
            request = pb.TrainRequest.FromString(body)
            plan = pb.TrainPlan.FromString(request.plan)
        except DecodeError as exc:
            raise RemoteProtocolError(SERVER, "the invitation is malformed") from exc
        state, reply = step(
            Idle(self._member()),
            Invited(request.descriptor, model_hash(vector), plan_hash(request.plan), self._clock()),
        )
        assert isinstance(state, Joined)
        package = self._package(plan)
        contribution = self._contribution(package, state.session.descriptor, plan, vector)
        return reply.message, b"", _saved(state, contribution.to_bytes())

    def _package(self, plan: pb.TrainPlan) -> Package:
        shelf = Shelf(self._home.shelf, self._home.release_authority())
        wanted = plan.package_sha256.hex()
        for installed in (shelf.active(plan.model), shelf.previous(plan.model)):
            if installed is not None and installed.sha256 == wanted:
                return shelf.package(installed)
        raise RefusedError(
            f"This device has no package {plan.model} {plan.package_version} yet: it trains only what it has verified."
        )

    def _contribution(
        self, package: Package, descriptor: Descriptor, plan: pb.TrainPlan, vector: bytes
    ) -> Contribution:
        dim = package.manifest.dim
        if len(vector) != 4 * dim or descriptor.encoding.dim != dim:
            raise RemoteProtocolError(
                SERVER,
                f"the model has {len(vector)} bytes for {descriptor.encoding.dim} parameters, not {dim}",
            )
        start = np.frombuffer(vector, "<f4").astype(np.float32)
        if not np.isfinite(start).all():
            raise RemoteProtocolError(SERVER, "the model holds values that are not finite")
        examples = read_examples(self._data)
        return contribute(package, start, examples, plan, descriptor, device=self._identity.device)

    def _mask(self, saved: Saved | None, body: bytes) -> tuple[bytes, bytes, Saved | None]:
        """Phase 3: charge the ledger, then encode, add noise and mask."""
        state = self._restore(saved)
        if isinstance(state, Masked):
            # A repeated request gets the bytes it got: noise drawn anew would be a second release.
            event = SharesReceived(body, np.empty(0, np.uint64))
            return _reply(*step(state, event), b"")
        if not isinstance(state, Shared):
            raise RemoteProtocolError(SERVER, "the shares came out of turn")
        assert saved is not None
        descriptor = state.session.descriptor
        policy = state.member.policy
        charge = Charge(
            run=descriptor.run,
            round=descriptor.round,
            attempt=descriptor.attempt,
            sid=state.session.sid,
            bound_sq=descriptor.encoding.bound_sq,
            padded=descriptor.encoding.coordinates,
            variance=policy.honest(descriptor.min_cohort) * descriptor.encoding.noise,
            at_s=self._clock(),
        )
        with Ledger(self._home.ledger) as ledger:
            ledger.charge(charge, budget_epsilon=policy.budget_epsilon, budget_delta=policy.budget_delta)
        contribution = Contribution.from_bytes(saved.contribution)
        encoded = encode(
            contribution.update,
            descriptor.encoding,
            rotation_seed=rotation_seed(state.session.sid),
            auxiliary=contribution.auxiliary,
            weight=contribution.weight,
        )
        return _reply(*step(state, SharesReceived(body, encoded.words)), b"")

    def _follow(
        self, saved: Saved | None, event: RosterReceived | SurvivorsReceived | SignaturesReceived
    ) -> tuple[bytes, bytes, Saved | None]:
        state = self._restore(saved)
        keep = saved.contribution if saved is not None and isinstance(event, RosterReceived) else b""
        return _reply(*step(state, event), keep)

    def _restore(self, saved: Saved | None) -> State:
        member = self._member()
        return Idle(member) if saved is None else restore(saved.state, member)


def _reply(state: State, reply: Reply, contribution: bytes) -> tuple[bytes, bytes, Saved | None]:
    words = b"" if reply.words is None else reply.words.astype("<u8", copy=False).tobytes()
    return reply.message, words, _saved(state, contribution)


def _saved(state: State, contribution: bytes) -> Saved | None:
    kept = save(state)
    return None if kept is None else Saved(kept, contribution)

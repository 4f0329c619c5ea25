"""The device's part in a round, between the messages and the rest of the SDK.

Each message is answered from what the last one left (`Saved`), so that any host may carry the
messages: our own node, Flower's, or a test.

Source: docs/spec/secure-aggregation.md, "Phases".
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from umbel._contribution import Contribution, contribute
from umbel._data import read_examples
from umbel._files import read_file
from umbel._home import DeviceHome
from umbel._ledger import Ledger
from umbel._shelf import Shelf
from umbel_proto.errors import (
    BudgetError,
    LocalProtocolError,
    RefusedError,
    RemoteProtocolError,
    StorageError,
    UmbelError,
    UnavailableError,
    UsageError,
)
from umbel_proto.ids import check_name
from umbel_proto.package import Package
from umbel_proto.privacy.encode import encode
from umbel_proto.privacy.examples import ExampleCharge, NoisySteps
from umbel_proto.privacy.ledger import Charge
from umbel_proto.secagg.canonical import parse
from umbel_proto.secagg.device import (
    SERVER,
    Done,
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
    accept,
    step,
)
from umbel_proto.secagg.messages import MAX_SMALL_BYTES
from umbel_proto.secagg.neighborhood import require
from umbel_proto.secagg.saved import restore, save
from umbel_proto.secagg.session import model_hash, plan_hash, rotation_seed, session_id
from umbel_proto.wire import rounds_pb2 as pb

log: logging.Logger = logging.getLogger(__name__)

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


def for_the_server(exc: UmbelError) -> UmbelError:
    """Return the error whose sentence may be sent to the server: ``exc``, or one that says less.

    A rule that the server or its message broke is for it to hear. What is wrong with the device's own
    files and data is not: the sentence names files, or counts among the data.
    """
    if isinstance(exc, UsageError | StorageError | UnavailableError):
        return RefusedError("This device cannot take part: its own log says why.")
    return exc


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
            UmbelError: The device refuses or cannot; nothing has left it, and what was saved still holds.
                The sentence may be sent to the server.
        """
        try:
            return self._answer(kind, body, vector, saved)
        except UmbelError as exc:
            log.warning("refused %s: %s", kind, exc)
            told = for_the_server(exc)
            if told is exc:
                raise
            raise told from exc

    def _answer(
        self, kind: str, body: bytes, vector: bytes, saved: Saved | None
    ) -> tuple[bytes, bytes, Saved | None]:
        if kind == TRAIN:
            return self._train(body, vector, saved)
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

    def _train(self, body: bytes, vector: bytes, saved: Saved | None) -> tuple[bytes, bytes, Saved | None]:
        """Phase 1: check the invitation, train, join. The update stays here."""
        request = parse(pb.TrainRequest, body, limit=MAX_SMALL_BYTES, peer=SERVER)
        plan = parse(pb.TrainPlan, request.plan, limit=MAX_SMALL_BYTES, peer=SERVER)
        before = self._before(saved, session_id(request.descriptor))
        state, reply = step(
            before,
            Invited(request.descriptor, model_hash(vector), plan_hash(request.plan), self._clock()),
        )
        if state is before:
            return reply.message, b"", saved
        assert isinstance(state, Joined)
        package = self._package(plan)
        contribution = self._contribution(package, state, plan, vector)
        return reply.message, b"", _saved(state, contribution.to_bytes())

    def _before(self, saved: Saved | None, sid: bytes) -> State:
        """Return the state that an invitation meets: an invitation to another session ends the one before."""
        with contextlib.suppress(LocalProtocolError):
            state = self._restore(saved)
            if not isinstance(state, Idle | Done) and hmac.compare_digest(state.session.sid, sid):
                return state
        return Idle(self._member())

    def _package(self, plan: pb.TrainPlan) -> Package:
        try:
            check_name(plan.model, "model")
        except UsageError as exc:
            raise RemoteProtocolError(SERVER, f"the plan names no model: {exc}") from exc
        shelf = Shelf(self._home.shelf, self._home.release_authority())
        wanted = plan.package_sha256.hex()
        for installed in (shelf.active(plan.model), shelf.previous(plan.model)):
            if installed is not None and installed.sha256 == wanted:
                return shelf.package(installed)
        raise RefusedError(
            f"This device has no package {plan.model} {plan.package_version} yet: it trains only what it has verified."
        )

    def _contribution(
        self, package: Package, state: Joined, plan: pb.TrainPlan, vector: bytes
    ) -> Contribution:
        descriptor = state.session.descriptor
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

        def charge(release: NoisySteps | None) -> None:
            self._charge_training(state, release)

        return contribute(
            package, start, examples, plan, descriptor, device=self._identity.device, charge=charge
        )

    def _charge_training(self, state: Joined, release: NoisySteps | None) -> None:
        """Charge the examples' line of the ledger, before training begins."""
        descriptor, policy = state.session.descriptor, state.member.policy
        if release is None:
            if math.isfinite(policy.example_budget_epsilon):
                raise BudgetError(
                    "The fleet bounds what is spent on one example, and the plan protects none: set example_clip and "
                    "example_noise in its training."
                )
            return
        charge = ExampleCharge(
            run=descriptor.run,
            round=descriptor.round,
            attempt=descriptor.attempt,
            sid=state.session.sid,
            release=release,
            at_s=self._clock(),
        )
        try:
            with Ledger(self._home.ledger) as ledger:
                ledger.charge_training(
                    charge, budget_epsilon=policy.example_budget_epsilon, budget_delta=policy.budget_delta
                )
        except BudgetError as exc:
            # What it costs depends on how many examples there are, and the server need not know that.
            log.warning("%s", exc)
            raise BudgetError("The budget of this device's examples does not cover the training.") from exc

    def _mask(self, saved: Saved | None, body: bytes) -> tuple[bytes, bytes, Saved | None]:
        """Phase 3: check the request, charge the ledger, then encode, add noise and mask."""
        state = self._restore(saved)
        if isinstance(state, Masked):
            # A repeated request gets the bytes it got: noise drawn anew would be a second release.
            event = SharesReceived(body, np.empty(0, np.uint64))
            return _reply(*step(state, event), b"")
        if not isinstance(state, Shared):
            raise RemoteProtocolError(SERVER, "the shares came out of turn")
        assert saved is not None
        descriptor = state.session.descriptor
        now_s = self._clock()
        require(now_s < descriptor.closes_at_s, "the session is already over")
        # Everything first, so that a request it refuses costs nothing; then the charge; then the data.
        accepted = accept(state, body)
        policy = state.member.policy
        charge = Charge(
            run=descriptor.run,
            round=descriptor.round,
            attempt=descriptor.attempt,
            sid=state.session.sid,
            bound_sq=descriptor.encoding.bound_sq,
            padded=descriptor.encoding.coordinates,
            variance=policy.honest(descriptor.min_cohort) * descriptor.encoding.noise,
            at_s=now_s,
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
        return _reply(*step(accepted, SharesReceived(body, encoded.words)), b"")

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

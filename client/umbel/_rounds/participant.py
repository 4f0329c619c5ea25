"""The device's part in a round, between the messages and the rest of the SDK.

Each message is answered from what the last one left (`Saved`), so that any host may carry the
messages: our own node, Flower's, or a test.

Source: docs/spec/secure-aggregation.md, "Phases".
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from umbel._data.consent import QUERIES, TRAINING, Consent
from umbel._data.dataset import DataSet
from umbel._data.examples import Examples, read_examples
from umbel._home.directory import DeviceHome
from umbel._home.files import read_file
from umbel._releases.shelf import Shelf
from umbel._rounds import question
from umbel._rounds.asked import AskedQueries
from umbel._rounds.conditions import Conditions, NotNowError
from umbel._rounds.contribution import Contribution, TrainerFactory, contribute
from umbel._rounds.ledger import Ledger
from umbel._telemetry.gauges import Rapl
from umbel.train.onnx import OnnxTrainer
from umbel_proto.analytics.query import Query, open_query, query_hash
from umbel_proto.analytics.rules import check_fields, session_objection
from umbel_proto.errors import (
    BudgetError,
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
from umbel_proto.secagg.engine import TRAIN, Due, Invited, Step, Turn
from umbel_proto.secagg.messages import MAX_SMALL_BYTES
from umbel_proto.secagg.pairwise import PAIRWISE
from umbel_proto.secagg.session import SERVER, Member, Session, model_hash, plan_hash, rotation_seed
from umbel_proto.wire import rounds_pb2 as pb

log: logging.Logger = logging.getLogger(__name__)

KINDS = tuple(PAIRWISE.kinds)
"""The types of the messages that follow an invitation."""

Vector = NDArray[np.float32]
Tell = Callable[[str, int], None]
"""Adds to a counter of the device's own."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a device keeps between two messages of a round, in memory only.

    Args:
        state: The session, as the masking engine keeps it.
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
        data: An ``.npz`` file with ``x`` and ``y`` to train on; None to train on the local data set.
        trainer: Makes the trainer of a package that this device has verified.
        clock: Tells the time, Unix seconds.
        conditions: When the device trains; by default what its home and this machine say.
        tell: Counts in the device's telemetry what its trainings take; None: nothing is told.
        energy: What the processor spends.
    """

    def __init__(
        self,
        home: DeviceHome,
        data: Path | None = None,
        *,
        trainer: TrainerFactory = OnnxTrainer,
        clock: Callable[[], float] = time.time,
        conditions: Conditions | None = None,
        tell: Tell | None = None,
        energy: Callable[[], Rapl] = Rapl,
    ) -> None:
        self._home = home
        self._tell = tell
        self._energy = energy
        self._trainer = trainer
        self._data = data
        self._clock = clock
        self._conditions = conditions or Conditions(home)
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
            NotNowError: The device does not train now, or may not any more: nothing is to be answered.
            UmbelError: The device refuses or cannot; nothing has left it, and what was saved still holds.
                The sentence may be sent to the server.
        """
        try:
            return self._answer(kind, body, vector, saved)
        except NotNowError:
            raise
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
        kept = None if saved is None else saved.state
        step = PAIRWISE.answer(self._member(), kept, kind, body, now_s=self._clock())
        return self._turn(step, b"" if saved is None else saved.contribution)

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
        if request.query:
            return self._ask(request, vector, saved)
        plan = parse(pb.TrainPlan, request.plan, limit=MAX_SMALL_BYTES, peer=SERVER)
        invited = Invited(request.descriptor, model_hash(vector), plan_hash(request.plan), self._clock())
        admission = PAIRWISE.join(self._member(), None if saved is None else saved.state, invited)
        if admission.repeated and saved is not None:
            return self._turn(admission.step, saved.contribution)
        self._conditions.check()
        package = self._package(plan.model, plan.package_version, plan.package_sha256.hex())
        energy = self._energy()
        contribution = self._contribution(package, admission.session, plan, vector)
        if self._tell is not None and (spent_uj := energy.spent_uj()):
            self._tell("round.trainings", 1)
            self._tell("round.energy_rapl_uj", spent_uj)
        return self._turn(admission.step, contribution.to_bytes())

    def _ask(
        self, request: pb.TrainRequest, vector: bytes, saved: Saved | None
    ) -> tuple[bytes, bytes, Saved | None]:
        """Phase 1 of a query: check it, count, join. What was counted stays here."""
        if request.plan or vector:
            raise RemoteProtocolError(SERVER, "a query comes with a plan or a model")
        member, now_s = self._member(), self._clock()
        query = open_query(request.query, authority=member.authority, fleet=member.policy.fleet, now_s=now_s)
        invited = Invited(request.descriptor, model_hash(vector), query_hash(request.query), now_s)
        admission = PAIRWISE.join(member, None if saved is None else saved.state, invited)
        if admission.repeated and saved is not None:
            return self._turn(admission.step, saved.contribution)
        with AskedQueries(self._home.queries) as asked:
            try:
                answer = self._counted(query, admission.session)
            except question.NotAllowedError as exc:
                log.warning("refused query %s: %s", query.id, exc)
                asked.put(query, refused=str(exc), at_s=now_s)
                raise NotNowError from exc
            except NotNowError:
                raise
            except UmbelError as exc:
                asked.put(query, refused=str(exc), at_s=now_s)
                raise
            # The log before the answer: what may be charged from now on says what it is for.
            asked.put(query, at_s=now_s)
        log.info("answers query %s of %s: %s", query.id, query.asked_by, query.sentence)
        return self._turn(admission.step, Contribution(answer, (), 1.0, query=True).to_bytes())

    def _counted(self, query: Query, session: Session) -> Vector:
        """Return the answer to a query that fleet, user and budget allow."""
        policy = self._member().policy
        if reason := session_objection(query, session.descriptor, policy):
            raise RemoteProtocolError(SERVER, reason)
        question.check_owner(self._home, self._conditions)
        self._conditions.check()
        with Ledger(self._home.ledger) as ledger:
            ledger.require_room(
                self._charge_of(session),
                budget_epsilon=policy.budget_epsilon,
                budget_delta=policy.budget_delta,
            )
        package = self._package(query.model, query.version, query.package_sha256)
        try:
            check_fields(query, package.manifest)
        except UsageError as exc:
            raise RemoteProtocolError(SERVER, f"the query cannot be answered: {exc}") from exc
        return question.answer(self._home, self._data, package, query, clock=self._clock)

    def _package(self, model: str, version: int, sha256: str) -> Package:
        try:
            check_name(model, "model")
        except UsageError as exc:
            raise RemoteProtocolError(SERVER, f"the plan names no model: {exc}") from exc
        shelf = Shelf(self._home.shelf, self._home.release_authority())
        for installed in (shelf.active(model), shelf.previous(model)):
            if installed is not None and installed.sha256 == sha256:
                return shelf.package(installed)
        raise RefusedError(
            f"This device has no package {model} {version} yet: it trains only what it has verified."
        )

    def _contribution(
        self, package: Package, session: Session, plan: pb.TrainPlan, vector: bytes
    ) -> Contribution:
        descriptor = session.descriptor
        dim = package.manifest.dim
        if len(vector) != 4 * dim or descriptor.encoding.dim != dim:
            raise RemoteProtocolError(
                SERVER,
                f"the model has {len(vector)} bytes for {descriptor.encoding.dim} parameters, not {dim}",
            )
        start = np.frombuffer(vector, "<f4").astype(np.float32)
        if not np.isfinite(start).all():
            raise RemoteProtocolError(SERVER, "the model holds values that are not finite")
        examples = self._examples(package)
        log.info("trains for round %d of run %s", descriptor.round, descriptor.run)

        def charge(release: NoisySteps | None) -> None:
            self._charge_training(session, release)

        return contribute(
            package,
            start,
            examples,
            plan,
            descriptor,
            device=self._identity.device,
            charge=charge,
            trainer_of=self._trainer,
        )

    def _examples(self, package: Package) -> Examples:
        if self._data is not None:
            return read_examples(self._data)
        with DataSet(self._home, package.manifest, clock=self._clock) as data:
            return data.training()

    def _charge_training(self, session: Session, release: NoisySteps | None) -> None:
        """Charge the examples' line of the ledger, before training begins."""
        descriptor, policy = session.descriptor, self._member().policy
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
            sid=session.sid,
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

    def _turn(self, step: Step, contribution: bytes) -> tuple[bytes, bytes, Saved | None]:
        """Send an answer; where the update is due for it, charge for that and give it first."""
        if not isinstance(step, Turn):
            step, contribution = self._give(step, contribution), b""
        words = b"" if step.words is None else step.words.astype("<u8", copy=False).tobytes()
        return step.message, words, None if step.kept is None else Saved(step.kept, contribution)

    def _give(self, due: Due, contribution: bytes) -> Turn:
        """Charge the ledger for a request that was checked, then encode and add noise."""
        own, consent = Contribution.from_bytes(contribution), Consent(self._home)
        purposes = (TRAINING, QUERIES) if own.query else (TRAINING,)
        if any(consent.decision(purpose).state == "revoked" for purpose in purposes):
            raise NotNowError  # Taken back after training: what was computed from the examples stays here.
        session, policy = due.session, self._member().policy
        with Ledger(self._home.ledger) as ledger:
            ledger.charge(
                self._charge_of(session),
                budget_epsilon=policy.budget_epsilon,
                budget_delta=policy.budget_delta,
            )
        encoded = encode(
            own.update,
            session.descriptor.encoding,
            rotation_seed=rotation_seed(session.sid),
            auxiliary=own.auxiliary,
            weight=own.weight,
        )
        return due.give(encoded.words)

    def _charge_of(self, session: Session) -> Charge:
        """Return what a session costs this device."""
        descriptor = session.descriptor
        return Charge(
            run=descriptor.run,
            round=descriptor.round,
            attempt=descriptor.attempt,
            sid=session.sid,
            bound_sq=descriptor.encoding.bound_sq,
            padded=descriptor.encoding.coordinates,
            variance=self._member().policy.honest(descriptor.min_cohort) * descriptor.encoding.noise,
            at_s=self._clock(),
        )

"""Reviews that devices announced: what waits for a person somewhere, what somebody answered, and what came of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, or_, select, update

from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import DeviceId, ModelName
from umbel_proto.reviews import MAX_ANNOUNCED, EndedReview, WaitingReview
from umbel_server.access.actor import Actor
from umbel_server.clock import Clock
from umbel_server.store.audit import Audit
from umbel_server.store.database import Database, insert
from umbel_server.store.tables import releases
from umbel_server.store.tables_reviews import reviews

OPEN, ANSWERED, APPLIED, HERE = "open", "answered", "applied", "here"
GONE, WITHDRAWN, REFUSED = "gone", "withdrawn", "refused"
STATES = (OPEN, ANSWERED, APPLIED, HERE, GONE, WITHDRAWN, REFUSED)
LIFE_S = 30 * 86400.0
"""For how long one may be answered: so long devices keep what waits."""
MAX_SENT = 64
"""Answers that a device is told at one check."""
_COUNTED = 100_000
"""More that wait are not counted exactly: nobody reads them all."""


@dataclass(frozen=True, slots=True)
class Review:
    """A prediction that waits for a person on a device, or did. Times are Unix seconds.

    Args:
        id: Its number.
        device: The device.
        announced_id: The device's random name for it, 16 bytes.
        model: The model.
        version: Its version.
        label: Number of the label that it gave; None: the device withdrew it.
        percent: How sure it was, 0 to 100; None: the device withdrew it.
        predicted_s: When, by the device's clock, rounded down to a minute; None: the device withdrew it.
        unsure: Whether it was less sure than it should be.
        flagged: Whether the data contract flags a value of its input.
        announced_s: When the fleet read of it.
        expires_s: Until when it may be answered.
        state: ``open``, ``answered``, ``applied``, ``here``, ``gone``, ``withdrawn`` or ``refused``.
        answer: Number of the label that holds, as somebody said; None: nobody did.
        answered_s: When; None: nobody did.
        answered_by: Whose account; None: nobody did.
        reason: Why, in their words; None: nobody did.
        ended_s: When the device said that it waits no more; None: it did not.
    """

    id: int
    device: DeviceId
    announced_id: bytes
    model: ModelName
    version: int
    label: int | None
    percent: int | None
    predicted_s: float | None
    unsure: bool
    flagged: bool
    announced_s: float
    expires_s: float
    state: str
    answer: int | None
    answered_s: float | None
    answered_by: str | None
    reason: str | None
    ended_s: float | None

    def waits(self, now_s: float) -> bool:
        """Return whether somebody may answer it at a time."""
        return self.state == OPEN and now_s < self.expires_s


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often people who answered from afar said what a version had said.

    Args:
        model: The model.
        version: The version.
        waiting: How many wait.
        answered: How many were answered.
        agreed: How many of them with the label that the version gave.
    """

    model: ModelName
    version: int
    waiting: int
    answered: int
    agreed: int


class Reviews:
    """The announced reviews of a store.

    Args:
        database: The database.
        audit: Where every answer is recorded.
        clock: Dates them.
    """

    def __init__(self, database: Database, audit: Audit, clock: Clock) -> None:
        self._database, self._audit, self._clock = database, audit, clock

    def get(self, number: int) -> Review:
        """Return a review.

        Raises:
            UsageError: There is none of that number.
        """
        with self._database.read() as connection:
            return _found(connection, number)

    def page(
        self,
        *,
        waiting: bool | None = None,
        model: str | None = None,
        device: str | None = None,
        limit: int,
        after: int | None = None,
    ) -> tuple[Review, ...]:
        """Return reviews by number, those that came last first.

        Args:
            waiting: Only those that wait, or only the others; None: all.
            model: Of this model.
            device: Of this device.
            limit: At most so many.
            after: Those below this number.
        """
        query = select(reviews).where(*self._like(waiting, model, device))
        if after is not None:
            query = query.where(reviews.c.id < after)
        with self._database.read() as connection:
            return tuple(map(_review, connection.execute(query.order_by(reviews.c.id.desc()).limit(limit))))

    def count(
        self, *, waiting: bool | None = None, model: str | None = None, device: str | None = None
    ) -> int:
        """Return how many reviews are so, up to a hundred thousand."""
        some = select(reviews.c.id).where(*self._like(waiting, model, device)).limit(_COUNTED).subquery()
        with self._database.read() as connection:
            return int(connection.execute(select(func.count()).select_from(some)).scalar_one())

    def agreement(self) -> tuple[Agreement, ...]:
        """Return by model and version how many wait, and how often answers were the prediction."""
        of = reviews.c
        said = and_(of.answer.is_not(None), of.label.is_not(None))
        query = select(
            of.model,
            of.version,
            func.count().filter(and_(of.state == OPEN, of.expires_s > self._clock())).label("waiting"),
            func.count().filter(said).label("answered"),
            func.count().filter(and_(said, of.answer == of.label)).label("agreed"),
        )
        with self._database.read() as connection:
            rows = connection.execute(query.group_by(of.model, of.version).order_by(of.model, of.version))
            return tuple(Agreement(ModelName(row.model), *row[1:]) for row in rows)

    def answer(self, number: int, label: int, *, signed: bytes, actor: Actor, reason: str) -> Review:
        """Put an answer on record, for its device to be told.

        Args:
            number: The review.
            label: Number of the label that holds.
            signed: The answer as the authority signed it.
            actor: Who answers.
            reason: Why.

        Raises:
            UsageError: There is no such review.
            RefusedError: It does not wait any more: somebody else answered it, or its device.
        """
        now_s = self._clock()
        with self._database.write() as connection:
            before = _found(connection, number)
            require_waiting(before, now_s)
            connection.execute(
                update(reviews)
                .where(reviews.c.id == number)
                .values(
                    state=ANSWERED,
                    answer=label,
                    answered_s=now_s,
                    answered_by=actor.name,
                    reason=reason,
                    signed=signed,
                )
            )
            self._audit.append(
                connection,
                actor,
                action="review.answer",
                object=f"review:{number}",
                reason=reason,
                before={"state": before.state, "label": before.label},
                after={
                    "state": ANSWERED,
                    "label": label,
                    "device": before.device,
                    "model": before.model,
                    "version": before.version,
                    "answer_sha256": hashlib.sha256(signed).hexdigest(),
                },
            )
            return _found(connection, number)

    def signed(self, number: int) -> bytes:
        """Return an answer as the authority signed it.

        Raises:
            UsageError: Nobody has answered a review of that number.
        """
        with self._database.read() as connection:
            found = connection.execute(select(reviews.c.signed).where(reviews.c.id == number)).scalar()
        if found is None:
            raise UsageError(f"Nobody has answered review {number}.")
        return bytes(found)

    def answers_for(self, device: DeviceId) -> tuple[bytes, ...]:
        """Return the answers that a device is to be told, signed: until it says what became of them."""
        query = (
            select(reviews.c.signed)
            .where(
                reviews.c.device_id == device,
                reviews.c.state == ANSWERED,
                reviews.c.expires_s > self._clock(),
            )
            .order_by(reviews.c.id)
            .limit(MAX_SENT)
        )
        with self._database.read() as connection:
            return tuple(connection.execute(query).scalars())

    def _like(
        self, waiting: bool | None, model: str | None, device: str | None
    ) -> Iterable[ColumnElement[bool]]:
        now_s = self._clock()
        if waiting is True:
            yield and_(reviews.c.state == OPEN, reviews.c.expires_s > now_s)
        elif waiting is False:
            yield or_(reviews.c.state != OPEN, reviews.c.expires_s <= now_s)
        if model is not None:
            yield reviews.c.model == model
        if device is not None:
            yield reviews.c.device_id == device


def require_waiting(review: Review, now_s: float) -> None:
    """Check that a review may be answered.

    Raises:
        RefusedError: It does not wait any more; the sentence says who was first.
    """
    if review.waits(now_s):
        return
    if review.answered_by is not None:
        why = f"{review.answered_by} answered it already"
    else:
        why = {
            OPEN: "nobody answered it in time",
            HERE: "somebody decided on the device itself",
            WITHDRAWN: "its device shares nothing any more",
        }.get(review.state, "its device has it no more")
    raise RefusedError(f"Review {review.id} does not wait any more: {why}.")


def add_reviews(
    connection: Connection,
    told: Sequence[tuple[DeviceId, Sequence[WaitingReview], Sequence[EndedReview]]],
    *,
    now_s: float,
) -> None:
    """Keep what devices announced, in the transaction of their batches; what is told again changes nothing.

    Of a model or a version that the fleet has never released nothing is kept, and no more than ``MAX_ANNOUNCED`` that
    wait of one device.

    Args:
        connection: The transaction.
        told: Of each batch, who sent it, what waits there, and what does no more.
        now_s: The time, Unix seconds.
    """
    if not any(waiting or ended for _, waiting, ended in told):
        return
    out = {
        (row.model, row.version) for row in connection.execute(select(releases.c.model, releases.c.version))
    }
    for device, waiting, ended in told:
        for one in ended:  # First: it makes room.
            _end(connection, device, one, now_s)
        room = _room(connection, device) if waiting else 0
        for each in waiting:
            if room > 0 and (each.model, each.version) in out:
                room -= _announce(connection, device, each, now_s)


def _room(connection: Connection, device: DeviceId) -> int:
    """Return how many more of a device may wait."""
    query = select(func.count()).where(reviews.c.device_id == device, reviews.c.state.in_((OPEN, ANSWERED)))
    return MAX_ANNOUNCED - int(connection.execute(query).scalar_one())


def _announce(connection: Connection, device: DeviceId, each: WaitingReview, now_s: float) -> int:
    done = connection.execute(
        insert(connection, reviews)
        .values(
            device_id=device,
            announced_id=each.id,
            model=each.model,
            version=each.version,
            label=each.label,
            percent=each.percent,
            predicted_s=60.0 * each.minute,
            unsure=int(each.unsure),
            flagged=int(each.flagged),
            announced_s=now_s,
            expires_s=now_s + LIFE_S,
            state=OPEN,
        )
        .on_conflict_do_nothing(index_elements=["device_id", "announced_id"])
    )
    return int(done.rowcount)


def _end(connection: Connection, device: DeviceId, each: EndedReview, now_s: float) -> None:
    """Note what a device says became of a review; who says it first is believed, once."""
    of = reviews.c
    mine = and_(of.device_id == device, of.announced_id == each.id)
    state = APPLIED if each.end == "answered" else each.end
    # Nobody can have done what nobody has asked for.
    before: tuple[str, ...] = (ANSWERED,) if state == APPLIED else (OPEN, ANSWERED)
    values: dict[str, Any] = {"state": state, "ended_s": now_s}
    if state == WITHDRAWN:
        before = (OPEN, ANSWERED, APPLIED, HERE, GONE, REFUSED)
        values |= {"label": None, "percent": None, "predicted_s": None, "unsure": 0, "flagged": 0}
    connection.execute(update(reviews).where(mine, of.state.in_(before)).values(values))


def _found(connection: Connection, number: int) -> Review:
    row = connection.execute(select(reviews).where(reviews.c.id == number)).one_or_none()
    if row is None:
        raise UsageError(f"There is no review {number}:  umbel fleet review list  shows those that wait.")
    return _review(row)


def _review(row: Row[Any]) -> Review:
    return Review(
        id=row.id,
        device=DeviceId(row.device_id),
        announced_id=row.announced_id,
        model=ModelName(row.model),
        version=row.version,
        label=row.label,
        percent=row.percent,
        predicted_s=row.predicted_s,
        unsure=bool(row.unsure),
        flagged=bool(row.flagged),
        announced_s=row.announced_s,
        expires_s=row.expires_s,
        state=row.state,
        answer=row.answer,
        answered_s=row.answered_s,
        answered_by=row.answered_by,
        reason=row.reason,
        ended_s=row.ended_s,
    )
